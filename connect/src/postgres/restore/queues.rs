//! The settings of queues, as they were stored last.

use tokio_postgres::Row;

use super::Source;
use crate::postgres::batch::QueueSetting;
use crate::postgres::{Error, Session};

/// An operator's change reaches every partition, and each tells of it with what it stores next: the latest is what holds for all.
const QUEUES: &str = concat!(
    chain!(),
    " SELECT DISTINCT ON (namespace, queue) namespace, queue, paused, draining, rate_milli_per_s, rate_burst, concurrency, depth_max,
           retention_ms, flags_deadlines, policy, refuse_permille, restarts_off, weight
    FROM taskmaster.queue_setting WHERE cluster IN (SELECT cluster FROM chain)
    ORDER BY namespace, queue, cluster DESC, at DESC, partition"
);

/// The queues of a cluster.
///
/// # Errors
/// When the database fails.
pub async fn queues(session: &Session, source: &Source) -> Result<Vec<QueueSetting>, Error> {
    session.client.query(QUEUES, &[&source.number]).await?.iter().map(setting).collect()
}

fn setting(row: &Row) -> Result<QueueSetting, Error> {
    let wide = |column| Ok::<_, Error>(row.try_get::<_, i64>(column)?.cast_unsigned());
    let number = |column| Ok::<_, Error>(u32::try_from(wide(column)?).unwrap_or(u32::MAX));
    Ok(QueueSetting {
        namespace: row.try_get(0)?,
        queue: row.try_get(1)?,
        paused: row.try_get(2)?,
        draining: row.try_get(3)?,
        rate_milli_per_s: wide(4)?,
        rate_burst: number(5)?,
        concurrency: number(6)?,
        depth_max: wide(7)?,
        retention_ms: number(8)?,
        flags_deadlines: row.try_get(9)?,
        policy: row.try_get(10)?,
        refuse_permille: u16::try_from(row.try_get::<_, i32>(11)?).unwrap_or_default(),
        restarts_off: u8::try_from(row.try_get::<_, i32>(12)?).unwrap_or_default(),
        weight: u16::try_from(row.try_get::<_, i32>(13)?).unwrap_or(1),
    })
}
