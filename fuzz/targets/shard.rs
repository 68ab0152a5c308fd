//! Any sequence of frames into a shard: no panic.
//!
//! The input is a stream of frames as on a connection, except that checksums and magic are not looked at, so that mutations
//! reach the engine. The reserved bytes of a header name the connection; operations from 0xFF00 on are events: see [`event`].

#![no_main]

use libfuzzer_sys::fuzz_target;
use taskmaster_engine::{ConnId, Input};
use taskmaster_fuzz::world::World;
use taskmaster_protocol::frame::{HEADER_BYTES, Header};

fn event(world: &mut World, number: u16, argument: u64) {
    match number {
        0xFF00 => world.make_durable(usize::try_from(argument).unwrap_or(usize::MAX)),
        0xFF01 => world.advance_ms(argument % 100_000_000, 100),
        0xFF02 => world.handle(Input::Disconnected { conn: ConnId(argument & 3) }),
        0xFF03 => world.handle(Input::DiskFull(argument & 1 == 1)),
        0xFF04 => world.handle(Input::Drain),
        0xFF05 => world.snapshot_step(),
        _ => world.crash(argument & 1 == 1),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut world = World::new(64 << 20);
    let mut rest = data;
    let mut frames = 0;
    while let Some(head) = rest.first_chunk::<HEADER_BYTES>() {
        let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let mut correlation = [0u8; 8];
        correlation.copy_from_slice(&head[16..24]);
        let header = Header {
            version: head[4],
            flags: head[5],
            operation: u16_at(6),
            length: 0,
            correlation: u64::from_le_bytes(correlation),
            partition: u16_at(24),
            code: 0,
        };
        rest = &rest[HEADER_BYTES..];
        let length = length.min(rest.len());
        let (body, behind) = rest.split_at(length);
        rest = behind.get(length.next_multiple_of(16) - length..).unwrap_or_default();
        if header.operation >= 0xFF00 {
            event(&mut world, header.operation, header.correlation);
        } else {
            world.frame(u64::from(head[28] & 3), header, body);
        }
        frames += 1;
        if frames == 64 {
            break;
        }
    }
    world.check_recovery();
});
