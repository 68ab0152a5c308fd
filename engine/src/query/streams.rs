//! The positions of a partition's streams.

use taskmaster_protocol::body::{self, StreamInfo, StreamPage};

use crate::partition::Partition;

/// Describes every position.
pub(crate) fn list(partition: &Partition) -> StreamPage {
    let mut page = StreamPage::default();
    for (source, position) in partition.streams.iter() {
        page.rows.push(StreamInfo {
            position,
            stream: body::put(&mut page.bytes, source.stream.as_bytes()),
            topic: body::put(&mut page.bytes, source.topic.as_bytes()),
            number: source.number,
            reserved: 0,
        });
    }
    page
}
