//! Two of three nodes are gone: the third says so, and serves nothing that it cannot know.

use std::time::{Duration, Instant};

use taskmaster_client::{Code, PartitionId, Task};

use super::ledger::Load;
use super::nodes::{Cluster, PARTITIONS};
use super::probe::{Probe, id_in};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_the_last_node_refuses_says_why_and_recovers() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let load = Load::start(&client).await;
    let known = client.submit(Task::new("probe").queue("probe")).await.unwrap().id;
    let last = cluster.busiest().await;
    let others: Vec<usize> = (0..3).filter(|&number| number != last).collect();
    for &other in &others {
        cluster.nodes[other].kill();
    }

    let probe = Probe::connect(cluster.nodes[last].address()).await.unwrap();
    for partition in (0..PARTITIONS).map(PartitionId) {
        let error = probe.submit(id_in(&client, partition), Duration::from_secs(20)).await.expect_err("no quorum");
        assert_eq!(error.code(), Some(Code::NotLeader), "{error}");
        assert!(error.to_string().contains(&format!("partition {partition}")), "{error}");
    }
    let error = probe.state(known, Duration::from_secs(20)).await.expect_err("a read needs a quorum, too");
    assert_eq!(error.code(), Some(Code::NotLeader), "{error}");
    let names: Vec<&str> = others.iter().map(|&other| cluster.nodes[other].name.as_str()).collect();
    let everywhere = format!("No quorum for partitions 0-{}", PARTITIONS - 1);
    cluster.problem(last, &[&everywhere, "1 of 3 replicas answer", names[0], " or ", names[1]]).await;
    cluster.problem(last, &["No quorum for the cluster's map"]).await;
    let (code, status) = cluster.status(last);
    assert_eq!((code, &status["serving"]), (Some(1), &serde_json::json!(false)), "{status:#}");
    // Once it has stood in vain for what the others led, it names them no longer.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let error = probe.state(known, Duration::from_secs(20)).await.expect_err("still no quorum").to_string();
        if error.contains("has no leader that is known here") {
            break;
        }
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    cluster.nodes[others[0]].start();
    load.goes_on("with two of three").await;
    assert!(probe.state(known, Duration::from_secs(5)).await.is_ok() || client.task(known).await.is_ok());
    // The partitions that the load does not use are led again a moment later.
    let deadline = Instant::now() + Duration::from_secs(60);
    while cluster.status(last).0 != Some(0) {
        assert!(Instant::now() < deadline, "{:#}", cluster.status(last).1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.nodes[others[1]].start();
    cluster.whole().await;
    load.settle("quorum lost").await;
    cluster.agreed().await;
}
