//! A leader whose cable is pulled: the others go on, and it knows that it no longer leads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use taskmaster_bench::networks::Networks;
use taskmaster_client::{Code, PartitionId, State, Task};

use super::ledger::Load;
use super::networks::inside;
use super::nodes::{Cluster, Place};
use super::probe::{Probe, id_in};

/// Longest time until a leader without a quorum refuses.
const REFUSES_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn a_leader_that_is_cut_off_refuses_while_the_others_go_on() {
    let networks = Arc::new(Networks::new(3).unwrap());
    inside(networks.hub(), || cut_and_heal(Arc::clone(&networks)));
}

async fn cut_and_heal(networks: Arc<Networks>) {
    let mut cluster = Cluster::planned(Place::Networks(Arc::clone(&networks))).await;
    cluster.form().await;
    let client = cluster.client().await;
    let load = Load::start(&client).await;
    let victim = cluster.busiest().await;
    let (id, view) = (cluster.id(victim).await, cluster.view().await);
    let partition = view.partitions.iter().position(|group| group.leader == Some(id)).unwrap();
    let partition = PartitionId(u16::try_from(partition).unwrap());
    let known = client.submit(Task::new("probe").queue("probe").id(id_in(&client, partition))).await.unwrap().id;
    let (new, address) = (id_in(&client, partition), cluster.nodes[victim].address());

    networks.cut(victim).unwrap();
    // From within the node's own namespace, where nothing but the node is reached.
    let refused_after = tokio::task::block_in_place(|| {
        inside(&networks.nodes()[victim], || async {
            let cut = Instant::now();
            let probe = Probe::connect(&address).await.unwrap();
            let error = probe.submit(new, REFUSES_WITHIN).await.expect_err("no quorum can have it");
            assert_eq!(error.code(), Some(Code::NotLeader), "{error}");
            let refused_after = cut.elapsed();
            let error = probe.state(known, REFUSES_WITHIN).await.expect_err("a read needs a quorum, too");
            assert_eq!(error.code(), Some(Code::NotLeader), "{error}");
            refused_after
        })
    });
    assert!(refused_after < REFUSES_WITHIN, "{refused_after:?}");
    load.goes_on("without the node that is cut off").await;
    assert_eq!(client.cancel([known]).await.unwrap().accepted, 1);
    let others = (0..3).find(|&number| number != victim).unwrap();
    let name = cluster.nodes[victim].name.clone();
    cluster.problem(others, &[&format!("Node {name} is down")]).await;

    networks.heal(victim).unwrap();
    cluster.whole().await;
    load.goes_on("after the cable was put in").await;
    assert_eq!(load.failed(), Vec::<String>::new());
    cluster.let_lead(&client, victim, partition).await;
    load.compare().await;
    assert_eq!(client.task(known).await.unwrap().state, State::Cancelled);
    load.settle("cable pulled").await;
    cluster.agreed().await;
    eprintln!("the leader that was cut off refused after {refused_after:?}");
}
