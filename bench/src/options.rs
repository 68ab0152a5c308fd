//! What a run is asked to do, and the node it is done to.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use taskmaster_protocol::limits;

/// Bytes of every payload that carry the intended time and the sequence number.
pub(crate) const STAMP_BYTES: u32 = 16;

/// A running node, started by the caller or found at an address.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// `host:port` of any shard.
    pub addr: String,
    /// Its data directory, if local: the floor is measured on that file system.
    pub data_dir: Option<PathBuf>,
    /// Its process, if local: memory and CPU are read from `/proc`.
    pub pid: Option<u32>,
}

/// One run of the load generator. `Options::default()` is saturation with batches of 64 over 16 connections.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tasks per submit frame; at a rate, the most tasks per frame. 1 means one task per request everywhere: every
    /// completion is a request of its own too.
    pub batch: u32,
    /// Connections, each producer and worker (with `split`: this many of each).
    pub connections: u32,
    /// Payload of each task, in bytes; at least 16.
    pub payload_bytes: u32,
    /// Tasks to measure, after the warm-up. `None`: bounded by `duration_s`, or 1,000,000 if that is not given either.
    pub tasks: Option<u64>,
    /// Open loop: intended submissions per second. `None`: closed loop, as fast as the node answers.
    pub rate_per_s: Option<f64>,
    /// Time to submit for, after the warm-up, in seconds.
    pub duration_s: Option<f64>,
    /// Load before the measurement starts, in seconds. Its tasks are verified but not measured.
    pub warmup_s: f64,
    /// Closed loop: submit frames in flight per connection. 0 chooses: 1 for unbatched load, else 4.
    pub window: u32,
    /// Closed loop: tasks put into the queue before the load starts and kept ahead of it, to measure at depth.
    /// Latencies then include the wait behind them; throughput is counted until submissions end.
    pub queued: u64,
    /// Producers and workers use separate connections.
    pub split: bool,
    /// Generator threads.
    pub threads: u32,
    /// Keep account of every single task and compare every payload.
    pub verify: bool,
    /// Time to measure each floor for, in seconds; 0 skips it.
    pub floor_s: f64,
    /// How long finished tasks are kept by the node, in milliseconds; 0 means the queue's setting.
    pub retention_ms: u32,
    /// Policy of the queue, as in `ConfigureQueue`; the default unless told.
    pub policy: Option<u16>,
    /// Give up when the node answers nothing for this long, in seconds.
    pub stall_s: f64,
    /// Print a progress line to standard error each second when it is a terminal.
    pub progress: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            batch: 64,
            connections: 16,
            payload_bytes: 64,
            tasks: None,
            rate_per_s: None,
            duration_s: None,
            warmup_s: 0.5,
            window: 0,
            queued: 0,
            policy: None,
            split: false,
            threads: 1,
            verify: true,
            floor_s: 1.0,
            retention_ms: 1_000,
            stall_s: 40.0,
            progress: true,
        }
    }
}

/// Tasks measured when neither a number nor a duration is asked for.
const TASKS_DEFAULT: u64 = 1_000_000;
/// Seconds measured at a rate when neither a number nor a duration is asked for.
const RATE_DURATION_S_DEFAULT: f64 = 10.0;
/// Most tasks submitted and not completed that an open loop allows before its sends become late.
const OPEN_BACKLOG_TASKS: u64 = 1 << 20;
/// Smallest first credit of a worker connection, in tasks.
const CREDIT_MIN: u32 = 16;

impl Options {
    /// Checks ranges.
    ///
    /// # Errors
    /// A sentence that names the option and its range.
    pub fn validate(&self) -> Result<()> {
        let rows_max = u32::try_from(limits::ROWS_MAX)?;
        let payload_max = u32::try_from(limits::PAYLOAD_BYTES_MAX)?;
        ensure!((1..=rows_max).contains(&self.batch), "batch must be 1 to {rows_max}, not {}", self.batch);
        ensure!((1..=10_000).contains(&self.connections), "connections must be 1 to 10000, not {}", self.connections);
        ensure!(
            (STAMP_BYTES..=payload_max).contains(&self.payload_bytes),
            "payload must be {STAMP_BYTES} to {payload_max} bytes (the first {STAMP_BYTES} carry time and sequence), not {}",
            self.payload_bytes
        );
        let frame_bytes = u64::from(self.batch) * (u64::from(self.payload_bytes) + 32) + 1024;
        ensure!(
            frame_bytes <= limits::BODY_BYTES_MAX as u64,
            "a batch of {} payloads of {} bytes makes a frame of {frame_bytes} bytes, over the limit of {}",
            self.batch,
            self.payload_bytes,
            limits::BODY_BYTES_MAX
        );
        ensure!(
            (1..=self.connections).contains(&self.threads),
            "threads must be 1 to the number of connections ({}), not {}",
            self.connections,
            self.threads
        );
        ensure!(
            self.queued == 0 || !self.is_open_loop(),
            "tasks are kept queued only in a closed loop: at a rate the workers would use them up"
        );
        for (name, value) in [("rate", self.rate_per_s), ("duration", self.duration_s)] {
            ensure!(
                value.is_none_or(|v| (1e-3..=1e9).contains(&v)),
                "{name} must be a positive number (0.001 to 1e9), not {value:?}"
            );
        }
        for (name, value) in [("warm-up", self.warmup_s), ("floor time", self.floor_s), ("stall limit", self.stall_s)] {
            ensure!((0.0..=86_400.0).contains(&value), "{name} must be 0 to 86400 seconds, not {value}");
        }
        Ok(())
    }

    /// Whether submissions follow a schedule instead of the answers.
    #[must_use]
    pub fn is_open_loop(&self) -> bool {
        self.rate_per_s.is_some()
    }

    /// Submit frames in flight per connection.
    #[must_use]
    pub fn window_frames(&self) -> u32 {
        match (self.window, self.is_open_loop(), self.batch) {
            (0, true, _) => 4_096,
            (0, false, 1) => 1,
            (0, false, 2..=512) => 4,
            (0, false, _) => 2,
            (window, ..) => window,
        }
    }

    /// Tasks to measure and seconds to submit for, whichever ends first.
    pub(crate) fn goal(&self) -> (u64, f64) {
        match (self.tasks, self.duration_s) {
            (tasks, Some(seconds)) => (tasks.unwrap_or(u64::MAX), seconds),
            (Some(tasks), None) => (tasks, f64::INFINITY),
            (None, None) if self.is_open_loop() => (u64::MAX, RATE_DURATION_S_DEFAULT),
            (None, None) => (TASKS_DEFAULT, f64::INFINITY),
        }
    }

    /// Most tasks of `connections` connections that are submitted and not completed.
    pub(crate) fn backlog_tasks(&self, connections: u32) -> u64 {
        if self.is_open_loop() {
            OPEN_BACKLOG_TASKS
        } else {
            u64::from(connections) * u64::from(self.window_frames()) * u64::from(self.batch)
        }
    }

    /// First credit of a worker connection, in tasks.
    pub(crate) fn credit(&self, credit_max: u32) -> u32 {
        let frames = self.window_frames().min(64);
        self.batch.saturating_mul(2 * frames).clamp(CREDIT_MIN, credit_max.max(1))
    }

    /// Most rows per completion frame.
    pub(crate) fn completion_rows(&self) -> usize {
        if self.batch == 1 { 1 } else { limits::ROWS_MAX }
    }
}
