//! What the disk can do at best: the yardstick for the log.
//!
//! One thread, one 4 KiB block at a time, each durable before the next, into a fully written file. It leaves nothing behind.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::segments::{create_segment, open_durable, segment_path};
use crate::buffer::{AlignedBuffer, PAGE_LEN};

/// Name of the directory the probe works in, inside the one it measures.
const PROBE_DIR: &str = "floor-probe";
const FILE_LEN: u64 = 16 << 20;

/// What [`probe`] measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    /// Appends of one 4 KiB block, each flushed, per second.
    pub appends_per_s: f64,
    /// Median time of one, in microseconds.
    pub append_p50_us: f64,
    /// 99th percentile, in microseconds.
    pub append_p99_us: f64,
    /// How many were measured.
    pub appends: u64,
    /// False when the file system refused direct I/O and the page cache was written through.
    pub direct: bool,
}

/// Measures bare append+flush in `dir` for about `duration`. Blocks.
///
/// # Errors
/// When a file cannot be made, written or removed.
pub fn probe(dir: &Path, duration: Duration) -> io::Result<Floor> {
    let dir = dir.join(PROBE_DIR);
    std::fs::create_dir_all(&dir)?;
    let measured = measure(&dir, duration);
    std::fs::remove_dir_all(&dir)?;
    measured
}

fn measure(dir: &Path, duration: Duration) -> io::Result<Floor> {
    let segment = create_segment(dir, 1, FILE_LEN)?;
    let (file, direct) = open_durable(&segment_path(dir, segment.number))?;
    let mut block = AlignedBuffer::zeroed(PAGE_LEN);
    block.as_mut().fill(0x5a);
    let page = u64::try_from(PAGE_LEN).expect("a page is small");
    let mut times = Vec::new();
    let start = Instant::now();
    let mut before = start;
    let mut offset = 0;
    while before.duration_since(start) < duration || times.is_empty() {
        file.write_all_at(block.as_ref(), offset)?;
        offset = (offset + page) % FILE_LEN;
        let after = Instant::now();
        times.push(after.duration_since(before));
        before = after;
    }
    let elapsed = before.duration_since(start);
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1e6;
    let appends = u32::try_from(times.len()).unwrap_or(u32::MAX);
    Ok(Floor {
        appends_per_s: f64::from(appends) / elapsed.as_secs_f64(),
        append_p50_us: at(50),
        append_p99_us: at(99),
        appends: u64::from(appends),
        direct,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_measures_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let floor = probe(dir.path(), Duration::from_millis(20)).unwrap();
        assert!(floor.appends > 0 && floor.appends_per_s > 0.0 && floor.append_p99_us >= floor.append_p50_us);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
