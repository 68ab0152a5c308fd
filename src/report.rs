//! The closing report of a workflow run, computed from what was observed.
//!
//! Times come in as microseconds since 1970 on one clock. The makespan is held against two lower bounds under the run
//! times that were observed: the critical path, which no number of workers beats, and the work divided by the slots
//! (Graham 1966). Initiation latency is the time from ready (all dependencies durable) to the start of the work.
//!
//! It reads no clock, socket or file.

mod dispatch;

use serde::Serialize;
use taskmaster_client::State;
use taskmaster_workflow::{Plan, verify_order};

use crate::output::{human_bytes, human_count, human_us, pairs};

/// What was seen of one task of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    /// Its state at the end.
    pub(crate) state: State,
    /// Attempts begun.
    pub(crate) attempts: u32,
    /// When it became ready (for its latest attempt); 0 if never.
    pub(crate) ready_us: u64,
    /// Start of its first attempt; 0 if never.
    pub(crate) first_start_us: u64,
    /// Start of its latest attempt; 0 if never.
    pub(crate) start_us: u64,
    /// End of its latest attempt; 0 if never.
    pub(crate) end_us: u64,
}

/// What the node counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct NodeFigures {
    /// Largest resident memory of the process, in bytes; 0 if unknown.
    pub(crate) rss_bytes_max: u64,
    /// Bytes written to the log.
    pub(crate) wal_bytes: u64,
    /// Flushes of the log.
    pub(crate) flushes: u64,
}

/// Everything a report is computed from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    /// The plan that ran.
    pub(crate) plan: &'a Plan,
    /// One observation per task of the plan, in its order.
    pub(crate) observed: &'a [Observation],
    /// When the workflow was accepted.
    pub(crate) submitted_us: u64,
    /// When its last task was final.
    pub(crate) finished_us: u64,
    /// Tasks that could run at once; `None` if unknown.
    pub(crate) slots: Option<u32>,
    /// Cores that tasks could reserve, in thousandths; `None` if they were not counted.
    pub(crate) cpu_milli: Option<u32>,
    /// What the node counted, if it could be asked.
    pub(crate) node: Option<NodeFigures>,
}

impl Run<'_> {
    /// Least time for all the work, whatever the order: over the slots, and over the cores that tasks reserve.
    fn width_bound_s(&self, run_times: &[f64], slots: u32) -> f64 {
        let over_slots = self.plan.bound_of(run_times, slots.max(1));
        let reserved: f64 = (self.plan.tasks.iter().zip(run_times))
            .map(|(task, time)| f64::from(task.contract.resources.cpu_milli) * time)
            .sum();
        let over_cores = self.cpu_milli.map_or(0.0, |cores| reserved / f64::from(cores.max(1)));
        over_slots.max(over_cores)
    }

    fn dispatch(&self) -> Option<Latency> {
        let ran: Vec<dispatch::Ran> = (self.plan.tasks.iter().zip(self.observed))
            .map(|(task, &seen)| dispatch::Ran { seen, cpu_milli: task.contract.resources.cpu_milli })
            .collect();
        Latency::of(dispatch::waits_us(&ran, self.slots?, self.cpu_milli))
    }
}

/// A distribution, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Latency {
    /// Arithmetic mean.
    pub(crate) mean: f64,
    /// Median.
    pub(crate) p50: u64,
    /// 90th percentile.
    pub(crate) p90: u64,
    /// 99th percentile.
    pub(crate) p99: u64,
    /// Largest.
    pub(crate) max: u64,
}

