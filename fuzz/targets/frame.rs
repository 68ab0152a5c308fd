//! Any bytes as a stream: parsing, layout checks and spans never panic and never read outside.
//!
//! Checksums are made right first, so that mutations reach the bodies.

#![no_main]

use libfuzzer_sys::fuzz_target;
use taskmaster_fuzz::body;
use taskmaster_protocol::frame::{self, HEADER_BYTES};
use taskmaster_protocol::{FrameBuffer, Operation};

fn seal(stream: &mut [u8]) {
    let mut at = 0;
    while let Ok(needed) = frame::needed(&stream[at..]) {
        if needed > stream.len() - at || stream.len() - at < HEADER_BYTES {
            return;
        }
        let length = u32::from_le_bytes([stream[at + 8], stream[at + 9], stream[at + 10], stream[at + 11]]) as usize;
        stream[at + 12..at + 16].fill(0);
        let crc = crc32c::crc32c(&stream[at..at + HEADER_BYTES + length]);
        stream[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
        at += needed;
    }
}

fuzz_target!(|data: &[u8]| {
    let mut stream = FrameBuffer::new();
    stream.extend_from_slice(data);
    let _ = frame::parse(&stream);
    seal(&mut stream);
    let mut at = 0;
    while let Ok(Some((frame, used))) = frame::parse(&stream[at..]) {
        let _ = body::check(&frame.header, frame.body);
        for operation in Operation::ALL {
            let header = frame::Header { operation: operation.number(), ..frame.header };
            let _ = body::check(&header, frame.body);
        }
        let mut copy = FrameBuffer::new();
        frame::encode_raw(&mut copy, frame.header, frame.body);
        let (again, _) = frame::parse(&copy).expect("what was read can be written").expect("a whole frame");
        assert_eq!((again.header, again.body), (frame.header, frame.body));
        at += used;
    }
});
