//! What is wrong with a cluster, as sentences that say what to do, worst first.
//!
//! Invariant: [`Severity::Bad`] means that some tasks are not served now; everything else is a caution.

use std::collections::{BTreeMap, BTreeSet};

use taskmaster_client::{ClusterView, GroupView, NodeId, NodeView};

use super::view::{answering, living, name, present, takers};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// Some tasks are not served now.
    Bad,
    /// All are served, with less safety or not where they should be.
    Caution,
}

impl Severity {
    /// Its word in JSON.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::Caution => "caution",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    /// A sentence.
    pub(crate) message: String,
}

/// Entries of lag from which it is worth a sentence.
const LAG_NOTED: u32 = 100_000;
/// Share of the disk, in percent, below which free room is worth a sentence.
const FREE_PERCENT_MIN: u64 = 10;

/// Everything that is wrong, by the clock of the one who asks.
pub(crate) fn problems(view: &ClusterView, now_ms: u64) -> Vec<Problem> {
    let mut found = Vec::new();
    if view.cluster.is_none() {
        let message =
            "The node belongs to no cluster yet: it joins by its seeds, or `taskmaster cluster bootstrap` founds one.";
        found.push(Problem { severity: Severity::Bad, message: message.to_owned() });
    } else {
        groups(view, &mut found);
        nodes(view, now_ms, &mut found);
        replication(view, &mut found);
    }
    found.extend(view.warnings.iter().map(|warning| Problem { severity: Severity::Caution, message: warning.clone() }));
    found.sort_by_key(|problem| problem.severity);
    found
}

/// Voters that a quorum has.
fn quorum(group: &GroupView) -> usize {
    group.voters.len() / 2 + 1
}

/// Groups without a quorum, and groups without a leader.
fn groups(view: &ClusterView, found: &mut Vec<Problem>) {
    let living = living(view);
    let mut lost: BTreeMap<Vec<NodeId>, Vec<usize>> = BTreeMap::new();
    let mut leaderless = Vec::new();
    for (number, group) in view.partitions.iter().enumerate() {
        if answering(group, &living) < quorum(group) && !group.voters.is_empty() {
            lost.entry(group.voters.clone()).or_default().push(number);
        } else if group.leader.is_none() {
            leaderless.push(number);
        }
    }
    let mut bad = |message: String| found.push(Problem { severity: Severity::Bad, message });
    for (voters, numbers) in lost {
        let down: Vec<String> =
            voters.iter().filter(|voter| living.get(voter) != Some(&true)).map(|&voter| name(view, voter)).collect();
        bad(format!(
            "No quorum for {}: {} of {} replicas answer; its tasks wait until {} is back.",
            partitions(&numbers),
            voters.len() - down.len(),
            voters.len(),
            down.join(" or ")
        ));
    }
    if !leaderless.is_empty() {
        bad(format!("No leader is known for {}: an election is under way, or not possible.", partitions(&leaderless)));
    }
    let alive = answering(&view.meta, &living);
    if !view.meta.voters.is_empty() && alive < quorum(&view.meta) {
        bad(format!(
            "No quorum for the cluster's map: {alive} of {} of its voters answer; nothing moves and nobody joins until then.",
            view.meta.voters.len()
        ));
    } else if view.meta.leader.is_none() {
        bad("No leader is known for the cluster's map: nothing moves and nobody joins until then.".to_owned());
    }
}

fn nodes(view: &ClusterView, now_ms: u64, found: &mut Vec<Problem>) {
    let mut caution = |message: String| found.push(Problem { severity: Severity::Caution, message });
    let present: Vec<&NodeView> = present(view).collect();
    for node in present.iter().filter(|node| !node.is_alive) {
        let since = match node.seen_ms {
            None => "never heard".to_owned(),
            Some(seen_ms) => format!("last heard {}", ago(now_ms, seen_ms)),
        };
        caution(format!(
            "Node {} is down ({since}): start it, or `taskmaster cluster remove {}` if it will not come back.",
            node.name, node.name
        ));
    }
    let mut names = BTreeSet::new();
    for node in present.iter().filter(|node| !names.insert(&node.name)) {
        caution(format!("Two nodes are named {}: give one another cluster.node_name.", node.name));
    }
    let versions: BTreeSet<u32> = present.iter().map(|node| node.version).collect();
    if let (Some(oldest), Some(newest)) = (versions.first(), versions.last())
        && oldest != newest
    {
        caution(format!(
            "Nodes have versions {oldest} to {newest}: complete the upgrade; at most two adjacent ones work together."
        ));
    }
    for node in &present {
        let Some((all, free)) = node.disk_bytes else { continue };
        if free.saturating_mul(100) < all.saturating_mul(FREE_PERCENT_MIN) {
            caution(format!(
                "The disk of node {} is nearly full: free space, or move partitions to another node.",
                node.name
            ));
        }
    }
}

