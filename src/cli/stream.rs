//! `taskmaster stream list|check`: where streams stand, and whether they can be read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::connect::{block_on, connect};
use super::{Exit, Failure, Global, log};
use crate::config;
use crate::doctor::{Status, streams};
use crate::output::{Output, Side, Table};

/// What to do with streams. They are added as `[[stream]]` tables of the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List how far each partition of each topic has become tasks, and what waits
    List,
    /// Ask the brokers of a configuration's streams whether these can be read
    Check {
        /// The configuration
        #[arg(long, value_name = "FILE", env = "TASKMASTER_CONFIG")]
        config: Option<PathBuf>,
    },
}

/// Carries a stream command out.
pub(crate) fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    log::start_quiet(global.verbose);
    let output = global.output();
    match command {
        Command::List => block_on(list(global, output)),
        Command::Check { config } => check(&config::load(config.as_deref())?.config, output),
    }
}

/// How the lag of a source is named among a node's counters.
const LAG: &str = "stream_lag/";

async fn list(global: &Global, output: Output) -> Result<Exit, Failure> {
    let client = connect(global).await?;
    let positions = client.streams().await?;
    let mut lags = BTreeMap::new();
    for (name, value) in client.stats().await?.into_iter().flat_map(|shard| shard.counters) {
        if let Some(source) = name.strip_prefix(LAG) {
            lags.insert(source.to_owned(), value);
        }
    }
    let rows = positions.iter().map(|known| {
        let source = &known.source;
        let lag = lags.get(&format!("{}/{}/{}", source.stream, source.topic, source.number)).copied();
        (source, known.position, lag)
    });
    if output.is_json() {
        let row = |(source, position, lag): (&taskmaster_client::StreamSource, u64, Option<u64>)| {
            json!({
                "stream": source.stream, "topic": source.topic, "partition": source.number, "position": position, "lag": lag,
            })
        };
        output.json(&json!({"streams": rows.map(row).collect::<Vec<_>>()}))?;
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&[
        ("stream", Side::Left),
        ("topic", Side::Left),
        ("partition", Side::Right),
        ("position", Side::Right),
        ("lag", Side::Right),
    ]);
    for (source, position, lag) in rows {
        let lag = lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string());
        let (number, position) = (source.number.to_string(), position.to_string());
        table.row(vec![source.stream.clone(), source.topic.clone(), number, position, lag]);
    }
    if table.is_empty() {
        output.text("no stream has a position yet; streams are [[stream]] tables of the nodes' configuration\n")?;
    } else {
        output.text(&table.render())?;
    }
    Ok(Exit::Success)
}

fn check(config: &config::Config, output: Output) -> Result<Exit, Failure> {
    let checks: Vec<_> = streams::checks(config).collect();
    let fails = checks.iter().any(|check| check.status == Status::Fail);
    if output.is_json() {
        output.json(&json!({"checks": checks}))?;
    } else if checks.is_empty() {
        output.text("the configuration has no [[stream]]\n")?;
    } else {
        for check in &checks {
            let fix = check.fix.as_ref().map_or_else(String::new, |fix| format!("\n  {fix}"));
            output.text(&format!("{}{fix}\n", check.message))?;
        }
    }
    Ok(if fails { Exit::Failed } else { Exit::Success })
}
