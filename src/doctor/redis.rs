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

/// The first version that tells of changed values.
const MAJOR_MIN: u32 = 6;

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
    let major = standing.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major < MAJOR_MIN) {
        let message =
            format!("{place} has version {}: it cannot tell of changed values, so none stays here.", standing.version);
        return Check::warn(NAME, message, format!("Use Redis {MAJOR_MIN} or later."));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    fn standing() -> Standing {
        let clocks_apart = Duration::ZERO;
        Standing { version: "7.0.15".to_owned(), refusal: None, makes_room: true, clocks_apart, is_private: true }
    }

    #[test]
    fn each_shortcoming_has_its_sentence() {
        let settings = Settings::new("redis://cache", None).unwrap();
        let refusal = Some("NOPERM".to_owned());
        for (standing, status, word) in [
            (standing(), Status::Ok, "Redis 7.0.15"),
            (Standing { version: "5.0.7".to_owned(), ..standing() }, Status::Warn, "version 5.0.7"),
            (Standing { refusal, ..standing() }, Status::Fail, "NOPERM"),
            (Standing { clocks_apart: Duration::from_secs(5), ..standing() }, Status::Warn, "5.0 s"),
            (Standing { makes_room: false, ..standing() }, Status::Warn, "noeviction"),
            (Standing { is_private: false, ..standing() }, Status::Warn, "not encrypted"),
        ] {
            let check = judge(&settings, &standing);
            assert!(check.status == status && check.message.contains(word), "{}", check.message);
        }
    }
}
