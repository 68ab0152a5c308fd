//! Where a partition of a topic begins.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::consumer::stream_consumer::StreamConsumer;
use tokio::sync::Semaphore;

use super::context::Context;
use super::{Engine, Settings, Source, Start};

/// Longest look at what a partition of a topic holds.
const WATERMARKS_MAX: Duration = Duration::from_secs(10);

/// How a source begins.
pub(super) enum Begin {
    At(u64),
    /// Not before somebody acts; why.
    Never(String),
}

/// Where a source begins: where the engine says, else where its stream says. No more looks are taken at brokers at once than `looks` has.
pub(super) async fn first_position<E: Engine>(
    engine: &E,
    consumer: &Arc<StreamConsumer<Context>>,
    looks: &Semaphore,
    settings: &Settings,
    source: &Source,
) -> Result<Begin, String> {
    let reason = |refused| match refused {
        super::Refused::Order(_, reason) | super::Refused::Later(reason, _) => reason,
    };
    let position = engine.position(source).await.map_err(reason)?;
    // Nobody closes it.
    let _look = looks.acquire().await;
    let (asker, topic) = (Arc::clone(consumer), source.topic.clone());
    let number = i32::try_from(source.number).unwrap_or(i32::MAX);
    let looked = tokio::task::spawn_blocking(move || asker.fetch_watermarks(&topic, number, WATERMARKS_MAX)).await;
    let (low, high) =
        looked.map_err(|error| error.to_string())?.map_err(|error| consumer.client().context().said(&error))?;
    let (low, high) = (u64::try_from(low).unwrap_or(0), u64::try_from(high).unwrap_or(0));
    Ok(match position {
        0 if settings.start == Start::Latest && high > 0 => {
            // Kept at once, so that a restart does not pass over what comes now.
            Begin::At(engine.submit(source, (0, high), &[]).await.map_err(reason)?)
        }
        0 => Begin::At(0),
        _ if position < low => {
            tracing::error!(
                "{source}: the messages from offset {position} to {low} were deleted before they were read"
            );
            Begin::At(position)
        }
        _ if position > high => Begin::Never(format!(
            "the topic ends at offset {high}, and the stream was at {position}: the topic was made anew, or cut at its end. Give \
             the stream another name to read it from the beginning"
        )),
        _ => Begin::At(position),
    })
}
