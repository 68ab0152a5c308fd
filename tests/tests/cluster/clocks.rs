//! A clock that jumps: the node says so, the others see that it is off, and the cluster goes on.

use taskmaster_client::Task;

use super::nodes::{Cluster, Place};

/// What a debug build takes as a jump of its clock: after so many seconds, by so many.
const JUMP: &str = "TASKMASTER_CLOCK_JUMP";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_is_told_of_everywhere() {
    let mut cluster = Cluster::planned(Place::loopback()).await;
    cluster.nodes[2].setup.variables.push((JUMP, "5:600".to_owned()));
    cluster.form().await;
    // By the look at the clock of at most 5 s, and by at most two judgements of others every 10 s.
    let own = cluster.problem(2, &["this node's clock jumped 600 s forward", "NTP"]).await;
    let others = cluster.problem(0, &["the clock of node n3", "s ahead of this node's", "NTP"]).await;
    let behind = cluster.problem(2, &["the clock of node n1", "s behind this node's"]).await;
    eprintln!("n3: {own}\nn1: {others}\nn3: {behind}");
    cluster.logged(2, &["WARN", "clock jumped"]).await;
    cluster.logged(0, &["WARN", "the clock of node n3"]).await;
    cluster.whole().await;
    let client = cluster.client().await;
    client.submit(Task::new("probe").queue("probe")).await.unwrap();
    cluster.agreed().await;
}
