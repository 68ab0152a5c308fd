//! Following a workflow to its end, with progress; Ctrl-C cancels it.

use std::time::Duration;

use taskmaster_client::{Client, State, TaskId, WorkflowView};
use taskmaster_workflow::Plan;

use crate::cli::Failure;
use crate::cli::progress::Progress;
use crate::cli::signal::Stop;
use crate::output::human_count;
use crate::report::NodeFigures;

/// Time between looks at a workflow of this many tasks at most; larger ones are looked at less often, since a look
/// brings all its rows.
const LOOK_INTERVAL: (usize, Duration) = (5_000, Duration::from_millis(200));
/// Time between looks at large workflows.
const LOOK_INTERVAL_LARGE: Duration = Duration::from_secs(1);
/// Time for a cancelled workflow's running tasks to end.
const CANCEL_WAIT: Duration = Duration::from_secs(15);

/// A workflow at its end.
pub(super) struct Watched {
    /// With all its tasks.
    pub(super) view: WorkflowView,
    /// Ctrl-C cancelled it.
    pub(super) interrupted: bool,
}

/// Waits until every task is final.
pub(super) async fn to_the_end(
    client: &Client,
    id: TaskId,
    plan: &Plan,
    stop: &mut Stop,
    quiet: bool,
) -> Result<Watched, Failure> {
    let (few, short) = LOOK_INTERVAL;
    let interval = if plan.tasks.len() <= few { short } else { LOOK_INTERVAL_LARGE };
    let total = plan.tasks.len() as u64;
    let mut progress = Progress::new("run", total, quiet);
    let mut interrupted = false;
    loop {
        tokio::select! {
            view = client.await_workflow(id, interval) => {
                let view = view?;
                if view.is_finished() {
                    break;
                }
                let done = view.counts.total() - view.counts.unfinished();
                progress.set(done, || message(&view, done, total));
            }
            () = stop.asked() => {
                progress.finish();
                eprintln!("cancelling the workflow; Ctrl-C again ends at once");
                client.cancel_workflow(id).await?;
                interrupted = true;
                tokio::select! {
                    ended = client.await_workflow(id, CANCEL_WAIT) => drop(ended?),
                    () = stop.asked() => {}
                }
                break;
            }
        }
    }
    progress.finish();
    Ok(Watched { view: client.workflow(id).await?, interrupted })
}

fn message(view: &WorkflowView, done: u64, total: u64) -> String {
    let count = |state| view.counts.of(state);
    let mut text =
        format!("{} of {} tasks done, {} running", human_count(done), human_count(total), count(State::Leased));
    for state in [State::Ready, State::Delayed, State::Failed, State::Cancelled] {
        if count(state) > 0 {
            text.push_str(&format!(", {} {state}", human_count(count(state))));
        }
    }
    text
}

/// The node's counters of its log; `None` when it does not tell.
pub(super) async fn counters(client: &Client) -> Option<NodeFigures> {
    let mut figures = NodeFigures::default();
    for shard in client.stats().await.ok()? {
        for (name, value) in shard.counters {
            match name.as_str() {
                "wal_bytes" => figures.wal_bytes += value,
                "wal_flushes" => figures.flushes += value,
                _ => {}
            }
        }
    }
    Some(figures)
}

/// Largest resident memory of this process so far, in bytes; 0 if unknown.
pub(super) fn rss_bytes_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}
