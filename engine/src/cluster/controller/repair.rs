//! The right number of replicas on nodes that may have them: growth, replacement, draining.

use super::standing::Standing;
use super::{Plan, odd};
use crate::cluster::{Command, META_GROUP};
use taskmaster_protocol::NodeId;

impl Plan<'_> {
    /// The meta group first: without it nothing else can be decided.
    pub(super) fn repair_meta(&mut self) {
        let Some(replicas) = self.repaired(META_GROUP, self.meta_size()) else { return };
        if self.moves_left > 0 {
            self.moves_left -= 1;
            self.add(Command::Place { group: META_GROUP, replicas, leader: None });
        }
    }

    /// Partitions with the fewest live replicas first, then the cheapest.
    pub(super) fn repair_partitions(&mut self) {
        if self.moves_left == 0 {
            return;
        }
        let size = self.size(self.map.replication);
        let mut order: Vec<(usize, u64, u16)> = (0u16..)
            .zip(&self.wanted)
            .filter(|(_, wanted)| wanted.report.is_some())
            .map(|(group, wanted)| {
                let live = wanted.replicas.iter().filter(|id| self.is_alive(**id)).count();
                (live, wanted.cost(), group)
            })
            .collect();
        order.sort_unstable();
        for (_, _, group) in order {
            if self.moves_left == 0 || self.is_full() {
                return;
            }
            if let Some(replicas) = self.repaired(group, size) {
                self.move_partition(group, replicas);
            }
        }
    }

    /// Where a group should be instead, if that is elsewhere and can be reached from where it is.
    fn repaired(&self, group: u16, size: usize) -> Option<Vec<NodeId>> {
        let placement = self.map.placement(group)?;
        let report = self.report(group)?;
        if report.joint || !self.has_live_quorum(&report.voters) {
            return None;
        }
        if !placement.settled {
            // Back to what it has if it waits for a node that will not come, or would be led by nobody when it arrived.
            let is_hopeless = |id: &NodeId| !report.voters.contains(id) && !self.standing(*id).keeps();
            if self.has_live_quorum(&placement.replicas) && !placement.replicas.iter().any(is_hopeless) {
                return None;
            }
        }
        let base = if placement.settled { &placement.replicas } else { &report.voters };
        let replicas = self.target(base, size, report.leader);
        // The map gives a node that leaves nothing back.
        let is_allowed = |id: &NodeId| placement.contains(*id) || self.standing(*id).is_active();
        let is_possible = self.has_live_quorum(&replicas) && replicas.iter().all(is_allowed);
        (is_possible && replicas != placement.replicas).then_some(replicas)
    }

    /// `size` replicas, as many as possible of those there are, or fewer if there are no nodes for them.
    fn target(&self, base: &[NodeId], size: usize, leader: NodeId) -> Vec<NodeId> {
        let of_base =
            |is_wanted: fn(Standing) -> bool| base.iter().copied().filter(move |id| is_wanted(self.standing(*id)));
        let spare = self.usable().filter(|(id, _)| !base.contains(id)).count();
        let size = odd(size.min(base.len() + spare));
        let mut set: Vec<NodeId> = of_base(Standing::keeps).collect();
        while set.len() > size {
            self.drop_worst(&mut set, leader);
        }
        while set.len() < size {
            let Some(node) = self.candidate(&set) else { break };
            set.push(node);
        }
        // Without a spare node, what there is stays: the lost, then those that leave as long as they are there.
        let lost = of_base(|standing| standing == Standing::Lost);
        let leaving = of_base(|standing| matches!(standing, Standing::Leaving | Standing::Gone));
        let (there, dead): (Vec<_>, Vec<_>) = leaving.partition(|id| self.is_alive(*id));
        let fill = lost.chain(there).chain(dead).take(size.saturating_sub(set.len()));
        set.extend(fill);
        set.sort_unstable();
        set
    }

    /// The usable node that spreads these replicas best, then the emptiest.
    fn candidate(&self, set: &[NodeId]) -> Option<NodeId> {
        self.usable()
            .filter(|(id, _)| !set.contains(id))
            .min_by_key(|(id, node)| (self.in_zone(set, node.zone), node.replicas, *id))
            .map(|(id, _)| id)
    }

    /// The one that is dead, shares its zone with most, is not the leader, and is on the fullest node.
    fn drop_worst(&self, set: &mut Vec<NodeId>, leader: NodeId) {
        let badness = |id: &NodeId| {
            let (zone, replicas) = self.node(*id).map_or((usize::MAX, 0), |node| (node.zone, node.replicas));
            (!self.is_alive(*id), self.in_zone(set, zone), *id != leader, replicas, *id)
        };
        if let Some(worst) = set.iter().copied().max_by_key(badness) {
            set.retain(|id| *id != worst);
        }
    }
}
