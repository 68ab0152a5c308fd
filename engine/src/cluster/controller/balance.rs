//! Replicas over zones and nodes: each step improves the spread over zones, or, without making that worse, how evenly
//! nodes are filled. Sums of squares measure both, so the steps end.

use super::{Plan, Wanted};
use taskmaster_protocol::NodeId;

impl Wanted<'_> {
    /// What moving it costs, by what has to be sent.
    pub(super) fn cost(&self) -> u64 {
        self.report.map_or(0, |report| report.log_bytes.saturating_add(report.tasks))
    }

    /// Its replicas after one of them moved; sorted.
    pub(super) fn exchanged(&self, from: NodeId, to: NodeId) -> Vec<NodeId> {
        let mut replicas: Vec<NodeId> = self.replicas.iter().map(|id| if *id == from { to } else { *id }).collect();
        replicas.sort_unstable();
        replicas
    }
}

impl Plan<'_> {
    /// Moves replicas that share a zone while another zone has room; the cheapest first.
    pub(super) fn spread(&mut self) {
        if self.moves_left == 0 {
            return;
        }
        let mut order: Vec<(u64, u16)> = (0u16..)
            .zip(&self.wanted)
            .filter(|(_, wanted)| wanted.is_free && wanted.replicas.len() > 1)
            .map(|(group, wanted)| (wanted.cost(), group))
            .collect();
        order.sort_unstable();
        for (_, group) in order {
            if self.moves_left == 0 || self.is_full() {
                return;
            }
            let wanted = &self.wanted[usize::from(group)];
            if let Some((from, to)) = self.better_spread(&wanted.replicas) {
                let replicas = wanted.exchanged(from, to);
                self.move_partition(group, replicas);
            }
        }
    }

    fn better_spread(&self, replicas: &[NodeId]) -> Option<(NodeId, NodeId)> {
        let key_from = |id: &&NodeId| {
            let node = self.node(**id);
            node.map(|node| (self.in_zone(replicas, node.zone), node.replicas, **id))
        };
        let from = *replicas.iter().max_by_key(key_from)?;
        let crowd = self.in_zone(replicas, self.node(from)?.zone);
        self.usable()
            .filter(|(id, node)| !replicas.contains(id) && self.in_zone(replicas, node.zone) + 1 < crowd)
            .min_by_key(|(id, node)| (self.in_zone(replicas, node.zone), node.replicas, *id))
            .map(|(to, _)| (from, to))
    }

    /// Moves replicas from full nodes to emptier ones until they differ by at most one, as far as zones allow.
    pub(super) fn balance(&mut self) {
        while self.moves_left > 0 && !self.is_full() {
            let Some((group, from, to)) = self.next_exchange() else { return };
            let replicas = self.wanted[usize::from(group)].exchanged(from, to);
            self.move_partition(group, replicas);
        }
    }

    /// The cheapest move between the two nodes that differ most and can exchange something.
    fn next_exchange(&self) -> Option<(u16, NodeId, NodeId)> {
        let mut by_fill: Vec<(usize, NodeId)> = self.usable().map(|(id, node)| (node.replicas, id)).collect();
        by_fill.sort_unstable();
        for (full, from) in by_fill.iter().rev() {
            for (empty, to) in by_fill.iter().take_while(|(empty, _)| empty + 2 <= *full) {
                debug_assert!(empty < full);
                if let Some(group) = self.cheapest(*from, *to) {
                    return Some((group, *from, *to));
                }
            }
        }
        None
    }

    fn cheapest(&self, from: NodeId, to: NodeId) -> Option<u16> {
        (0u16..)
            .zip(&self.wanted)
            .filter(|(_, wanted)| self.may_exchange(wanted, from, to))
            .min_by_key(|(group, wanted)| (wanted.cost(), *group))
            .map(|(group, _)| group)
    }

    /// Whether a partition may move from one node to another without being spread worse.
    pub(super) fn may_exchange(&self, wanted: &Wanted<'_>, from: NodeId, to: NodeId) -> bool {
        if !wanted.is_free || !wanted.replicas.contains(&from) || wanted.replicas.contains(&to) {
            return false;
        }
        let (Some(a), Some(b)) = (self.node(from), self.node(to)) else { return false };
        a.zone == b.zone || self.in_zone(&wanted.replicas, b.zone) < self.in_zone(&wanted.replicas, a.zone)
    }
}
