//! `kill -9` of node and broker at random moments: at the end each message is one task with its payload.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Stage, TOPIC, payloads};
use crate::services::kafka::Sent;

/// Rounds, unless `TASKMASTER_KILLS` says otherwise.
const KILLS: u64 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_becomes_one_task_whatever_is_killed() {
    let kills = std::env::var("TASKMASTER_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let mut stage = Stage::new(3, "dead_letter = \"letters\"\nbatch_messages = 7").await;
    let mut sent = [0u64; 3];
    // The moments differ from run to run, which is the point: any moment must do.
    let mut moment = u64::from(std::process::id());
    for round in 0..kills {
        for (partition, count) in (0..).zip(&mut sent) {
            let messages = (*count..*count + 150).map(|number| Sent::value(format!("{partition}/{number}")));
            stage.kafka.send(TOPIC, partition, messages).await;
            *count += 150;
        }
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_millis((moment >> 33) % 400)).await;
        // The broker is killed less often: it needs seconds to come back.
        if round % 3 == 2 {
            stage.kafka.kill();
        }
        stage.node.strike();
        stage.node = stage.setup.start();
        if round % 3 == 2 {
            tokio::time::sleep(Duration::from_millis((moment >> 20) % 400)).await;
            stage.kafka.restart().await;
        }
    }
    stage.client = stage.setup.client().await;
    for (number, count) in (0..).zip(&sent) {
        stage.reaches(number, *count).await;
    }
    let expected: BTreeMap<String, usize> = (0..3)
        .flat_map(|partition| (0..sent[partition]).map(move |number| (format!("{partition}/{number}"), 1)))
        .collect();
    let found = payloads(&stage.tasks().await);
    let wrong: Vec<_> = found.iter().filter(|(_, count)| **count != 1).take(10).collect();
    assert!(wrong.is_empty(), "messages that became more than one task: {wrong:?}");
    assert_eq!(found.len(), expected.len(), "messages that became no task");
    assert_eq!(found, expected);
    eprintln!("{kills} kills: {} messages became as many tasks", found.len());
}
