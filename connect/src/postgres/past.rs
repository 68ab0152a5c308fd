//! What had ended of a partition by one of its numbers: for looks at the past, where memory had forgotten it.

use futures_util::{StreamExt, pin_mut};
use tokio_postgres::types::ToSql;

use super::reader::{StoredTask, task};
use super::{Error, Session, Source};

/// Of a task's ends by then the latest counts. The payload of a task that succeeded may be there for a fork, and is not told.
const ENDED: &str = concat!(
    chain!(),
    " SELECT ",
    told!(),
    ", task.log_tail, CASE WHEN task.result IS NULL THEN task.payload END, task.result
    FROM taskmaster.final_task AS task JOIN taskmaster.contract USING (contract)
    WHERE task.partition = $2 AND task.cluster IN (SELECT cluster FROM chain) AND (task.cluster, task.number) <= ($1, $3)
        AND ($4::text IS NULL OR task.id = $4::text::uuid) AND NOT EXISTS (
            SELECT FROM taskmaster.final_task AS later
            WHERE later.id = task.id AND later.cluster IN (SELECT cluster FROM chain)
              AND (later.cluster, later.number) > (task.cluster, task.number) AND (later.cluster, later.number) <= ($1, $3))
    ORDER BY task.cluster, task.number"
);

/// Hands each task to `take` that had ended in a partition when its number was `upto`, those that were still in memory among them; only
/// the one with this id, if it is given. `forgotten` is the number up to which memory may have forgotten tasks.
///
/// # Errors
/// When the database has not all of it, or fails.
pub async fn ended(
    session: &Session,
    source: &Source,
    partition: u16,
    (forgotten, upto): (u64, u64),
    id: Option<u128>,
    mut take: impl FnMut(StoredTask),
) -> Result<(), Error> {
    let stands = source.positions.get(&partition).copied().unwrap_or_default();
    if stands < forgotten {
        return Err(Error::Behind { stands, wanted: forgotten });
    }
    session.client.batch_execute("SET statement_timeout = 0").await?;
    let id = id.map(|id| format!("{id:032x}"));
    let upto = i64::try_from(upto).unwrap_or(i64::MAX);
    let parameters: [&(dyn ToSql + Sync); 4] = [&source.number, &i32::from(partition), &upto, &id];
    let rows = session.client.query_raw(ENDED, parameters).await?;
    pin_mut!(rows);
    while let Some(row) = rows.next().await {
        take(task(&row?)?);
    }
    Ok(())
}
