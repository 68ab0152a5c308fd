//! Policies of queues as a user has them: deadlines that are met, are not, or are refused; and a policy in shadow.

use std::time::Duration;

use serde_json::Value;
use taskmaster_client::{Client, Policy, QueueSettings, Task, TaskId, Worker};
use tempfile::TempDir;

use crate::process::{Running, Setup, directory};

const LONG: Duration = Duration::from_secs(60);

struct Stage {
    _directory: TempDir,
    node: Running,
    client: Client,
}

async fn stage() -> Stage {
    let directory = directory();
    let node = Setup::new(&directory).start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    Stage { _directory: directory, node, client }
}

impl Stage {
    /// A worker of two places, and none in which tasks would wait out of the queue's sight, whose tasks of kind `long` take 20 ms.
    async fn worker(&self) -> Worker {
        let worker = Worker::builder(&self.client).queue("q").concurrency(2).prefetch(0);
        let worker = worker.handler("short", |_| async { Ok(Vec::new()) });
        let worker = worker.handler("long", |_| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(Vec::new())
        });
        worker.start().await.unwrap()
    }

    /// Lets tasks of these kinds run.
    async fn run(&self, kinds: &[&'static str], count: usize) {
        let tasks: Vec<Task> = (0..count).map(|number| Task::new(kinds[number % kinds.len()]).queue("q")).collect();
        for outcome in self.client.submit_many(tasks).await.unwrap() {
            self.client.result_within(outcome.id, LONG).await.unwrap().expect("it ends");
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_says_how_likely_its_deadline_is_and_a_queue_refuses_the_hopeless() {
    let stage = stage().await;
    let set = stage.node.json(&["queue", "set", "q", "--policy", "deadline", "--refuse-hopeless", "500"]).await;
    assert_eq!((&set["policy"], &set["refuse_hopeless_permille"]), (&Value::from("deadline"), &Value::from(500)));
    assert_eq!(text(&stage.node.cli(&["queue", "policy", "q"]).await.stdout), "deadline\n");
    let submit = ["submit", "--queue", "q", "--kind", "long", "--deadline"];
    let told = stage.node.json(&[&submit[..], &["1h"]].concat()).await;
    assert_eq!((&told["deadline"]["probability"], &told["result"]), (&Value::Null, &Value::from("accepted")));
    assert_eq!(told["deadline"]["unknown"], "too_few_samples");
    let _worker = stage.worker().await;
    stage.run(&["long"], 60).await;
    let told = stage.node.json(&[&submit[..], &["1h"]].concat()).await;
    assert!(told["deadline"]["probability"].as_f64().unwrap() > 0.9, "{told}");
    // The id alone is what a script reads.
    let told = stage.node.cli(&[&submit[..], &["1h"]].concat()).await;
    assert!(text(&told.stdout).trim_end().parse::<TaskId>().is_ok(), "{told:?}");
    assert!(text(&told.stderr).contains("the deadline is met with a probability of"), "{told:?}");
    let refused = stage.node.cli(&[&submit[..], &["1ms"]].concat()).await;
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(text(&refused.stderr).contains("queue \"q\" takes 500 at least"), "{refused:?}");
    stage.client.configure_queue("q", QueueSettings::new().refuse_hopeless(0)).await.unwrap();
    assert!(stage.node.cli(&[&submit[..], &["1ms"]].concat()).await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_in_shadow_reports_before_it_is_promoted() {
    let stage = stage().await;
    stage.client.configure_queue("q", QueueSettings::new().policy(Policy::Fifo)).await.unwrap();
    let shadow = ["queue", "policy", "q", "--shadow", "shortest"];
    let early = stage.node.cli(&shadow).await;
    assert!(early.status.success() && text(&early.stdout).contains("Ask again later"), "{early:?}");
    let unknown = stage.node.cli(&["queue", "policy", "p", "--shadow", "shortest"]).await;
    assert_eq!(unknown.status.code(), Some(5), "{unknown:?}");
    let _worker = stage.worker().await;
    stage.run(&["long", "short"], 512).await;
    let told = stage.node.json(&[&shadow[..], &["--for", "60s"]].concat()).await;
    assert_eq!((&told["enough"], &told["present"]["policy"]), (&Value::from(true), &Value::from("fifo")), "{told}");
    assert!(told["samples"].as_u64().unwrap() >= 256 && told["shards"] == 1, "{told}");
    let [present, candidate] = ["present", "shadow"].map(|policy| told[policy]["slowdown"].as_f64().unwrap());
    assert!(candidate < present && told["gain"].as_f64().unwrap() > 1.0, "{told}");
    assert!(told["gain_least"].as_f64().unwrap() <= told["gain"].as_f64().unwrap(), "{told}");
    let words = stage.node.cli(&shadow).await;
    for word in ["fifo (present)", "shortest (shadow)", "with 95 % confidence"] {
        assert!(text(&words.stdout).contains(word), "{}", text(&words.stdout));
    }
    let queues = stage.client.queues().await.unwrap();
    assert_eq!(queues[0].policy, Policy::Fifo, "a shadow changes nothing");
}
