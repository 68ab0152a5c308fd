//! A cluster's state as text and as JSON. Pure: the clock is an argument.

use serde_json::{Value, json};
use taskmaster_client::{ClusterView, GroupView, NodeId, NodeStatus, NodeView};

use super::problems::{Problem, Severity, ago, problems};
use super::view::{address, answering, living, name, names, state};
use crate::output::{Output, Side, Table, Tint, human_bytes, human_count, iso_time};

/// Partitions in four numbers.
struct Summary {
    with_leader: usize,
    under_replicated: usize,
    unsettled: usize,
    lag_max: u32,
}

fn summary(view: &ClusterView) -> Summary {
    let living = living(view);
    let count = |is_so: &dyn Fn(&GroupView) -> bool| view.partitions.iter().filter(|group| is_so(group)).count();
    Summary {
        with_leader: count(&|group| group.leader.is_some()),
        under_replicated: count(&|group| answering(group, &living) < view.replication as usize),
        unsettled: count(&|group| !group.is_settled),
        lag_max: view.partitions.iter().map(|group| group.lag).max().unwrap_or(0),
    }
}

/// Whether everything is served.
pub(super) fn is_serving(problems: &[Problem]) -> bool {
    problems.iter().all(|problem| problem.severity != Severity::Bad)
}

/// The state for people; `with_partitions` lists each of them.
pub(super) fn text(view: &ClusterView, now_ms: u64, with_partitions: bool, output: Output) -> String {
    let mut text = String::new();
    if let Some(cluster) = view.cluster {
        text.push_str(&format!(
            "cluster {cluster:032x}, map version {}, {} replica(s) wanted\n\n{}\n",
            view.version,
            view.replication,
            nodes(view, now_ms, output)
        ));
        let Summary { with_leader, under_replicated, unsettled, lag_max } = summary(view);
        text.push_str(&format!(
            "{} partitions: {with_leader} with a leader, {under_replicated} with too few replicas, {unsettled} moving; \
             largest lag {} entries\nmap: led by {}, kept by {}\n",
            view.partitions.len(),
            human_count(lag_max.into()),
            leader(view, view.meta.leader),
            names(view, &view.meta.voters),
        ));
        if with_partitions {
            text.push_str(&format!("\n{}", partitions(view)));
        }
        text.push('\n');
    }
    let problems = problems(view, now_ms);
    if problems.is_empty() {
        text.push_str(&format!("{}\n", output.tint(Tint::Good, "All is well.")));
    }
    for problem in problems {
        let mark = match problem.severity {
            Severity::Bad => output.tint(Tint::Bad, "FAIL"),
            Severity::Caution => output.tint(Tint::Caution, "warn"),
        };
        text.push_str(&format!("{mark}  {}\n", problem.message));
    }
    text
}

fn leader(view: &ClusterView, id: Option<NodeId>) -> String {
    id.map_or_else(|| "nobody".to_owned(), |id| name(view, id))
}

fn nodes(view: &ClusterView, now_ms: u64, output: Output) -> String {
    let mut table = Table::new(&[
        ("node", Side::Left),
        ("id", Side::Left),
        ("zone", Side::Left),
        ("state", Side::Left),
        ("leads", Side::Right),
        ("replicas", Side::Right),
        ("disk used", Side::Right),
        ("disk free", Side::Right),
        ("heard", Side::Left),
        ("version", Side::Right),
        ("address", Side::Left),
    ]);
    for node in &view.nodes {
        let tint = match (node.status, node.is_alive) {
            (NodeStatus::Removed, _) => Tint::Dim,
            (_, false) => Tint::Bad,
            (NodeStatus::Draining, true) => Tint::Caution,
            _ => Tint::Good,
        };
        table.row(vec![
            node.name.clone(),
            node.id.to_string(),
            node.zone.clone(),
            output.tint(tint, state(node)),
            human_count(node.leaders.into()),
            human_count(node.replicas.into()),
            node.disk_bytes.map_or_else(String::new, |(all, free)| human_bytes(all.saturating_sub(free))),
            node.disk_bytes.map_or_else(String::new, |(_, free)| human_bytes(free)),
            heard(view, node, now_ms),
            node.version.to_string(),
            address(node).unwrap_or_default(),
        ]);
    }
    table.render()
}

fn heard(view: &ClusterView, node: &NodeView, now_ms: u64) -> String {
    match node.seen_ms {
        _ if Some(node.id) == view.answered_by => "answered".to_owned(),
        None => "never".to_owned(),
        Some(seen_ms) => ago(now_ms, seen_ms),
    }
}

fn partitions(view: &ClusterView) -> String {
    let mut table = Table::new(&[
        ("partition", Side::Right),
        ("leader", Side::Left),
        ("term", Side::Right),
        ("applied", Side::Right),
        ("committed", Side::Right),
        ("lag", Side::Right),
        ("voters", Side::Left),
        ("learners", Side::Left),
        ("should be on", Side::Left),
    ]);
    for (number, group) in view.partitions.iter().enumerate() {
        table.row(vec![
            number.to_string(),
            leader(view, group.leader),
            group.term.to_string(),
            group.applied.to_string(),
            group.committed.to_string(),
            group.lag.to_string(),
            names(view, &group.voters),
            names(view, &group.learners),
            if group.is_settled { String::new() } else { names(view, &group.replicas) },
        ]);
    }
    table.render()
}

