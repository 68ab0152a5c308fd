//! Several nodes of a cluster as members of one consumer group, which come and go.

use super::{LETTERS, TOPIC, payloads, reaches, table, tasks};
use crate::cluster::nodes::{Cluster, Place};
use crate::services::kafka::{Kafka, Sent};

const PARTITIONS: u16 = 6;

/// More messages to every partition of the topic.
async fn send(kafka: &Kafka, sent: &mut u64, count: u64) {
    for partition in 0..i32::from(PARTITIONS) {
        let messages = (*sent..*sent + count).map(|number| Sent::value(format!("{partition}/{number}")));
        kafka.send(TOPIC, partition, messages).await;
    }
    *sent += count;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_and_each_message_becomes_one_task() {
    let kafka = Kafka::start().await;
    kafka.make_topic(TOPIC, PARTITIONS.into()).await;
    kafka.make_topic(LETTERS, 1).await;
    let mut cluster = Cluster::planned(Place::loopback()).await;
    for node in &mut cluster.nodes {
        let table = table(&kafka, &format!("dead_letter = \"{LETTERS}\"\nbatch_messages = 5"));
        node.setup.more = format!("{table}{}", node.setup.more);
    }
    cluster.form().await;
    let mut sent = 0;
    send(&kafka, &mut sent, 50).await;
    cluster.nodes[2].kill();
    send(&kafka, &mut sent, 50).await;
    cluster.nodes[2].start();
    send(&kafka, &mut sent, 50).await;
    cluster.whole().await;
    cluster.nodes[1].terminate();
    send(&kafka, &mut sent, 50).await;
    let client = cluster.client().await;
    for number in 0..PARTITIONS {
        reaches(&client, cluster.nodes[0].running(), number.into(), sent).await;
    }
    let found = payloads(&tasks(&client).await);
    let wrong: Vec<_> = found.iter().filter(|(_, count)| **count != 1).take(10).collect();
    assert!(wrong.is_empty(), "messages that became more than one task: {wrong:?}");
    assert_eq!(found.len() as u64, sent * u64::from(PARTITIONS), "messages that became no task");
    let readers = cluster.nodes.iter().filter(|node| node.log().contains("is read here")).count();
    assert!(readers >= 2, "one node read everything");
}
