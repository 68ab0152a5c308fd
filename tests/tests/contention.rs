//! Processes that compete for a processor, on real workers of one processor each: what is measured keeps them apart.

use std::process::Command;
use std::time::Duration;

use taskmaster_client::{Client, QueueSettings, State, Task, TaskId};
use tempfile::TempDir;

use crate::process::{Running, Setup, Silent, binary, counter, directory};

const LONG: Duration = Duration::from_secs(60);
/// Rounds in which four tasks are submitted at once, two of each kind.
const ROUNDS: usize = 8;

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

    /// In how many rounds both hogs ran on the same processor.
    async fn rounds(&self, queue: &str) -> usize {
        let mut together = 0;
        // Whether workers take turns or are filled one after the other: in one of the two orders the hogs go to one worker.
        for kinds in [["hog", "light", "hog", "light"], ["hog", "hog", "light", "light"]].repeat(ROUNDS / 2) {
            let (mut hogs, mut others) = (Vec::new(), Vec::new());
            for kind in kinds {
                let ids = if kind == "hog" { &mut hogs } else { &mut others };
                ids.push(self.submit(queue, kind).await);
            }
            let (first, second) = (self.end(hogs[0]).await, self.end(hogs[1]).await);
            together += usize::from(first == second);
            for id in others {
                self.end(id).await;
            }
        }
        together
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
    let without = stage.rounds("q").await;
    stage.client.configure_queue("q", QueueSettings::new().contention(true)).await.unwrap();
    let with = stage.rounds("q").await;
    eprintln!("of {ROUNDS} rounds the hogs met in {without} without, and in {with} with it");
    let (held, contended) =
        (counter(&stage.client, "held_tasks").await, counter(&stage.client, "contended_tasks").await);
    eprintln!("held {held}, contended {contended}");
    assert!(without >= with + 2, "{without} without, {with} with");
}
