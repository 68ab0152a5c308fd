//! The bytes of a block and of its records. `docs/formats/wal.md` is the same in prose and must change with this file.
//!
//! Invariants: a block starts on a page boundary and never crosses a segment's end; a record's bytes start on a multiple of
//! 16 within the block; the checksum covers header and payload, the padding to the page is outside it.
//! It does not know files, order or durability: `writer` and `recover` do.

use crate::buffer::{PAGE_LEN, round_up};
use crate::field::{u16_at, u32_at, u64_at};

/// First four bytes of each block: `TMWB`.
pub const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"TMWB");
/// The block layout written and the newest one read.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes of a block header.
pub const BLOCK_HEADER_LEN: usize = 64;
/// Bytes of a record header, which is all a record costs beside padding to 16.
pub const RECORD_HEADER_LEN: usize = 16;
/// Alignment of a record's bytes inside its block.
pub const RECORD_ALIGN: usize = 16;
/// Largest block a reader accepts, in bytes: the largest frame (16 MiB) and room for headers.
pub const BLOCK_LEN_MAX: usize = 17 << 20;

/// Flag of the block that opens a term: nothing of the term precedes it, and it is durable before anything follows.
pub const FLAG_OPENING: u16 = 1;
/// Flag of the block that ends an orderly shutdown: nothing was in flight behind it.
pub const FLAG_CLOSING: u16 = 2;

const _: () = assert!(BLOCK_HEADER_LEN.is_multiple_of(RECORD_ALIGN) && RECORD_HEADER_LEN.is_multiple_of(RECORD_ALIGN));

/// The fields of a block header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// Layout version, [`FORMAT_VERSION`].
    pub version: u16,
    /// [`FLAG_OPENING`], [`FLAG_CLOSING`] or 0.
    pub flags: u16,
    /// CRC-32C of the header without this field, then of the payload.
    pub crc: u32,
    /// Bytes of payload behind the header, a multiple of 16.
    pub payload_len: u32,
    /// Records in the payload.
    pub record_count: u32,
    /// The `crc` of the block before, 0 before the first.
    pub chain: u32,
    /// Position in the log, from 1, one more for each block.
    pub seq: u64,
    /// Highest seq known durable when this block was sealed; every block up to it must be readable.
    pub flushed_seq: u64,
    /// Identity of the log; a block of another log is refused.
    pub identity: u64,
    /// Term of the writer: grows with each start.
    pub term: u32,
    /// Number of the segment the block was written to.
    pub segment: u32,
    /// Page within the segment the block was written to.
    pub page: u32,
}

impl BlockHeader {
    /// Reads the fields; `None` without the magic. Nothing is verified: see [`check_block`].
    ///
    /// # Panics
    /// When `bytes` is shorter than a header.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if u32_at(bytes, 0) != BLOCK_MAGIC {
            return None;
        }
        Some(Self {
            version: u16_at(bytes, 4),
            flags: u16_at(bytes, 6),
            crc: u32_at(bytes, 8),
            payload_len: u32_at(bytes, 12),
            record_count: u32_at(bytes, 16),
            chain: u32_at(bytes, 20),
            seq: u64_at(bytes, 24),
            flushed_seq: u64_at(bytes, 32),
            identity: u64_at(bytes, 40),
            term: u32_at(bytes, 48),
            segment: u32_at(bytes, 52),
            page: u32_at(bytes, 56),
        })
    }

    fn encode(&self, bytes: &mut [u8]) {
        bytes[0..4].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.crc.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.record_count.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.chain.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.seq.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.flushed_seq.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.identity.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.term.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.segment.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.page.to_le_bytes());
        bytes[60..64].fill(0);
    }

    /// Bytes of header and payload.
    #[must_use]
    pub fn used_len(&self) -> usize {
        BLOCK_HEADER_LEN + usize::try_from(self.payload_len).expect("usize has at least 32 bits")
    }

    /// Bytes the block takes in its segment: whole pages.
    #[must_use]
    pub fn block_len(&self) -> usize {
        round_up(self.used_len(), PAGE_LEN)
    }
}

