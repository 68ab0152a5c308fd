//! The log on a glommio executor: the pure writer's decisions performed by direct, synchronous-on-completion writes.
//!
//! Invariants: a write future is polled to its end and never dropped while the log is in use (dropping it would not stop the
//! bytes); files are opened write-only, because glommio probes readable files for polled I/O and then writes slowly; segments
//! are made, renamed and deleted on the blocking pool, one step at a time. Nothing here is shared between threads.
//! The first failed write ends [`Wal::run`] with an error: whoever runs it stops the node.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use glommio::io::{BufferedFile, DmaBuffer, DmaFile, OpenOptions};
use rustix::fs::OFlags;

use super::segments::{
    SegmentFiles, check_space, create_segment, delete_segment, drop_misfits, raw_flags, reuse_segment, segment_path,
};
use super::{
    AppendError, ApplyError, BlockBuffers, Config, ConfigError, LogEnd, Position, Record, RecoverError, Recovered,
    ScanParams, Segment, WriteOp, Writer, recover,
};

/// How long to wait before trying again to make a segment on a full disk.
const SPACE_RETRY: Duration = Duration::from_millis(500);

/// What stops a log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work. Nothing was touched.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log could not be read back. Nothing was touched.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// A file or directory could not be opened or made. All that was acknowledged is safe.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A write failed. All that was acknowledged is safe; blocks from `seq` on may be there or not and were not acknowledged.
    #[error(
        "{path}: writing block {seq} at byte {offset} failed: {source}; what was acknowledged is safe, stop and restart"
    )]
    Write {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// The block.
        seq: u64,
        /// Why.
        source: io::Error,
    },
    /// The log was closed on a full disk. All that was acknowledged is safe; what was appended since was not acknowledged.
    #[error("{}: no space for the last {unflushed} bytes of the log; what was acknowledged is safe", dir.display())]
    NoSpace {
        /// The log's directory.
        dir: PathBuf,
        /// Bytes that could not be written.
        unflushed: usize,
    },
    /// The log failed or was closed before the awaited block was durable.
    #[error("the log ended before block {seq} was durable")]
    Ended {
        /// The block.
        seq: u64,
    },
}

/// Whether the log can grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceState {
    /// The next segments are there or being made.
    Free,
    /// The disk has no room for the next segment. The prepared ones still take what is accepted: refuse new work, finish old.
    DiskFull,
}

/// What a log has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Block writes completed, each one a flush.
    pub flushes: u64,
    /// Bytes of those blocks.
    pub bytes_written: u64,
    /// Records appended.
    pub records: u64,
    /// Bytes of those records, without headers and padding.
    pub record_bytes: u64,
    /// Segments made and zero-filled.
    pub segments_created: u64,
    /// Segments reused.
    pub segments_reused: u64,
    /// Segments deleted.
    pub segments_deleted: u64,
    /// Most writes in flight at once.
    pub writes_in_flight_max: u64,
}

struct DmaBuffers;

impl BlockBuffers for DmaBuffers {
    type Buffer = DmaBuffer;

    fn allocate(&mut self, len: usize) -> DmaBuffer {
        glommio::allocate_dma_buffer(len)
    }
}

/// An open segment: direct where the file system can.
enum Target {
    Direct(DmaFile),
    Buffered(BufferedFile),
}

impl Target {
    async fn open(path: &Path) -> io::Result<Self> {
        let dsync = raw_flags(OFlags::DSYNC);
        if let Ok(file) = OpenOptions::new().write(true).custom_flags(dsync).dma_open(path).await {
            return Ok(Self::Direct(file));
        }
        let file = OpenOptions::new().write(true).custom_flags(dsync).buffered_open(path).await;
        Ok(Self::Buffered(file.map_err(io::Error::from)?))
    }

    async fn write(&self, op: WriteOp<DmaBuffer>) -> io::Result<()> {
        let mut buffer = op.buffer;
        buffer.trim_to_size(op.len);
        let written = match self {
            Self::Direct(file) => file.write_at(buffer, op.offset).await,
            Self::Buffered(file) => file.write_at(buffer.as_bytes().to_vec(), op.offset).await,
        };
        let written = written.map_err(io::Error::from)?;
        if written == op.len {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::WriteZero, format!("{written} of {} bytes were written", op.len)))
    }
}

type Local<T> = Pin<Box<dyn Future<Output = T>>>;

/// A write in flight.
struct Flight {
    seq: u64,
    segment: u32,
    offset: u64,
    len: usize,
    done: Local<io::Result<()>>,
}

