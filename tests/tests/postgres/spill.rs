//! What waits for a database that is away lies on disk when it is too much for memory, and is stored from there.

use std::time::Duration;

use taskmaster_client::{Client, Task, TaskId};

use super::Stage;
use super::outages::{nothing_waits, until, worker};
use crate::process::counter;

/// Bytes of a payload and of its result: together they are twice the node's memory.
const BYTES: usize = 64 << 10;
const TASKS: u32 = 2_000;

fn payload(number: u32) -> Vec<u8> {
    let pattern = number.to_le_bytes();
    pattern.iter().copied().cycle().take(BYTES).collect()
}

async fn assert_results(client: &Client, ids: &[TaskId]) {
    for (id, number) in ids.iter().zip(0..).step_by(37) {
        assert!(client.result(*id).await.unwrap().result == payload(number), "the result of {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_larger_than_memory_lies_on_disk_and_is_stored_in_the_end() {
    let mut stage = Stage::new("waiting_size = \"4MiB\"\nkept = \"0s\"\n[limits]\nmemory = \"64MiB\"\n").await;
    let client = stage.client.clone();
    let working = worker(&client).await;
    stage.postgres.kill();
    let mut ids = Vec::new();
    for first in (0..TASKS).step_by(50) {
        let tasks = (first..first + 50).map(|number| Task::new("echo").queue("plain").payload(payload(number)));
        let some: Vec<TaskId> = client.submit_many(tasks).await.unwrap().iter().map(|outcome| outcome.id).collect();
        for &id in &some {
            client.result(id).await.unwrap();
        }
        ids.extend(some);
    }
    let all = TASKS as usize * BYTES;
    let spilled = async |client: &Client| usize::try_from(counter(client, "spilled_bytes").await).unwrap();
    until("what does not fit is on disk", async || spilled(&client).await > all - (16 << 20)).await;
    assert!(counter(&client, "memory_bytes").await < 40 << 20);
    assert_results(&client, &ids).await;
    working.shutdown().await.unwrap();

    // Nothing of it is lost with the process, and it need not fit into memory at the next start either.
    stage.node.strike();
    stage.node = stage.setup.start();
    let client = Client::connect(stage.node.address.to_string()).await.unwrap();
    until("what does not fit is on disk", async || spilled(&client).await > all - (16 << 20)).await;
    assert_results(&client, &ids).await;

    stage.postgres.restart().await;
    stage.stored(ids.len()).await;
    nothing_waits(&client).await;
    until("all has left disk and memory", async || spilled(&client).await == 0).await;
    assert_eq!(counter(&client, "checkpoint_lost").await, 0);
    tokio::time::timeout(Duration::from_secs(60), assert_results(&client, &ids)).await.unwrap();
}
