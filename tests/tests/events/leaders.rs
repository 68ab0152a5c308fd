//! Leaders of a cluster that are killed, stand still, or hand over, while events go out: each is told once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::kills::load;
use super::{PARTITIONS, TOPIC, assert_told, section, worker};
use crate::cluster::nodes::{Cluster, Place};
use crate::services::kafka::Kafka;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_replaced_tells_nothing_behind_its_successors_back() {
    let kafka = Kafka::start().await;
    kafka.make_topic(TOPIC, PARTITIONS).await;
    let mut cluster = Cluster::planned(Place::loopback()).await;
    for node in &mut cluster.nodes {
        node.setup.more = format!("{}{}", section(&kafka, ""), node.setup.more);
    }
    cluster.form().await;
    let client = cluster.client().await;
    let worker = worker(&client).await;
    let done = Arc::new(AtomicBool::new(false));
    let loading = tokio::spawn(load(client.clone(), Arc::clone(&done)));
    for round in 0..4 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let leader = cluster.busiest().await;
        if round % 2 == 0 {
            // It comes back as one who believes to lead, with a transaction under way.
            cluster.nodes[leader].running().pause();
            tokio::time::sleep(Duration::from_secs(3)).await;
            cluster.nodes[leader].running().resume();
        } else {
            cluster.nodes[leader].kill();
            tokio::time::sleep(Duration::from_secs(1)).await;
            cluster.nodes[leader].start();
        }
        cluster.whole().await;
    }
    done.store(true, Ordering::Relaxed);
    let ids = loading.await.unwrap();
    assert_told(&kafka, &client, &ids, true).await;
    eprintln!("{} tasks under changing leaders", ids.len());
    worker.shutdown_within(Duration::from_secs(30)).await.unwrap();
}
