//! The client and worker against several nodes, of which some fail: leaders that move, nodes that die, hang, are cut off or
//! lose their disk. No task may be lost or submitted twice, and little time.

#![expect(clippy::unwrap_used, reason = "tests, and what they share")]

#[path = "cluster/nodes.rs"]
mod nodes;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nodes::{Nodes, PARTITIONS, Trick, until};
use taskmaster_client::{Client, State, Submitted, Task, Worker};
use taskmaster_protocol::{Operation, PartitionId};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// How long elections take here.
const ELECTION: Duration = Duration::from_secs(1);

fn task_of(client: &Client, partition: u16) -> Task {
    loop {
        let id = client.task_id();
        if id.partition() == PartitionId(partition) {
            return Task::new("work").id(id);
        }
    }
}

#[tokio::test]
async fn requests_go_to_the_leader_of_their_partition() {
    let nodes = Nodes::start(&[2, 1, 3]).await;
    let client = nodes.client().await;
    assert_eq!((client.shards(), client.partitions()), (6, PARTITIONS));
    for _ in 0..32 {
        client.submit(Task::new("work")).await.unwrap();
    }
    let state = nodes.state();
    assert_eq!(state.accepted.len(), 32);
    for seen in &state.seen {
        assert!(!seen.is_refused && !seen.is_resend);
        assert_eq!(seen.node, usize::from(seen.partition) % 3);
    }
}

#[tokio::test]
async fn a_refusal_leads_to_the_new_leader_with_the_resend_flag() {
    let nodes = Nodes::start(&[1, 1, 1]).await;
    let client = nodes.client().await;
    nodes.elect(2, |p| p == 3);
    client.submit(task_of(&client, 3)).await.unwrap();
    client.submit(task_of(&client, 3)).await.unwrap();
    let seen: Vec<(usize, bool, bool)> =
        nodes.state().seen.iter().map(|seen| (seen.node, seen.is_resend, seen.is_refused)).collect();
    assert_eq!(seen, [(0, false, true), (2, true, false), (2, false, false)]);
}

