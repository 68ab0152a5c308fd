//! `taskmaster serve`: a node from a configuration file; Ctrl-C or SIGTERM drains it.

use std::path::PathBuf;

use clap::Args;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::json;

use super::connect::block_on;
use super::embedded::Embedded;
use super::signal::Stop;
use super::{Exit, Failure, Global, log};
use crate::config;

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Configuration; without one the defaults and the environment
    #[arg(long, value_name = "FILE", env = "TASKMASTER_CONFIG")]
    config: Option<PathBuf>,
    /// For a node of `dev --nodes`: drains on SIGTERM only, and when the process that started it ends
    #[arg(long, hide = true)]
    companion: bool,
}

/// Carries `serve` out.
pub(crate) fn run(global: &Global, arguments: &Arguments) -> Result<Exit, Failure> {
    let config = config::load(arguments.config.as_deref())?.config;
    log::start(config.log.level, config.log.format, global.verbose);
    if arguments.companion {
        set_parent_process_death_signal(Some(Signal::TERM)).map_err(std::io::Error::from)?;
    }
    let output = global.output();
    block_on(async {
        let name = config.node.name.clone();
        let node = Embedded::start(config, None)?;
        // From here on; until here the signals' defaults end the process.
        let mut stop = if arguments.companion { Stop::listen_to_termination()? } else { Stop::listen()? };
        let (address, data_dir) = (node.address().to_string(), node.data_dir().display().to_string());
        if output.is_json() {
            output
                .json(&json!({"listening": address, "data_dir": data_dir, "node": name, "pid": std::process::id()}))?;
        } else {
            output.text(&format!("{name} listens on {address}, data in {data_dir}\n"))?;
        }
        stop.asked().await;
        tracing::info!("draining; a second signal ends at once");
        finish(node, &mut stop).await
    })
}

/// Stops the node; another signal meanwhile ends the process at once, which loses nothing that was acknowledged.
pub(crate) async fn finish(node: Embedded, stop: &mut Stop) -> Result<Exit, Failure> {
    let stopping = tokio::task::spawn_blocking(move || node.stop());
    tokio::select! {
        stopped = stopping => {
            stopped.map_err(|error| Failure::new(Exit::Failed, format!("the node's end failed: {error}")))??;
            Ok(Exit::Success)
        }
        () = stop.asked() => std::process::exit(Exit::Interrupted.number().into()),
    }
}
