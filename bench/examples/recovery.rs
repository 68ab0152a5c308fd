//! Recovery of queued tasks: `recovery [TASKS] [DIR]`, 2,000,000 in the present directory if not told otherwise.
//!
//! Writes the log that one shard would (batches of 64, payloads of 64 bytes), with a snapshot at nine tenths, and brings a
//! fresh shard back: from the whole log alone, then from the snapshot and the log behind it. The steps are those of a
//! starting node; files are read with direct I/O where the file system can, so not from memory.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};
use taskmaster_engine::{Config, ConnId, Effects, Input, Shard, SnapshotStep};
use taskmaster_protocol::body::{self, Spec, Submit, TaskRow};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Body, FrameBuffer, NodeId, Operation, PartitionId, TaskId};
use taskmaster_storage::recovery::{self, Sink};
use taskmaster_storage::snapshot::{self, ChunkTag, Info, SnapshotFile};
use taskmaster_storage::wal::blocking::Log;
use taskmaster_storage::wal::{self, ApplyError, Record, ScanParams};

const IDENTITY: u64 = 1;
const START_US: u64 = 1_700_000_000_000_000;
const PARTITIONS: u16 = 64;
const BATCH: u32 = 64;
/// Bytes of log between flushes.
const FLUSH_BYTES: usize = 1 << 20;

fn empty() -> Shard {
    let mut config = Config::standalone(NodeId(IDENTITY), PARTITIONS);
    (config.memory_bytes_max, config.kept_max) = (1 << 40, 100_000);
    Shard::new(config, START_US)
}

/// Ends a turn: what it logged goes to the log; how many bytes that were.
fn end_turn(shard: &mut Shard, now_us: u64, effects: &mut Effects, log: &mut Log) -> anyhow::Result<usize> {
    let (mut bytes, mut logged) = (0, Ok(()));
    shard.end_turn(now_us, effects, |sequence, kind, parts| {
        bytes += parts.iter().map(|part| part.len()).sum::<usize>();
        if logged.is_ok() {
            logged = log.append(kind, sequence, parts).map(drop);
        }
    });
    logged?;
    effects.drain(|_, _| {});
    Ok(bytes)
}

/// Makes all that was logged durable; the log's position.
fn flush(shard: &mut Shard, now_us: u64, effects: &mut Effects, log: &mut Log) -> anyhow::Result<u64> {
    let seq = log.flush()?;
    shard.handle(Input::Durable { sequence: shard.last_sequence() }, now_us, effects);
    end_turn(shard, now_us, effects, log)?;
    Ok(seq)
}

/// The shard begins to serve.
fn start(shard: &mut Shard, effects: &mut Effects, log: &mut Log) -> anyhow::Result<()> {
    shard.start(START_US);
    end_turn(shard, START_US, effects, log)?;
    let mut durable = 0;
    while !shard.is_serving() || durable < shard.last_sequence() {
        durable = shard.last_sequence();
        flush(shard, START_US, effects, log)?;
    }
    Ok(())
}

fn submit(number: u32, partition: PartitionId, now_us: u64) -> FrameBuffer {
    let mut body = Submit::default();
    let (queue, kind) = (body::put(&mut body.bytes, b"bench"), body::put(&mut body.bytes, b"noop"));
    body.specs.push(Spec { queue, kind, lease_ms: 30_000, attempts_max: 3, priority: 2, ..Spec::default() });
    for row in 0..BATCH {
        let id = TaskId::new(now_us / 1_000, partition, 0x5A_5A5A_1234, number * BATCH + row);
        body.tasks.push(TaskRow { id, payload: body::put(&mut body.bytes, &[7; 64]), ..TaskRow::default() });
    }
    let mut bytes = FrameBuffer::new();
    body.append_to(&mut bytes);
    bytes
}

/// Writes the log and the snapshot; the log is left open, as after a crash.
fn write(wal_dir: &Path, snapshot_dir: &Path, batches: u32) -> anyhow::Result<(Log, u64)> {
    let (mut log, _) = Log::open(wal_dir, wal::Config::default(), ScanParams::whole(IDENTITY), 1, |_| Ok(()))?;
    let (mut shard, mut effects) = (empty(), Effects::default());
    start(&mut shard, &mut effects, &mut log)?;
    let (mut gathered, mut covered) = (0, 0);
    for number in 0..batches {
        let now_us = START_US + u64::from(number) * u64::from(BATCH);
        let partition = PartitionId(u16::try_from(number % u32::from(PARTITIONS))?);
        let (header, body) =
            (Header::request(Operation::Submit, 1, Some(partition)), submit(number, partition, now_us));
        shard.handle(Input::Frame { conn: ConnId(1), header, body: &body }, now_us, &mut effects);
        gathered += end_turn(&mut shard, now_us, &mut effects, &mut log)?;
        let snapshot_here = number == batches / 10 * 9;
        if gathered >= FLUSH_BYTES || snapshot_here || number + 1 == batches {
            gathered = 0;
            let seq = flush(&mut shard, now_us, &mut effects, &mut log)?;
            if snapshot_here {
                covered = seq;
                snapshot(&mut shard, snapshot_dir, seq)?;
            }
        }
    }
    anyhow::ensure!(shard.stats().unfinished == u64::from(batches * BATCH), "the shard refused tasks");
    let stats = shard.stats();
    println!("shard        {:.0} bytes a task", stats.memory_bytes as f64 / stats.tasks as f64);
    Ok((log, covered))
}

