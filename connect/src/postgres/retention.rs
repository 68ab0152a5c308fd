//! Retention of the history: days that ended long enough ago are dropped whole, and with them the chunks of states that no later day needs.
//!
//! How old a day is follows from the server's clock: a node whose clock is wrong drops nothing that should stay. All nodes of a cluster do
//! this, and it does not matter which of them is first.

use std::time::Duration;

use tokio_postgres::types::ToSql;

use super::schema::{self, LOCK};
use super::session::connect;
use super::{Error, Session, Settings};

/// Pause after a look, and after one that failed.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Parts of days that ended before so many seconds, the oldest first. Names of days are ordered as the days are.
const OLD: &str = r"SELECT part.relname::text FROM pg_inherits JOIN pg_class AS part ON part.oid = inhrelid
    WHERE inhparent = 'taskmaster.final_task'::regclass AND part.relname ~ '^final_task_[0-9]{8}$'
      AND part.relname < 'final_task_' || to_char((now() - make_interval(secs => $1)) AT TIME ZONE 'UTC', 'YYYYMMDD')
    ORDER BY 1";

/// What is kept of the order of tasks goes with the last of its days, from the oldest on: the first that stays ends the look.
const STRETCHES: &str = "WITH kept AS (
        SELECT date_trunc('day', (now() - make_interval(secs => $3)) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS since)
    DELETE FROM taskmaster.stretch WHERE cluster = $1 AND partition = $2 AND behind < coalesce(
        (SELECT behind FROM taskmaster.stretch, kept WHERE cluster = $1 AND partition = $2 AND last_at >= since ORDER BY behind LIMIT 1),
        9223372036854775807)";
/// Deletes chunks that no day needs that is left, so many at once. One that a batch is about to keep for longer is passed over, so that
/// neither waits for the other crosswise.
const OLD_CHUNKS: &str = r"DELETE FROM taskmaster.state_chunk WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM taskmaster.state_chunk WHERE day < ((now() - make_interval(secs => $1)) AT TIME ZONE 'UTC')::date
        LIMIT 10000 FOR UPDATE SKIP LOCKED))";

/// Drops old days without end; whoever started it ends it.
pub async fn drop_old_days(settings: Settings, retention: Duration) {
    loop {
        let pause = match drop_now(&settings, retention).await {
            Ok(0) => LOOK_EVERY,
            Ok(days) => {
                tracing::info!("{days} days of history older than postgres.retention were dropped");
                LOOK_EVERY
            }
            Err(error) => {
                tracing::debug!("old history stays for now: {error}");
                RETRY_AFTER
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn drop_now(settings: &Settings, retention: Duration) -> Result<usize, Error> {
    let mut session = connect(settings).await?;
    session.timely(schema::check_session(&session)).await?;
    let rows = session.timely(async { Ok(session.client.query(OLD, &[&retention.as_secs_f64()]).await?) }).await?;
    for row in &rows {
        drop_part(&mut session, row.try_get(0)?).await?;
    }
    let places = "SELECT cluster, partition FROM taskmaster.checkpoint ORDER BY 1, 2";
    let places = session.timely(async { Ok(session.client.query(places, &[]).await?) }).await?;
    for place in &places {
        let (cluster, partition): (i32, i32) = (place.try_get(0)?, place.try_get(1)?);
        let parameters: [&(dyn ToSql + Sync); 3] = [&cluster, &partition, &retention.as_secs_f64()];
        session.timely(async { Ok(session.client.execute(STRETCHES, &parameters).await?) }).await?;
    }
    let delete = async || Ok::<_, Error>(session.client.execute(OLD_CHUNKS, &[&retention.as_secs_f64()]).await?);
    while session.timely(delete()).await? > 0 {}
    Ok(rows.len())
}

/// Drops one part, in a transaction of its own: readers of the history wait for no more than one.
async fn drop_part(session: &mut Session, name: &str) -> Result<(), Error> {
    let transaction = session.client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    transaction.batch_execute(&format!("DROP TABLE IF EXISTS taskmaster.{name}")).await?;
    transaction.commit().await?;
    Ok(())
}
