//! What is written where: records gather in a filling block, sealed blocks become writes, completions advance the durable seq.
//!
//! Invariants: seqs leave in order and without gaps; the durable seq never passes a write that has not completed; a block with
//! flags is in flight alone; queued and in-flight bytes stay under `unflushed_bytes_max`; no byte of a segment is written twice.
//! It performs no write and prepares no file: it says which are wanted.

use std::collections::VecDeque;

use super::format::{
    BLOCK_HEADER_LEN, BlockHeader, FLAG_CLOSING, FLAG_OPENING, FORMAT_VERSION, encode_record, record_span, seal_block,
};
use super::{Config, LogEnd, Position, Segment, UsedSegment};
use crate::buffer::{AlignedBuffer, PAGE_LEN, round_up};

/// Where block buffers come from: page-aligned for a writer that uses direct I/O.
pub trait BlockBuffers {
    /// The buffer handed to the write.
    type Buffer: AsRef<[u8]> + AsMut<[u8]>;

    /// A buffer of exactly `len` bytes, of any content.
    fn allocate(&mut self, len: usize) -> Self::Buffer;
}

/// Buffers from the heap.
#[derive(Debug, Default)]
pub struct HeapBuffers;

impl BlockBuffers for HeapBuffers {
    type Buffer = AlignedBuffer;

    fn allocate(&mut self, len: usize) -> AlignedBuffer {
        AlignedBuffer::zeroed(len)
    }
}

/// Why an append was refused. The log is unchanged and usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The record cannot fit any block.
    #[error("a record of {len} bytes does not fit the log: at most {max} bytes are possible")]
    RecordTooLarge {
        /// Bytes of the record.
        len: usize,
        /// Most that fit.
        max: usize,
    },
    /// The disk is behind by the configured bound: try again when the durable seq advances.
    #[error("the log holds {unflushed} unflushed bytes of at most {max}: wait for the disk")]
    Full {
        /// Bytes waiting or in flight.
        unflushed: usize,
        /// The bound.
        max: usize,
    },
    /// The log is closing or has failed.
    #[error("the log is closed")]
    Closed,
}

/// One write to perform: the first `len` bytes of `buffer` at `offset` of segment `segment`, durable on completion.
#[derive(Debug)]
pub struct WriteOp<B> {
    /// Seq of the block; name it to [`Writer::written`].
    pub seq: u64,
    /// Number of the segment.
    pub segment: u32,
    /// Byte offset, a multiple of the page.
    pub offset: u64,
    /// The block.
    pub buffer: B,
    /// Bytes to write, a multiple of the page; the buffer may be longer.
    pub len: usize,
}

struct Block<B> {
    buffer: B,
    used: usize,
    records: u32,
    flags: u16,
}

struct InFlight {
    seq: u64,
    used: usize,
    flags: u16,
    done: bool,
}

/// The writing half of a log.
pub struct Writer<A: BlockBuffers> {
    config: Config,
    buffers: A,
    identity: u64,
    term: u32,
    /// Seq of the first queued block.
    next_seq: u64,
    chain: u32,
    durable_seq: u64,
    queued: VecDeque<Block<A::Buffer>>,
    in_flight: VecDeque<InFlight>,
    unflushed_bytes: usize,
    /// Buffer length that the latest block needed: the guess for the next one.
    buffer_len_hint: usize,
    /// The segment in use and the offset of its next block.
    active: Option<(Segment, u64)>,
    used: VecDeque<UsedSegment>,
    prepared: VecDeque<Segment>,
    next_number: u32,
    closing: bool,
}

impl<A: BlockBuffers> Writer<A> {
    /// A writer that continues the log that ends at `end`. Its first write is the block that opens `term`, and nothing else
    /// leaves before that one is durable.
    ///
    /// # Panics
    /// When `config` fails [`Config::check`], a prepared segment is too short, or `term` does not exceed the log's last term.
    #[must_use]
    pub fn new(config: Config, buffers: A, identity: u64, term: u32, end: LogEnd) -> Self {
        assert_eq!(config.check(), Ok(()), "the caller checks the configuration");
        let block_max = u64::try_from(config.block_bytes_max).expect("a block is small");
        assert!(end.prepared.iter().all(|segment| segment.len >= block_max), "a prepared segment must hold any block");
        assert!(term > end.term, "term {term} does not exceed {}, the last of the log", end.term);
        let mut writer = Self {
            config,
            buffers,
            identity,
            term,
            next_seq: end.last_seq + 1,
            chain: end.chain,
            durable_seq: end.last_seq,
            queued: VecDeque::new(),
            in_flight: VecDeque::new(),
            unflushed_bytes: 0,
            buffer_len_hint: PAGE_LEN,
            // A start in between that left no block may still have one on its way to this very place.
            active: end.active.filter(|_| term == end.term + 1),
            used: end.used.into(),
            prepared: end.prepared.into(),
            next_number: end.next_number,
            closing: false,
        };
        writer.push_block(FLAG_OPENING, BLOCK_HEADER_LEN);
        writer
    }