fn snapshot(shard: &mut Shard, dir: &Path, seq: u64) -> anyhow::Result<()> {
    let start = Instant::now();
    let stamp = shard.last_sequence();
    shard.snapshot_begin();
    let mut file = SnapshotFile::create(dir, &Info { identity: IDENTITY, seq, term: 1, stamp })?;
    let mut chunk = FrameBuffer::new();
    loop {
        match shard.snapshot_next(&mut chunk) {
            SnapshotStep::Chunk(tag) => file.chunk(ChunkTag(tag), &chunk)?,
            SnapshotStep::End => break,
            SnapshotStep::Wait | SnapshotStep::Broken => anyhow::bail!("nobody else writes or replaces a group"),
        }
    }
    let bytes = file.finish()?;
    println!("snapshot     {bytes} bytes in {:.2} s", start.elapsed().as_secs_f64());
    Ok(())
}

struct Rebuild {
    shard: Shard,
}

impl snapshot::Sink for Rebuild {
    fn begin(&mut self, _info: &Info) -> Result<(), ApplyError> {
        self.shard = empty();
        Ok(())
    }

    fn chunk(&mut self, tag: ChunkTag, bytes: &[u8]) -> Result<(), ApplyError> {
        Ok(self.shard.restore_chunk(tag.0, bytes)?)
    }
}

impl Sink for Rebuild {
    fn record(&mut self, record: Record<'_>) -> Result<(), ApplyError> {
        Ok(self.shard.replay(record.stamp, record.kind, record.bytes)?)
    }
}

/// What a starting node does until it serves, its disk being left out: every record is durable at once.
fn serve(shard: &mut Shard) {
    let mut effects = Effects::default();
    shard.start(START_US);
    shard.end_turn(START_US, &mut effects, |_, _, _| {});
    while !shard.is_serving() {
        shard.handle(Input::Durable { sequence: shard.last_sequence() }, START_US, &mut effects);
        shard.end_turn(START_US, &mut effects, |_, _, _| {});
    }
}

/// Processor time of the process, all threads.
fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("processor time is not negative").as_secs_f64()
}

/// Recovers and says how long it took.
fn recover(name: &str, shard_dir: &Path, wal_dir: &Path, tasks: u64) -> anyhow::Result<()> {
    let (start, cpu_start) = (Instant::now(), cpu_s());
    let mut rebuild = Rebuild { shard: empty() };
    let found = recovery::recover(shard_dir, wal_dir, IDENTITY, &mut rebuild)?;
    serve(&mut rebuild.shard);
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_s() - cpu_start);
    let stats = rebuild.shard.stats();
    anyhow::ensure!(stats.unfinished == tasks, "{} of {tasks} tasks came back", stats.unfinished);
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!(
        "{name:12} {:8.0} tasks/s, {:8.0} per cpu s: {tasks} in {seconds:.2} s, {} records, {} log bytes; load average {}",
        tasks as f64 / seconds,
        tasks as f64 / cpu,
        found.log.records,
        found.log.bytes,
        load.split(' ').next().unwrap_or_default()
    );
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let tasks: u32 = arguments.next().map_or(Ok(2_000_000), |text| text.parse()).context("TASKS is a number")?;
    let base = arguments.next().map_or_else(|| PathBuf::from("."), PathBuf::from);
    anyhow::ensure!((10 * BATCH..16 << 20).contains(&tasks), "TASKS may be 640 to 16777215");
    let dir = tempfile::tempdir_in(base)?;
    let [wal_dir, shard_dir, no_snapshot] = ["wal", "shard", "none"].map(|name| dir.path().join(name));
    for dir in [&wal_dir, &shard_dir, &no_snapshot] {
        std::fs::create_dir(dir)?;
    }
    let batches = tasks.div_ceil(BATCH);
    let tasks = u64::from(batches * BATCH);
    let (mut log, covered) = write(&wal_dir, &shard_dir, batches)?;
    for _ in 0..3 {
        recover("log alone", &no_snapshot, &wal_dir, tasks)?;
    }
    log.retire(covered)?;
    log.close()?;
    for _ in 0..3 {
        recover("snapshot+log", &shard_dir, &wal_dir, tasks)?;
    }
    Ok(())
}
