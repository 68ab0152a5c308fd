//! The parts of `taskmaster.final_task`, one per day, made before the first row of the day and dropped whole when they are old.

use std::collections::HashMap;

use tokio_postgres::{Client, Statement};

use super::Error;
use super::copy::COLUMNS;
use super::day::Day;
use super::schema::LOCK;

/// Days that one connection remembers.
const KNOWN_MAX: usize = 64;

/// Rows are only added: with the server's defaults, a day's first hour is read through again and again for its statistics.
const UPKEEP: &str = "autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 1000000,
    autovacuum_vacuum_insert_scale_factor = 1, autovacuum_vacuum_insert_threshold = 1000000";

/// The parts that one connection knows, each with its prepared copy.
#[derive(Default)]
pub(super) struct Leaves {
    known: HashMap<Day, Statement>,
}

impl Leaves {
    /// The copy into a day's part, which is made if it is not there.
    pub(super) async fn copy_into(&mut self, client: &mut Client, day: Day) -> Result<Statement, Error> {
        if let Some(statement) = self.known.get(&day) {
            return Ok(statement.clone());
        }
        make(client, day).await?;
        let sql = format!("COPY taskmaster.final_task_{} ({COLUMNS}) FROM STDIN (FORMAT binary)", day.compact());
        let statement = client.prepare(&sql).await?;
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(day, statement.clone());
        Ok(statement)
    }
}

async fn make(client: &mut Client, day: Day) -> Result<(), Error> {
    let name = format!("taskmaster.final_task_{}", day.compact());
    let there = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&name]).await?;
    if there.try_get::<_, bool>(0)? {
        return Ok(());
    }
    let (from, until) = (day.dashed(), day.next().dashed());
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    transaction
        .batch_execute(&format!(
            "CREATE TABLE IF NOT EXISTS {name} PARTITION OF taskmaster.final_task
             FOR VALUES FROM ('{from} 00:00:00+00') TO ('{until} 00:00:00+00') WITH ({UPKEEP})"
        ))
        .await?;
    transaction.commit().await?;
    Ok(())
}
