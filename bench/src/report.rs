//! What a run found out, as one JSON object and as a table for people.

use std::fmt;
use std::path::PathBuf;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::floor::Floor;

/// The outcome of a run. All figures but the verification are of the measured part, after the warm-up.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Tasks measured: submitted, assigned to a worker and completed.
    pub tasks: u64,
    /// Time from the start of the measurement to the last acknowledged completion, in seconds.
    pub elapsed_s: f64,
    /// Tasks submitted, assigned and completed per second, each step acknowledged after its flush.
    pub tasks_per_s: f64,
    /// From the intended time of a submission to its acknowledgement.
    pub submit_us: Latency,
    /// From the intended time of a submission to the moment a worker holds the task.
    pub initiation_us: Latency,
    /// From the intended time of a submission to the acknowledgement of its completion.
    pub end_to_end_us: Latency,
    /// Whether every single task was accounted for, and every payload compared.
    pub verified: bool,
    /// Tasks acknowledged and never completed, warm-up included.
    pub lost: u64,
    /// Completions accepted for tasks that were completed before, warm-up included.
    pub duplicated: u64,
    /// Assignments beyond a task's first attempt.
    pub redelivered: u64,
    /// Completions the node refused because the lease was not held any more.
    pub refused_completions: u64,
    /// Requests refused as overloaded and sent again.
    pub overloaded: u64,
    /// Requests refused because another node leads their partition, and sent there.
    pub moved: u64,
    /// Open loop: tasks sent more than 1 ms after their intended time.
    pub late_sends: u64,
    /// Flushes of the logs of all nodes.
    pub flushes: Option<u64>,
    /// Bytes written to the logs of all nodes, with what fills up blocks.
    pub wal_bytes: Option<u64>,
    /// Bytes of records in them.
    pub record_bytes: Option<u64>,
    /// Largest resident memory of any node's process since its start, in bytes.
    pub rss_bytes_max: Option<u64>,
    /// CPU time of all nodes' processes, in seconds; without the generator's if it runs in the same process.
    pub cpu_s: Option<f64>,
    /// CPU time of the generator, in nanoseconds per task.
    pub generator_ns_per_task: f64,
    /// What the machine allows.
    pub floor: Floor,
    /// What was measured, where.
    pub config: Config,
}

/// A latency distribution, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Largest.
    pub max: f64,
}

/// The circumstances of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// `closed` or `open` loop.
    pub mode: &'static str,
    /// Tasks per submit frame, or at most so many at a rate.
    pub batch: u32,
    /// Connections of each role.
    pub connections: u32,
    /// Separate connections for producers and workers.
    pub split: bool,
    /// Generator threads.
    pub threads: u32,
    /// Submit frames in flight per connection, at most.
    pub window: u32,
    /// Payload per task, in bytes.
    pub payload_bytes: u32,
    /// Tasks kept in the queue ahead of the load.
    pub queued: u64,
    /// Intended submissions per second.
    pub rate_per_s: Option<f64>,
    /// Time asked for, in seconds.
    pub duration_s: Option<f64>,
    /// Warm-up, in seconds.
    pub warmup_s: f64,
    /// How long the node keeps finished tasks, in milliseconds; 0: its own setting.
    pub retention_ms: u32,
    /// Nodes.
    pub nodes: u64,
    /// Replicas of each partition.
    pub replicas: u64,
    /// Address of the (first) node.
    pub addr: String,
    /// Software of the node.
    pub server: String,
    /// Shards of the node.
    pub shards: u64,
    /// Partitions of the node.
    pub partitions: u64,
    /// Data directory, if local.
    pub data_dir: Option<PathBuf>,
    /// File system type of the data directory, if local.
    pub file_system: Option<String>,
    /// Kernel of this machine.
    pub kernel: String,
    /// CPUs this process may use.
    pub cpus: u64,
    /// Version of the load generator.
    pub version: &'static str,
}

