//! Reading a log back: every block that counts, in order, once; then where the log goes on.
//!
//! Invariants: records are handed out only from verified blocks, in seq order without a gap; a log that lacks a block which
//! is known to have been durable is an error, never a shorter log; a tail that may never have been acknowledged is cut and
//! reported. The rules, with their reasons, are in `docs/formats/wal.md`.
//! It writes nothing: the caller continues the log with what [`Recovered`] says.

use std::io;

use super::format::{
    BLOCK_HEADER_LEN, BLOCK_LEN_MAX, BlockHeader, FLAG_CLOSING, FLAG_OPENING, FORMAT_VERSION, Record, Records,
    check_block,
};
use super::{Segment, UsedSegment};
use crate::buffer::{AlignedBuffer, PAGE_LEN};

/// Bytes of one read; a longer block is read whole.
const READ_LEN: usize = 4 << 20;

/// What the caller's record callback may fail with.
pub type ApplyError = Box<dyn std::error::Error + Send + Sync>;

/// The segments of one log, as recovery reads them.
pub trait SegmentSource {
    /// All segments, in any order.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn segments(&mut self) -> io::Result<Vec<Segment>>;

    /// Fills `out` from `offset` of the segment; the range lies inside it.
    ///
    /// # Errors
    /// When the bytes cannot be read.
    fn read_at(&mut self, segment: Segment, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// What to call the segment in an error: its path, for one.
    fn name(&self, number: u32) -> String;
}

/// What the caller knows about the log before reading it.
#[derive(Debug, Clone, Copy)]
pub struct ScanParams {
    /// Identity the blocks must carry.
    pub identity: u64,
    /// Records of blocks up to this seq are in a snapshot and not handed out; 0 without one. The log must reach it.
    pub after_seq: u64,
    /// The log must reach this seq too: the newest snapshot's, when that one is damaged and an older one is used.
    pub reach_seq: u64,
}

impl ScanParams {
    /// The whole log, without a snapshot.
    #[must_use]
    pub fn whole(identity: u64) -> Self {
        Self { identity, after_seq: 0, reach_seq: 0 }
    }
}

/// Where a log ends, and so where a [`super::Writer`] continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// Seq of the last block that counts, 0 in a fresh log.
    pub last_seq: u64,
    /// Its checksum.
    pub chain: u32,
    /// Its term.
    pub term: u32,
    /// Segment and offset to continue at, after an orderly shutdown only; otherwise a fresh segment is next.
    pub active: Option<(Segment, u64)>,
    /// Segments that hold or held blocks, in order.
    pub used: Vec<UsedSegment>,
    /// Segments ready for use, in order.
    pub prepared: Vec<Segment>,
    /// Number of the next segment to make.
    pub next_number: u32,
}

impl LogEnd {
    /// The end of a log that has no segment yet.
    #[must_use]
    pub fn fresh() -> Self {
        Self { last_seq: 0, chain: 0, term: 0, active: None, used: Vec::new(), prepared: Vec::new(), next_number: 1 }
    }
}

/// A tail that a crash left unfinished. Nothing in it was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// Where it begins: the segment, as the source names it.
    pub file: String,
    /// Byte offset in that segment.
    pub offset: u64,
    /// The seq that was expected there.
    pub seq: u64,
    /// What was found instead.
    pub found: &'static str,
    /// Whole blocks behind it that are ignored too (their writes overlapped the torn one).
    pub blocks_ignored: u64,
    /// Bytes of those blocks.
    pub bytes_ignored: u64,
}

/// What recovery found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Where to continue.
    pub end: LogEnd,
    /// Blocks read and verified, those under `after_seq` included.
    pub blocks: u64,
    /// Records handed out.
    pub records: u64,
    /// Bytes of the blocks verified.
    pub bytes: u64,
    /// True when the last block is the one of an orderly shutdown.
    pub closed: bool,
    /// The tail that was cut, if there was one.
    pub torn: Option<TornTail>,
}

/// What is wrong with a log that must not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CorruptKind {
    /// The block is unreadable or missing although later writes prove that it was durable.
    BlockLost,
    /// The block follows another one than the log's last (its chain differs) or its term runs backwards.
    ChainBroken,
    /// The checksum is right and the records inside contradict their count or lengths.
    RecordsMalformed,
    /// A segment file is missing between two others.
    SegmentMissing,
    /// The log begins after, or ends before, the position that the snapshot needs.
    SnapshotUncovered,
    /// The block belongs to another data directory.
    Foreign,
    /// The block was written by a newer version of the format.
    NewerFormat,
}

