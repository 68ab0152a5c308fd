//! What several tests have in common.

use proptest::prelude::*;

use crate::predictor::{Facts, Keys};

/// The keys of a kind's tasks.
pub(crate) fn keys(kind: u32) -> Keys {
    Keys::new(&Facts { tenant: 1, kind, width: 1, ..Facts::default() })
}

/// Bytes of which some were changed, and the end cut off.
pub(crate) fn damaged(whole: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let flips = proptest::collection::vec((any::<usize>(), any::<u8>()), 0..200);
    (flips, any::<usize>()).prop_map(move |(flips, cut)| {
        let mut bytes = whole.clone();
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(cut % (bytes.len() + 1));
        bytes
    })
}
