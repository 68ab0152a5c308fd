//! Disks of a cluster's nodes: one that fills up, and one that is lost.

use std::time::{Duration, Instant};

use taskmaster_client::{ClusterChange, Code, NodeId, NodeStatus, PartitionId, Task};

use super::ledger::Load;
use super::nodes::{Cluster, Place, until};
use crate::disk_full::{Volume, fill};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_full_says_so_and_the_cluster_goes_on() {
    let mut cluster = Cluster::planned(Place::loopback()).await;
    let volume = Volume::new(cluster.directory.path(), 320);
    cluster.nodes[2].setup.data_dir = volume.at.join("data");
    cluster.form().await;
    let client = cluster.client().await;
    let load = Load::start(&client).await;
    let ballast = fill(&volume.at, 8 << 20);

    // Its prepared segments are used up by large tasks, wherever they are accepted.
    let began = Instant::now();
    while !cluster.nodes[2].log().contains("disk is full") {
        let task = Task::new("keep").queue("keep").payload(vec![1; 256 << 10]);
        client.submit(task).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(180), "the disk is never full");
    }
    cluster.problem(0, &["n3", "disk"]).await;
    load.goes_on("although a disk is full").await;
    assert_eq!(load.failed(), Vec::<String>::new());

    std::fs::remove_file(ballast).unwrap();
    cluster.logged(2, &["has room again"]).await;
    cluster.whole().await;
    load.goes_on("with room again").await;
    load.settle("a full disk").await;
    cluster.agreed().await;
    // The volume goes before its node.
    cluster.nodes[2].kill();
}

/// Kills the third node of three and starts it with an empty disk; its old id and its new one.
async fn lose_disk(cluster: &mut Cluster, load: &Load) -> (NodeId, NodeId) {
    let old = cluster.id(2).await;
    cluster.nodes[2].kill();
    load.goes_on("without the lost node").await;
    std::fs::remove_dir_all(&cluster.nodes[2].setup.data_dir).unwrap();
    cluster.nodes[2].start();
    let new = cluster.id(2).await;
    assert_ne!(new, old);
    (old, new)
}

/// Waits until a node has a vote in every partition.
async fn votes_everywhere(cluster: &Cluster, id: NodeId) {
    until("replicas on the new node", Duration::from_secs(120), || async {
        let view = cluster.view().await;
        let row = view.nodes.iter().find(|node| node.id == id);
        row.is_some_and(|node| node.status == NodeStatus::Active)
            && view.partitions.iter().all(|group| group.is_settled && group.voters.contains(&id))
    })
    .await;
    cluster.whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_disk_says_what_to_do_and_comes_back_as_another_one() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let load = Load::start(&client).await;
    let (old, new) = lose_disk(&mut cluster, &load).await;
    let told =
        cluster.problem(2, &["not let this node in", "\"n3\"", "another name", &format!("cluster remove {old}")]).await;
    eprintln!("n3: {told}");
    cluster.logged(2, &["not let this node in", "cluster remove"]).await;
    for number in [0, 1] {
        cluster.problem(number, &["Node n3 is down", "`taskmaster cluster remove n3`"]).await;
    }
    assert!(cluster.view().await.nodes.iter().all(|node| node.id != new), "it has to wait");
    let removed = cluster.command(0, &["cluster", "remove", "n3"]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    votes_everywhere(&cluster, new).await;
    load.goes_on("with the new node").await;
    assert_eq!(load.failed(), Vec::<String>::new());
    cluster.let_lead(&client, 2, PartitionId(0)).await;
    load.compare().await;
    load.settle("a lost disk").await;
    cluster.agreed().await;
    // The old id is gone for good.
    let error = client.change_cluster(&ClusterChange::Activate(old)).await.expect_err("removed for good");
    assert_eq!(error.code(), Some(Code::IllegalState), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_disk_takes_its_old_place_without_an_operator() {
    let mut cluster = Cluster::planned(Place::loopback()).await;
    cluster.nodes.iter_mut().for_each(|node| node.setup.more.push_str("replace_after = \"5s\"\n"));
    cluster.form().await;
    let client = cluster.client().await;
    let load = Load::start(&client).await;
    let (old, new) = lose_disk(&mut cluster, &load).await;
    votes_everywhere(&cluster, new).await;
    let view = cluster.view().await;
    assert!(view.nodes.iter().any(|node| node.id == old && node.status == NodeStatus::Removed), "{:?}", view.nodes);
    assert_eq!(load.failed(), Vec::<String>::new());
    load.settle("a lost disk, replaced").await;
    cluster.agreed().await;
}
