//! Messages that cannot become tasks: they go to the dead-letter topic, or stop their partition.

use super::{LETTERS, Stage, TOPIC, logged, payloads};
use crate::services::kafka::Sent;

const MAPPING: &str = "payload = \"json:item\"\npriority = \"header:urgency\"";

fn item(number: u32) -> Sent {
    Sent::value(format!("{{\"item\":\"{number}\"}}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_become_a_task_becomes_a_dead_letter_that_says_why() {
    let stage = Stage::new(1, &format!("dead_letter = \"{LETTERS}\"\n{MAPPING}")).await;
    let huge = format!("{{\"item\":\"{}\"}}", "x".repeat(900_000));
    let mut no_json = Sent::value("not json").header("trace", "17");
    no_json.key = "k".to_owned();
    let messages = [
        item(0),
        no_json,
        Sent::value("{\"item\":\"1\"}").header("urgency", "soon"),
        item(2),
        Sent::value(huge),
        item(3).header("urgency", "high"),
    ];
    stage.kafka.send(TOPIC, 0, messages).await;
    stage.reaches(0, 6).await;
    let tasks = stage.tasks().await;
    let found = payloads(&tasks);
    let small: Vec<&str> = found.keys().map(String::as_str).filter(|payload| payload.len() < 10).collect();
    assert_eq!((small, tasks.len()), (vec!["0", "2", "3"], 4));
    let urgent = tasks.iter().find(|task| task.payload == b"3").unwrap();
    assert_eq!((urgent.priority.name(), urgent.kind.as_str(), urgent.queue.as_str()), ("high", "order", "q"));
    let letters = stage.kafka.read(LETTERS, 0, 2).await;
    assert_eq!(letters.len(), 2);
    assert_eq!((letters[0].value.as_slice(), letters[0].key.as_str()), (&b"not json"[..], "k"));
    assert_eq!((letters[0].get("trace"), letters[0].get("taskmaster.offset")), (Some("17"), Some("1")));
    assert!(letters[0].get("taskmaster.reason").unwrap().contains("not JSON"));
    assert!(letters[1].get("taskmaster.reason").unwrap().contains("its priority is \"soon\""));
    assert_eq!(letters[1].get("taskmaster.stream"), Some("shop"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_dead_letter_topic_a_partition_stops_before_it() {
    let mut stage = Stage::new(2, MAPPING).await;
    stage.kafka.send(TOPIC, 0, [item(0), item(1), Sent::value("not json"), item(3)]).await;
    stage.kafka.send(TOPIC, 1, [item(10)]).await;
    logged(&stage.node, "partition 0 stands still: the message at offset 2 cannot become a task").await;
    stage.reaches(0, 2).await;
    stage.reaches(1, 1).await;
    stage.kafka.send(TOPIC, 1, [item(11)]).await;
    stage.reaches(1, 2).await;
    assert_eq!(stage.tasks().await.len(), 4, "other partitions go on");
    // With other settings it goes on where it stopped.
    assert!(stage.node.terminate().success());
    stage.setup.more = super::table(&stage.kafka, &format!("dead_letter = \"{LETTERS}\"\n{MAPPING}"));
    stage.node = stage.setup.start();
    stage.client = stage.setup.client().await;
    stage.reaches(0, 4).await;
    assert_eq!(payloads(&stage.tasks().await).keys().collect::<Vec<_>>(), ["0", "1", "10", "11", "3"]);
    assert_eq!(stage.kafka.read(LETTERS, 0, 1).await[0].value, b"not json");
}