    /// Adds one record, the concatenation of `parts`. It joins the filling block, whose write [`Writer::poll_write`] hands out.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was added.
    pub fn append(&mut self, kind: u32, stamp: u64, parts: &[&[u8]]) -> Result<Position, AppendError> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let max = self.record_bytes_max();
        if self.closing {
            return Err(AppendError::Closed);
        }
        if len > max {
            return Err(AppendError::RecordTooLarge { len, max });
        }
        let span = record_span(len);
        if self.unflushed_bytes + span + BLOCK_HEADER_LEN > self.config.unflushed_bytes_max {
            let max = self.config.unflushed_bytes_max;
            return Err(AppendError::Full { unflushed: self.unflushed_bytes, max });
        }
        let target = self.config.block_bytes_target;
        let joins = self.queued.back().is_some_and(|block| block.flags == 0 && block.used + span <= target);
        if !joins {
            self.push_block(0, BLOCK_HEADER_LEN + span);
        }
        self.reserve_in_last(span);
        let block = self.queued.back_mut().expect("a block was pushed or joined");
        encode_record(&mut block.buffer.as_mut()[block.used..block.used + span], kind, stamp, len, parts);
        block.used += span;
        block.records += 1;
        self.unflushed_bytes += span;
        Ok(Position { seq: self.last_seq() })
    }

    fn push_block(&mut self, flags: u16, used_soon: usize) {
        let len = round_up(used_soon, PAGE_LEN).max(if flags == 0 { self.buffer_len_hint } else { PAGE_LEN });
        let buffer = self.buffers.allocate(len);
        self.queued.push_back(Block { buffer, used: BLOCK_HEADER_LEN, records: 0, flags });
        self.unflushed_bytes += BLOCK_HEADER_LEN;
    }

    fn reserve_in_last(&mut self, span: usize) {
        let block = self.queued.back_mut().expect("called with a block");
        let need = block.used + span;
        if need <= block.buffer.as_ref().len() {
            return;
        }
        let most = round_up(need.max(self.config.block_bytes_target), PAGE_LEN);
        let len = round_up(need, PAGE_LEN).max(2 * block.buffer.as_ref().len()).min(most);
        let mut larger = self.buffers.allocate(len);
        larger.as_mut()[..block.used].copy_from_slice(&block.buffer.as_ref()[..block.used]);
        block.buffer = larger;
    }

    /// The next write to start now, if any. Ask again after each append, completion and prepared segment, until `None`.
    pub fn poll_write(&mut self) -> Option<WriteOp<A::Buffer>> {
        let block = self.queued.front()?;
        let alone = block.flags != 0 || self.in_flight.iter().any(|write| write.flags != 0);
        let gathers = self.queued.len() == 1 && block.used < self.config.overlap_bytes_min;
        let busy = self.in_flight.len();
        if busy >= self.config.writes_in_flight_max || (busy > 0 && (alone || gathers)) {
            return None;
        }
        let len = round_up(block.used, PAGE_LEN);
        let (segment, offset) = self.place(len)?;
        let mut block = self.queued.pop_front().expect("there is a front");
        block.buffer.as_mut()[block.used..len].fill(0);
        let header = BlockHeader {
            version: FORMAT_VERSION,
            flags: block.flags,
            crc: 0,
            payload_len: u32::try_from(block.used - BLOCK_HEADER_LEN).expect("a block is bounded"),
            record_count: block.records,
            chain: self.chain,
            seq: self.next_seq,
            flushed_seq: self.durable_seq,
            identity: self.identity,
            term: self.term,
            segment: segment.number,
            page: page_of(offset),
        };
        self.chain = seal_block(&mut block.buffer.as_mut()[..len], &header);
        let seq = self.next_seq;
        self.next_seq += 1;
        self.in_flight.push_back(InFlight { seq, used: block.used, flags: block.flags, done: false });
        self.buffer_len_hint = len.next_power_of_two().min(round_up(self.config.block_bytes_target, PAGE_LEN));
        Some(WriteOp { seq, segment: segment.number, offset, buffer: block.buffer, len })
    }

    /// Takes room for `len` bytes, rolling to the next prepared segment when the active one is too full.
    fn place(&mut self, len: usize) -> Option<(Segment, u64)> {
        let len = u64::try_from(len).expect("a block is small");
        let fits = self.active.is_some_and(|(segment, offset)| offset + len <= segment.len);
        if !fits {
            let segment = self.prepared.pop_front()?;
            self.used.push_back(UsedSegment { segment, first_seq: Some(self.next_seq) });
            self.active = Some((segment, 0));
        }
        let (segment, offset) = self.active.as_mut().expect("active since the branch above");
        let at = *offset;
        *offset += len;
        Some((*segment, at))
    }

    /// Reports that the write of block `seq` is durable. Returns the durable seq when it advanced.
    ///
    /// # Panics
    /// When no such write is in flight.
    pub fn written(&mut self, seq: u64) -> Option<u64> {
        let write = self.in_flight.iter_mut().find(|write| write.seq == seq).expect("only writes in flight complete");
        assert!(!write.done, "block {seq} completed twice");
        write.done = true;
        let before = self.durable_seq;
        while self.in_flight.front().is_some_and(|write| write.done) {
            let write = self.in_flight.pop_front().expect("there is a front");
            self.durable_seq = write.seq;
            self.unflushed_bytes -= write.used;
        }
        (self.durable_seq > before).then_some(self.durable_seq)
    }

    /// Ends the log: appends are refused from here, and once all is durable a closing block follows, which lets the next start
    /// continue in the same segment and tells a damaged tail from a torn one.
    pub fn close(&mut self) {
        if !self.closing {
            self.closing = true;
            self.push_block(FLAG_CLOSING, BLOCK_HEADER_LEN);
        }
    }

    /// The number of the segment to prepare next, while fewer than `segments_ahead` are ready. Answer it with
    /// [`Writer::segment_prepared`].
    #[must_use]
    pub fn wants_segment(&self) -> Option<u32> {
        (self.prepared.len() < self.config.segments_ahead).then_some(self.next_number)
    }

    /// Hands over the segment that [`Writer::wants_segment`] named: its file exists under that number, durably, fully written.
    ///
    /// # Panics
    /// When it is another one, or shorter than a block.
    pub fn segment_prepared(&mut self, segment: Segment) {
        assert_eq!(segment.number, self.next_number, "segments are prepared in order");
        let block_max = u64::try_from(self.config.block_bytes_max).expect("a block is small");
        assert!(segment.len >= block_max, "a prepared segment must hold any block");
        self.next_number += 1;
        self.prepared.push_back(segment);
    }

    /// Takes the segments, lowest first, whose blocks all have a seq of at most `covered_seq`. They may be reused or deleted,
    /// in this order, each step durable before the next. The segment of block `covered_seq` itself stays: recovery wants to
    /// see that the log reaches its snapshot.
    pub fn retire(&mut self, covered_seq: u64) -> Vec<Segment> {
        let covered_seq = covered_seq.min(self.durable_seq);
        let keep_from = self.used.iter().rposition(|used| used.first_seq.is_some_and(|first| first <= covered_seq));
        self.used.drain(..keep_from.unwrap_or(0)).map(|used| used.segment).collect()
    }

    /// Seq of the last block that holds a record or flag, sealed or filling.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.next_seq + u64::try_from(self.queued.len()).expect("the queue is bounded") - 1
    }

    /// Highest seq such that it and everything before is durable.
    #[must_use]
    pub fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    /// True when nothing waits for the disk.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queued.is_empty() && self.in_flight.is_empty()
    }

    /// True when blocks wait and no segment is ready to take them.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.prepared.is_empty()
            && self.queued.front().is_some_and(|block| {
                let len = u64::try_from(round_up(block.used, PAGE_LEN)).expect("a block is small");
                self.active.is_none_or(|(segment, offset)| offset + len > segment.len)
            })
    }

    /// True after [`Writer::close`] once the closing block is durable.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closing && self.is_idle()
    }

    /// True after [`Writer::close`].
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Bytes queued or in flight.
    #[must_use]
    pub fn unflushed_bytes(&self) -> usize {
        self.unflushed_bytes
    }

    /// Writes handed out and not yet reported.
    #[must_use]
    pub fn writes_in_flight(&self) -> usize {
        self.in_flight.iter().filter(|write| !write.done).count()
    }

    /// Segments ready ahead of the active one.
    #[must_use]
    pub fn segments_prepared(&self) -> usize {
        self.prepared.len()
    }

    /// Longest record that can be appended, in bytes.
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        self.config.block_bytes_max - BLOCK_HEADER_LEN - record_span(0)
    }

    /// Term of this writer.
    #[must_use]
    pub fn term(&self) -> u32 {
        self.term
    }

    /// The bounds in force.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }
}

fn page_of(offset: u64) -> u32 {
    let page = u64::try_from(PAGE_LEN).expect("a page is small");
    u32::try_from(offset / page).expect("Config::check bounds a segment to 2^32 pages")
}
