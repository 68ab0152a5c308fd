//! Streams: numbered messages of a source that become tasks, each exactly once.

use taskmaster_protocol::body::{
    ArchivedStreamPage, ArchivedStreamReply, ListStreams, StreamRow, SubmitStream, put, text,
};
use taskmaster_protocol::stream::partition_of;
use taskmaster_protocol::{Operation, PartitionId};

use super::Client;
use crate::batch::Batch;
use crate::error::Error;
use crate::routing::now_ms;
use crate::task::Task;

/// A partition of a topic that a stream reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamSource {
    /// Name of the stream.
    pub stream: String,
    /// Name of the topic.
    pub topic: String,
    /// The topic's partition.
    pub number: u32,
}

/// How far a source has become tasks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamPosition {
    /// The source.
    pub source: StreamSource,
    /// Offset of the next message.
    pub position: u64,
}

impl Client {
    /// Submits what comes of a source's messages from `from` up to, and without, `to`, and moves its position there: both or
    /// neither. Nothing happens unless `from` is the position. Returns the position that holds: if it is `to`, these messages
    /// have become tasks, now or earlier; otherwise go on there.
    ///
    /// Keys of the tasks count within the source's partition of the cluster, not across it.
    ///
    /// # Errors
    /// [`Error::Refused`] with the row that is at fault, if one is: nothing of the batch was kept. Transport errors: send it again.
    pub async fn submit_stream(
        &self,
        source: &StreamSource,
        (from, to): (u64, u64),
        tasks: impl IntoIterator<Item = Task>,
    ) -> Result<u64, Error> {
        let topology = self.cluster().topology();
        let partition = self.partition_of(source);
        let mut batch = Batch::new(partition);
        for (row, task) in (0u32..).zip(tasks) {
            if let Err(mut refusal) = task.check(topology.info.payload_bytes_max) {
                refusal.row = Some(row);
                return Err(refusal.into());
            }
            batch.push(self.cluster().ids.id(now_ms(), partition), task, self.namespace(), row.into());
        }
        let bytes = &mut batch.body.bytes;
        let (stream, topic) = (put(bytes, source.stream.as_bytes()), put(bytes, source.topic.as_bytes()));
        let piece = StreamRow { from, to, stream, topic, number: source.number, reserved: 0 };
        let body = SubmitStream { piece, batch: batch.body };
        let message = self.cluster().call(Operation::SubmitStream, partition, &body).await?;
        Ok(message.read::<ArchivedStreamReply>()?.position.to_native())
    }

    /// How far a source has become tasks: the offset of its next message.
    ///
    /// # Errors
    /// Refusals and transport errors.
    pub async fn stream_position(&self, source: &StreamSource) -> Result<u64, Error> {
        let body = ListStreams::default();
        let message = self.cluster().call(Operation::ListStreams, self.partition_of(source), &body).await?;
        let known = positions(message.read::<ArchivedStreamPage>()?)?;
        Ok(known.into_iter().find(|known| known.source == *source).map_or(0, |known| known.position))
    }

    /// The positions of all sources that have one, sorted.
    ///
    /// # Errors
    /// Refusals and transport errors.
    pub async fn streams(&self) -> Result<Vec<StreamPosition>, Error> {
        let mut all = Vec::new();
        for message in self.ask_all_partitions(Operation::ListStreams, ListStreams::default()).await? {
            all.extend(positions(message.read::<ArchivedStreamPage>()?)?);
        }
        all.sort();
        Ok(all)
    }

    fn partition_of(&self, source: &StreamSource) -> PartitionId {
        partition_of(&source.stream, &source.topic, source.number, self.partitions())
    }
}

fn positions(page: &ArchivedStreamPage) -> Result<Vec<StreamPosition>, Error> {
    let row = |row: &taskmaster_protocol::body::ArchivedStreamInfo| {
        let stream = text(&page.bytes, row.stream)?.to_owned();
        let topic = text(&page.bytes, row.topic)?.to_owned();
        let source = StreamSource { stream, topic, number: row.number.to_native() };
        Ok::<_, Error>(StreamPosition { source, position: row.position.to_native() })
    };
    page.rows.iter().map(row).collect()
}
