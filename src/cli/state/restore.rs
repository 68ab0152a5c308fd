//! `taskmaster state restore`: a cluster whose disks are lost comes back, as one node that others join later.

mod backups;
mod postgres;

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::backup::{self, store::Location};
use super::database::Database;
use crate::cli::{Exit, Failure};
use crate::output::Output;

/// Arguments of `state restore`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where from: a backup's directory or place in an object store, again for each node of a cluster, or "postgres" for finished tasks
    /// in the database
    #[arg(long, required = true, value_name = "DIR|s3://BUCKET/PREFIX|postgres")]
    from: Vec<Store>,
    /// Which cluster of a database (32 hexadecimal digits) [default: the one that wrote last]
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,
    /// Data directory of the new node, which must not exist, instead of the configured one
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    database: Database,
}

/// What can be restored from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Store {
    /// The PostgreSQL database of finished tasks.
    Postgres,
    /// A backup.
    Backup(Location),
}

impl FromStr for Store {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "postgres" { Self::Postgres } else { Self::Backup(text.parse()?) })
    }
}

/// Carries `state restore` out.
pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let of = |store: &Store| match store {
        Store::Backup(location) => Some(location.clone()),
        Store::Postgres => None,
    };
    let backups: Vec<Location> = arguments.from.iter().filter_map(of).collect();
    if backups.is_empty() {
        return postgres::run(arguments, output);
    }
    if backups.len() < arguments.from.len() || arguments.cluster.is_some() || arguments.database.has_url() {
        return Err(Failure::usage(
            "a restore is from backups or from a database: --cluster and --url are of the latter",
        ));
    }
    backups::run(&backups, arguments, output)
}
