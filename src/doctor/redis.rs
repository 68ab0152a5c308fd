//! The configured Redis: whether it can be used as a node would use it.

use std::time::Duration;

use taskmaster_connect::redis::{self, Settings, Standing};

use super::Check;
use crate::config::Config;

const NAME: &str = "redis";
/// Longest look.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// Clocks further apart than this make ages of results wrong.
const CLOCK_APART_MAX: Duration = Duration::from_secs(1);

/// One check, where there is a server.
pub(super) fn check(config: &Config) -> Option<Check> {
    config.redis.is_configured().then(|| look(config))
}

fn look(config: &Config) -> Check {
    let settings = match config.redis.settings() {
        Ok(settings) => settings,
        Err(error) => return Check::fail(NAME, format!("{error:#}."), "Correct the section [redis]."),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let looked = runtime
        .map(|runtime| runtime.block_on(async { tokio::time::timeout(LOOK_MAX, redis::standing(&settings)).await }));
    match looked {
        Ok(Ok(Ok(standing))) => judge(&settings, &standing),
        Ok(Ok(Err(error))) => Check::fail(
            NAME,
            format!("{error}."),
            "See that the server runs and that host, port, user and password are right; until then memoised tasks run.",
        ),
        Ok(Err(_)) => {
            Check::fail(NAME, format!("{} did not answer in time.", settings.place()), "See whether it runs.")
        }
        Err(error) => Check::warn(NAME, format!("Redis cannot be looked at: {error}."), "Try again."),
    }
}

fn judge(settings: &Settings, standing: &Standing) -> Check {
    let place = settings.place();
    if let Some(refusal) = &standing.refusal {
        let fix = format!("Let the user read and write keys that begin with \"{}:\".", settings.prefix);
        return Check::fail(NAME, format!("{place} refuses to remember anything: {refusal}."), fix);
    }
    if standing.clocks_apart > CLOCK_APART_MAX {
        let message =
            format!("The clock of {place} is {:.1} s off this machine's.", standing.clocks_apart.as_secs_f64());
        return Check::warn(NAME, message, "Let both follow the same time servers.");
    }
    if !standing.makes_room {
        let message =
            format!("{place} has maxmemory and the policy noeviction: when it is full it refuses new results.");
        return Check::warn(NAME, message, "Set its maxmemory-policy to allkeys-lru or volatile-ttl.");
    }
    if !standing.is_private {
        let message = format!("The connection to {place} is not encrypted.");
        return Check::warn(
            NAME,
            message,
            "Write rediss in the place of redis in redis.url unless the network is your own.",
        );
    }
    let version = if standing.version.is_empty() { String::new() } else { format!(" (Redis {})", standing.version) };
    Check::ok(NAME, format!("{place} is there{version}."))
}
