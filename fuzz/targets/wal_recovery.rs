//! Any bytes as the segments of a log: recovery ends in a result, and the same one each time.
//!
//! The log is given in one of two ways: raw, where only checksums are made right so that the rules behind them are
//! reached, or as a program that lays whole blocks and then disturbs them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use taskmaster_storage::wal::{ScanParams, recover_bytes};

const PAGE: usize = 4096;
const HEADER: usize = 64;
const IDENTITY: u64 = 7;
const PAGES_MAX: usize = 64;

/// Makes the checksum of the block at `at` right, if it lies inside the log; the checksum.
fn seal(log: &mut [u8], at: usize) -> u32 {
    let payload = u32::from_le_bytes([log[at + 12], log[at + 13], log[at + 14], log[at + 15]]) as usize;
    let Some(end) = payload.checked_add(at + HEADER).filter(|&end| end <= log.len()) else { return 0 };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&log[at..at + 8]), &log[at + 12..end]);
    log[at + 8..at + 12].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Each page is given by its first 256 bytes, the rest is zero.
fn raw(bytes: &[u8]) -> Vec<u8> {
    let mut log = vec![0u8; bytes.len().div_ceil(256).min(PAGES_MAX) * PAGE];
    for (page, part) in bytes.chunks(256).take(PAGES_MAX).enumerate() {
        log[page * PAGE..page * PAGE + part.len()].copy_from_slice(part);
    }
    for page in 0..log.len() / PAGE {
        if &log[page * PAGE..page * PAGE + 4] == b"TMWB" {
            seal(&mut log, page * PAGE);
        }
    }
    log
}

/// What the next block of an undisturbed log would be.
struct Layer {
    log: Vec<u8>,
    page: usize,
    seq: u64,
    chain: u32,
    term: u32,
    segment_pages: usize,
}

impl Layer {
    /// Lays a block; `disturb` overwrites header bytes before the checksum is made.
    fn block(&mut self, records: u32, len: u32, flags: u16, lag: u64, disturb: Option<(usize, u8)>) {
        let record = (16 + len as usize).next_multiple_of(16);
        let pages = (HEADER + record * records as usize).div_ceil(PAGE);
        let room = self.segment_pages - self.page % self.segment_pages;
        if pages > self.segment_pages {
            return;
        }
        if pages > room {
            self.page += room;
        }
        let at = self.page * PAGE;
        if self.page + pages > PAGES_MAX {
            return;
        }
        self.log.resize(self.log.len().max((self.page + pages) * PAGE), 0);
        let payload = u32::try_from(record * records as usize).expect("a few pages");
        let segment = u32::try_from(self.page / self.segment_pages + 1).expect("few segments");
        let page = u32::try_from(self.page % self.segment_pages).expect("few pages");
        let block = &mut self.log[at..at + pages * PAGE];
        block.fill(0);
        block[0..4].copy_from_slice(b"TMWB");
        block[4..6].copy_from_slice(&1u16.to_le_bytes());
        block[6..8].copy_from_slice(&flags.to_le_bytes());
        block[12..16].copy_from_slice(&payload.to_le_bytes());
        block[16..20].copy_from_slice(&records.to_le_bytes());
        block[20..24].copy_from_slice(&self.chain.to_le_bytes());
        block[24..32].copy_from_slice(&self.seq.to_le_bytes());
        block[32..40].copy_from_slice(&self.seq.saturating_sub(1 + lag).to_le_bytes());
        block[40..48].copy_from_slice(&IDENTITY.to_le_bytes());
        block[48..52].copy_from_slice(&self.term.to_le_bytes());
        block[52..56].copy_from_slice(&segment.to_le_bytes());
        block[56..60].copy_from_slice(&page.to_le_bytes());
        for number in 0..records as usize {
            block[HEADER + number * record..][..4].copy_from_slice(&len.to_le_bytes());
        }
        if let Some((place, value)) = disturb {
            block[place] = value;
        }
        self.chain = seal(&mut self.log, at);
        self.seq += 1;
        self.page += pages;
    }
}

/// Four bytes for each step.
fn program(steps: &[u8], segment_pages: usize) -> Vec<u8> {
    let mut layer = Layer { log: Vec::new(), page: 0, seq: 1, chain: 0, term: 1, segment_pages };
    for step in steps.chunks_exact(4) {
        let (a, b, c) = (step[1], step[2], step[3]);
        match step[0] % 12 {
            0..=4 => layer.block((a % 4).into(), u32::from(b) * 16, 0, (c % 4).into(), None),
            5 => {
                layer.term += 1;
                layer.block(1, 0, 1, 0, None);
            }
            6 => layer.block(1, u32::from(b), 2, 0, None),
            7 => layer.block(1, u32::from(b), 0, (c % 4).into(), Some((usize::from(a) % 80, c))),
            8 => layer.page += usize::from(a % 3),
            9 => layer.page += layer.segment_pages - layer.page % layer.segment_pages,
            10 => {
                // A later start that saw a shorter log.
                let back = u64::from(a % 4).min(layer.seq - 1);
                layer.seq -= back;
            }
            _ => {
                let at = (usize::from(a) << 8 | usize::from(b)) * 16;
                if at < layer.log.len() {
                    layer.log[at] ^= c;
                }
            }
        }
    }
    layer.log.resize(layer.log.len().next_multiple_of(segment_pages * PAGE), 0);
    layer.log
}

fuzz_target!(|data: &[u8]| {
    let [pages, after, reach, way, rest @ ..] = data else { return };
    let segment_pages = usize::from(pages % 8 + 1);
    let log = if way % 4 == 0 { raw(rest) } else { program(rest, segment_pages) };
    let params = ScanParams { identity: IDENTITY, after_seq: (after % 16).into(), reach_seq: (reach % 16).into() };
    let outcome = recover_bytes(&log, segment_pages * PAGE, params);
    if let Ok(recovered) = &outcome {
        assert!(recovered.end.last_seq >= params.after_seq.max(params.reach_seq), "the log reaches its snapshot");
        assert!(recovered.bytes <= log.len() as u64, "no block is counted twice");
        let again = recover_bytes(&log, segment_pages * PAGE, params);
        assert_eq!(&again.expect("the same bytes give the same result"), recovered);
    }
});
