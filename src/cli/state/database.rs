//! `taskmaster state migrate|status`: the database of finished tasks, and how far it is.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, json};
use taskmaster_connect::postgres;

use crate::cli::connect::{block_on, connect};
use crate::cli::{Exit, Failure, Global};
use crate::config::{self, Config, DatabaseUrl};
use crate::output::{Output, pairs};

/// Which database.
#[derive(Debug, Args)]
pub(crate) struct Database {
    /// Configuration whose [postgres] section says where the database is
    #[arg(long, value_name = "FILE", env = "TASKMASTER_CONFIG")]
    config: Option<PathBuf>,
    /// Where it is, instead of the configured place (postgres://user@host:5432/name)
    #[arg(long, value_name = "URL", hide_env_values = true)]
    url: Option<String>,
}

impl Database {
    /// The configuration, whether or not it names a database.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        Ok(config::load(self.config.as_deref())?.config)
    }

    /// Whether a place was given beside the configuration.
    pub(super) fn has_url(&self) -> bool {
        self.url.is_some()
    }

    /// The place and what else is configured, if a place is.
    pub(super) fn settings(&self) -> Result<Option<postgres::Settings>, Failure> {
        if self.url.is_none() && !self.config()?.postgres.is_configured() {
            return Ok(None);
        }
        Ok(Some(self.load()?.1))
    }

    pub(super) fn load(&self) -> Result<(Config, postgres::Settings), Failure> {
        let mut config = self.config()?;
        if let Some(url) = &self.url {
            config.postgres.url = DatabaseUrl(url.clone());
        }
        if !config.postgres.is_configured() {
            let sentence = "no database is named: give --url, or --config with a [postgres] section";
            return Err(Failure::new(Exit::Usage, sentence));
        }
        let settings = config.postgres.settings();
        let settings = settings.map_err(|error| Failure::new(Exit::Usage, format!("{error:#}")))?;
        Ok((config, settings))
    }
}

/// Carries `state migrate` out.
pub(super) fn migrate_schema(database: &Database, output: Output) -> Result<Exit, Failure> {
    let (_, settings) = database.load()?;
    block_on(migrate(&settings, output))
}

pub(super) fn failed(error: &postgres::Error) -> Failure {
    let exit = match error {
        postgres::Error::Connect { .. } | postgres::Error::Slow(_) => Exit::Unreachable,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

async fn migrate(settings: &postgres::Settings, output: Output) -> Result<Exit, Failure> {
    let mut session = postgres::connect(settings).await.map_err(|error| failed(&error))?;
    let (before, after) = postgres::migrate(&mut session).await.map_err(|error| failed(&error))?;
    if output.is_json() {
        output.json(&json!({"place": settings.place(), "before": before, "version": after}))?;
    } else if before == after {
        output.text(&format!("the schema in {} has version {after} already\n", settings.place()))?;
    } else {
        output.text(&format!("the schema in {} has version {after} now; it had {before}\n", settings.place()))?;
    }
    Ok(Exit::Success)
}

/// What is shown of the nodes' counters.
const SHOWN: [(&str, &str); 9] = [
    ("checkpoint_waiting", "waiting tasks"),
    ("checkpoint_waiting_bytes", "waiting bytes"),
    ("spilled_bytes", "bytes on disk"),
    ("checkpoint_lost", "forgotten without checkpoint"),
    ("postgres_connected", "connections"),
    ("postgres_outages", "outages"),
    ("postgres_tasks", "stored tasks"),
    ("postgres_transactions", "transactions"),
    ("postgres_refused", "refused batches"),
];

pub(super) async fn status(global: &Global, output: Output) -> Result<Exit, Failure> {
    let stats = connect(global).await?.stats().await?;
    let sum = |name: &str| {
        let counters = stats.iter().flat_map(|shard| &shard.counters).filter(|(other, _)| other == name);
        counters.map(|(_, value)| *value).reduce(|sum, value| sum + value)
    };
    let known: Vec<(&str, &str, u64)> =
        SHOWN.iter().filter_map(|(name, shown)| sum(name).map(|value| (*name, *shown, value))).collect();
    if output.is_json() {
        let counters: Map<_, _> = known.iter().map(|(name, _, value)| ((*name).to_owned(), json!(value))).collect();
        output.json(&json!({"checkpoints": if counters.is_empty() { None } else { Some(counters) }}))?;
    } else if known.is_empty() {
        output.text("no node has a database: finished tasks are kept for their retention only\n")?;
    } else {
        let lines: Vec<(&str, String)> = known.iter().map(|(_, shown, value)| (*shown, value.to_string())).collect();
        output.text(&pairs(&lines))?;
    }
    Ok(Exit::Success)
}