impl Latency {
    /// Of these values (nearest rank); `None` when there are none.
    fn of(mut values: Vec<u64>) -> Option<Self> {
        values.sort_unstable();
        let last = values.len().checked_sub(1)?;
        let rank = |percent: usize| values[(values.len() * percent).div_ceil(100).saturating_sub(1).min(last)];
        let sum: u128 = values.iter().map(|&value| u128::from(value)).sum();
        let mean = to_f64(sum) / to_f64(values.len() as u128);
        Some(Self { mean, p50: rank(50), p90: rank(90), p99: rank(99), max: values[last] })
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people: 52 bits are plenty")]
fn to_f64(number: u128) -> f64 {
    number as f64
}

/// The report. Times in seconds unless a name says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    /// Name of the workflow.
    pub(crate) name: String,
    /// Whether every task succeeded and every dependency was respected.
    pub(crate) success: bool,
    /// Tasks of the plan.
    pub(crate) tasks: usize,
    /// Tasks that ran.
    pub(crate) run: usize,
    /// Tasks that succeeded.
    pub(crate) succeeded: usize,
    /// Tasks that failed for good or expired.
    pub(crate) failed: usize,
    /// Tasks that were cancelled.
    pub(crate) cancelled: usize,
    /// Attempts beyond each task's first.
    pub(crate) retries: u64,
    /// From acceptance to the last task's end.
    pub(crate) makespan_s: f64,
    /// Longest chain of observed run times.
    pub(crate) critical_path_s: f64,
    /// Sum of observed run times.
    pub(crate) work_s: f64,
    /// Tasks that could run at once.
    pub(crate) slots: Option<u32>,
    /// The largest of critical path, work over slots, and reserved core time over cores.
    pub(crate) bound_s: Option<f64>,
    /// Longest chain of the plan's recorded run times (at the speed they are replayed), for recorded workflows.
    pub(crate) recorded_critical_path_s: Option<f64>,
    /// Ready to start.
    pub(crate) initiation_us: Option<Latency>,
    /// Ready, with a slot and the reserved cores free, to start: the engine's part of the initiation.
    pub(crate) dispatch_us: Option<Latency>,
    /// Tasks that ran per second of makespan.
    pub(crate) tasks_per_s: f64,
    /// The first broken dependency.
    pub(crate) order_violation: Option<String>,
    /// What the node counted.
    #[serde(flatten)]
    pub(crate) node: Option<NodeFigures>,
}

fn seconds(us: u64) -> f64 {
    to_f64(us.into()) / 1e6
}

impl Report {
    /// Computes it.
    ///
    /// # Panics
    /// If there is not one observation per task of the plan.
    pub(crate) fn of(run: &Run<'_>) -> Self {
        let Run { plan, observed, .. } = *run;
        assert_eq!(plan.tasks.len(), observed.len(), "one observation per task");
        let run_times: Vec<f64> =
            observed.iter().map(|task| seconds(task.end_us.saturating_sub(task.start_us))).collect();
        let started = observed.iter().filter(|task| task.start_us > 0);
        let waits = started.clone().filter(|task| task.ready_us > 0);
        let count = |states: &[State]| observed.iter().filter(|task| states.contains(&task.state)).count();
        let spans: Vec<_> =
            observed.iter().map(|task| (task.start_us > 0).then_some((task.first_start_us, task.end_us))).collect();
        // A dependency that failed has "continue" descendants, which do start after its end: the check holds for them too.
        let order_violation = verify_order(plan, &spans).err().map(|violation| violation.to_string());
        let makespan_s = seconds(run.finished_us.saturating_sub(run.submitted_us));
        let ran = started.clone().count();
        let recorded = plan.total_work_s() > 0.0;
        let succeeded = count(&[State::Succeeded]);
        Self {
            name: plan.name.clone(),
            success: succeeded == plan.tasks.len() && order_violation.is_none(),
            tasks: plan.tasks.len(),
            run: ran,
            succeeded,
            failed: count(&[State::Failed, State::Expired]),
            cancelled: count(&[State::Cancelled]),
            retries: started.map(|task| u64::from(task.attempts.saturating_sub(1))).sum(),
            makespan_s,
            critical_path_s: plan.critical_path_of(&run_times),
            work_s: run_times.iter().sum(),
            slots: run.slots,
            bound_s: run.slots.map(|slots| run.width_bound_s(&run_times, slots)),
            recorded_critical_path_s: recorded.then(|| plan.critical_path_s()),
            initiation_us: Latency::of(waits.map(|task| task.start_us.saturating_sub(task.ready_us)).collect()),
            dispatch_us: run.dispatch(),
            tasks_per_s: if makespan_s > 0.0 { to_f64(ran as u128) / makespan_s } else { 0.0 },
            order_violation,
            node: run.node,
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![("tasks", self.tasks_line()), ("makespan", human_s(self.makespan_s))];
        let against = |bound: f64| {
            if bound > 0.0 { format!("; makespan is {:.2}x", self.makespan_s / bound) } else { String::new() }
        };
        lines.push(("critical path", format!("{}{}", human_s(self.critical_path_s), against(self.critical_path_s))));
        if let Some(recorded) = self.recorded_critical_path_s {
            lines.push(("recorded path", format!("{}{}", human_s(recorded), against(recorded))));
        }
        if let (Some(bound), Some(slots)) = (self.bound_s, self.slots) {
            let work = human_s(self.work_s);
            lines.push(("work/width", format!("{}: {work} of work, {slots} slots{}", human_s(bound), against(bound))));
        }
        let spread = |latency: Latency| {
            let [p50, p99, max] = [latency.p50, latency.p99, latency.max].map(human_us);
            format!("mean {}, p50 {p50}, p99 {p99}, max {max}", human_s(latency.mean / 1e6))
        };
        if let Some(latency) = self.initiation_us {
            lines.push(("initiation", format!("{} (ready to start, waits for a free slot included)", spread(latency))));
        }
        if let Some(latency) = self.dispatch_us {
            lines.push(("dispatch", format!("{} (ready and a slot free to start)", spread(latency))));
        }
        lines.push(("throughput", format!("{:.1} tasks/s", self.tasks_per_s)));
        lines.push(("order", self.order_violation.clone().unwrap_or_else(|| "every dependency respected".to_owned())));
        if let Some(node) = self.node {
            if node.rss_bytes_max > 0 {
                lines.push((
                    "memory",
                    format!(
                        "{} resident at most: node and workers, without the commands they run",
                        human_bytes(node.rss_bytes_max)
                    ),
                ));
            }
            let written = human_bytes(node.wal_bytes);
            lines.push(("disk", format!("{written} written to the log in {} flushes", human_count(node.flushes))));
        }
        pairs(&lines)
    }

    fn tasks_line(&self) -> String {
        let count = |number: usize| human_count(number as u64);
        let mut line = format!("{} run, {} succeeded", count(self.run), count(self.succeeded));
        for (number, word) in [(self.failed, "failed"), (self.cancelled, "cancelled")] {
            line.push_str(&format!(", {} {word}", count(number)));
        }
        if self.retries > 0 {
            line.push_str(&format!(", {} retries", human_count(self.retries)));
        }
        line
    }
}

/// Seconds in the unit that fits.
fn human_s(seconds: f64) -> String {
    let us = (seconds * 1e6).round().clamp(0.0, 1e15);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a range that fits")]
    human_us(us as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskmaster_workflow::Options;

    /// a → b, c → d: a diamond.
    fn diamond() -> Plan {
        let text = "name: diamond\ntasks:\n  a: {command: [\"true\"]}\n  b: {command: [\"true\"], needs: [a]}\n  \
                    c: {command: [\"true\"], needs: [a]}\n  d: {command: [\"true\"], needs: [b, c]}\n";
        let options = Options { name: "diamond".into(), workdir: "/".into(), ..Options::default() };
        taskmaster_workflow::from_yaml(text, &options).unwrap()
    }

    fn ran(ready_us: u64, start_us: u64, end_us: u64) -> Observation {
        Observation { state: State::Succeeded, attempts: 1, ready_us, first_start_us: start_us, start_us, end_us }
    }

    fn run<'a>(plan: &'a Plan, observed: &'a [Observation]) -> Run<'a> {
        Run { plan, observed, submitted_us: 1_000, finished_us: 8_001_000, slots: Some(2), cpu_milli: None, node: None }
    }

    #[test]
    fn a_diamond_is_held_against_its_critical_path_and_its_width() {
        let plan = diamond();
        let s = 1_000_000;
        let observed = [
            ran(s, s + 100, 2 * s),
            ran(2 * s, 2 * s + 300, 5 * s),
            ran(2 * s, 2 * s + 200, 4 * s),
            ran(5 * s, 5 * s, 8 * s),
        ];
        let report = Report::of(&run(&plan, &observed));
        assert!(report.success);
        assert_eq!((report.tasks, report.run, report.retries), (4, 4, 0));
        assert!((report.makespan_s - 8.0).abs() < 1e-9);
        assert!((report.critical_path_s - 6.9996).abs() < 1e-6, "{}", report.critical_path_s);
        assert!((report.work_s - 8.9994).abs() < 1e-6);
        assert_eq!(report.bound_s, Some(report.critical_path_s));
        let latency = report.initiation_us.unwrap();
        assert!((latency.mean - 150.0).abs() < 1e-9);
        assert_eq!((latency.p50, latency.p99, latency.max), (100, 300, 300));
        assert!((report.tasks_per_s - 0.5).abs() < 1e-9);
    }

    #[test]
    fn tasks_that_never_ran_count_for_nothing() {
        let plan = diamond();
        let never = |state| Observation { state, attempts: 0, ready_us: 0, first_start_us: 0, start_us: 0, end_us: 0 };
        let failed = Observation { state: State::Failed, attempts: 3, ..ran(10, 20, 30) };
        let observed = [failed, never(State::Cancelled), never(State::Cancelled), never(State::Cancelled)];
        let report = Report::of(&run(&plan, &observed));
        assert!(!report.success);
        assert_eq!((report.run, report.failed, report.cancelled, report.retries), (1, 1, 3, 2));
        assert_eq!(report.order_violation, None);
    }

    #[test]
    fn a_child_that_starts_too_early_is_told() {
        let plan = diamond();
        let observed = [ran(1, 2, 30), ran(30, 29, 40), ran(30, 31, 40), ran(40, 41, 50)];
        let report = Report::of(&run(&plan, &observed));
        assert!(!report.success);
        assert!(report.order_violation.unwrap().contains("'b' started"));
    }

    #[test]
    fn percentiles_are_of_nearest_rank() {
        let latency = Latency::of((1..=100).rev().collect()).unwrap();
        assert_eq!((latency.p50, latency.p90, latency.p99, latency.max), (50, 90, 99, 100));
        assert_eq!(Latency::of(vec![7]).unwrap().p99, 7);
        assert_eq!(Latency::of(Vec::new()), None);
    }

    #[test]
    fn text_and_json_hold_the_same_figures() {
        let plan = diamond();
        let observed = [ran(1, 2, 3), ran(3, 4, 5), ran(3, 4, 6), ran(6, 7, 8)];
        let node = Some(NodeFigures { rss_bytes_max: 50 << 20, wal_bytes: 4_096, flushes: 12 });
        let report = Report::of(&Run { node, ..run(&plan, &observed) });
        let text = report.text();
        for part in ["4 run, 4 succeeded, 0 failed", "8.00 s", "2 slots", "50.0 MiB", "4.0 KiB written", "12 flushes"] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["flushes"], 12);
        assert_eq!(json["initiation_us"]["p50"], 1);
        assert_eq!(json["success"], true);
    }
}
