//! `kill -9` of node and broker at random moments under load: at the end each event was told once, or at least once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use taskmaster_client::{Client, TaskId};

use super::{Stage, assert_told, task, worker};

/// Rounds, unless `TASKMASTER_KILLS` says otherwise.
const KILLS: u64 = 6;

pub(super) async fn load(client: Client, done: Arc<AtomicBool>) -> Vec<TaskId> {
    let mut ids = Vec::new();
    while !done.load(Ordering::Relaxed) {
        // What the client cannot learn about may be accepted or not: it is not looked for, and may be told.
        let Ok(outcomes) = client.submit_many((0..32).map(|_| task("some"))).await else { continue };
        ids.extend(outcomes.iter().filter(|outcome| outcome.is_kept()).map(|outcome| outcome.id));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ids
}

async fn rounds(delivery: &str, is_exact: bool) {
    let kills = std::env::var("TASKMASTER_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let mut stage = Stage::new(&format!("delivery = \"{delivery}\"")).await;
    let client = stage.setup.client().await;
    let worker = worker(&client).await;
    let done = Arc::new(AtomicBool::new(false));
    let loading = tokio::spawn(load(client.clone(), Arc::clone(&done)));
    // The moments differ from run to run, which is the point: any moment must do.
    let mut moment = u64::from(std::process::id());
    for round in 0..kills {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_millis(200 + (moment >> 33) % 1_000)).await;
        // The broker is killed less often: it needs seconds to come back.
        let strikes_broker = round % 3 == 2;
        if strikes_broker {
            stage.kafka.kill();
        }
        if !strikes_broker || (moment >> 20) % 2 == 0 {
            stage.node.strike();
            stage.node = stage.setup.start();
        }
        if strikes_broker {
            tokio::time::sleep(Duration::from_millis((moment >> 20) % 400)).await;
            stage.kafka.restart().await;
        }
    }
    done.store(true, Ordering::Relaxed);
    let ids = loading.await.unwrap();
    assert_told(&stage.kafka, &client, &ids, is_exact).await;
    eprintln!("{kills} kills, {delivery}: {} tasks", ids.len());
    worker.shutdown_within(Duration::from_secs(30)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_once_each_event_is_told_once_whatever_is_killed() {
    rounds("exactly-once", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_least_once_no_event_is_missing_and_repetitions_can_be_told_by_their_numbers() {
    rounds("at-least-once", false).await;
}
