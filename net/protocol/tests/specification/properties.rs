//! What holds for any value of any body.

use proptest::prelude::*;
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{FrameBuffer, Operation};

use crate::shape::{Dice, SHAPES};

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_body_with_arbitrary_values_survives_the_wire(seed: u64, offset in 0usize..4) {
        let mut dice = Dice(seed);
        for shape in SHAPES {
            let mut body = FrameBuffer::new();
            (shape.random)(&mut dice, &mut body);
            let mut stream = FrameBuffer::new();
            for _ in 0..=offset {
                frame::encode_raw(&mut stream, Header::request(Operation::Ping, 1, None), &body);
            }
            let last = stream.len() - stream.len() / (offset + 1);
            let (frame, _) = frame::parse(&stream[last..]).unwrap().unwrap();
            let content = (shape.describe)(frame.body).unwrap();
            let mut again = FrameBuffer::new();
            (shape.encode)(&content, &mut again);
            prop_assert_eq!(body.as_slice(), again.as_slice(), "{}", shape.name);
        }
    }

    #[test]
    fn a_body_with_changed_bytes_is_refused_or_read_without_a_panic(seed: u64, changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8)) {
        let mut dice = Dice(seed);
        for shape in SHAPES {
            let mut body = FrameBuffer::new();
            (shape.random)(&mut dice, &mut body);
            for (at, value) in &changes {
                // Most changes go to the root, where offsets and lengths are.
                let range = body.len().min(if value % 4 == 0 { body.len() } else { 96 });
                let at = body.len() - 1 - usize::from(*at) % range;
                body[at] = *value;
            }
            for other in SHAPES {
                let _ = (other.describe)(&body);
                let _ = (other.spans)(&body, &mut |_| {});
            }
        }
    }
}
