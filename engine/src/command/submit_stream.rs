//! Submit, as a piece of a stream: tasks and the stream's position, both or neither.

use taskmaster_protocol::body::{ArchivedSubmitStream, Malformed, StreamReply};
use taskmaster_protocol::stream::partition_of;
use taskmaster_protocol::{Code, limits};

use super::submit::{self, Size, check_name};
use crate::arena::Arena;
use crate::partition::{Cx, Partition};
use crate::refused::Refused;
use crate::streams::Piece;

/// What becomes of a piece.
pub(crate) enum Admitted {
    /// It may go into the log.
    Next(Size),
    /// It does not go on from the position. The log could only say the same again.
    Elsewhere(StreamReply),
}

/// Checks everything that does not depend on other requests in flight.
pub(crate) fn admit(
    partition: &Partition,
    body: &ArchivedSubmitStream,
    partitions: u16,
    arena: &Arena,
    now_us: u64,
    auto_create: bool,
) -> Result<Admitted, Refused> {
    let invalid = |message: String| Err(Refused::new(Code::Invalid, message));
    let (piece, batch) = (Piece::of(body)?, &body.batch);
    if !batch.workflow.is_empty() {
        return Err(Refused::new(Code::Malformed, "a piece of a stream has no workflow"));
    }
    let source = &piece.source;
    if let Err(sentence) = check_name("stream", &source.stream) {
        return invalid(sentence);
    }
    if source.topic.is_empty() || source.topic.len() > limits::TOPIC_BYTES_MAX {
        return invalid(format!("the topic has {} bytes: 1 to {}", source.topic.len(), limits::TOPIC_BYTES_MAX));
    }
    let place = partition_of(&source.stream, &source.topic, source.number, partitions);
    if place != partition.id {
        let message = format!("{} {} of stream {} is partition {place}'s", source.topic, source.number, source.stream);
        return Err(Refused::new(Code::WrongPartition, message));
    }
    if piece.from >= piece.to {
        return invalid(format!("the piece from {} to {} is empty", piece.from, piece.to));
    }
    let position = partition.streams.position(source);
    if position > piece.from {
        return Ok(Admitted::Elsewhere(StreamReply { position, ..StreamReply::default() }));
    }
    if !partition.streams.has(source) && partition.streams.len() >= limits::STREAMS_MAX {
        let message = format!("the partition keeps {} positions, as many as it can", limits::STREAMS_MAX);
        return Err(Refused::new(Code::TooLarge, message));
    }
    if batch.tasks.is_empty() {
        return Ok(Admitted::Next(Size::default()));
    }
    submit::admit(partition, batch, arena, now_us, auto_create).map(Admitted::Next)
}

/// Carries a logged piece out, if it goes on from the position.
///
/// # Errors
/// A name outside the byte area, or not UTF-8: no entry of ours.
pub(crate) fn apply(
    partition: &mut Partition,
    body: &ArchivedSubmitStream,
    cx: &mut Cx<'_>,
) -> Result<StreamReply, Malformed> {
    let piece = Piece::of(body)?;
    let position = partition.streams.position(&piece.source);
    if position != piece.from {
        return Ok(StreamReply { position, ..StreamReply::default() });
    }
    partition.streams.set(piece.source, piece.to);
    // Whether it comes again is decided by the position alone.
    let reply = submit::apply(partition, &body.batch, &[], false, cx);
    Ok(StreamReply { position: piece.to, accepted: reply.accepted, reserved: 0, exceptions: reply.exceptions })
}