#[tokio::test]
async fn a_leader_that_dies_in_the_middle_of_batches_loses_and_doubles_nothing() {
    let nodes = Nodes::start(&[2, 2, 2]).await;
    let client = nodes.client().await;
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let mut bulk = client.submitter().batch_rows(16).in_flight(8).on_outcome(move |_, outcome| {
        if outcome.result != Submitted::Accepted {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let killing = {
        let nodes = nodes.clone();
        async move {
            until("some batches", || nodes.state().accepted.len() > 500).await;
            nodes.play(1, Trick::DieBeforeAnswer);
            until("the node dies", || nodes.leader(1).is_none()).await;
            tokio::time::sleep(ELECTION).await;
            nodes.elect_for_lost(2);
        }
    };
    let pushing = async {
        for n in 0..20_000u32 {
            bulk.push(Task::new("work").payload(&n.to_le_bytes())).await.unwrap();
            if n % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
        bulk.finish().await.unwrap();
    };
    tokio::join!(killing, pushing);
    assert_eq!(refused.load(Ordering::SeqCst), 0, "every task is accepted, once");
    let state = nodes.state();
    assert_eq!(state.accepted.len(), 20_000);
    assert!(state.seen.iter().any(|seen| seen.is_resend && !seen.is_refused));
}

/// Kills a leader over a submission and elects another one; how long the client took from then on.
async fn failover(fail: impl Fn(&Nodes)) -> Duration {
    let nodes = Nodes::start(&[1, 1, 1]).await;
    let client = nodes.client().await;
    for partition in 0..PARTITIONS {
        client.submit(task_of(&client, partition)).await.unwrap();
    }
    fail(&nodes);
    let submitting: Vec<_> = (0..50)
        .map(|_| {
            let (client, task) = (client.clone(), task_of(&client, 1));
            tokio::spawn(async move { client.submit(task).await.unwrap() })
        })
        .collect();
    tokio::time::sleep(ELECTION).await;
    nodes.elect(0, |p| p % 3 == 1);
    let elected = Instant::now();
    for submission in submitting {
        submission.await.unwrap();
    }
    assert_eq!(nodes.state().accepted.len(), usize::from(PARTITIONS) + 50);
    elected.elapsed()
}

#[tokio::test]
async fn a_killed_leader_costs_little_once_another_leads() {
    let took = failover(|nodes| nodes.kill(1)).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn a_silent_leader_is_left_once_another_leads() {
    let took = failover(|nodes| nodes.silence(1, true)).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn a_connection_that_is_silent_is_left_for_a_new_one() {
    let nodes = Nodes::start(&[1, 1, 1]).await;
    let client = nodes.client().await;
    client.submit(task_of(&client, 1)).await.unwrap();
    nodes.stall(1);
    let started = Instant::now();
    let submitting: Vec<_> = (0..20)
        .map(|_| {
            let (client, task) = (client.clone(), task_of(&client, 1));
            tokio::spawn(async move { client.submit(task).await.unwrap() })
        })
        .collect();
    for submission in submitting {
        submission.await.unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(nodes.state().accepted.len(), 21);
}

#[tokio::test]
async fn who_waits_for_a_result_follows_the_leader() {
    for is_killed in [true, false] {
        let nodes = Nodes::start(&[1, 1, 1]).await;
        let client = nodes.client().await;
        let id = client.submit(task_of(&client, 1)).await.unwrap().id;
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.result(id).await.unwrap() }
        });
        until("the wait", || nodes.state().seen.iter().any(|seen| seen.operation == Operation::AwaitTask)).await;
        if is_killed {
            nodes.kill(1)
        } else {
            nodes.silence(1, true)
        }
        nodes.elect(0, |p| p % 3 == 1);
        let (worker, _) = worker(&client, 1, Duration::ZERO).await;
        let outcome =
            tokio::time::timeout(Duration::from_secs(15), waiting).await.expect("it moves within a second or so");
        assert_eq!(outcome.unwrap().state, State::Succeeded);
        worker.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_submission_carried_out_before_its_leader_died_counts_once() {
    for trick in [Trick::DieBeforeAnswer, Trick::CarryOutAndDeny] {
        let nodes = Nodes::start(&[1, 1, 1]).await;
        let client = nodes.client().await;
        nodes.play(1, trick);
        let electing = async {
            until("the submission", || !nodes.state().accepted.is_empty()).await;
            nodes.elect(2, |p| p % 3 == 1);
        };
        let own = task_of(&client, 1).payload(b"x".to_vec());
        let ((), outcome) = tokio::join!(electing, client.submit(own));
        assert_eq!(outcome.unwrap().result, Submitted::Duplicate { state: State::Ready }, "the id was the caller's");
        assert_eq!(nodes.state().accepted.len(), 1);
        let last = nodes.state().seen.last().unwrap().clone();
        assert!(last.is_resend && last.node == 2);
    }
}

#[tokio::test]
async fn a_node_that_shuts_down_is_left_for_others() {
    let nodes = Nodes::start(&[1, 1]).await;
    let client = nodes.client().await;
    nodes.play(1, Trick::ShutDown);
    let electing = async {
        until("the refusal", || nodes.state().seen.iter().any(|seen| seen.is_refused)).await;
        nodes.elect(0, |_| true);
    };
    let start = Instant::now();
    let ((), outcome) = tokio::join!(electing, client.submit(task_of(&client, 1)));
    outcome.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "the named time concerns that node only");
}

#[tokio::test]
async fn a_node_cut_off_from_the_others_does_not_mislead() {
    let nodes = Nodes::start(&[1, 1, 1]).await;
    let client = nodes.client().await;
    nodes.cut_off(0);
    nodes.cut_off(1);
    nodes.elect(2, |p| p == 1);
    for _ in 0..5 {
        client.submit(task_of(&client, 1)).await.unwrap();
    }
    let refused = nodes.state().seen.iter().filter(|seen| seen.is_refused).count();
    assert!((1..20).contains(&refused), "once the term is known, nobody leads back: {refused}");
}

#[tokio::test]
async fn a_node_without_its_disk_is_not_believed() {
    let nodes = Nodes::start(&[1, 1, 1]).await;
    let client = nodes.client().await;
    nodes.set_diskless(0);
    nodes.elect(2, |_| true);
    for partition in 0..PARTITIONS {
        client.submit(task_of(&client, partition)).await.unwrap();
    }
    assert_eq!(client.shards(), 3);
    let client = Client::connect([nodes.address(0), nodes.address(1)]).await.unwrap();
    assert_eq!(client.shards(), 3, "nor taken for the cluster when there is a choice");
}

#[tokio::test]
async fn any_of_several_addresses_will_do() {
    let nodes = Nodes::start(&[1, 1, 1]).await;
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hanging = hanging.local_addr().unwrap();
    nodes.kill(0);
    nodes.elect(2, |p| p % 3 == 0);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [silent.local_addr().unwrap().to_string(), hanging.to_string(), nodes.address(0), nodes.address(1)];
    let start = Instant::now();
    let client = Client::connect(addresses.join(",")).await.unwrap();
    client.submit(task_of(&client, 0)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "a silent address is not waited for");
    Client::connect(&addresses[..]).await.unwrap();
}

#[tokio::test]
async fn the_whole_cluster_may_be_away_for_a_while() {
    let nodes = Nodes::start(&[1, 1]).await;
    let client = Client::builder()
        .backoff(Duration::from_millis(10), Duration::from_millis(100))
        .connect(nodes.address(0))
        .await
        .unwrap();
    nodes.kill(0);
    nodes.kill(1);
    let reviving = async {
        tokio::time::sleep(ELECTION).await;
        nodes.revive(0).await;
        nodes.revive(1).await;
        nodes.elect(1, |_| true);
    };
    let ((), outcome) = tokio::join!(reviving, client.submit(Task::new("work")));
    outcome.unwrap();
}

/// A worker whose handlers take this long, and the most that ran at once.
async fn worker(client: &Client, concurrency: u32, length: Duration) -> (Worker, Arc<AtomicUsize>) {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let peak = Arc::clone(&most);
    let builder = Worker::builder(client).concurrency(concurrency).handler("work", move |_| {
        let (running, peak) = (Arc::clone(&running), Arc::clone(&peak));
        async move {
            peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(length).await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    });
    (builder.start().await.unwrap(), most)
}

fn succeeded(nodes: &Nodes) -> usize {
    nodes.state().accepted.values().filter(|state| **state == State::Succeeded).count()
}

#[tokio::test]
async fn a_worker_takes_from_every_shard_of_every_node_within_its_slots() {
    let nodes = Nodes::start(&[2, 1, 3]).await;
    let client = nodes.client().await;
    let (worker, most) = worker(&client, 4, Duration::from_millis(1)).await;
    until("all sessions", || nodes.subscribed() == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]).await;
    client.submit_many((0..400).map(|_| Task::new("work"))).await.unwrap();
    until("all tasks", || succeeded(&nodes) == 400).await;
    assert!(most.load(Ordering::SeqCst) <= 4);
    let stats = worker.stats();
    assert_eq!((stats.stale, stats.failed), (0, 0));
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_worker_follows_when_leaders_die_and_come_back() {
    let nodes = Nodes::start(&[2, 2, 2]).await;
    let client = nodes.client().await;
    let (worker, most) = worker(&client, 8, Duration::from_millis(2)).await;
    let submitting = {
        let client = client.clone();
        tokio::spawn(async move {
            for _ in 0..100 {
                client.submit_many((0..20).map(|_| Task::new("work"))).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    };
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let victim = round % 3;
        nodes.kill(victim);
        tokio::time::sleep(ELECTION / 2).await;
        nodes.elect_for_lost((victim + 1) % 3);
        nodes.revive(victim).await;
    }
    submitting.await.unwrap();
    until("all tasks", || succeeded(&nodes) == 2_000).await;
    assert!(most.load(Ordering::SeqCst) <= 8);
    until("sessions with all shards again", || nodes.subscribed().len() == 6).await;
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_completion_carried_out_before_its_leader_died_counts_as_completed() {
    for trick in [Trick::DieBeforeAnswer, Trick::CarryOutAndDeny] {
        let nodes = Nodes::start(&[1, 1, 1]).await;
        let client = nodes.client().await;
        let (worker, _) = worker(&client, 2, Duration::from_millis(20)).await;
        client.submit(task_of(&client, 1)).await.unwrap();
        nodes.play(1, trick);
        until("the completion", || succeeded(&nodes) == 1).await;
        nodes.elect(2, |p| p % 3 == 1);
        until("the worker knows", || worker.stats().completed == 1).await;
        assert_eq!(worker.stats().stale, 0);
        let last = nodes.state().seen.last().unwrap().clone();
        assert_eq!((last.operation, last.is_resend), (Operation::Complete, true));
        assert!(last.node == 2 || trick == Trick::CarryOutAndDeny);
        worker.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn leases_of_a_leader_that_is_gone_are_given_up_quietly() {
    for is_killed in [true, false] {
        let nodes = Nodes::start(&[1, 1, 1]).await;
        let client = nodes.client().await;
        let told = Arc::new(Notify::new());
        let tell = Arc::clone(&told);
        let first = Arc::new(AtomicUsize::new(0));
        let builder = Worker::builder(&client).concurrency(2).handler("work", move |task| {
            let (tell, is_first) = (Arc::clone(&tell), first.fetch_add(1, Ordering::SeqCst) == 0);
            async move {
                if is_first {
                    task.cancelled().await;
                    tell.notify_one();
                }
                Ok(())
            }
        });
        let worker = builder.start().await.unwrap();
        client.submit(task_of(&client, 1)).await.unwrap();
        until("the task runs", || worker.stats().running == 1).await;
        if is_killed {
            nodes.kill(1);
        }
        nodes.elect(2, |p| p % 3 == 1);
        told.notified().await;
        until("the second attempt", || succeeded(&nodes) == 1).await;
        until("the worker knows", || worker.stats().completed == 1).await;
        assert!(nodes.state().stale >= 1, "the new leader does not know the lease");
        worker.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_worker_ends_although_the_node_of_its_leases_is_gone() {
    let nodes = Nodes::start(&[1, 1, 1]).await;
    let client = nodes.client().await;
    let (worker, _) = worker(&client, 2, Duration::from_millis(100)).await;
    client.submit(task_of(&client, 1)).await.unwrap();
    until("the task runs", || worker.stats().running == 1).await;
    nodes.kill(1);
    nodes.elect(2, |p| p % 3 == 1);
    worker.shutdown_within(Duration::from_secs(30)).await.unwrap();
}

#[tokio::test]
async fn a_worker_begins_with_nodes_that_join_and_ends_with_those_that_leave() {
    let nodes = Nodes::start(&[1, 1, 2]).await;
    nodes.elect(0, |_| true);
    nodes.set_hidden(2, true);
    let client = nodes.client().await;
    let (worker, _) = worker(&client, 2, Duration::from_millis(1)).await;
    until("sessions with both nodes", || nodes.subscribed() == [(0, 0), (1, 0)]).await;
    nodes.set_hidden(2, false);
    until("sessions with the new node", || nodes.subscribed().len() == 4).await;
    nodes.set_hidden(1, true);
    until("no session with the node that left", || nodes.subscribed() == [(0, 0), (2, 0), (2, 1)]).await;
    nodes.elect(2, |_| true);
    client.submit_many((0..50).map(|_| Task::new("work"))).await.unwrap();
    until("all tasks", || succeeded(&nodes) == 50).await;
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_worker_starts_while_a_node_is_away_or_hangs() {
    let nodes = Nodes::start(&[1, 1, 1]).await;
    let client = nodes.client().await;
    nodes.kill(1);
    nodes.silence(2, true);
    nodes.elect(0, |_| true);
    let start = Instant::now();
    let (worker, _) = worker(&client, 2, Duration::from_millis(1)).await;
    assert!(start.elapsed() < Duration::from_secs(5));
    client.submit_many((0..50).map(|_| Task::new("work"))).await.unwrap();
    until("all tasks", || succeeded(&nodes) == 50).await;
    nodes.silence(2, false);
    nodes.revive(1).await;
    until("all sessions", || nodes.subscribed().len() == 3).await;
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_a_worker_cannot_run_soon_goes_back() {
    let nodes = Nodes::start(&[2, 2, 2]).await;
    let client = nodes.client().await;
    for partition in 0..6 {
        client.submit(task_of(&client, partition)).await.unwrap();
    }
    let (worker, most) = worker(&client, 1, Duration::from_secs(3600)).await;
    until("the surplus is back", || {
        let state = nodes.state();
        state.assigned - state.released == 1 && state.released >= 1
    })
    .await;
    assert_eq!((most.load(Ordering::SeqCst), worker.stats().running, worker.stats().queued), (1, 1, 0));
    drop(worker);
}
