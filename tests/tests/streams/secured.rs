//! Streams and events through a listener that encrypts and asks for a password, with the properties that users of librdkafka know.

use std::time::Instant;

use serde_json::Value;
use taskmaster_client::Worker;

use super::{LETTERS, TOPIC, WAIT_MAX, reaches};
use crate::process::{Setup, directory};
use crate::services::kafka::{Kafka, MECHANISM, PASSWORD, Sent, USER};

const EVENTS: &str = "happenings";

/// A stream and events through the secured listener, with the password of a file.
fn tables(kafka: &Kafka, authority: Option<&str>, password_file: &std::path::Path) -> String {
    let address = kafka.secured_address();
    let authority = authority.map(|file| format!(", \"ssl.ca.location\" = \"{file}\"")).unwrap_or_default();
    let secured = format!(
        "kafka = {{ \"security.protocol\" = \"SASL_SSL\", \"sasl.mechanism\" = \"{MECHANISM}\", \"sasl.username\" = \"{USER}\", \
         \"reconnect.backoff.max.ms\" = 500{authority} }}\nsecrets = {{ \"sasl.password\" = \"file:{}\" }}\n",
        password_file.display()
    );
    format!(
        "[[stream]]\nname = \"shop\"\nbrokers = [\"{address}\"]\ntopics = [\"{TOPIC}\"]\nqueue = \"q\"\nkind = \"order\"\n\
         priority = \"header:urgency\"\ndead_letter = \"{LETTERS}\"\n{secured}\
         [events]\nbrokers = [\"{address}\"]\ntopic = \"{EVENTS}\"\n{secured}"
    )
}

async fn secured() -> Kafka {
    let kafka = Kafka::start_secured().await;
    for topic in [TOPIC, LETTERS, EVENTS] {
        kafka.make_topic(topic, 1).await;
    }
    kafka
}

/// What the doctor says of the stream and of events, each with its status.
async fn doctor(setup: &Setup) -> Vec<(String, String)> {
    let config = setup.config();
    let report = tokio::task::spawn_blocking(move || crate::process::doctor(&config)).await.unwrap();
    let ours = ["stream", "events"].into_iter().filter_map(|name| crate::process::check(&report, name));
    let text = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
    ours.map(|check| (text(check, "status"), text(check, "message"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_come_and_events_go_with_encryption_and_a_password() {
    let kafka = secured().await;
    let directory = directory();
    let password = directory.path().join("password");
    std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    let mut setup = Setup::new(&directory);
    setup.more = tables(&kafka, Some(&kafka.authority()), &password);
    let checks = doctor(&setup).await;
    assert!(checks.len() == 2 && checks.iter().all(|(status, _)| status == "ok"), "{checks:?}");
    let node = setup.start();
    let client = setup.client().await;
    let worker = Worker::builder(&client).queue("q");
    let worker = worker.handler("order", |task| async move { Ok(format!("{} is done", task.text()?)) });
    let worker = worker.start().await.unwrap();
    kafka.send(TOPIC, 0, [Sent::value("one"), Sent::value("two").header("urgency", "soon")]).await;
    reaches(&client, &node, 0, 2).await;
    let letters = kafka.read(LETTERS, 0, 1).await;
    assert_eq!(letters[0].value, b"two");
    // Beside the events there is the mark of the transaction's end, which is no message.
    let (mut events, until) = (Vec::new(), Instant::now() + WAIT_MAX);
    while events.last() != Some(&"completed".to_owned()) {
        assert!(Instant::now() < until, "{events:?}: {}", node.log());
        let sent = kafka.read_all(EVENTS, 0).await;
        let name =
            |sent: &Sent| serde_json::from_slice::<Value>(&sent.value).unwrap()["event"].as_str().unwrap().to_owned();
        events = sent.iter().map(name).collect();
    }
    assert_eq!(events, ["submitted", "started", "completed"]);
    assert!(!node.log().contains(PASSWORD));
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_and_an_unknown_authority_are_said_as_what_they_are() {
    let kafka = secured().await;
    let directory = directory();
    let password = directory.path().join("password");
    std::fs::write(&password, "hunter7-is-wrong").unwrap();
    let mut setup = Setup::new(&directory);
    setup.more = tables(&kafka, Some(&kafka.authority()), &password);
    let node = setup.start();
    let until = Instant::now() + WAIT_MAX;
    let told =
        |log: &str, owner: &str| log.lines().any(|line| line.contains(owner) && line.contains("invalid credentials"));
    while !told(&node.log(), "stream shop: ") || !told(&node.log(), "events wait: ") {
        assert!(Instant::now() < until, "nothing says what is wrong: {}", node.log());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(node.log().lines().filter(|line| line.contains("stream shop: ")).count() < 10, "{}", node.log());
    let checks = doctor(&setup).await;
    for (status, message) in &checks {
        assert!(status == "fail" && message.contains("invalid credentials"), "{checks:?}");
    }
    assert!(!node.log().contains("hunter7") && !format!("{checks:?}").contains("hunter7"));
    setup.more = tables(&kafka, None, &password);
    let checks = doctor(&setup).await;
    for (status, message) in &checks {
        assert!(status == "fail" && message.contains("ssl.ca.location"), "{checks:?}");
    }
    assert_eq!(checks.len(), 2);
}
