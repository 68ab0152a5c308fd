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
        LIMIT 10000 FOR UPDATE SKIP LOCKED))";

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
            Err(error) if error.is_of_rights() => {
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
    let mut days = 0;
    for row in &rows {
        let name = row.try_get(0)?;
        let is_gone = drop_part(&mut session, name, &others).await? || empty_part(&session, name, &own).await?;
        days += usize::from(is_gone);
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

/// Drops one part unless another cluster has tasks there, in a transaction of its own: readers of the history wait for no more than one.
/// Whether it is gone.
async fn drop_part(session: &mut Session, name: &str, others: &[i32]) -> Result<bool, Error> {
    let transaction = session.client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    if !others.is_empty() {
        // Nobody adds a task meanwhile.
        transaction.batch_execute(&format!("LOCK TABLE taskmaster.{name} IN SHARE MODE")).await?;
        let is_shared = format!("SELECT EXISTS (SELECT FROM taskmaster.{name} WHERE cluster = ANY ($1))");
        if transaction.query_one(&is_shared, &[&others]).await?.try_get(0)? {
            return Ok(false);
        }
    }
    transaction.batch_execute(&format!("DROP TABLE IF EXISTS taskmaster.{name}")).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Deletes these clusters' tasks of one part, so many at once; whether there were some.
async fn empty_part(session: &Session, name: &str, own: &[i32]) -> Result<bool, Error> {
    let sql = format!(
        "DELETE FROM taskmaster.{name} WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM taskmaster.{name} WHERE cluster = ANY ($1) LIMIT 10000))"
    );
    let delete = async || Ok::<_, Error>(session.client.execute(&sql, &[&own]).await?);
    let mut had_some = false;
    while session.timely(delete()).await? > 0 {
        had_some = true;
    }
    Ok(had_some)
}
