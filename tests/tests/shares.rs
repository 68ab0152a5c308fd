//! Weights of queues as a user has them.

use std::time::Duration;

use serde_json::Value;
use taskmaster_client::{Client, QueueSettings, Task, Worker};

use crate::process::{Setup, directory};

#[tokio::test]
async fn a_weight_that_was_set_is_shown_and_survives_a_restart() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let node = setup.start();
    let set = node.json(&["queue", "set", "q", "--weight", "7"]).await;
    assert_eq!((&set["weight"], &set["policy"]), (&Value::from(7), &Value::from("auto")));
    let other = node.json(&["queue", "set", "p", "--depth", "9"]).await;
    assert_eq!(other["weight"], 1, "unless told otherwise");
    let refused = node.cli(&["queue", "set", "q", "--weight", "0"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("1..=1000"), "{refused:?}");
    node.kill();

    let node = setup.start();
    let listed = node.json(&["queue", "list"]).await;
    let weight = |name: &str| {
        listed["queues"].as_array().unwrap().iter().find(|of| of["queue"] == name).unwrap()["weight"].clone()
    };
    assert_eq!((weight("q"), weight("p")), (Value::from(7), Value::from(1)));
    let table = node.cli(&["queue", "list"]).await;
    assert!(String::from_utf8_lossy(&table.stdout).contains("weight 7"), "{table:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_two_namespaces_is_shared_by_weight() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let node = setup.start();
    let connect =
        async |namespace: &str| Client::builder().namespace(namespace).connect(node.address.to_string()).await;
    let (light, heavy) = (connect("light").await.unwrap(), connect("heavy").await.unwrap());
    heavy.configure_queue("q", QueueSettings::new().weight(3)).await.unwrap();
    for client in [&light, &heavy] {
        client.submit_many((0..1_000).map(|_| Task::new("nap").queue("q"))).await.unwrap();
    }
    let worker = Worker::builder(&connect("light,heavy").await.unwrap()).queue("q").concurrency(4).prefetch(0);
    let worker = worker.handler("nap", |_| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok("")
    });
    let _worker = worker.start().await.unwrap();
    let had = async |namespace: &str| {
        let name = format!("place_us/{namespace}/q");
        let counters: Vec<(String, u64)> =
            light.stats().await.unwrap().into_iter().flat_map(|of| of.counters).collect();
        counters.iter().filter(|(of, _)| *of == name).map(|(_, value)| *value).sum::<u64>()
    };
    // While both have tasks that wait: 4 of 1,000 that take 20 ms end at a time, so for five seconds at least.
    let mut both = (0, 0);
    while both.0 + both.1 < 2_000_000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        both = (had("light").await, had("heavy").await);
    }
    let ratio = both.1 as f64 / both.0 as f64;
    assert!((2.0..4.5).contains(&ratio), "{both:?}");
}