impl Report {
    /// Whether nothing was lost and nothing doubled.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.lost == 0 && self.duplicated == 0
    }

    fn case(&self) -> String {
        let Config { batch, connections, payload_bytes, .. } = &self.config;
        let rate =
            self.config.rate_per_s.map_or("closed loop".to_owned(), |rate| format!("{} per second", count(rate)));
        format!("batch {batch}, {connections} connections, {payload_bytes}-byte payloads, {rate}")
    }
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let us = |ns: u64| ns as f64 / 1e3;
        Self {
            mean: (histogram.mean() / 100.0).round() / 10.0,
            p50: us(histogram.value_at_quantile(0.5)),
            p90: us(histogram.value_at_quantile(0.9)),
            p99: us(histogram.value_at_quantile(0.99)),
            p999: us(histogram.value_at_quantile(0.999)),
            max: us(histogram.max()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tasks = self.tasks as f64;
        writeln!(f, "{} tasks in {:.2} s: {} tasks/s", count(tasks), self.elapsed_s, count(self.tasks_per_s))?;
        writeln!(f, "{}\n", self.case())?;
        writeln!(f, "  µs          {:>10}{:>10}{:>10}{:>10}{:>10}{:>10}", "mean", "p50", "p90", "p99", "p99.9", "max")?;
        let rows =
            [("submit", &self.submit_us), ("initiation", &self.initiation_us), ("end to end", &self.end_to_end_us)];
        for (name, l) in rows {
            let cells = [l.mean, l.p50, l.p90, l.p99, l.p999, l.max].map(count);
            let [mean, p50, p90, p99, p999, max] = cells;
            writeln!(f, "  {name:<12}{mean:>10}{p50:>10}{p90:>10}{p99:>10}{p999:>10}{max:>10}")?;
        }
        let verified = if self.verified { "every task accounted for" } else { "totals only" };
        writeln!(f, "\n  verified    {} lost, {} duplicated ({verified})", self.lost, self.duplicated)?;
        let unusual = [
            ("redelivered", self.redelivered),
            ("completions refused", self.refused_completions),
            ("overloaded", self.overloaded),
            ("sent to another leader", self.moved),
            ("sent late", self.late_sends),
        ];
        for (name, number) in unusual.iter().filter(|(_, number)| *number > 0) {
            writeln!(f, "  note        {number} {name}")?;
        }
        self.fmt_node(f, tasks.max(1.0))?;
        write!(f, "  generator   {:.0} ns of CPU per task", self.generator_ns_per_task)
    }
}

impl Report {
    /// CPU time of all nodes' processes, in microseconds per task.
    #[must_use]
    pub fn cpu_us_per_task(&self) -> Option<f64> {
        Some(self.cpu_s? * 1e6 / self.tasks.max(1) as f64)
    }

    /// Bytes written to the log of one replica per task.
    #[must_use]
    pub fn wal_bytes_per_task(&self) -> Option<f64> {
        Some(self.wal_bytes? as f64 / self.replicated_tasks())
    }

    /// Bytes of records in the log of one replica per task.
    #[must_use]
    pub fn record_bytes_per_task(&self) -> Option<f64> {
        Some(self.record_bytes? as f64 / self.replicated_tasks())
    }

    fn replicated_tasks(&self) -> f64 {
        (self.tasks.max(1) * self.config.replicas.max(1)) as f64
    }

    fn fmt_node(&self, f: &mut fmt::Formatter<'_>, tasks: f64) -> fmt::Result {
        let mut node = Vec::new();
        if let Some(flushes) = self.flushes {
            node.push(format!(
                "{} flushes ({} tasks each)",
                count(flushes as f64),
                count(tasks / (flushes.max(1) as f64))
            ));
        }
        if let (Some(bytes), Some(each), Some(record)) =
            (self.wal_bytes, self.wal_bytes_per_task(), self.record_bytes_per_task())
        {
            let of = if self.config.replicas > 1 { " and replica" } else { "" };
            let (each, record) = (count(each), count(record));
            node.push(format!("{:.1} MB of log ({each} B per task{of}, {record} of records)", bytes as f64 / 1e6));
        }
        if let Some(bytes) = self.rss_bytes_max {
            node.push(format!("{:.0} MiB of memory", bytes as f64 / f64::from(1 << 20)));
        }
        if let Some(cpu_s) = self.cpu_s {
            node.push(format!("{cpu_s:.2} s of CPU ({:.2} µs per task)", cpu_s * 1e6 / tasks));
        }
        if !node.is_empty() {
            let who = if self.config.nodes > 1 { format!("{} nodes", self.config.nodes) } else { "node".to_owned() };
            writeln!(f, "  {who:<12}{}", node.join(", "))?;
        }
        let floor = [
            (self.floor.append_flush_per_s, "append+flush/s"),
            (self.floor.loopback_round_trips_per_s, "loopback round trips/s"),
        ];
        let floor: Vec<String> =
            floor.iter().filter_map(|(per_s, name)| per_s.map(|per_s| format!("{} {name}", count(per_s)))).collect();
        if !floor.is_empty() {
            writeln!(f, "  floor       {}", floor.join(", "))?;
        }
        let Config { kernel, cpus, shards, partitions, server, .. } = &self.config;
        let file_system = self.config.file_system.as_deref().unwrap_or("unknown file system");
        writeln!(
            f,
            "  where       {file_system}, {kernel}, {cpus} CPUs; {server}, {shards} shards, {partitions} partitions"
        )
    }
}

/// A number for people: whole with thousands separated from 100 on, else with one digit after the point.
pub(crate) fn count(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}").trim_end_matches(".0").to_owned();
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_for_people() {
        let shown: Vec<String> = [0.0, 7.25, 64.0, 99.99, 100.0, 1234.4, 1e6, 12_345_678.0].map(count).into();
        assert_eq!(shown, ["0", "7.2", "64", "100", "100", "1,234", "1,000,000", "12,345,678"]);
    }
}
