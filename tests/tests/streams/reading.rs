//! Where a stream begins and goes on, who reads what, and what is said of it.

use taskmaster_client::QueueSettings;

use super::{LETTERS, Stage, TOPIC, logged, payloads, reaches, table};
use crate::process::{Setup, binary, directory};
use crate::services::kafka::Sent;

fn numbers(range: std::ops::Range<u32>) -> impl Iterator<Item = Sent> {
    range.map(|number| Sent::value(number.to_string()))
}

fn run(arguments: &[&str]) -> (bool, String) {
    let made = std::process::Command::new(binary()).args(arguments).output().unwrap();
    (made.status.success(), String::from_utf8_lossy(&[made.stdout, made.stderr].concat()).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_survives_a_restart_and_is_shown() {
    let mut stage = Stage::new(1, "").await;
    stage.kafka.send(TOPIC, 0, numbers(0..5)).await;
    stage.reaches(0, 5).await;
    // The engine has them: the reader, too, knows it, and stores the position for others.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while crate::process::counter(&stage.client, "stream_tasks").await < 5 {
        assert!(std::time::Instant::now() < until, "{}", stage.node.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(stage.node.threads().contains(&"streams".to_owned()));
    assert!(stage.node.terminate().success());
    assert_eq!(stage.kafka.committed("taskmaster-shop", TOPIC, 0).await, Some(5), "for tools that show lag");
    stage.kafka.send(TOPIC, 0, numbers(5..8)).await;
    stage.node = stage.setup.start();
    stage.client = stage.setup.client().await;
    stage.reaches(0, 8).await;
    let tasks = stage.tasks().await;
    assert_eq!((tasks.len(), payloads(&tasks).len()), (8, 8));
    let address = stage.setup.address.to_string();
    let (listed, said) = run(&["stream", "list", "--addr", &address, "--output", "json"]);
    assert!(listed && said.contains("\"position\": 8") && said.contains("\"topic\": \"orders\""), "{said}");
    let config = stage.setup.data_dir.parent().unwrap().join(format!("node-{}.toml", stage.setup.address.port()));
    let (fit, said) = run(&["stream", "check", "--config", config.to_str().unwrap()]);
    assert!(fit && said.contains("1 partitions to read") && said.contains("stops its partition"), "{said}");
    std::fs::write(&config, stage.setup.config().replace("\"orders\"", "\"elsewhere\"")).unwrap();
    let (fit, said) = run(&["stream", "check", "--config", config.to_str().unwrap()]);
    assert!(!fit && said.contains("elsewhere"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_starts_with_the_latest_passes_over_what_is_there_and_nothing_else() {
    let stage = Stage::new(1, "").await;
    stage.kafka.send(TOPIC, 0, numbers(0..5)).await;
    stage.reaches(0, 5).await;
    let other = directory();
    let mut setup = Setup::new(&other);
    setup.more = table(&stage.kafka, "start = \"latest\"\ngroup = \"another\"");
    let mut node = setup.start();
    let late = setup.client().await;
    reaches(&late, &node, 0, 5).await;
    // What comes while it is away is not passed over.
    node.strike();
    stage.kafka.send(TOPIC, 0, numbers(5..7)).await;
    node = setup.start();
    let late = setup.client().await;
    reaches(&late, &node, 0, 7).await;
    assert_eq!(payloads(&super::tasks(&late).await).keys().collect::<Vec<_>>(), ["5", "6"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_takes_nothing_holds_the_stream_and_lets_it_go_on() {
    let stage = Stage::new(1, "").await;
    stage.client.configure_queue("q", QueueSettings::new().draining(true)).await.unwrap();
    stage.kafka.send(TOPIC, 0, numbers(0..3)).await;
    logged(&stage.node, "is draining and takes no new tasks").await;
    let counters = stage.client.stats().await.unwrap().remove(0).counters;
    let counter = |name: &str| counters.iter().find(|(other, _)| other == name).map(|(_, value)| *value);
    assert_eq!(
        (counter("stream_paused"), counter("stream_sources"), counter("stream_tasks")),
        (Some(1), Some(1), Some(0))
    );
    stage.client.configure_queue("q", QueueSettings::new().draining(false)).await.unwrap();
    stage.reaches(0, 3).await;
    assert_eq!(stage.tasks().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_made_anew_stops_the_stream_and_says_so() {
    let mut stage = Stage::new(1, &format!("dead_letter = \"{LETTERS}\"")).await;
    stage.kafka.send(TOPIC, 0, numbers(0..6)).await;
    stage.reaches(0, 6).await;
    assert!(stage.node.terminate().success());
    stage.kafka.remove_topic(TOPIC).await;
    stage.kafka.make_topic(TOPIC, 1).await;
    stage.kafka.send(TOPIC, 0, numbers(100..102)).await;
    stage.node = stage.setup.start();
    stage.client = stage.setup.client().await;
    logged(&stage.node, "the topic ends at offset 2, and the stream was at 6").await;
    assert_eq!(stage.tasks().await.len(), 6);
}
