//! What nodes spend on nothing: the CPU time of processes without load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine;

/// CPU time of idle nodes.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    /// Time measured, in seconds.
    pub elapsed_s: f64,
    /// Replicas of each node, that of the map included.
    pub replicas_per_node: u64,
    /// CPU time of each node, in microseconds per second.
    pub cpu_us_per_s: Vec<f64>,
    /// Mean over all replicas, in microseconds per second.
    pub us_per_s_and_replica: f64,
}

/// Measures processes for `time`, each with this many replicas.
///
/// # Errors
/// When a process is gone, or the kernel does not tell what threads spend.
pub fn measure(pids: &[u32], replicas_per_node: u64, time: Duration) -> Result<Idle> {
    let spent = || -> Result<Vec<u64>> {
        let of = |pid: &u32| machine::cpu_ns(*pid).with_context(|| format!("the CPU time of process {pid} is unknown"));
        pids.iter().map(of).collect()
    };
    let (start, before) = (Instant::now(), spent()?);
    std::thread::sleep(time);
    let (elapsed_s, after) = (start.elapsed().as_secs_f64(), spent()?);
    let cpu_us_per_s: Vec<f64> =
        after.iter().zip(before).map(|(now, then)| (now.saturating_sub(then)) as f64 / 1e3 / elapsed_s).collect();
    let replicas = (replicas_per_node * pids.len() as u64).max(1) as f64;
    let us_per_s_and_replica = cpu_us_per_s.iter().sum::<f64>() / replicas;
    Ok(Idle { elapsed_s, replicas_per_node, cpu_us_per_s, us_per_s_and_replica })
}
