//! One connection, made ready for what we do with it.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use super::error::said;
use super::tls::Tls;
use super::{Error, Settings, TlsMode};
use crate::trust;

/// How long the server lets a transaction of ours stand still: a node that is cut off must not hold locks.
const IDLE_IN_TRANSACTION_MS: u64 = 10_000;
/// How long we wait for somebody else's lock.
const LOCK_MS: u64 = 5_000;

/// A connection. Dropping it ends it.
pub struct Session {
    pub(super) client: Client,
    pub(super) statement_timeout: Duration,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// Connects. The schema is not looked at.
///
/// # Errors
/// What keeps us out, without secrets.
pub async fn connect(settings: &Settings) -> Result<Session, Error> {
    let timeout = settings.config.get_connect_timeout().copied().unwrap_or(Duration::from_secs(5)) * 2;
    match tokio::time::timeout(timeout, dial(settings)).await {
        Ok(made) => made,
        Err(_) => Err(Error::Connect { place: settings.place(), reason: format!("no answer within {timeout:?}") }),
    }
}

async fn dial(settings: &Settings) -> Result<Session, Error> {
    let failed = |error: tokio_postgres::Error| Error::Connect {
        place: settings.place(),
        reason: trust::explained(said(&error), "postgres", settings.tls_shown.is_some()),
    };
    let (client, driver) = match settings.tls {
        TlsMode::Disable => {
            let (client, connection) = settings.config.connect(NoTls).await.map_err(failed)?;
            (client, tokio::spawn(drive(connection)))
        }
        TlsMode::Verify => {
            let tls = Tls::new(settings.tls_ca.as_deref(), settings.tls_shown.as_ref())?;
            let (client, connection) = settings.config.connect(tls).await.map_err(failed)?;
            (client, tokio::spawn(drive(connection)))
        }
    };
    let session = Session { client, statement_timeout: settings.statement_timeout, driver };
    let row = session.client.query_one("SHOW server_encoding", &[]).await?;
    let encoding: String = row.try_get(0)?;
    if encoding != "UTF8" {
        return Err(Error::Encoding(encoding));
    }
    let statement_ms = settings.statement_timeout.as_millis();
    session
        .client
        .batch_execute(&format!(
            "SET statement_timeout = {statement_ms}; SET lock_timeout = {LOCK_MS};
             SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}; SET timezone = 'UTC'"
        ))
        .await?;
    Ok(session)
}

/// Moves bytes until the connection ends; whoever uses it hears of that from what it asked for.
async fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        tracing::debug!("a connection to PostgreSQL ended: {}", said(&error));
    }
}

impl Session {
    /// Waits no longer than a statement may take, whatever the server does.
    pub(super) async fn timely<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let longest = self.statement_timeout;
        tokio::time::timeout(longest, work).await.unwrap_or(Err(Error::Slow(longest)))
    }

    /// Returns when the connection is gone; once.
    pub(super) async fn ended(&mut self) {
        // However it ended.
        let _ = (&mut self.driver).await;
    }

    /// Whether the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}
