//! `taskmaster config check FILE` and `taskmaster config show`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::{Exit, Failure, Global};
use crate::config::{self, Origin};

/// What to do with a configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a file (and the environment) without starting anything
    Check {
        /// The file
        file: PathBuf,
    },
    /// Print the configuration in force: defaults, file and environment
    Show {
        /// The file
        #[arg(long, value_name = "FILE", env = "TASKMASTER_CONFIG")]
        config: Option<PathBuf>,
    },
}

/// Checks or shows.
pub(crate) fn run(global: &Global, command: &Command) -> Result<Exit, Failure> {
    let output = global.output();
    match command {
        Command::Check { file } => {
            config::load(Some(file))?;
            if output.is_json() {
                output.json(&json!({"file": file, "valid": true}))?;
            } else {
                output.text(&format!("{} is valid\n", file.display()))?;
            }
        }
        Command::Show { config } => {
            let loaded = config::load(config.as_deref())?;
            let origin = |key: &str| loaded.origins.get(key).copied().unwrap_or(Origin::Default);
            if output.is_json() {
                output.json(&loaded.config.json())?;
            } else {
                output.text(&loaded.config.to_toml(origin))?;
            }
        }
    }
    Ok(Exit::Success)
}
