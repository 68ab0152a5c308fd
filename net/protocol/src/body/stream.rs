//! Streams: batches of tasks that move the position of their source, and the positions.

use rkyv::{Archive, Deserialize, Serialize};

use super::{ExceptionRow, Span, Submit};

/// A batch of tasks that is all that comes of a piece of a stream.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct SubmitStream {
    /// The piece; its spans lie in the byte area of `batch`.
    pub piece: StreamRow,
    /// The tasks.
    pub batch: Submit,
}

/// A piece of a stream.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct StreamRow {
    /// The position that the batch goes on from.
    pub from: u64,
    /// The position after it, higher than `from`.
    pub to: u64,
    /// Name of the stream (UTF-8).
    pub stream: Span,
    /// Name of the topic (UTF-8).
    pub topic: Span,
    /// The topic's partition.
    pub number: u32,
    /// Zero.
    pub reserved: u32,
}

/// The answer to a batch of a stream.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct StreamReply {
    /// The position that holds; [`StreamRow::to`], if the batch was carried out, or had been before.
    pub position: u64,
    /// Rows carried out.
    pub accepted: u32,
    /// Zero.
    pub reserved: u32,
    /// Rows that were not, in row order; not those of a batch that was passed over.
    pub exceptions: Vec<ExceptionRow>,
}

/// Asks for the positions of a partition's streams.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ListStreams {
    /// Zero.
    pub reserved: u32,
}

/// The positions of a partition's streams.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct StreamPage {
    /// The positions.
    pub rows: Vec<StreamInfo>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// One position.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct StreamInfo {
    /// Offset of the next message.
    pub position: u64,
    /// Name of the stream.
    pub stream: Span,
    /// Name of the topic.
    pub topic: Span,
    /// The topic's partition.
    pub number: u32,
    /// Zero.
    pub reserved: u32,
}