/// Why a log could not be recovered. The files are as they were.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The segments could not be listed.
    #[error("the log's directory cannot be read: {0}")]
    List(#[source] io::Error),
    /// A read failed.
    #[error("{file}: reading at byte {offset} failed: {source}")]
    Read {
        /// The segment.
        file: String,
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The log is damaged where it was once durable.
    #[error("{file}: byte {offset}: block {seq} {what}. {advice}")]
    Corrupt {
        /// What is wrong.
        kind: CorruptKind,
        /// The segment.
        file: String,
        /// Where the block was expected.
        offset: u64,
        /// The seq that was expected.
        seq: u64,
        /// What was found, in words.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// The caller refused a record.
    #[error("record of block {seq}: {source}")]
    Apply {
        /// The block.
        seq: u64,
        /// The caller's reason.
        source: ApplyError,
    },
}

const RESTORE: &str = "The log is damaged where it was durable: nothing was changed; restore this data directory from a copy or \
                       a replica, or move it away to start empty";
const WRONG_DIR: &str = "Nothing was changed; put back the files that belong to this data directory";
const UPGRADE: &str = "Nothing was changed; start the version that wrote it, or a newer one";

/// Why a place does not hold the wanted block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reject {
    /// No header, or a header of an earlier life of the segment.
    Absent,
    /// A header of this place whose block does not check.
    Torn,
    Foreign,
    Newer,
}

struct Scan<'a, S> {
    source: &'a mut S,
    params: ScanParams,
    segments: Vec<Segment>,
    first: Vec<Option<BlockHeader>>,
    buffer: AlignedBuffer,
    /// The part of a segment that `buffer` holds: index, offset, length.
    window: (usize, u64, usize),
    read_len: usize,
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).expect("usize has at most 64 bits")
}

