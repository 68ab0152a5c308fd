//! Who leads: as much load on each node as on the others, and no more changes than that is worth.

use super::Plan;
use crate::cluster::Command;
use std::collections::BTreeMap;
use taskmaster_protocol::NodeId;

/// What a partition counts by itself; its load, compared with the average, counts as much again.
const SHARE: u64 = 1_000;

/// A partition that one of its nodes leads.
struct Led {
    group: u16,
    leader: NodeId,
    weight: u64,
    may_move: bool,
}

impl Plan<'_> {
    pub(super) fn prefer(&mut self) {
        for (group, placement) in (0u16..).zip(&self.map.partitions) {
            let wanted = &self.wanted[usize::from(group)];
            let is_moving = wanted.replicas != placement.replicas;
            if !is_moving && wanted.leader.is_some_and(|leader| !self.is_usable(leader)) {
                self.wanted[usize::from(group)].leader = None;
                self.add(Command::Prefer { group, leader: None });
            }
        }
        let mut led = self.led();
        let mut sums: BTreeMap<NodeId, u64> = self.usable().map(|(id, _)| (id, 0)).collect();
        for partition in &led {
            if let Some(sum) = sums.get_mut(&partition.leader) {
                *sum = sum.saturating_add(partition.weight);
            }
        }
        let count = u64::try_from(sums.len().max(1)).unwrap_or(u64::MAX);
        let average = sums.values().fold(0u64, |sum, weight| sum.saturating_add(*weight)) / count;
        let worth = average.saturating_mul(u64::from(self.limits.leader_percent)) / 100 + 1;
        for _ in 0..self.limits.moves_max {
            if self.is_full() {
                return;
            }
            let Some((at, to)) = self.next_leader(&led, &sums, worth) else { return };
            let Led { group, leader, weight, .. } = led[at];
            if let Some(sum) = sums.get_mut(&leader) {
                *sum -= weight.min(*sum);
            }
            if let Some(sum) = sums.get_mut(&to) {
                *sum = sum.saturating_add(weight);
            }
            led[at].leader = to;
            led[at].may_move = false;
            self.add(Command::Prefer { group, leader: Some(to) });
        }
    }

    /// All partitions with a leader that is there: the preferred one, else the one that was elected.
    fn led(&self) -> Vec<Led> {
        let load_sum = self.sum_of(self.limits.load_per_s_min, |report| report.load_per_s);
        let partitions = u128::try_from(self.wanted.len()).unwrap_or(u128::MAX);
        let led = |(group, wanted): (u16, &super::Wanted<'_>)| {
            let report = wanted.report?;
            let leader = wanted.leader.unwrap_or(report.leader);
            let extra = u128::from(report.load_per_s)
                .saturating_mul(partitions)
                .saturating_mul(u128::from(SHARE))
                .checked_div(load_sum)
                .unwrap_or(0);
            let weight = SHARE + u64::try_from(extra).unwrap_or(u64::MAX >> 16);
            self.is_usable(leader).then_some(Led { group, leader, weight, may_move: wanted.is_free })
        };
        (0u16..).zip(&self.wanted).filter_map(led).collect()
    }

    /// The change that helps the most burdened node for which any is worth it: index in `led` and the new leader.
    fn next_leader(&self, led: &[Led], sums: &BTreeMap<NodeId, u64>, worth: u64) -> Option<(usize, NodeId)> {
        let mut burdened: Vec<(u64, NodeId)> = sums.iter().map(|(id, sum)| (*sum, *id)).collect();
        burdened.sort_unstable();
        // Nothing is lighter than a share, so nobody below this could give one away.
        let least = burdened.first()?.0.saturating_add(SHARE).saturating_add(worth);
        burdened.into_iter().rev().take_while(|(burden, _)| *burden >= least).find_map(|(burden, from)| {
            led.iter()
                .enumerate()
                .filter(|(_, partition)| partition.leader == from && partition.may_move)
                .flat_map(|(at, partition)| {
                    let others = self.wanted[usize::from(partition.group)].replicas.iter().copied();
                    others.filter(move |to| *to != from).map(move |to| (at, to, partition.weight))
                })
                .filter_map(|(at, to, weight)| {
                    let after = sums.get(&to)?.saturating_add(weight);
                    let is_worth_it = burden >= after.saturating_add(worth);
                    is_worth_it.then_some((after.max(burden - weight.min(burden)), at, to))
                })
                .min()
                .map(|(_, at, to)| (at, to))
        })
    }
}
