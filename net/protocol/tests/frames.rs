//! Frames and bodies survive the wire, and hostile bytes never panic.

use proptest::prelude::*;
use taskmaster_protocol::body::{self, ArchivedSubmit, Spec, Submit, TaskRow};
use taskmaster_protocol::frame::{self, FrameError, Header};
use taskmaster_protocol::{FrameBuffer, Operation, PartitionId, TaskId};

fn submit(count: u32) -> Submit {
    let mut bytes = Vec::new();
    let spec =
        Spec { queue: body::put(&mut bytes, b"emails"), kind: body::put(&mut bytes, b"send"), ..Spec::default() };
    let tasks = (0..count)
        .map(|n| TaskRow {
            id: TaskId::new(1_700_000_000_000, PartitionId(3), 77, n),
            payload: body::put(&mut bytes, format!("payload {n}").as_bytes()),
            ..TaskRow::default()
        })
        .collect();
    Submit { specs: vec![spec], tasks, bytes, ..Submit::default() }
}

fn framed(count: u32) -> FrameBuffer {
    let mut out = FrameBuffer::new();
    frame::encode(&mut out, Header::request(Operation::Submit, 9, Some(PartitionId(3))), &submit(count));
    out
}

#[test]
fn several_frames_in_one_buffer_are_read_in_place() {
    let mut out = FrameBuffer::new();
    for count in [1, 0, 64] {
        frame::encode(&mut out, Header::request(Operation::Submit, u64::from(count), None), &submit(count));
    }
    let mut at = 0;
    for count in [1u32, 0, 64] {
        let (frame, used) = frame::parse(&out[at..]).unwrap().unwrap();
        assert_eq!(frame.header.correlation, u64::from(count));
        let body = body::access::<ArchivedSubmit>(frame.body).unwrap();
        assert_eq!(body.tasks.len(), count as usize);
        for (n, task) in body.tasks.iter().enumerate() {
            assert_eq!(body::text(&body.bytes, task.payload).unwrap(), format!("payload {n}"));
        }
        assert_eq!(body::text(&body.bytes, body.specs[0].queue).unwrap(), "emails");
        at += used;
    }
    assert_eq!(at, out.len());
}

#[test]
fn every_truncation_asks_for_more_bytes() {
    let out = framed(3);
    for cut in 0..out.len() {
        assert!(frame::parse(&out[..cut]).unwrap().is_none(), "cut at {cut}");
        let needed = frame::needed(&out[..cut]).unwrap();
        assert!(needed > cut && needed <= out.len());
    }
}

#[test]
fn oversized_length_is_refused_from_the_header_alone() {
    let mut out = framed(1);
    out[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(frame::parse(&out[..32]), Err(FrameError::TooLarge { .. })));
}

#[test]
fn row_sizes_are_the_documented_ones() {
    assert_eq!(size_of::<body::ArchivedTaskRow>(), 32);
    assert_eq!(size_of::<body::ArchivedAssignRow>(), 56);
    assert_eq!(size_of::<body::ArchivedCompleteRow>(), 40);
}

proptest! {
    #[test]
    fn any_changed_byte_is_noticed(at in 0usize..400, change in 1u8..=255) {
        let mut out = framed(3);
        let content = 32 + u32::from_le_bytes([out[8], out[9], out[10], out[11]]) as usize;
        let at = at % content;
        out[at] ^= change;
        prop_assert!(!matches!(frame::parse(&out), Ok(Some(_))), "byte {} unnoticed", at);
    }

    #[test]
    fn arbitrary_bodies_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut aligned = FrameBuffer::new();
        aligned.extend_from_slice(&bytes);
        if let Ok(body) = body::access::<ArchivedSubmit>(&aligned) {
            for task in body.tasks.iter() {
                let _ = body::slice(&body.bytes, task.payload);
            }
        }
    }
}
