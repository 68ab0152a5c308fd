//! Hot and big partitions off overloaded nodes, without unbalancing how many replicas each has.
//!
//! One exchange at a time, and only while nothing else is on its way: load moves with it, and the next look shows how far.

use super::{Plan, Wanted};
use crate::cluster::Command;
use std::collections::BTreeMap;
use taskmaster_protocol::NodeId;

/// A share of the whole cluster's load or bytes is counted in millionths.
const WHOLE: u128 = 1_000_000;
/// How many partitions of each of the two nodes are looked at.
const LOOKED_AT_MAX: usize = 8;

/// Two nodes and what they would exchange.
struct Exchange {
    from: NodeId,
    to: NodeId,
    hot: u16,
    cool: Option<u16>,
    gain: u64,
}

impl Wanted<'_> {
    fn heat(&self, load_sum: u128, bytes_sum: u128) -> u64 {
        let Some(report) = self.report else { return 0 };
        let share = |part: u64, sum: u128| (u128::from(part) * WHOLE).checked_div(sum).unwrap_or(0);
        let heat = share(report.load_per_s, load_sum) + share(report.log_bytes, bytes_sum);
        u64::try_from(heat).unwrap_or(u64::MAX >> 16)
    }
}

impl Plan<'_> {
    /// The sum over all partitions, or nothing if it is too little to matter.
    pub(super) fn sum_of(&self, least: u64, part: fn(&super::GroupReport) -> u64) -> u128 {
        let sum = self.wanted.iter().filter_map(|wanted| wanted.report).map(|report| u128::from(part(report))).sum();
        if sum < u128::from(least) { 0 } else { sum }
    }

    pub(super) fn cool(&mut self) {
        let is_quiet = self.map.groups().all(|(_, placement)| placement.settled)
            && !self.commands.iter().any(|command| matches!(command, Command::Place { .. }));
        if !is_quiet {
            return;
        }
        let load_sum = self.sum_of(self.limits.load_per_s_min, |report| report.load_per_s);
        let bytes_sum = self.sum_of(self.limits.bytes_min, |report| report.log_bytes);
        let heats: Vec<u64> = self.wanted.iter().map(|wanted| wanted.heat(load_sum, bytes_sum)).collect();
        let Some(Exchange { from, to, hot, cool, .. }) = self.best_exchange(&heats) else { return };
        let needed = 1 + usize::from(cool.is_some());
        if self.moves_left < needed || self.commands.len() + needed > usize::from(self.limits.commands_max) {
            return;
        }
        let replicas = self.wanted[usize::from(hot)].exchanged(from, to);
        self.move_partition(hot, replicas);
        if let Some(cool) = cool {
            let replicas = self.wanted[usize::from(cool)].exchanged(to, from);
            self.move_partition(cool, replicas);
        }
    }

    fn best_exchange(&self, heats: &[u64]) -> Option<Exchange> {
        let mut on_node: BTreeMap<NodeId, u64> = self.usable().map(|(id, _)| (id, 0)).collect();
        for (wanted, heat) in self.wanted.iter().zip(heats) {
            for id in &wanted.replicas {
                if let Some(sum) = on_node.get_mut(id) {
                    *sum = sum.saturating_add(*heat);
                }
            }
        }
        let count = u64::try_from(on_node.len()).unwrap_or(u64::MAX);
        let average = on_node.values().fold(0u64, |sum, heat| sum.saturating_add(*heat)).checked_div(count)?;
        let overload = average.saturating_add(average.saturating_mul(u64::from(self.limits.heat_percent)) / 100);
        let least_gain = average / 10 + 1;
        let (from, hottest) = on_node.iter().map(|(id, heat)| (*id, *heat)).max_by_key(|(id, heat)| (*heat, *id))?;
        if hottest <= overload {
            return None;
        }
        let mut best: Option<Exchange> = None;
        for (to, heat) in on_node.iter().map(|(id, heat)| (*id, *heat)).filter(|(_, heat)| *heat <= average) {
            let nodes = ((from, hottest), (to, heat));
            let exchange = self.exchange_between(nodes, heats).filter(|exchange| exchange.gain >= least_gain);
            if let Some(exchange) = exchange
                && best.as_ref().is_none_or(|best| exchange.gain > best.gain)
            {
                best = Some(exchange);
            }
        }
        best
    }

    /// What brings the hotter of two nodes down most.
    fn exchange_between(
        &self,
        ((from, hotter), (to, cooler)): ((NodeId, u64), (NodeId, u64)),
        heats: &[u64],
    ) -> Option<Exchange> {
        let movable = |from: NodeId, to: NodeId| {
            let mut groups: Vec<(u64, u16)> = (0u16..)
                .zip(&self.wanted)
                .filter(|(_, wanted)| self.may_exchange(wanted, from, to))
                .map(|(group, _)| (heats[usize::from(group)], group))
                .collect();
            groups.sort_unstable();
            groups
        };
        let is_fuller = self.node(from)?.replicas > self.node(to)?.replicas;
        let none = is_fuller.then_some((0, None));
        let cools: Vec<(u64, Option<u16>)> = movable(to, from)
            .into_iter()
            .take(LOOKED_AT_MAX)
            .map(|(heat, group)| (heat, Some(group)))
            .chain(none)
            .collect();
        let mut best: Option<Exchange> = None;
        for (heat, hot) in movable(from, to).into_iter().rev().take(LOOKED_AT_MAX) {
            for (heat_back, cool) in cools.iter().filter(|(heat_back, _)| *heat_back < heat) {
                let moved = heat - heat_back;
                let gain = hotter.saturating_sub((hotter - moved.min(hotter)).max(cooler.saturating_add(moved)));
                if gain > best.as_ref().map_or(0, |best| best.gain) {
                    best = Some(Exchange { from, to, hot, cool: *cool, gain });
                }
            }
        }
        best
    }
}
