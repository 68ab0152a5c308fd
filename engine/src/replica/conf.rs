//! A group's configuration: who votes and who learns, and the next step from one to another.
//!
//! A change is logged as the configuration that results from it, in our own fixed layout, so that a replay sets it without
//! computing and no byte of a peer reaches the library's decoder. Changes are of three forms: learners come or go, voters
//! change through a joint configuration, and the joint configuration is left; each is proposed explicitly.
//!
//! ```text
//! offset size field
//!      0    2 voters, count        2    2 outgoing voters, count
//!      4    2 learners, count      6    2 learners after the joint configuration, count
//!      8    8 × counts             node ids, in that order, each list ascending
//! ```

use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

/// Most replicas of a group, learners included.
const MEMBERS_MAX: usize = 256;

/// Puts every list in order.
pub(crate) fn sorted(mut conf: ConfState) -> ConfState {
    conf.voters.sort_unstable();
    conf.voters_outgoing.sort_unstable();
    conf.learners.sort_unstable();
    conf.learners_next.sort_unstable();
    conf
}

/// A configuration of one voter.
pub(crate) fn alone(node: u64) -> ConfState {
    ConfState { voters: vec![node], ..ConfState::default() }
}

/// Whether the voters of two configurations must agree.
pub(crate) fn is_joint(conf: &ConfState) -> bool {
    !conf.voters_outgoing.is_empty()
}

pub(crate) fn encode(conf: &ConfState, out: &mut Vec<u8>) {
    let lists = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next];
    for list in lists {
        let count = u16::try_from(list.len()).expect("members are bounded");
        out.extend_from_slice(&count.to_le_bytes());
    }
    for node in lists.into_iter().flatten() {
        out.extend_from_slice(&node.to_le_bytes());
    }
}

/// Reads what [`encode`] wrote; `None` if the bytes are something else.
pub(crate) fn decode(bytes: &[u8]) -> Option<ConfState> {
    let (counts, nodes) = bytes.split_at_checked(8)?;
    let count = |at: usize| usize::from(u16::from_le_bytes([counts[at], counts[at + 1]]));
    let counts = [count(0), count(2), count(4), count(6)];
    let total: usize = counts.iter().sum();
    if total > MEMBERS_MAX || nodes.len() != 8 * total {
        return None;
    }
    let mut nodes = nodes.chunks_exact(8).map(|node| {
        let mut eight = [0; 8];
        eight.copy_from_slice(node);
        u64::from_le_bytes(eight)
    });
    let mut list = |count: usize| nodes.by_ref().take(count).collect::<Vec<u64>>();
    let (voters, outgoing) = (list(counts[0]), list(counts[1]));
    let (learners, next) = (list(counts[2]), list(counts[3]));
    let conf = ConfState { voters, voters_outgoing: outgoing, learners, learners_next: next, ..ConfState::default() };
    (!conf.voters.is_empty() && !conf.voters.contains(&0)).then_some(conf)
}

/// The library's change that leads from one configuration to the next.
pub(crate) fn change(from: &ConfState, to: &ConfState) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    if is_joint(from) && !is_joint(to) {
        return change;
    }
    if is_joint(to) {
        change.set_transition(ConfChangeTransition::Explicit);
    }
    let mut changes = Vec::new();
    let mut push = |kind, node_id| {
        let mut single = ConfChangeSingle { node_id, ..ConfChangeSingle::default() };
        single.set_change_type(kind);
        changes.push(single);
    };
    for &node in to.voters.iter().filter(|node| !from.voters.contains(node)) {
        push(ConfChangeType::AddNode, node);
    }
    let later = to.learners.iter().chain(&to.learners_next);
    for &node in later.filter(|node| !from.learners.contains(node)) {
        push(ConfChangeType::AddLearnerNode, node);
    }
    for &node in from
        .voters
        .iter()
        .chain(&from.learners)
        .filter(|node| ![&to.voters, &to.learners, &to.learners_next].iter().any(|list| list.contains(node)))
    {
        push(ConfChangeType::RemoveNode, node);
    }
    change.set_changes(changes.into());
    change
}

