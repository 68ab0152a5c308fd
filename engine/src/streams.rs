//! How far streams have become tasks: a position for each partition of a topic.
//!
//! A position belongs to the replicated state. It moves with the tasks of the very command that brings them, and only from where it is:
//! so each message becomes a task once, however often and by whomever its batch is sent.

use std::collections::BTreeMap;

use taskmaster_protocol::body::{self, ArchivedSubmitStream, Malformed};

/// A partition of a topic that a stream reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Source {
    pub(crate) stream: Box<str>,
    pub(crate) topic: Box<str>,
    pub(crate) number: u32,
}

/// A piece of a stream.
pub(crate) struct Piece {
    pub(crate) source: Source,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Piece {
    /// The piece that a submission is of.
    ///
    /// # Errors
    /// A name outside the byte area, or not UTF-8.
    pub(crate) fn of(body: &ArchivedSubmitStream) -> Result<Self, Malformed> {
        let (row, bytes) = (&body.piece, &body.batch.bytes);
        let source = Source {
            stream: body::text(bytes, row.stream)?.into(),
            topic: body::text(bytes, row.topic)?.into(),
            number: row.number.to_native(),
        };
        Ok(Self { source, from: row.from.to_native(), to: row.to.to_native() })
    }
}

/// The positions that a partition keeps; those of other sources are 0.
#[derive(Debug, Default)]
pub(crate) struct Streams(BTreeMap<Source, u64>);

impl Streams {
    /// The offset of the next message.
    pub(crate) fn position(&self, source: &Source) -> u64 {
        self.0.get(source).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, source: Source, position: u64) {
        self.0.insert(source, position);
    }

    pub(crate) fn has(&self, source: &Source) -> bool {
        self.0.contains_key(source)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Source, u64)> {
        self.0.iter().map(|(source, &position)| (source, position))
    }

    /// Memory held, in bytes.
    pub(crate) fn reserved_bytes(&self) -> usize {
        let names = |source: &Source| source.stream.len() + source.topic.len();
        self.0.keys().map(|source| size_of::<(Source, u64)>() + names(source)).sum()
    }
}