/// Writes the header, checksum included, over the first bytes of `block`; the payload must be in place already.
/// Returns the checksum, which the next block carries as its chain.
pub(crate) fn seal_block(block: &mut [u8], header: &BlockHeader) -> u32 {
    header.encode(block);
    let crc = block_crc(&block[..header.used_len()]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
    crc
}

fn block_crc(used: &[u8]) -> u32 {
    let head = crc32c::crc32c(&used[..8]);
    crc32c::crc32c_append(head, &used[12..])
}

/// True when the checksum of the block at the start of `bytes` (header and payload at least) is right.
pub(crate) fn check_block(bytes: &[u8], header: &BlockHeader) -> bool {
    block_crc(&bytes[..header.used_len()]) == header.crc
}

/// Bytes a record of `len` bytes takes in a block, its header included.
#[must_use]
pub const fn record_span(len: usize) -> usize {
    RECORD_HEADER_LEN + round_up(len, RECORD_ALIGN)
}

/// Writes one record at the start of `out`, which must hold [`record_span`] bytes.
pub(crate) fn encode_record(out: &mut [u8], kind: u32, stamp: u64, len: usize, parts: &[&[u8]]) {
    let stored_len = u32::try_from(len).expect("a record is bounded by the block length");
    out[0..4].copy_from_slice(&stored_len.to_le_bytes());
    out[4..8].copy_from_slice(&kind.to_le_bytes());
    out[8..16].copy_from_slice(&stamp.to_le_bytes());
    let mut at = RECORD_HEADER_LEN;
    for part in parts {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    out[at..record_span(len)].fill(0);
}

/// One record as recovery hands it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Seq of the block that holds it.
    pub seq: u64,
    /// The caller's kind.
    pub kind: u32,
    /// The caller's 64-bit stamp, stored as given (the time of the decision, for one).
    pub stamp: u64,
    /// The record's bytes, 16-byte aligned when the block buffer is.
    pub bytes: &'a [u8],
}

/// Walks the records of a verified payload. Ends early, with [`Records::is_whole`] false, on a payload that lies.
pub(crate) struct Records<'a> {
    payload: &'a [u8],
    seq: u64,
    left: u32,
}

impl<'a> Records<'a> {
    pub(crate) fn new(payload: &'a [u8], header: &BlockHeader) -> Self {
        Self { payload, seq: header.seq, left: header.record_count }
    }

    /// True when the records read fill the payload exactly.
    pub(crate) fn is_whole(&self) -> bool {
        self.left == 0 && self.payload.is_empty()
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        if self.left == 0 || self.payload.len() < RECORD_HEADER_LEN {
            return None;
        }
        let len = usize::try_from(u32_at(self.payload, 0)).expect("usize has at least 32 bits");
        let span = record_span(len);
        if span > self.payload.len() {
            return None;
        }
        let (this, rest) = self.payload.split_at(span);
        self.payload = rest;
        self.left -= 1;
        let bytes = &this[RECORD_HEADER_LEN..RECORD_HEADER_LEN + len];
        Some(Record { seq: self.seq, kind: u32_at(this, 4), stamp: u64_at(this, 8), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(payload_len: usize, record_count: u32) -> BlockHeader {
        BlockHeader {
            version: FORMAT_VERSION,
            flags: FLAG_OPENING,
            crc: 0,
            payload_len: u32::try_from(payload_len).unwrap(),
            record_count,
            chain: 0x1122_3344,
            seq: 7,
            flushed_seq: 6,
            identity: 0xdead_beef_0bad_cafe,
            term: 3,
            segment: 2,
            page: 9,
        }
    }

    #[test]
    fn a_sealed_block_reads_back_and_any_flipped_bit_is_noticed() {
        let span = record_span(5) + record_span(0);
        let mut block = vec![0xAAu8; PAGE_LEN];
        encode_record(&mut block[64..], 1, 11, 5, &[b"he", b"llo"]);
        encode_record(&mut block[64 + record_span(5)..], 2, 12, 0, &[]);
        let crc = seal_block(&mut block, &header(span, 2));
        let read = BlockHeader::decode(&block).unwrap();
        assert_eq!(read, BlockHeader { crc, ..header(span, 2) });
        assert!(check_block(&block, &read));
        let mut records = Records::new(&block[64..read.used_len()], &read);
        assert_eq!(records.next(), Some(Record { seq: 7, kind: 1, stamp: 11, bytes: b"hello" }));
        assert_eq!(records.next(), Some(Record { seq: 7, kind: 2, stamp: 12, bytes: b"" }));
        assert_eq!(records.next(), None);
        assert!(records.is_whole());
        for bit in 0..read.used_len() * 8 {
            let mut bad = block.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let survived = BlockHeader::decode(&bad)
                .is_some_and(|header| header.used_len() <= bad.len() && check_block(&bad, &header));
            assert!(!survived, "bit {bit}");
        }
    }

    #[test]
    fn a_payload_that_lies_about_its_records_is_not_whole() {
        let mut payload = vec![0u8; 32];
        payload[0..4].copy_from_slice(&1_000_000u32.to_le_bytes());
        let mut records = Records::new(&payload, &header(32, 1));
        assert_eq!(records.next(), None);
        assert!(!records.is_whole());
    }

    #[test]
    fn the_header_layout_is_the_documented_one() {
        let mut block = vec![0u8; PAGE_LEN];
        seal_block(&mut block, &header(0, 0));
        assert_eq!(&block[0..8], b"TMWB\x01\x00\x01\x00");
        assert_eq!(&block[20..24], &[0x44, 0x33, 0x22, 0x11]);
        assert_eq!(block[24], 7);
        assert_eq!(block[32], 6);
        assert_eq!(&block[40..48], &0xdead_beef_0bad_cafe_u64.to_le_bytes());
        assert_eq!((block[48], block[52], block[56]), (3, 2, 9));
    }
}