enum JobDone {
    Prepared { segment: Segment, target: Rc<Target>, reused: bool },
    Deleted,
    DiskFull,
    Waited,
    Failed { path: PathBuf, source: io::Error },
}

/// What [`Wal::run`] owns while it runs.
#[derive(Default)]
struct Work {
    flights: Vec<Flight>,
    /// The one step on segment files under way.
    job: Option<Local<JobDone>>,
}

struct State {
    writer: Writer<DmaBuffers>,
    targets: VecDeque<(u32, Rc<Target>)>,
    retired: VecDeque<Segment>,
    space: SpaceState,
    failed: bool,
    waiters: Vec<Waker>,
}

/// One shard's log. Append from any task of the shard; one task runs [`Wal::run`].
pub struct Wal {
    dir: PathBuf,
    state: RefCell<State>,
    stats: Cell<Stats>,
    runner: RefCell<Option<Waker>>,
}

/// Reads the log in `dir` (made if absent) before it is opened. Blocks.
///
/// # Errors
/// [`Error::File`] and [`Error::Recover`].
pub fn recover_dir(
    dir: &Path,
    params: ScanParams,
    on_record: impl FnMut(Record<'_>) -> Result<(), ApplyError>,
) -> Result<Recovered, Error> {
    let files = SegmentFiles::open(dir).map_err(|source| Error::File { path: dir.to_path_buf(), source });
    Ok(recover(&mut files?, params, on_record)?)
}

impl Wal {
    /// Opens the log that [`recover_dir`] read, for appending in `term` (greater than any before). Makes the first segments, so
    /// it may take a moment; the block that opens the term is the first one [`Wal::run`] writes.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::File`], a full disk among them unless an earlier run left a segment ready.
    pub async fn open(
        dir: &Path,
        config: Config,
        identity: u64,
        term: u32,
        mut end: LogEnd,
    ) -> Result<Rc<Self>, Error> {
        config.check()?;
        let failed = |source| Error::File { path: dir.to_path_buf(), source };
        let before = end.prepared.len();
        end.prepared = drop_misfits(dir, &end.prepared, config.segment_bytes).map_err(failed)?;
        end.next_number -= u32::try_from(before - end.prepared.len()).expect("segments are few");
        let mut targets = VecDeque::new();
        for segment in end.active.iter().map(|(segment, _)| segment).chain(&end.prepared) {
            targets.push_back((segment.number, Rc::new(open_target(dir, segment.number).await?)));
        }
        let mut writer = Writer::new(config, DmaBuffers, identity, term, end);
        let mut stats = Stats::default();
        let mut space = SpaceState::Free;
        while let Some(number) = writer.wants_segment() {
            let (path, len) = (dir.to_path_buf(), writer.config().segment_bytes);
            let made = crate::offload::offload(move || create_segment(&path, number, len)).await;
            if made.as_ref().is_err_and(is_disk_full) && writer.segments_prepared() > 0 {
                space = SpaceState::DiskFull;
                break;
            }
            let segment = made.map_err(|source| Error::File { path: segment_path(dir, number), source })?;
            targets.push_back((number, Rc::new(open_target(dir, number).await?)));
            writer.segment_prepared(segment);
            stats.segments_created += 1;
        }
        let state = State { writer, targets, retired: VecDeque::new(), space, failed: false, waiters: Vec::new() };
        let wal = Self {
            dir: dir.to_path_buf(),
            state: RefCell::new(state),
            stats: Cell::new(stats),
            runner: RefCell::new(None),
        };
        Ok(Rc::new(wal))
    }

    /// Adds a record, the concatenation of `parts`, to the filling block. It is durable once [`Wal::durable_seq`] reaches the
    /// position's seq. The write starts as soon as the running task is scheduled, so all that one tick appends shares it.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was added.
    pub fn append(&self, kind: u32, stamp: u64, parts: &[&[u8]]) -> Result<Position, AppendError> {
        let mut state = self.state.borrow_mut();
        if state.failed {
            return Err(AppendError::Closed);
        }
        let position = state.writer.append(kind, stamp, parts)?;
        drop(state);
        self.count(|stats| {
            stats.records += 1;
            stats.record_bytes += parts.iter().map(|part| wide(part.len())).sum::<u64>();
        });
        self.wake_runner();
        Ok(position)
    }

    /// Performs the log's writes until it is closed; `on_durable` hears each advance of the durable seq, in order, and may
    /// append. Spawn one of these per log, in a task queue whose latency matters.
    ///
    /// # Errors
    /// The first failure. The log takes nothing more, and the node must stop.
    pub async fn run(self: Rc<Self>, mut on_durable: impl FnMut(u64)) -> Result<(), Error> {
        let mut work = Work::default();
        let result = std::future::poll_fn(|context| self.step(&mut work, context, &mut on_durable)).await;
        let mut state = self.state.borrow_mut();
        state.failed = true;
        state.waiters.drain(..).for_each(Waker::wake);
        result
    }

    fn step(
        &self,
        work: &mut Work,
        context: &mut Context<'_>,
        on_durable: &mut impl FnMut(u64),
    ) -> Poll<Result<(), Error>> {
        loop {
            let completed = match self.reap(work, context) {
                Ok(completed) => completed,
                Err(error) => return Poll::Ready(Err(error)),
            };
            if let Some(durable_seq) = completed {
                on_durable(durable_seq);
                self.state.borrow_mut().waiters.drain(..).for_each(Waker::wake);
            }
            let job_moved = match self.poll_job(work, context) {
                Ok(moved) => moved,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let started = self.start_writes(work);
            if let Some(end) = self.end(work) {
                return Poll::Ready(end);
            }
            if completed.is_none() && !job_moved && !started {
                *self.runner.borrow_mut() = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
    }

    /// What to return from the run, once there is nothing left to do.
    fn end(&self, work: &Work) -> Option<Result<(), Error>> {
        let state = self.state.borrow();
        if state.writer.is_closed() && work.job.is_none() {
            return Some(Ok(()));
        }
        let stuck = state.writer.is_closing() && state.space == SpaceState::DiskFull && state.writer.is_starved();
        let unflushed = state.writer.unflushed_bytes();
        (stuck && work.flights.is_empty()).then(|| Err(Error::NoSpace { dir: self.dir.clone(), unflushed }))
    }

    /// Polls every write in flight. Returns the durable seq if it advanced.
    fn reap(&self, work: &mut Work, context: &mut Context<'_>) -> Result<Option<u64>, Error> {
        let mut advanced = None;
        let mut index = 0;
        while index < work.flights.len() {
            let flight = &mut work.flights[index];
            let Poll::Ready(result) = flight.done.as_mut().poll(context) else {
                index += 1;
                continue;
            };
            let flight = work.flights.swap_remove(index);
            result.map_err(|source| Error::Write {
                path: segment_path(&self.dir, flight.segment),
                offset: flight.offset,
                seq: flight.seq,
                source,
            })?;
            self.count(|stats| {
                stats.flushes += 1;
                stats.bytes_written += wide(flight.len);
            });
            advanced = self.state.borrow_mut().writer.written(flight.seq).or(advanced);
        }
        Ok(advanced)
    }

    fn start_writes(&self, work: &mut Work) -> bool {
        let mut started = false;
        let mut state = self.state.borrow_mut();
        while let Some(op) = state.writer.poll_write() {
            let (seq, segment, offset, len) = (op.seq, op.segment, op.offset, op.len);
            // Blocks leave in order of segments: targets before this one have got their last write.
            while state.targets.front().is_some_and(|(number, _)| *number < segment) {
                state.targets.pop_front();
            }
            let (number, target) = state.targets.front().expect("prepared segments are open");
            assert_eq!(*number, segment, "segments are used in order");
            let target = Rc::clone(target);
            let done = Box::pin(async move { target.write(op).await });
            work.flights.push(Flight { seq, segment, offset, len, done });
            started = true;
        }
        drop(state);
        let in_flight = wide(work.flights.len());
        self.count(|stats| stats.writes_in_flight_max = stats.writes_in_flight_max.max(in_flight));
        started
    }

    /// Moves the step on segment files on. True when the writer may have got a segment.
    fn poll_job(&self, work: &mut Work, context: &mut Context<'_>) -> Result<bool, Error> {
        if work.job.is_none() {
            work.job = self.next_job();
        }
        let Some(job) = work.job.as_mut() else { return Ok(false) };
        let Poll::Ready(done) = job.as_mut().poll(context) else { return Ok(false) };
        work.job = None;
        let mut state = self.state.borrow_mut();
        match done {
            JobDone::Prepared { segment, target, reused } => {
                state.writer.segment_prepared(segment);
                state.targets.push_back((segment.number, target));
                if state.writer.wants_segment().is_none() {
                    state.space = SpaceState::Free;
                }
                self.count(|stats| {
                    stats.segments_reused += u64::from(reused);
                    stats.segments_created += u64::from(!reused);
                });
            }
            JobDone::Deleted => self.count(|stats| stats.segments_deleted += 1),
            JobDone::DiskFull => {
                state.space = SpaceState::DiskFull;
                work.job = Some(Box::pin(async {
                    glommio::timer::sleep(SPACE_RETRY).await;
                    JobDone::Waited
                }));
            }
            JobDone::Waited => {}
            JobDone::Failed { path, source } => return Err(Error::File { path, source }),
        }
        Ok(true)
    }

    fn next_job(&self) -> Option<Local<JobDone>> {
        let mut state = self.state.borrow_mut();
        let dir = self.dir.clone();
        let len = state.writer.config().segment_bytes;
        let misfit = state.retired.front().is_some_and(|segment| segment.len != len);
        let surplus = state.retired.len() > state.writer.config().spare_segments_max;
        if state.writer.is_closed() {
            return None;
        }
        if misfit || surplus {
            let old = state.retired.pop_front().expect("a misfit or surplus one is there");
            return Some(Box::pin(delete(dir, old)));
        }
        let number = state.writer.wants_segment()?;
        let old = state.retired.pop_front();
        let reserve = state.writer.config().disk_reserve_bytes;
        Some(Box::pin(prepare(dir, number, len, reserve, old)))
    }

    /// Gives up the segments that hold nothing after `covered_seq`, a position that the older of the kept snapshots covers.
    /// They are reused, or deleted in the background.
    pub fn retire(&self, covered_seq: u64) {
        let mut state = self.state.borrow_mut();
        let retired = state.writer.retire(covered_seq);
        state.retired.extend(retired);
        drop(state);
        self.wake_runner();
    }

    /// Ends the log: appends are refused from here, and [`Wal::run`] returns once all is durable and the closing block written.
    pub fn close(&self) {
        self.state.borrow_mut().writer.close();
        self.wake_runner();
    }

    /// Waits until block `seq` is durable. [`Wal::run`] must be running.
    ///
    /// # Errors
    /// [`Error::Ended`] when the log ends first.
    pub async fn wait_durable(&self, seq: u64) -> Result<(), Error> {
        std::future::poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.writer.durable_seq() >= seq {
                return Poll::Ready(Ok(()));
            }
            if state.failed {
                return Poll::Ready(Err(Error::Ended { seq }));
            }
            state.waiters.push(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Highest seq such that it and everything before is durable.
    #[must_use]
    pub fn durable_seq(&self) -> u64 {
        self.state.borrow().writer.durable_seq()
    }

    /// Bytes appended and not yet durable.
    #[must_use]
    pub fn unflushed_bytes(&self) -> usize {
        self.state.borrow().writer.unflushed_bytes()
    }

    /// Longest record that can be appended, in bytes.
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        self.state.borrow().writer.record_bytes_max()
    }

    /// Whether the log can grow.
    #[must_use]
    pub fn space_state(&self) -> SpaceState {
        self.state.borrow().space
    }

    /// Counts since the log was opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats.get()
    }

    fn count(&self, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    fn wake_runner(&self) {
        let waker = self.runner.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

async fn open_target(dir: &Path, number: u32) -> Result<Target, Error> {
    let path = segment_path(dir, number);
    Target::open(&path).await.map_err(|source| Error::File { path, source })
}

async fn prepare(dir: PathBuf, number: u32, len: u64, reserve: u64, old: Option<Segment>) -> JobDone {
    let path = segment_path(&dir, number);
    let made = crate::offload::offload({
        let dir = dir.clone();
        move || match old {
            Some(old) => reuse_segment(&dir, old, number),
            None => check_space(&dir, len, reserve).and_then(|()| create_segment(&dir, number, len)),
        }
    });
    let segment = match made.await {
        Ok(segment) => segment,
        Err(source) if is_disk_full(&source) => return JobDone::DiskFull,
        Err(source) => return JobDone::Failed { path, source },
    };
    match Target::open(&path).await {
        Ok(target) => JobDone::Prepared { segment, target: Rc::new(target), reused: old.is_some() },
        Err(source) => JobDone::Failed { path, source },
    }
}

async fn delete(dir: PathBuf, old: Segment) -> JobDone {
    let path = segment_path(&dir, old.number);
    match crate::offload::offload(move || delete_segment(&dir, old)).await {
        Ok(()) => JobDone::Deleted,
        Err(source) => JobDone::Failed { path, source },
    }
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).expect("usize has at most 64 bits")
}
