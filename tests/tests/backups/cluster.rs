//! A cluster of which every disk is lost: one node's backup is not enough where it had not all partitions, and together they are.

use std::path::PathBuf;
use std::time::Duration;

use taskmaster_client::{Client, State, Task, Worker};

use super::{LONG, back_up, refusal, restore, text};
use crate::cluster::nodes::{Cluster, Node, PARTITIONS, Place, until};
use crate::process::directory;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_disks_are_lost_comes_back_from_the_backups_of_its_nodes() {
    let mut cluster = Cluster::planned(Place::loopback()).await;
    for node in &mut cluster.nodes {
        // Each partition is on one node alone.
        node.setup.more.push_str("replication = 1\n");
    }
    cluster.nodes.iter_mut().for_each(Node::start);
    let output = cluster.command(0, &["cluster", "bootstrap"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    until("partitions on all three nodes", Duration::from_secs(60), || async {
        let view = cluster.view().await;
        let is_spread = view.nodes.len() == 3 && view.nodes.iter().all(|node| node.replicas > 0);
        is_spread
            && view.partitions.iter().all(|group| group.is_settled && group.leader.is_some() && group.voters.len() == 1)
    })
    .await;
    let client = cluster.client().await;
    let mut ids = Vec::new();
    for n in 0..200u32 {
        ids.push(client.submit(Task::new("echo").queue("later").payload(n.to_string())).await.unwrap().id);
    }
    // What a node gave away it removes when it has heard nothing of it for a while.
    let mut looks = 0;
    until("a node's backup has its own partitions alone", Duration::from_secs(60), || {
        looks += 1;
        let told = back_up(&cluster.nodes[0].setup.data_dir, &cluster.directory.path().join(format!("look-{looks}")));
        let own = told["positions"].as_array().unwrap().len();
        std::future::ready(own < usize::from(PARTITIONS))
    })
    .await;
    let backups: Vec<PathBuf> = cluster
        .nodes
        .iter()
        .map(|node| {
            let backup = cluster.directory.path().join(format!("backup-{}", node.name));
            back_up(&node.setup.data_dir, &backup);
            backup
        })
        .collect();
    for node in &mut cluster.nodes {
        node.kill();
        std::fs::remove_dir_all(&node.setup.data_dir).unwrap();
    }

    let fresh = directory();
    let to = fresh.path().join("data");
    let said = refusal(&["restore", "--from", text(&backups[0]), "--data-dir", text(&to)]);
    assert!(said.contains("is in none of these backups"), "{said}");
    let (mut setup, told) = restore(&fresh, &backups);
    assert_eq!(told["partitions"].as_array().unwrap().len(), usize::from(PARTITIONS), "{told}");
    setup.variables.push(("TASKMASTER_NODE__PARTITIONS", PARTITIONS.to_string()));
    let node = setup.start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let worker = Worker::builder(&client)
        .queue("later")
        .handler("echo", |task| async move { Ok(task.payload().to_vec()) })
        .start()
        .await
        .unwrap();
    for (n, id) in ids.iter().enumerate() {
        let outcome = client.result_within(*id, LONG).await.unwrap().unwrap();
        assert_eq!((outcome.state, outcome.text().unwrap()), (State::Succeeded, n.to_string()));
    }
    worker.shutdown().await.unwrap();
}