/// The next configuration on the way to `voters` (and, of the rest, `learners`), or `None` at the goal. `is_ready` says
/// whether a learner has caught up: it becomes a voter only then.
pub(crate) fn step(
    now: &ConfState,
    voters: &[u64],
    learners: &[u64],
    is_ready: impl Fn(u64) -> bool,
) -> Option<ConfState> {
    if is_joint(now) {
        let mut next = now.clone();
        next.voters_outgoing.clear();
        next.learners.extend(next.learners_next.iter().copied());
        next.learners_next.clear();
        return Some(sorted(next));
    }
    let is_known = |node: &u64| now.voters.contains(node) || now.learners.contains(node);
    if let Some(&new) = voters.iter().chain(learners).find(|node| !is_known(node)) {
        let mut next = now.clone();
        next.learners.push(new);
        return Some(sorted(next));
    }
    let coming: Vec<u64> = voters.iter().copied().filter(|node| !now.voters.contains(node)).collect();
    let going = now.voters.iter().any(|node| !voters.contains(node));
    if (going || !coming.is_empty()) && coming.iter().all(|&node| is_ready(node)) {
        let mut next = now.clone();
        next.voters_outgoing.clone_from(&now.voters);
        next.voters = voters.to_vec();
        next.learners.retain(|node| !voters.contains(node));
        next.learners_next = now.voters.iter().copied().filter(|node| learners.contains(node)).collect();
        return Some(sorted(next));
    }
    if going || !coming.is_empty() {
        return None;
    }
    let surplus = now.learners.iter().find(|node| !learners.contains(node))?;
    let mut next = now.clone();
    next.learners.retain(|node| node != surplus);
    Some(next)
}

/// Whether the configuration is just these.
pub(crate) fn is_settled(conf: &ConfState, voters: &[u64], learners: &[u64]) -> bool {
    step(conf, voters, learners, |_| true).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(mut conf: ConfState, voters: &[u64], learners: &[u64]) -> Vec<ConfState> {
        let mut steps = Vec::new();
        while let Some(next) = step(&conf, voters, learners, |_| true) {
            conf = next;
            steps.push(conf.clone());
            assert!(steps.len() < 20);
        }
        steps
    }

    #[test]
    fn voters_join_as_learners_and_change_jointly() {
        let steps = walk(alone(1), &[1, 2, 3], &[]);
        assert_eq!(steps.len(), 4, "two learners, the joint configuration, its end");
        assert_eq!((&steps[1].voters, &steps[1].learners), (&vec![1], &vec![2, 3]));
        assert!(is_joint(&steps[2]));
        assert_eq!((&steps[3].voters, &steps[3].learners), (&vec![1, 2, 3], &vec![]));
    }

    #[test]
    fn a_replaced_voter_leaves_and_a_demoted_one_learns() {
        let conf = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
        let end = walk(conf.clone(), &[1, 2, 4], &[]).pop().unwrap();
        assert_eq!((&end.voters, &end.learners), (&vec![1, 2, 4], &vec![]));
        let end = walk(conf, &[1], &[2, 3]).pop().unwrap();
        assert_eq!((&end.voters, &end.learners), (&vec![1], &vec![2, 3]));
    }

    #[test]
    fn nobody_votes_before_it_has_caught_up() {
        let conf = ConfState { voters: vec![1], learners: vec![2, 3], ..ConfState::default() };
        assert_eq!(step(&conf, &[1, 2, 3], &[], |node| node == 2), None);
    }

    #[test]
    fn bytes_round_trip_and_others_are_refused() {
        let conf =
            ConfState { voters: vec![1, 2], voters_outgoing: vec![1], learners: vec![9], ..ConfState::default() };
        let mut bytes = Vec::new();
        encode(&conf, &mut bytes);
        assert_eq!(decode(&bytes), Some(conf));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None);
        }
        assert_eq!(decode(&[0xFF; 64]), None);
    }
}
