//! Retention of the history: days that ended long enough ago are dropped whole, and with them the chunks of states that no later day needs.
//! Of a day in which another cluster of the same database has tasks, only one's own are deleted: how long it keeps its own is its affair.
//!
//! How old a day is follows from the server's clock: a node whose clock is wrong drops nothing that should stay. All nodes of a cluster do
//! this, and it does not matter which of them is first.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_postgres::types::ToSql;

use super::schema::{self, LOCK};
use super::session::connect;
use super::{Error, Session, Settings, Status};

/// Pause after a look, after one that failed, and while no writer has told yet which cluster this is.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);
const RETRY_AFTER: Duration = Duration::from_secs(60);
const UNKNOWN_FOR: Duration = Duration::from_millis(500);

/// All clusters of the database, and whether a cluster goes on from each: whose history it is.
const CLUSTERS: &str =
    concat!(chain!(), " SELECT cluster, cluster IN (SELECT cluster FROM chain) FROM taskmaster.cluster");

/// Parts of days that ended before so many seconds, the oldest first. Names of days are ordered as the days are.
const OLD: &str = r"SELECT part.relname::text FROM pg_inherits JOIN pg_class AS part ON part.oid = inhrelid
    WHERE inhparent = 'taskmaster.final_task'::regclass AND part.relname ~ '^final_task_[0-9]{8}$'
      AND part.relname < 'final_task_' || to_char((now() - make_interval(secs => $1)) AT TIME ZONE 'UTC', 'YYYYMMDD')
    ORDER BY 1";

/// Whether one of these clusters has tasks of the day of a part.
const HAS_SOME: &str = "SELECT EXISTS (SELECT FROM taskmaster.stretch,
        (SELECT to_date(right($1, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC' AS begins) AS day
    WHERE cluster = ANY ($2) AND last_at >= begins AND first_at < begins + interval '24 hours')";

/// What is kept of the order of tasks goes with the last of its days, from the oldest on: the first that stays ends the look.
const STRETCHES: &str = "WITH kept AS (
        SELECT date_trunc('day', (now() - make_interval(secs => $3)) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS since)
    DELETE FROM taskmaster.stretch WHERE cluster = $1 AND partition = $2 AND behind < coalesce(
        (SELECT behind FROM taskmaster.stretch, kept WHERE cluster = $1 AND partition = $2 AND last_at >= since ORDER BY behind LIMIT 1),
        9223372036854775807)";
/// Deletes chunks that no day needs that is left, so many at once. One that a batch is about to keep for longer is passed over, so that
/// neither waits for the other crosswise.
const OLD_CHUNKS: &str = r"DELETE FROM taskmaster.state_chunk WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM taskmaster.state_chunk
        WHERE cluster = ANY ($1) AND day < ((now() - make_interval(secs => $2)) AT TIME ZONE 'UTC')::date
        LIMIT 1000000 FOR UPDATE SKIP LOCKED))";

/// Drops old days of the cluster that `status` knows of, without end; whoever started it ends it.
pub async fn drop_old_days(settings: Settings, retention: Duration, status: Arc<Status>) {
    loop {
        let cluster = status.cluster.load(Ordering::Relaxed);
        if cluster == 0 {
            tokio::time::sleep(UNKNOWN_FOR).await;
            continue;
        }
        let pause = match drop_now(&settings, retention, cluster).await {
            Ok(0) => LOOK_EVERY,
            Ok(days) => {
                tracing::info!("{days} days of history older than postgres.retention were dropped");
                LOOK_EVERY
            }
            // Outages are told by those who write.
            Err(error) if error.is_refusal() => {
                tracing::warn!("history older than postgres.retention stays: {error}");
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

async fn drop_now(settings: &Settings, retention: Duration, cluster: i32) -> Result<usize, Error> {
    let mut session = connect(settings).await?;
    session.timely(schema::check_session(&session)).await?;
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for row in session.timely(async { Ok(session.client.query(CLUSTERS, &[&cluster]).await?) }).await? {
        let clusters: &mut Vec<i32> = if row.try_get(1)? { &mut own } else { &mut others };
        clusters.push(row.try_get(0)?);
    }
    let rows = session.timely(async { Ok(session.client.query(OLD, &[&retention.as_secs_f64()]).await?) }).await?;
    let (mut days, mut refused) = (0, None);
    for row in &rows {
        match drop_day(&mut session, row.try_get(0)?, &own, &others).await {
            Ok(is_gone) => days += usize::from(is_gone),
            // Another day may go.
            Err(error) if error.is_refusal() => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = refused {
        return Err(error);
    }
    let places = "SELECT cluster, partition FROM taskmaster.checkpoint WHERE cluster = ANY ($1) ORDER BY 1, 2";
    let places = session.timely(async { Ok(session.client.query(places, &[&own]).await?) }).await?;
    for place in &places {
        let (cluster, partition): (i32, i32) = (place.try_get(0)?, place.try_get(1)?);
        let parameters: [&(dyn ToSql + Sync); 3] = [&cluster, &partition, &retention.as_secs_f64()];
        session.timely(async { Ok(session.client.execute(STRETCHES, &parameters).await?) }).await?;
    }
    let parameters: [&(dyn ToSql + Sync); 2] = [&own, &retention.as_secs_f64()];
    let delete = async || Ok::<_, Error>(session.client.execute(OLD_CHUNKS, &parameters).await?);
    while session.timely(delete()).await? > 0 {}
    Ok(days)
}

/// Drops one part, or deletes from it where another cluster has tasks there; whether there was something. Each in a transaction of its own:
/// readers of the history wait for no more than one.
async fn drop_day(session: &mut Session, part: &str, own: &[i32], others: &[i32]) -> Result<bool, Error> {
    let transaction = session.client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    if !others.is_empty() {
        // Nobody adds a task meanwhile.
        transaction.batch_execute(&format!("LOCK TABLE taskmaster.{part} IN SHARE MODE")).await?;
        let has_some = async |clusters: &[i32]| {
            Ok::<_, Error>(transaction.query_one(HAS_SOME, &[&part, &clusters]).await?.try_get(0)?)
        };
        if has_some(others).await? {
            // What tells of one's own goes behind the parts: without it they are gone.
            let has_own = has_some(own).await?;
            transaction.rollback().await?;
            if has_own {
                empty(session, part, own).await?;
            }
            return Ok(has_own);
        }
    }
    transaction.batch_execute(&format!("DROP TABLE IF EXISTS taskmaster.{part}")).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Deletes these clusters' tasks of one part, however long it takes.
async fn empty(session: &mut Session, part: &str, own: &[i32]) -> Result<(), Error> {
    let transaction = session.client.transaction().await?;
    transaction.batch_execute("SET LOCAL statement_timeout = 0").await?;
    transaction.execute(&format!("DELETE FROM taskmaster.{part} WHERE cluster = ANY ($1)"), &[&own]).await?;
    transaction.commit().await?;
    Ok(())
}
