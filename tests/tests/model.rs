//! What was learned about run times outlives the node, and a broken file of it costs nothing else.

use std::time::Duration;

use taskmaster_client::{Client, Task, Worker};

use crate::process::{Setup, directory};

async fn run_some(client: &Client, count: usize) {
    let worker = Worker::builder(client)
        .queue("learn")
        .handler("nap", |_| async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            Ok("")
        })
        .start()
        .await
        .unwrap();
    for outcome in client.submit_many((0..count).map(|_| Task::new("nap").queue("learn"))).await.unwrap() {
        client.result(outcome.id).await.unwrap();
    }
    worker.shutdown().await.unwrap();
}

/// What `task why` says of the run time of a task that waits.
async fn expected(client: &Client) -> String {
    let id = client.submit(Task::new("nap").queue("learn")).await.unwrap().id;
    let facts = client.why(id).await.unwrap();
    facts.into_iter().find(|fact| fact.name == "expected").unwrap().sentence
}

#[tokio::test]
async fn run_times_that_were_learned_survive_a_restart() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let mut node = setup.start();
    let client = setup.client().await;
    run_some(&client, 20).await;
    let before = expected(&client).await;
    assert!(before.contains("tasks of its kind"), "{before}");
    drop(client);
    assert!(node.terminate().success());

    let mut node = setup.start();
    let client = setup.client().await;
    let after = expected(&client).await;
    let figures = |sentence: &str| sentence.split(", by ").next().unwrap().to_owned();
    assert_eq!(figures(&after), figures(&before));
    assert!(after.contains("tasks of its kind"), "{after}");
    drop(client);
    assert!(node.terminate().success());

    let file = setup.data_dir.join("shard-000/model");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let node = setup.start();
    let client = setup.client().await;
    assert!(expected(&client).await.contains("nothing has ended yet"));
    assert!(node.log().contains("run times are learned anew"), "{}", node.log());
}