fn replication(view: &ClusterView, found: &mut Vec<Problem>) {
    let mut caution = |message: String| found.push(Problem { severity: Severity::Caution, message });
    let living = living(view);
    let wanted = view.replication as usize;
    let takers = takers(view);
    if takers < wanted {
        let missing = wanted - takers;
        caution(format!(
            "{takers} node(s) take replicas and each partition should have {wanted}: add {missing}, or lower \
             `taskmaster cluster replication`."
        ));
    } else {
        let few = numbers(view, |group| answering(group, &living) < wanted);
        if !few.is_empty() {
            caution(format!(
                "Fewer than {wanted} replicas answer of {}: new ones are made after cluster.replace_after.",
                partitions(&few)
            ));
        }
    }
    let unsettled = numbers(view, |group| !group.is_settled);
    if !unsettled.is_empty() {
        caution(format!("Replicas of {} are on their way.", partitions(&unsettled)));
    }
    let behind = numbers(view, |group| group.lag >= LAG_NOTED);
    if !behind.is_empty() {
        caution(format!("A replica of {} is more than {LAG_NOTED} entries behind.", partitions(&behind)));
    }
}

fn numbers(view: &ClusterView, is_so: impl Fn(&GroupView) -> bool) -> Vec<usize> {
    view.partitions.iter().enumerate().filter(|(_, group)| is_so(group)).map(|(number, _)| number).collect()
}

/// Partition numbers in words, runs joined: `partitions 0-3, 7`.
pub(super) fn partitions(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let runs: Vec<String> = runs
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    format!("{} {}", if numbers.len() == 1 { "partition" } else { "partitions" }, runs.join(", "))
}

/// How long ago, in one unit.
pub(super) fn ago(now_ms: u64, then_ms: u64) -> String {
    match now_ms.saturating_sub(then_ms) / 1_000 {
        0..=1 => "now".to_owned(),
        seconds @ 2..120 => format!("{seconds}s ago"),
        seconds @ 120..7_200 => format!("{}m ago", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h ago", seconds / 3_600),
        seconds => format!("{}d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::healthy;
    use super::*;

    fn sentences(view: &ClusterView) -> Vec<String> {
        problems(view, 1_030_000)
            .into_iter()
            .map(|problem| format!("{:?}: {}", problem.severity, problem.message))
            .collect()
    }

    fn has(view: &ClusterView, part: &str) {
        let sentences = sentences(view);
        assert!(sentences.iter().any(|sentence| sentence.contains(part)), "{part} is not in {sentences:#?}");
    }

    #[test]
    fn a_healthy_cluster_has_no_problems() {
        assert_eq!(sentences(&healthy(8)), Vec::<String>::new());
    }

    #[test]
    fn a_node_of_no_cluster_is_told_how_to_become_one() {
        has(
            &ClusterView { answered_by: Some(NodeId(1)), ..ClusterView::default() },
            "Bad: The node belongs to no cluster yet",
        );
    }

    #[test]
    fn one_node_down_is_a_caution_and_two_of_three_are_no_quorum() {
        let mut view = healthy(4);
        view.nodes[2].is_alive = false;
        has(&view, "Caution: Node n3 is down (last heard 30s ago)");
        has(&view, "Caution: 2 node(s) take replicas and each partition should have 3: add 1");
        assert!(!sentences(&view).iter().any(|sentence| sentence.starts_with("Bad")));
        view.nodes[1].is_alive = false;
        has(&view, "Bad: No quorum for partitions 0-3: 1 of 3 replicas answer; its tasks wait until n2 or n3 is back.");
        has(&view, "Bad: No quorum for the cluster's map: 1 of 3");
        assert!(sentences(&view)[0].starts_with("Bad"));
    }

    #[test]
    fn leaders_replicas_and_moves_that_are_missing_are_told_by_partition() {
        let mut view = healthy(6);
        view.partitions[4].leader = None;
        has(&view, "Bad: No leader is known for partition 4");
        view.partitions[1].voters.pop();
        view.partitions[1].is_settled = false;
        has(&view, "Caution: Fewer than 3 replicas answer of partition 1");
        has(&view, "Caution: Replicas of partition 1 are on their way.");
        view.partitions[0].lag = 200_000;
        has(&view, "A replica of partition 0 is more than 100000 entries behind");
        view.meta.leader = None;
        has(&view, "No leader is known for the cluster's map");
    }

    #[test]
    fn doubled_names_mixed_versions_full_disks_and_the_nodes_own_warnings_are_told() {
        let mut view = healthy(1);
        view.nodes[1].name = "n1".to_owned();
        view.nodes[2].version = 2;
        view.nodes[0].disk_bytes = Some((100 << 30, 1 << 30));
        view.warnings.push("A node of cluster X was seen at 10.0.0.9.".to_owned());
        has(&view, "Two nodes are named n1");
        has(&view, "versions 1 to 2");
        has(&view, "disk of node n1 is nearly full");
        has(&view, "Caution: A node of cluster X");
    }

    #[test]
    fn runs_of_partitions_are_joined() {
        assert_eq!(partitions(&[3]), "partition 3");
        assert_eq!(partitions(&[0, 1, 2, 7, 9, 10]), "partitions 0-2, 7, 9-10");
        assert_eq!(ago(10_000, 9_500), "now");
        assert_eq!(ago(1_000_000, 0), "16m ago");
    }
}
