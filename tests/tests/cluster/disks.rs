//! Disks of a cluster's nodes: one that fills up.

use std::time::{Duration, Instant};

use taskmaster_client::Task;

use super::ledger::Load;
use super::nodes::{Cluster, Place};
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
        assert!(began.elapsed() < Duration::from_secs(60), "the disk is never full");
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