impl<S: SegmentSource> Scan<'_, S> {
    fn error(&self, index: usize, offset: u64, seq: u64, kind: CorruptKind, what: String) -> RecoverError {
        let number = self.segments.get(index).map_or(1, |segment| segment.number);
        let advice = match kind {
            CorruptKind::Foreign => WRONG_DIR,
            CorruptKind::NewerFormat => UPGRADE,
            CorruptKind::BlockLost
            | CorruptKind::ChainBroken
            | CorruptKind::RecordsMalformed
            | CorruptKind::SegmentMissing
            | CorruptKind::SnapshotUncovered => RESTORE,
        };
        RecoverError::Corrupt { kind, file: self.source.name(number), offset, seq, what, advice }
    }

    /// Makes `len` bytes at `offset` of segment `index` available and returns their place in the buffer.
    fn load(&mut self, index: usize, offset: u64, len: usize) -> Result<usize, RecoverError> {
        let (held, start, held_len) = self.window;
        if held == index && offset >= start && offset + wide(len) <= start + wide(held_len) {
            return Ok(usize::try_from(offset - start).expect("inside the window"));
        }
        let segment = self.segments[index];
        let rest = usize::try_from(segment.len - offset).expect("a segment fits the address space");
        let want = len.max(self.read_len).min(rest);
        if self.buffer.as_ref().len() < want {
            self.buffer = AlignedBuffer::zeroed(want);
        }
        self.window = (usize::MAX, 0, 0);
        let out = &mut self.buffer.as_mut()[..want];
        let read = self.source.read_at(segment, offset, out);
        read.map_err(|source| RecoverError::Read { file: self.source.name(segment.number), offset, source })?;
        self.window = (index, offset, want);
        Ok(0)
    }

    /// The verified block at a place, whatever its seq, and its place in the buffer.
    fn probe(&mut self, index: usize, offset: u64) -> Result<Result<(BlockHeader, usize), Reject>, RecoverError> {
        let segment = self.segments[index];
        if offset + wide(PAGE_LEN) > segment.len {
            return Ok(Err(Reject::Absent));
        }
        let at = self.load(index, offset, PAGE_LEN)?;
        let Some(header) = BlockHeader::decode(&self.buffer.as_ref()[at..at + BLOCK_HEADER_LEN]) else {
            return Ok(Err(Reject::Absent));
        };
        if header.segment != segment.number || u64::from(header.page) * wide(PAGE_LEN) != offset {
            return Ok(Err(Reject::Absent));
        }
        let fits = header.block_len() <= BLOCK_LEN_MAX && offset + wide(header.block_len()) <= segment.len;
        if !fits {
            return Ok(Err(Reject::Torn));
        }
        let at = self.load(index, offset, header.block_len())?;
        if !check_block(&self.buffer.as_ref()[at..], &header) {
            return Ok(Err(Reject::Torn));
        }
        if header.version != FORMAT_VERSION {
            return Ok(Err(Reject::Newer));
        }
        Ok(if header.identity == self.params.identity { Ok((header, at)) } else { Err(Reject::Foreign) })
    }

    /// Reads the first block of each segment; a foreign or newer one ends recovery at once.
    fn read_firsts(&mut self) -> Result<(), RecoverError> {
        for index in 0..self.segments.len() {
            let first = match self.probe(index, 0)? {
                Ok((header, _)) => Some(header),
                Err(Reject::Foreign) => return Err(self.foreign(index, 0, 0)),
                Err(Reject::Newer) => return Err(self.newer(index, 0, 0)),
                Err(Reject::Absent | Reject::Torn) => None,
            };
            self.first.push(first);
        }
        Ok(())
    }

    fn foreign(&self, index: usize, offset: u64, seq: u64) -> RecoverError {
        self.error(index, offset, seq, CorruptKind::Foreign, "belongs to another data directory".to_owned())
    }

    fn newer(&self, index: usize, offset: u64, seq: u64) -> RecoverError {
        let what = format!("has a format newer than {FORMAT_VERSION}");
        self.error(index, offset, seq, CorruptKind::NewerFormat, what)
    }

    /// Takes out the segments whose first block was cut off by an earlier recovery: a later segment begins at or before it.
    fn drop_superseded(&mut self) {
        let mut bound = u64::MAX;
        for first in self.first.iter_mut().rev() {
            match first {
                Some(header) if header.seq < bound => bound = header.seq,
                _ => *first = None,
            }
        }
    }

    /// The index of the segment to start in.
    fn start(&self) -> Result<usize, RecoverError> {
        let needed = self.params.after_seq + 1;
        let reaches = |first: &Option<BlockHeader>| first.is_some_and(|header| header.seq <= needed);
        let Some(start) = self.first.iter().rposition(reaches) else {
            let begins = self.first.iter().flatten().next().map(|header| header.seq);
            let whole = begins.is_none()
                && self.params.after_seq == 0
                && self.segments.first().is_none_or(|segment| segment.number == 1);
            if whole {
                return Ok(0);
            }
            let what = begins.map_or("is needed and the log has no readable beginning".to_owned(), |seq| {
                format!("is needed and the log begins with block {seq}")
            });
            return Err(self.error(0, 0, needed, CorruptKind::SnapshotUncovered, what));
        };
        Ok(start)
    }

    fn check_no_hole(&self, start: usize) -> Result<(), RecoverError> {
        for index in start + 1..self.segments.len() {
            let (before, this) = (self.segments[index - 1].number, self.segments[index].number);
            if this != before + 1 {
                let what = format!("cannot be reached: segment {} is missing before this one", before + 1);
                let seq = self.first[index].map_or(0, |header| header.seq);
                return Err(self.error(index, 0, seq, CorruptKind::SegmentMissing, what));
            }
        }
        Ok(())
    }

    fn run(
        mut self,
        on_record: &mut impl FnMut(Record<'_>) -> Result<(), ApplyError>,
    ) -> Result<Recovered, RecoverError> {
        self.read_firsts()?;
        self.drop_superseded();
        let start = self.start()?;
        self.check_no_hole(start)?;
        let seq = self.first.get(start).copied().flatten().map_or(1, |header| header.seq);
        let next = self.begins_after(start);
        let mut walk = Walk { index: start, offset: 0, seq, next, last: None, blocks: 0, records: 0, bytes: 0 };
        self.read_len = READ_LEN;
        let reject = loop {
            self.roll(&mut walk);
            if walk.index >= self.segments.len() {
                break Reject::Absent;
            }
            match self.probe(walk.index, walk.offset)? {
                Ok((header, at)) if header.seq == walk.seq => self.accept(&mut walk, header, at, on_record)?,
                Ok(_) => break Reject::Torn,
                Err(Reject::Foreign) => return Err(self.foreign(walk.index, walk.offset, walk.seq)),
                Err(Reject::Newer) => return Err(self.newer(walk.index, walk.offset, walk.seq)),
                Err(reject) => break reject,
            }
        };
        self.finish(walk, reject)
    }

    /// The next segment behind `index` whose first block counts, and the seq of that block.
    fn begins_after(&self, index: usize) -> Option<(usize, u64)> {
        (index + 1..self.segments.len()).find_map(|later| Some((later, self.first[later]?.seq)))
    }

    /// Moves to the segment that begins with the block wanted, if there is one.
    fn roll(&self, walk: &mut Walk) {
        while let Some((index, seq)) = walk.next
            && seq == walk.seq
        {
            walk.index = index;
            walk.offset = 0;
            walk.next = self.begins_after(index);
        }
    }

    fn accept(
        &self,
        walk: &mut Walk,
        header: BlockHeader,
        at: usize,
        on_record: &mut impl FnMut(Record<'_>) -> Result<(), ApplyError>,
    ) -> Result<(), RecoverError> {
        let broken = |what: String| self.error(walk.index, walk.offset, walk.seq, CorruptKind::ChainBroken, what);
        if let Some(last) = walk.last {
            if header.chain != last.crc {
                return Err(broken(format!("follows another block {} than the log's", last.seq)));
            }
            if header.term < last.term {
                return Err(broken(format!("has term {} after term {}", header.term, last.term)));
            }
        }
        if header.flushed_seq >= header.seq {
            return Err(broken(format!("claims that block {} was durable before it", header.flushed_seq)));
        }
        let payload = &self.buffer.as_ref()[at + BLOCK_HEADER_LEN..at + header.used_len()];
        let mut records = Records::new(payload, &header);
        if header.seq > self.params.after_seq {
            for record in records.by_ref() {
                on_record(record).map_err(|source| RecoverError::Apply { seq: header.seq, source })?;
                walk.records += 1;
            }
            if !records.is_whole() {
                let what = "holds records that contradict its header".to_owned();
                return Err(self.error(walk.index, walk.offset, walk.seq, CorruptKind::RecordsMalformed, what));
            }
        }
        walk.blocks += 1;
        walk.bytes += wide(header.block_len());
        walk.offset += wide(header.block_len());
        walk.seq += 1;
        walk.last = Some(header);
        Ok(())
    }

    /// Decides what the end of the walk means: an orderly end, a torn tail, or damage.
    fn finish(mut self, walk: Walk, reject: Reject) -> Result<Recovered, RecoverError> {
        let reach = self.params.after_seq.max(self.params.reach_seq);
        if walk.seq <= reach {
            let what = format!("is missing and a snapshot covers the log up to block {reach}");
            return Err(self.error(walk.index, walk.offset, walk.seq, CorruptKind::SnapshotUncovered, what));
        }
        let closed = walk.last.is_some_and(|last| last.flags & FLAG_CLOSING != 0);
        let rubble = self.search_behind(&walk)?;
        let torn = (reject == Reject::Torn || rubble.blocks > 0).then(|| TornTail {
            file: self.source.name(self.segments[walk.index].number),
            offset: walk.offset,
            seq: walk.seq,
            found: if reject == Reject::Torn { "a block that does not check" } else { "no block" },
            blocks_ignored: rubble.blocks,
            bytes_ignored: rubble.bytes,
        });
        let touched = walk.last.is_some() || reject == Reject::Torn;
        let last_used = touched.then_some(walk.index).max(rubble.last_index);
        let used_count = last_used.map_or(0, |index| index + 1);
        let used = self.segments[..used_count].iter().zip(&self.first);
        let counts = |first: &Option<BlockHeader>| first.map(|first| first.seq).filter(|seq| *seq < walk.seq);
        let used = used.map(|(segment, first)| UsedSegment { segment: *segment, first_seq: counts(first) });
        let end = LogEnd {
            last_seq: walk.seq - 1,
            chain: walk.last.map_or(0, |last| last.crc),
            term: walk.last.map_or(0, |last| last.term),
            active: (closed && torn.is_none()).then(|| (self.segments[walk.index], walk.offset)),
            used: used.collect(),
            prepared: self.segments[used_count..].to_vec(),
            next_number: self.segments.last().map_or(1, |segment| segment.number + 1),
        };
        let Walk { blocks, records, bytes, .. } = walk;
        Ok(Recovered { end, blocks, records, bytes, closed, torn })
    }

    /// Looks at every page behind the end of the walk for blocks of this log that were written after it.
    fn search_behind(&mut self, walk: &Walk) -> Result<Rubble, RecoverError> {
        let mut rubble = Rubble { blocks: 0, bytes: 0, last_index: None };
        let last_term = walk.last.map_or(0, |last| last.term);
        for index in walk.index..self.segments.len() {
            let mut offset = if index == walk.index { walk.offset } else { 0 };
            while offset < self.segments[index].len {
                let header = match self.probe(index, offset)? {
                    Ok((header, _)) => header,
                    Err(reject) => {
                        if reject != Reject::Absent {
                            rubble.last_index = Some(index);
                        }
                        offset += wide(PAGE_LEN);
                        continue;
                    }
                };
                rubble.last_index = Some(index);
                if header.seq >= walk.seq {
                    let proof = header.flushed_seq >= walk.seq;
                    let orphan = header.term > last_term && header.flags & FLAG_OPENING == 0;
                    if proof || orphan {
                        return Err(self.lost(walk, &header, index, offset));
                    }
                    rubble.blocks += 1;
                    rubble.bytes += wide(header.block_len());
                }
                offset += wide(header.block_len());
            }
        }
        Ok(rubble)
    }

    fn lost(&self, walk: &Walk, proof: &BlockHeader, index: usize, offset: u64) -> RecoverError {
        let what = format!(
            "is unreadable although it was durable: block {} at byte {offset} of segment {} was written after it",
            proof.seq, self.segments[index].number,
        );
        self.error(walk.index, walk.offset, walk.seq, CorruptKind::BlockLost, what)
    }
}

/// Where the walk through the log is.
struct Walk {
    index: usize,
    offset: u64,
    /// The seq wanted there.
    seq: u64,
    /// The segment that takes over, and from which seq.
    next: Option<(usize, u64)>,
    last: Option<BlockHeader>,
    blocks: u64,
    records: u64,
    bytes: u64,
}

struct Rubble {
    blocks: u64,
    bytes: u64,
    last_index: Option<usize>,
}

/// Reads the log of `source` and hands each record after `params.after_seq` to `on_record`, in order.
///
/// # Errors
/// See [`RecoverError`]. Records before the damage have been handed out by then: the caller throws away what it built.
pub fn recover<S: SegmentSource>(
    source: &mut S,
    params: ScanParams,
    mut on_record: impl FnMut(Record<'_>) -> Result<(), ApplyError>,
) -> Result<Recovered, RecoverError> {
    let mut segments = source.segments().map_err(RecoverError::List)?;
    segments.sort_by_key(|segment| segment.number);
    let buffer = AlignedBuffer::zeroed(PAGE_LEN);
    let scan =
        Scan { source, params, segments, first: Vec::new(), buffer, window: (usize::MAX, 0, 0), read_len: PAGE_LEN };
    scan.run(&mut on_record)
}

/// Recovers a log given as bytes: `bytes` is cut into segments of `segment_len` (a multiple of the page), numbered from 1.
/// For fuzzing and tools; any input ends in a result.
///
/// # Errors
/// As [`recover`].
pub fn recover_bytes(bytes: &[u8], segment_len: usize, params: ScanParams) -> Result<Recovered, RecoverError> {
    struct Bytes<'a>(&'a [u8], usize);

    impl SegmentSource for Bytes<'_> {
        fn segments(&mut self) -> io::Result<Vec<Segment>> {
            let whole = self.0.len() / self.1;
            Ok((1..=whole)
                .map(|number| Segment { number: u32::try_from(number).unwrap_or(u32::MAX), len: wide(self.1) })
                .collect())
        }

        fn read_at(&mut self, segment: Segment, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let index = usize::try_from(segment.number - 1).expect("numbered by position");
            let at = index * self.1 + usize::try_from(offset).expect("inside the slice");
            out.copy_from_slice(&self.0[at..at + out.len()]);
            Ok(())
        }

        fn name(&self, number: u32) -> String {
            format!("segment {number}")
        }
    }

    let segment_len = crate::buffer::round_up(segment_len.max(PAGE_LEN), PAGE_LEN);
    recover(&mut Bytes(bytes, segment_len), params, |_| Ok(()))
}
