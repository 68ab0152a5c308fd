//! Nodes that die or stand still under load.

use std::sync::Arc;
use std::time::{Duration, Instant};

use taskmaster_client::{Code, PartitionId, State, Task};
use tokio::task::JoinSet;

use super::ledger::Load;
use super::nodes::{Cluster, Place};
use super::probe::{Probe, id_in};

const ROUNDS: usize = 5;
/// How long a process stands still.
const PAUSE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_that_are_killed_under_load_lose_and_double_nothing() {
    let mut cluster = Cluster::planned(Place::loopback()).await;
    cluster.nodes[1].setup.shards = 2;
    cluster.form().await;
    let client = cluster.client().await;
    let load = Load::start(&client).await;
    for round in 0..ROUNDS {
        let victim = cluster.busiest().await;
        cluster.nodes[victim].kill();
        load.goes_on(&format!("without the killed node in round {round}")).await;
        cluster.nodes[victim].start();
        cluster.whole().await;
        load.goes_on(&format!("with the restarted node in round {round}")).await;
    }
    assert_eq!(load.failed(), Vec::<String>::new());
    load.settle("kill -9").await;
    cluster.agreed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stood_still_serves_nothing_stale() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let load = Load::start(&client).await;
    let victim = cluster.busiest().await;
    let (id, view) = (cluster.id(victim).await, cluster.view().await);
    let led = (0u16..).zip(&view.partitions).filter(|(_, group)| group.leader == Some(id));
    let led: Vec<PartitionId> = led.map(|(partition, _)| PartitionId(partition)).collect();
    // A task in each partition that it leads, which is cancelled while it stands still.
    let mut known = Vec::new();
    for &partition in &led {
        let task = Task::new("probe").queue("probe").id(id_in(&client, partition));
        known.push(client.submit(task).await.unwrap().id);
    }
    let probe = Arc::new(Probe::connect(cluster.nodes[victim].address()).await.unwrap());
    for &id in &known {
        assert_eq!(probe.state(id, Duration::from_secs(5)).await.unwrap(), State::Ready);
    }

    cluster.nodes[victim].running().pause();
    let stopped = Instant::now();
    load.goes_on("while the leader stands still").await;
    let changes = client.cancel(known.iter().copied()).await.unwrap();
    assert_eq!(changes.accepted, known.len() as u64, "{changes:?}");
    // These wait in the stopped node's socket, and are the first that it sees.
    let mut early = JoinSet::new();
    for &id in &known {
        let probe = Arc::clone(&probe);
        early.spawn(async move { (id, probe.state(id, Duration::from_secs(10)).await) });
    }
    tokio::time::sleep(PAUSE.saturating_sub(stopped.elapsed())).await;
    cluster.nodes[victim].running().resume();
    while let Some(answer) = early.join_next().await {
        let (id, answer) = answer.unwrap();
        assert!(!matches!(answer, Ok(state) if state != State::Cancelled), "{id} was cancelled and is {answer:?}");
    }
    let until = Instant::now() + Duration::from_secs(2);
    let mut refused = 0;
    while Instant::now() < until {
        for &id in &known {
            match probe.state(id, Duration::from_secs(20)).await {
                Ok(state) => assert_eq!(state, State::Cancelled, "{id}"),
                Err(error) => {
                    assert_eq!(error.code(), Some(Code::NotLeader), "{error}");
                    refused += 1;
                }
            }
        }
    }
    eprintln!("{} partitions led, {refused} reads refused as not_leader afterwards", led.len());
    cluster.whole().await;
    load.goes_on("after the pause").await;
    assert_eq!(load.failed(), Vec::<String>::new());
    load.settle("SIGSTOP").await;
    cluster.agreed().await;
}
