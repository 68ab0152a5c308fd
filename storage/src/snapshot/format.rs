//! The bytes of a snapshot. `docs/formats/snapshot.md` is the same in prose and must change with this file.
//!
//! Invariants: chunk bytes start on a multiple of 16; each checksum covers its header; the footer counts and sums what it ends.

use crate::buffer::round_up;
use crate::field::{u16_at, u32_at, u64_at};

/// First four bytes: `TMSN`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TMSN");
/// The layout written and the newest one read.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes of the file header.
pub const HEADER_LEN: usize = 64;
/// Bytes of a chunk header.
pub const CHUNK_HEADER_LEN: usize = 16;
/// Alignment of chunk bytes in the file.
pub const CHUNK_ALIGN: usize = 16;
/// Longest chunk, in bytes.
pub const CHUNK_LEN_MAX: usize = 32 << 20;
const FOOTER_LEN: usize = 32;

/// Which section a chunk belongs to: the caller's number, below [`ChunkTag::FOOTER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkTag(pub u32);

impl ChunkTag {
    /// The tag of the footer, which callers must not use.
    pub const FOOTER: Self = Self(u32::MAX);
}

/// What a snapshot says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Identity of the log it belongs to.
    pub identity: u64,
    /// The last log block whose records are in it.
    pub seq: u64,
    /// Term of the writer.
    pub term: u32,
    /// The caller's 64-bit stamp (the time it shows, for one).
    pub stamp: u64,
}

fn header_crc(header: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..8]), &header[12..HEADER_LEN])
}

fn chunk_crc(header: &[u8], bytes: &[u8]) -> u32 {
    let head = crc32c::crc32c_append(crc32c::crc32c(&header[..4]), &header[8..CHUNK_HEADER_LEN]);
    crc32c::crc32c_append(head, bytes)
}

/// What header, chunks and footer share: how many chunks, how many bytes, and the checksum of their checksums.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    chunks: u32,
    bytes: u64,
    crc: u32,
}

impl Tally {
    fn add(&mut self, len: usize, crc: u32) {
        self.chunks += 1;
        self.bytes += u64::try_from(len).expect("a chunk is bounded");
        self.crc = crc32c::crc32c_append(self.crc, &crc.to_le_bytes());
    }

    fn footer(&self) -> [u8; FOOTER_LEN] {
        let mut footer = [0; FOOTER_LEN];
        footer[0..8].copy_from_slice(&u64::from(self.chunks).to_le_bytes());
        footer[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        footer[16..20].copy_from_slice(&self.crc.to_le_bytes());
        footer
    }
}

/// Turns chunks into bytes.
#[derive(Debug)]
pub struct Encoder {
    tally: Tally,
}

impl Encoder {
    /// Begins a snapshot: adds its header to `out`.
    #[must_use]
    pub fn start(info: &Info, out: &mut Vec<u8>) -> Self {
        let mut header = [0; HEADER_LEN];
        header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&info.term.to_le_bytes());
        header[16..24].copy_from_slice(&info.identity.to_le_bytes());
        header[24..32].copy_from_slice(&info.seq.to_le_bytes());
        header[32..40].copy_from_slice(&info.stamp.to_le_bytes());
        let crc = header_crc(&header);
        header[8..12].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&header);
        Self { tally: Tally { crc, ..Tally::default() } }
    }

    /// Adds one chunk to `out`.
    ///
    /// # Panics
    /// When it is longer than [`CHUNK_LEN_MAX`] or has the footer's tag.
    pub fn chunk(&mut self, tag: ChunkTag, bytes: &[u8], out: &mut Vec<u8>) {
        assert!(tag != ChunkTag::FOOTER, "the tag is the footer's");
        let crc = self.put(tag, bytes, out);
        self.tally.add(bytes.len(), crc);
    }

    /// Ends the snapshot: adds its footer to `out`.
    pub fn finish(self, out: &mut Vec<u8>) {
        self.put(ChunkTag::FOOTER, &self.tally.footer(), out);
    }

    fn put(&self, tag: ChunkTag, bytes: &[u8], out: &mut Vec<u8>) -> u32 {
        assert!(bytes.len() <= CHUNK_LEN_MAX, "a chunk of {} bytes exceeds {CHUNK_LEN_MAX}", bytes.len());
        let mut header = [0; CHUNK_HEADER_LEN];
        header[0..4].copy_from_slice(&u32::try_from(bytes.len()).expect("bounded above").to_le_bytes());
        header[8..12].copy_from_slice(&tag.0.to_le_bytes());
        header[12..16].copy_from_slice(&self.tally.chunks.to_le_bytes());
        let crc = chunk_crc(&header, bytes);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(bytes);
        out.resize(out.len() + round_up(bytes.len(), CHUNK_ALIGN) - bytes.len(), 0);
        crc
    }
}

/// A chunk header that was read.
pub(super) struct Chunk {
    pub(super) len: usize,
    pub(super) tag: ChunkTag,
    header: [u8; CHUNK_HEADER_LEN],
}

/// What a chunk turned out to be.
pub(super) enum Step<'a> {
    Chunk(&'a [u8]),
    End,
}

/// Verifies a snapshot piece by piece. Problems are sentences without the place, which the reader knows.
pub(super) struct Decoder {
    tally: Tally,
}

impl Decoder {
    pub(super) fn start(header: &[u8], identity: u64) -> Result<(Self, Info), String> {
        if u32_at(header, 0) != MAGIC {
            return Err("this is not a snapshot".to_owned());
        }
        let crc = u32_at(header, 8);
        if crc != header_crc(header) {
            return Err("the header's checksum is wrong".to_owned());
        }
        let version = u16_at(header, 4);
        if version != FORMAT_VERSION {
            return Err(format!("the format is {version}; this version reads {FORMAT_VERSION}"));
        }
        let info = Info {
            identity: u64_at(header, 16),
            seq: u64_at(header, 24),
            term: u32_at(header, 12),
            stamp: u64_at(header, 32),
        };
        if info.identity != identity {
            return Err("it belongs to another data directory".to_owned());
        }
        Ok((Self { tally: Tally { crc, ..Tally::default() } }, info))
    }

    pub(super) fn chunk(&self, header: &[u8; CHUNK_HEADER_LEN]) -> Result<Chunk, String> {
        let len = usize::try_from(u32_at(header, 0)).expect("usize has at least 32 bits");
        let index = u32_at(header, 12);
        if len > CHUNK_LEN_MAX || index != self.tally.chunks {
            return Err(format!("chunk {} has a damaged header", self.tally.chunks));
        }
        Ok(Chunk { len, tag: ChunkTag(u32_at(header, 8)), header: *header })
    }

    pub(super) fn body<'a>(&mut self, chunk: &Chunk, stored: &'a [u8]) -> Result<Step<'a>, String> {
        let bytes = &stored[..chunk.len];
        let crc = u32_at(&chunk.header, 4);
        if crc != chunk_crc(&chunk.header, bytes) {
            return Err(format!("the checksum of chunk {} is wrong", self.tally.chunks));
        }
        if chunk.tag != ChunkTag::FOOTER {
            self.tally.add(chunk.len, crc);
            return Ok(Step::Chunk(bytes));
        }
        if bytes == self.tally.footer() { Ok(Step::End) } else { Err("the footer counts other chunks".to_owned()) }
    }
}
