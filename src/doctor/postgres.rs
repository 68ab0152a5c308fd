//! The configured database: whether it can be used as a node would use it.

use std::time::Duration;

use taskmaster_connect::postgres::{self, SCHEMA_VERSION, Standing};

use super::Check;
use crate::config::Config;

const NAME: &str = "postgres";
/// Longest look.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// The oldest server that is tested, as `server_version_num`.
const SERVER_MIN: i32 = 140_000;
/// Clocks further apart than this make history hard to read.
const CLOCK_APART_MAX: Duration = Duration::from_secs(1);

/// One check, where there is a database.
pub(super) fn check(config: &Config) -> Option<Check> {
    config.postgres.is_configured().then(|| look(config))
}

fn look(config: &Config) -> Check {
    let settings = match config.postgres.settings() {
        Ok(settings) => settings,
        Err(error) => return Check::fail(NAME, format!("{error:#}."), "Correct the section [postgres]."),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let looked = runtime
        .map(|runtime| runtime.block_on(async { tokio::time::timeout(LOOK_MAX, postgres::standing(&settings)).await }));
    match looked {
        Ok(Ok(Ok(standing))) => judge(&settings, &standing),
        Ok(Ok(Err(error))) => Check::fail(
            NAME,
            format!("{error}."),
            "See that the server runs, that host, port, role and password are right, and that it lets this machine in.",
        ),
        Ok(Err(_)) => {
            Check::fail(NAME, format!("{} did not answer in time.", settings.place()), "See whether it runs.")
        }
        Err(error) => Check::warn(NAME, format!("The database cannot be looked at: {error}."), "Try again."),
    }
}

fn judge(settings: &postgres::Settings, standing: &Standing) -> Check {
    let place = settings.place();
    if standing.server < SERVER_MIN {
        return Check::fail(
            NAME,
            format!("{place} runs version {}.", standing.server / 10_000),
            "Use PostgreSQL 14 or later.",
        );
    }
    if standing.schema > SCHEMA_VERSION {
        let message =
            format!("{place} has version {} of the schema, this program knows {SCHEMA_VERSION}.", standing.schema);
        return Check::fail(NAME, message, "Use a newer program.");
    }
    if standing.schema < SCHEMA_VERSION {
        let message = format!("{place} has version {} of the schema, {SCHEMA_VERSION} is needed.", standing.schema);
        return Check::fail(NAME, message, "Run `taskmaster state migrate`.");
    }
    if !standing.may_write {
        let fix = "Let the role own the schema taskmaster and its tables: it makes and drops the parts of the history.";
        return Check::fail(NAME, format!("The role may not write in {place}."), fix);
    }
    if standing.clocks_apart > CLOCK_APART_MAX {
        let message =
            format!("The clock of {place} is {:.1} s off this machine's.", standing.clocks_apart.as_secs_f64());
        return Check::warn(NAME, message, "Let both follow the same time servers.");
    }
    if !standing.is_encrypted && !standing.is_local {
        let message = format!("The connection to {place} is not encrypted.");
        return Check::warn(NAME, message, "Set postgres.tls to \"verify\" unless the network is your own.");
    }
    let encrypted = if standing.is_encrypted { ", encrypted" } else { "" };
    let version = standing.server / 10_000;
    Check::ok(
        NAME,
        format!("{place} is there (PostgreSQL {version}{encrypted}) with version {} of the schema.", standing.schema),
    )
}
