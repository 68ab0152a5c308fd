//! A policy in shadow: what it would have made of what a queue ran lately.

use std::time::Duration;

use taskmaster_protocol::body::{ArchivedPolicyWaits, ArchivedShadowReport};

use crate::queue::Policy;

/// What a policy does to tasks, played in virtual time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicyWaits {
    /// The policy.
    pub policy: Policy,
    /// Mean wait.
    pub wait: Duration,
    /// Median wait; over several shards the mean of theirs.
    pub wait_median: Duration,
    /// In 99 of 100 cases it is no longer; over several shards the longest of theirs.
    pub wait_most: Duration,
    /// Mean bounded slowdown: wait and run time over run time, of which at least 10 ms count.
    pub slowdown: f64,
    /// Tasks that end after their deadline.
    pub late: u64,
}

/// The present policy of a queue beside one in shadow, over the same tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shadow {
    /// Under the present policy.
    pub present: PolicyWaits,
    /// Under the one in shadow.
    pub shadow: PolicyWaits,
    /// Mean wait as it was in truth.
    pub measured: Duration,
    /// Mean slowdown under the present policy over that under the one in shadow.
    pub gain: f64,
    /// What the gain is at least, with a confidence of 95 % for each shard.
    pub gain_least: f64,
    /// Tasks that were played.
    pub samples: u64,
    /// Tasks with a deadline.
    pub with_deadline: u64,
    /// Shards whose tasks were played, and those that had too few.
    pub shards: u32,
    /// Shards that have too few tasks to say anything,
    pub shards_waiting: u32,
    /// how many those have,
    pub samples_waiting: u64,
    /// and how many it takes for each.
    pub samples_min: u32,
}

impl Shadow {
    /// Adds what a shard says. Means are weighed by tasks.
    pub(crate) fn add(&mut self, report: &ArchivedShadowReport) {
        let samples = u64::from(report.samples.to_native());
        self.samples_min = report.samples_min.to_native();
        self.present.policy = Policy::of_number(report.present.policy.to_native());
        self.shadow.policy = Policy::of_number(report.shadow.policy.to_native());
        if samples < u64::from(self.samples_min).max(1) {
            (self.shards_waiting, self.samples_waiting) = (self.shards_waiting + 1, self.samples_waiting + samples);
            return;
        }
        let old = self.samples;
        self.samples += samples;
        #[expect(clippy::cast_precision_loss, reason = "a part")]
        let part = samples as f64 / self.samples as f64;
        self.present.add(&report.present, part);
        self.shadow.add(&report.shadow, part);
        self.measured = mixed(self.measured, report.measured_us.to_native(), part);
        let milli = |milli: u64| Duration::from_millis(milli).as_secs_f64();
        let (gain, least) = (milli(report.gain_milli.to_native()), milli(report.gain_least_milli.to_native()));
        self.gain += part * (gain - self.gain);
        self.gain_least = if old == 0 { least } else { self.gain_least.min(least) };
        self.with_deadline += u64::from(report.with_deadline.to_native());
        self.shards += 1;
    }
}

impl PolicyWaits {
    fn add(&mut self, waits: &ArchivedPolicyWaits, part: f64) {
        self.wait = mixed(self.wait, waits.wait_us.to_native(), part);
        self.wait_median = mixed(self.wait_median, waits.wait_median_us.to_native(), part);
        self.wait_most = self.wait_most.max(Duration::from_micros(waits.wait_most_us.to_native()));
        let slowdown = Duration::from_millis(waits.slowdown_milli.to_native()).as_secs_f64();
        self.slowdown += part * (slowdown - self.slowdown);
        self.late += u64::from(waits.late.to_native());
    }
}

/// A mean, of which `part` is new.
fn mixed(known: Duration, new_us: u64, part: f64) -> Duration {
    known.mul_f64(1.0 - part) + Duration::from_micros(new_us).mul_f64(part)
}
