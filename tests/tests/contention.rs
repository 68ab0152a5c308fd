//! Processes that compete for a processor, on real workers of one processor each: what is measured keeps them apart.

use std::process::Command;
use std::time::Duration;

use taskmaster_client::{Client, QueueSettings, State, Task, TaskId};
use tempfile::TempDir;

use crate::process::{Running, Setup, Silent, binary, counter, directory};

const LONG: Duration = Duration::from_secs(60);
/// Whoever is given the place beside the first task, in one of these orders it is the other hog. In the first two the
/// second hog comes while there is a place on either worker.
const ORDERS: [[&str; 4]; 3] =
    [["hog", "hog", "light", "light"], ["hog", "light", "hog", "light"], ["hog", "light", "light", "hog"]];
/// How often the hogs are to meet where nothing keeps them apart, and in how many rounds they must have.
const MEETINGS: usize = 4;
const MOST: usize = 60;

/// A worker on one processor, with two places; what tasks print is where they ran.
fn on_one(node: &Running, processor: &str, queue: &str) -> Silent {
    let mut command = Command::new("taskset");
    command.args(["-c", processor]).arg(binary()).args(["--addr", &node.address.to_string(), "worker"]);
    Silent::spawn(command.args(["--queue", queue, "--concurrency", "2", "--name", processor, "--exec", "sh -s"]))
}

struct Stage {
    _directory: TempDir,
    node: Running,
    client: Client,
}

impl Stage {
    async fn submit(&self, queue: &str, kind: &str) -> TaskId {
        let work = match kind {
            "hog" => "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done",
            _ => "sleep 0.3",
        };
        let text = format!("grep -m1 Cpus_allowed_list /proc/self/status | tr -dc 0-9; {work}");
        self.client.submit(Task::new(kind.to_owned()).queue(queue.to_owned()).payload(text)).await.unwrap().id
    }

    /// Where a task ran.
    async fn end(&self, id: TaskId) -> String {
        let outcome = self.client.result_within(id, LONG).await.unwrap().expect("it ends");
        assert_eq!(outcome.state, State::Succeeded, "{outcome:?}");
        outcome.text().unwrap().to_owned()
    }

    /// Submits four tasks in this order and waits for all; whether both hogs ran on the same processor.
    async fn hogs_meet(&self, queue: &str, kinds: [&str; 4]) -> bool {
        let (mut hogs, mut others) = (Vec::new(), Vec::new());
        for kind in kinds {
            let ids = if kind == "hog" { &mut hogs } else { &mut others };
            ids.push(self.submit(queue, kind).await);
        }
        let (first, second) = (self.end(hogs[0]).await, self.end(hogs[1]).await);
        for id in others {
            self.end(id).await;
        }
        first == second
    }
}

/// Whether there are two processors that workers can be bound to, and cgroups to measure by.
fn can_bind() -> bool {
    let bound = |processor: &str| Command::new("taskset").args(["-c", processor, "true"]).status();
    ["0", "1"].iter().all(|processor| bound(processor).is_ok_and(|status| status.success()))
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_compete_for_a_processor_are_kept_apart() {
    if !can_bind() {
        eprintln!("not run: workers cannot be bound to two processors here");
        return;
    }
    let directory = directory();
    let node = Setup::new(&directory).shards(2).start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let stage = Stage { _directory: directory, node, client };
    let _workers = ["0", "1"].map(|processor| on_one(&stage.node, processor, "q"));
    // Some of each kind alone, then together.
    for kind in ["hog", "light"].repeat(4) {
        let id = stage.submit("q", kind).await;
        stage.end(id).await;
    }
    if counter(&stage.client, "measured_attempts").await == 0 {
        eprintln!("not run: nothing is measured here");
        return;
    }
    stage.client.configure_queue("q", QueueSettings::new().contention(false)).await.unwrap();
    let (mut rounds, mut without) = (0, 0);
    while without < MEETINGS && rounds < MOST {
        without += usize::from(stage.hogs_meet("q", ORDERS[rounds % ORDERS.len()]).await);
        rounds += 1;
    }
    stage.client.configure_queue("q", QueueSettings::new().contention(true)).await.unwrap();
    let mut with = 0;
    for round in 0..rounds {
        with += usize::from(stage.hogs_meet("q", ORDERS[round % 2]).await);
    }
    eprintln!("of {rounds} rounds the hogs met in {without} without, and in {with} with it");
    let (held, contended) =
        (counter(&stage.client, "held_tasks").await, counter(&stage.client, "contended_tasks").await);
    eprintln!("held {held}, contended {contended}");
    assert!(without == MEETINGS && with + 2 <= without, "{without} without, {with} with");
}
