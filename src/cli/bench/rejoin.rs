//! `bench --rejoin N`: a node comes back to a cluster that holds N tasks, after so much happened without it that the logs no
//! longer reach back to where it stopped. How long it takes until it has everything again, and what of the cluster's
//! throughput is left meanwhile.

use std::cell::Cell;
use std::fmt;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Serialize;
use serde_json::Value;
use taskmaster_bench::{Options, Report};

use super::nodes::{Nodes, put_load};
use super::{Arguments, Failure};
use crate::cli::Global;
use crate::config::Config;

/// Length of each measurement when none is given.
const MEASURED: Duration = Duration::from_secs(5);
/// How long the tasks that the cluster holds are kept: longer than any run.
const HELD_MS: u32 = 3_600_000;
/// Entries by which a replica may be behind at most when it counts as back.
const LAG_MAX: u32 = 200;

/// What came of it.
#[derive(Debug, Serialize)]
struct Rejoin {
    /// Tasks that every node holds.
    held_tasks: u64,
    /// Tasks that came and went while the node was away.
    missed_tasks: u64,
    /// Tasks per second of the whole cluster, before and after.
    whole_tasks_per_s: [f64; 2],
    /// Tasks per second while the node caught up, in runs one after the other.
    rejoining_tasks_per_s: Vec<f64>,
    /// Mean of the runs while it caught up over the mean of the whole cluster.
    share: f64,
    /// From its start until it had everything, in seconds.
    whole_after_s: f64,
    /// Nothing was lost and nothing came twice.
    exact: bool,
}

impl fmt::Display for Rejoin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, after] = self.whole_tasks_per_s;
        writeln!(f, "{} tasks held, {} missed", self.held_tasks, self.missed_tasks)?;
        writeln!(f, "whole cluster    {before:>10.0} tasks/s before, {after:.0} after")?;
        write!(f, "node catching up ")?;
        for rate in &self.rejoining_tasks_per_s {
            write!(f, "{rate:>10.0}")?;
        }
        writeln!(f, " tasks/s: {:.0} % of it", self.share * 100.0)?;
        write!(f, "it had everything after {:.1} s", self.whole_after_s)
    }
}

/// Carries it out with `tasks` held.
pub(super) async fn run(
    global: &Global,
    arguments: &Arguments,
    config: &Config,
    tasks: u64,
) -> Result<(Value, String, bool), Failure> {
    let quiet = global.output().is_json();
    let tell = |line: &str| {
        if !quiet {
            eprintln!("{line}");
        }
    };
    let base = Options { floor_s: 0.0, progress: false, ..arguments.options(quiet)? };
    let measured = arguments.duration.map_or(MEASURED, |duration| duration.0);
    let timed = Options { duration_s: Some(measured.as_secs_f64()), tasks: None, ..base.clone() };
    let filling = Options { tasks: Some(tasks), retention_ms: HELD_MS, warmup_s: 0.0, ..base.clone() };
    let missing = Options { tasks: Some(tasks), ..base };

    let mut config = config.clone();
    // What is to be held must not be forgotten, and partitions do not get exactly the same.
    config.queues.finished_max = config.queues.finished_max.max(2 * tasks);

    let mut nodes = Nodes::start(&config, arguments.nodes, None, global.verbose).await?;
    let mut exact = true;
    let mut rate = |report: &Report| {
        exact &= report.is_exact();
        report.tasks_per_s
    };
    tell(&format!("{tasks} tasks for the cluster to hold"));
    rate(&put_load(&nodes.infos(), &filling).await?);
    tell("the whole cluster");
    let before = rate(&put_load(&nodes.infos(), &timed).await?);

    let away = nodes.members.all.len() - 1;
    tell(&format!("{tasks} more without node {}", nodes.members.all[away].name));
    nodes.members.signal_one(away, Signal::KILL);
    nodes.members.next_end().await;
    nodes.led_by_others(away).await?;
    let infos = nodes.infos();
    rate(&put_load(&infos[..away], &missing).await?);

    tell("the node comes back");
    let began = Instant::now();
    nodes.members.restart(away).await?;
    let infos = nodes.infos();
    let whole_after = Cell::new(None);
    let catching_up = async {
        nodes.whole_within(LAG_MAX).await?;
        whole_after.set(Some(began.elapsed()));
        Ok::<_, Failure>(())
    };
    let loading = async {
        let mut reports = Vec::new();
        while whole_after.get().is_none() {
            reports.push(put_load(&infos, &timed).await?);
        }
        Ok(reports)
    };
    let ((), reports) = tokio::try_join!(catching_up, loading)?;
    let rejoining_tasks_per_s: Vec<f64> = reports.iter().map(&mut rate).collect();
    tell("the whole cluster again");
    let after = rate(&put_load(&infos, &timed).await?);
    nodes.end().await;

    let mean = rejoining_tasks_per_s.iter().sum::<f64>() / rejoining_tasks_per_s.len() as f64;
    let rejoin = Rejoin {
        held_tasks: tasks,
        missed_tasks: tasks,
        whole_tasks_per_s: [before, after],
        share: mean / f64::midpoint(before, after),
        rejoining_tasks_per_s,
        whole_after_s: whole_after.get().unwrap_or_default().as_secs_f64(),
        exact,
    };
    Ok((serde_json::to_value(&rejoin).map_err(anyhow::Error::from)?, rejoin.to_string(), exact))
}
