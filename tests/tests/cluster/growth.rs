//! A fourth node comes and goes under load, and no request notices.

use std::time::{Duration, Instant};

use taskmaster_client::{ClusterChange, NodeId};

use super::ledger::Load;
use super::nodes::{Cluster, PARTITIONS, until};

/// Longest time until a new node has its share.
const BALANCED_WITHIN: Duration = Duration::from_secs(180);

impl Cluster {
    /// Replicas on each node that should have some, once nothing moves; `None` before.
    async fn settled_replicas(&self) -> Option<Vec<(NodeId, u32)>> {
        let view = self.view().await;
        let is_settled = view.partitions.iter().all(|group| group.is_settled && group.leader.is_some());
        is_settled.then(|| view.nodes.iter().map(|node| (node.id, node.replicas)).collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fourth_node_gets_its_share_and_is_drained_again_without_a_failed_request() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let load = Load::start(&client).await;
    let began = Instant::now();
    let fourth = cluster.add();
    cluster.nodes[fourth].start();
    let share = u32::from(PARTITIONS) * 3 / 4;
    until("a fourth node with its share of replicas", BALANCED_WITHIN, || async {
        let replicas = cluster.settled_replicas().await;
        replicas.is_some_and(|all| all.len() == 4 && all.iter().all(|(_, count)| count.abs_diff(share) <= 1))
    })
    .await;
    let balanced = began.elapsed();
    let id = cluster.id(fourth).await;
    until("a fourth node that leads", BALANCED_WITHIN.saturating_sub(balanced), || async {
        cluster.view().await.partitions.iter().any(|group| group.leader == Some(id))
    })
    .await;
    load.goes_on("with four nodes").await;
    assert_eq!(load.failed(), Vec::<String>::new());

    let began = Instant::now();
    client.change_cluster(&ClusterChange::Drain(id)).await.unwrap();
    until("a drained node without replicas", BALANCED_WITHIN, || async {
        let view = cluster.view().await;
        let is_off = |group: &taskmaster_client::GroupView| {
            group.is_settled && !group.replicas.contains(&id) && !group.voters.contains(&id) && group.leader != Some(id)
        };
        view.partitions.iter().all(is_off) && is_off(&view.meta)
    })
    .await;
    let drained = began.elapsed();
    load.goes_on("after the drain").await;
    assert_eq!(load.failed(), Vec::<String>::new());
    let output = cluster.command(0, &["cluster", "remove", "n4"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cluster.nodes[fourth].terminate();
    load.goes_on("after the removal").await;
    assert_eq!(load.failed(), Vec::<String>::new());
    load.settle(&format!("a fourth node: balanced after {balanced:?}, drained after {drained:?}")).await;
}