/// The state for programs.
pub(super) fn json(view: &ClusterView, now_ms: u64) -> Value {
    let Summary { with_leader, under_replicated, unsettled, lag_max } = summary(view);
    let problems = problems(view, now_ms);
    let sentence = |problem: &Problem| json!({"severity": problem.severity.word(), "message": problem.message});
    let numbered = view.partitions.iter().enumerate().map(|(number, group)| {
        let mut object = group_json(group);
        object["partition"] = json!(number);
        object
    });
    json!({
        "cluster": view.cluster.map(|cluster| format!("{cluster:032x}")),
        "map_version": view.version,
        "answered_by": id_json(view.answered_by),
        "replication": view.replication,
        "serving": is_serving(&problems),
        "problems": problems.iter().map(sentence).collect::<Vec<_>>(),
        "nodes": view.nodes.iter().map(node_json).collect::<Vec<_>>(),
        "map": group_json(&view.meta),
        "summary": {
            "partitions": view.partitions.len(), "with_leader": with_leader, "under_replicated": under_replicated,
            "unsettled": unsettled, "lag_max": lag_max,
        },
        "partitions": numbered.collect::<Vec<_>>(),
    })
}

/// A node's id; null for none.
pub(super) fn id_json(id: Option<NodeId>) -> Value {
    json!(id.map(|id| id.to_string()))
}

fn node_json(node: &NodeView) -> Value {
    json!({
        "id": node.id.to_string(),
        "name": node.name,
        "zone": (!node.zone.is_empty()).then_some(&node.zone),
        "state": state(node),
        "status": node.status.name(),
        "alive": node.is_alive,
        "address": address(node),
        "host": node.host,
        "client_ports": node.ports,
        "peer_port": node.peer_port,
        "leaders": node.leaders,
        "replicas": node.replicas,
        "last_heard_at": node.seen_ms.map(|seen_ms| iso_time(seen_ms.saturating_mul(1_000))),
        "disk_bytes": node.disk_bytes.map(|(all, _)| all),
        "disk_bytes_free": node.disk_bytes.map(|(_, free)| free),
        "version": node.version,
    })
}

fn group_json(group: &GroupView) -> Value {
    let ids = |ids: &[NodeId]| ids.iter().map(NodeId::to_string).collect::<Vec<_>>();
    json!({
        "leader": id_json(group.leader),
        "term": group.term,
        "applied": group.applied,
        "committed": group.committed,
        "replicas": ids(&group.replicas),
        "voters": ids(&group.voters),
        "learners": ids(&group.learners),
        "lag": group.lag,
        "settled": group.is_settled,
    })
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::healthy;
    use super::*;
    use crate::output::Shape;

    fn plain(view: &ClusterView, with_partitions: bool) -> String {
        text(view, 1_005_000, with_partitions, Output::new(Shape::Json))
    }

    #[test]
    fn a_healthy_cluster_reads_at_a_glance() {
        let text = plain(&healthy(8), false);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("cluster 00000000000000000000000000000007, map version 12, 3 replica(s) wanted"));
        assert!(
            text.contains(
                "n1    0000000000001  a     alive      1         8   60.0 GiB   40.0 GiB  answered        1  10.0.0.1:7701"
            ),
            "{text}"
        );
        assert!(text.contains("5s ago"), "{text}");
        assert!(
            text.ends_with(
                "8 partitions: 8 with a leader, 0 with too few replicas, 0 moving; largest lag 0 entries\n\
                 map: led by n2, kept by n1, n2, n3\n\nAll is well.\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn partitions_are_listed_when_asked_for() {
        let mut view = healthy(2);
        view.partitions[1].leader = None;
        view.partitions[1].is_settled = false;
        let text = plain(&view, true);
        assert!(text.contains("        0  n1         3       90         90    0  n1, n2, n3\n"), "{text}");
        assert!(
            text.contains("        1  nobody     3       90         90    0  n1, n2, n3            n1, n2, n3\n"),
            "{text}"
        );
        assert!(text.contains("FAIL  No leader is known for partition 1"), "{text}");
    }

    #[test]
    fn json_has_stable_names() {
        let mut view = healthy(2);
        view.nodes[2].is_alive = false;
        let json = json(&view, 1_005_000);
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(
            keys(&json),
            "answered_by cluster map map_version nodes partitions problems replication serving summary"
        );
        assert_eq!(
            keys(&json["nodes"][0]),
            "address alive client_ports disk_bytes disk_bytes_free host id last_heard_at leaders name peer_port \
             replicas state status version zone"
        );
        assert_eq!(
            keys(&json["partitions"][1]),
            "applied committed lag leader learners partition replicas settled term voters"
        );
        assert_eq!(keys(&json["summary"]), "lag_max partitions under_replicated unsettled with_leader");
        assert_eq!(json["nodes"][2]["state"], "down");
        assert_eq!(json["serving"], true);
        assert_eq!(json["summary"]["under_replicated"], 2);
        assert_eq!(json["problems"][0]["severity"], "caution");
        assert_eq!(json["partitions"][1]["leader"], "0000000000002");
    }

    #[test]
    fn a_node_of_no_cluster_says_only_that() {
        let text = plain(&ClusterView { answered_by: Some(NodeId(1)), ..ClusterView::default() }, false);
        assert!(text.starts_with("FAIL  The node belongs to no cluster yet"), "{text}");
        assert_eq!(json(&ClusterView::default(), 0)["cluster"], Value::Null);
    }
}
