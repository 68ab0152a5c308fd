//! The schema `taskmaster` and its versions. `docs/formats/postgres.md` describes it.
//!
//! Migrations are numbered from 1 without a gap, each runs once and in a transaction with the note that it did; they are never
//! edited afterwards.

use super::session::connect;
use super::{Error, Session, Settings};

/// Migrations in order.
const MIGRATIONS: [&str; 8] = [
    include_str!("migrations/001.sql"),
    include_str!("migrations/002.sql"),
    include_str!("migrations/003.sql"),
    include_str!("migrations/004.sql"),
    include_str!("migrations/005.sql"),
    include_str!("migrations/006.sql"),
    include_str!("migrations/007.sql"),
    include_str!("migrations/008.sql"),
];

/// The version that this program reads and writes.
pub const SCHEMA_VERSION: i32 = 8;
const _: () = assert!(MIGRATIONS.len() == 8 && SCHEMA_VERSION == 8);

/// Held while the schema changes: "taskmast" as a number.
pub(super) const LOCK: i64 = 0x7461_736B_6D61_7374;

/// The schema's version; 0 where there is none.
///
/// # Errors
/// When the database does not say.
pub async fn version(session: &Session) -> Result<i32, Error> {
    let there = session.client.query_one("SELECT to_regclass('taskmaster.migration') IS NOT NULL", &[]).await?;
    if !there.try_get::<_, bool>(0)? {
        return Ok(0);
    }
    let row = session.client.query_one("SELECT coalesce(max(version), 0) FROM taskmaster.migration", &[]).await?;
    Ok(row.try_get(0)?)
}

/// Looks whether the database can be used: reachable, and of the schema that this program knows.
///
/// # Errors
/// What is wrong, and what to do.
pub async fn check(settings: &Settings) -> Result<(), Error> {
    let session = connect(settings).await?;
    session.timely(check_session(&session)).await
}

/// Fails with what to do when the schema is not the one that this program knows.
pub(super) async fn check_session(session: &Session) -> Result<(), Error> {
    match version(session).await? {
        SCHEMA_VERSION => Ok(()),
        found if found > SCHEMA_VERSION => Err(Error::Newer { found, known: SCHEMA_VERSION }),
        0 => Err(Error::Older { found: "nothing".to_owned(), needed: SCHEMA_VERSION }),
        found => Err(Error::Older { found: format!("version {found}"), needed: SCHEMA_VERSION }),
    }
}

/// Brings the schema up to date; the versions before and after.
///
/// # Errors
/// When it is newer, or the database refuses: then nothing of the failed step is left.
pub async fn migrate(session: &mut Session) -> Result<(i32, i32), Error> {
    let before = version(session).await?;
    if before > SCHEMA_VERSION {
        return Err(Error::Newer { found: before, known: SCHEMA_VERSION });
    }
    let steps = (1..=SCHEMA_VERSION).zip(MIGRATIONS);
    let transaction = session.client.transaction().await?;
    // A step may go through the whole history.
    transaction.batch_execute("SET LOCAL statement_timeout = 0").await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    transaction
        .batch_execute(
            "CREATE SCHEMA IF NOT EXISTS taskmaster;
             CREATE TABLE IF NOT EXISTS taskmaster.migration (
                 version int4 PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now(), software text NOT NULL);",
        )
        .await?;
    let row = transaction.query_one("SELECT coalesce(max(version), 0) FROM taskmaster.migration", &[]).await?;
    let known: i32 = row.try_get(0)?;
    for (number, sql) in steps.filter(|(number, _)| *number > known) {
        transaction.batch_execute(sql).await?;
        let software = env!("CARGO_PKG_VERSION");
        transaction
            .execute("INSERT INTO taskmaster.migration (version, software) VALUES ($1, $2)", &[&number, &software])
            .await?;
    }
    transaction.commit().await?;
    Ok((before, SCHEMA_VERSION))
}
