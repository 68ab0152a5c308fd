//! What can be said of a server before it is used, for `doctor`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::link::{Link, server_error};
use super::{Error, Settings};

/// How a server stands, or any one of a cluster.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its version.
    pub version: String,
    /// Whether values may be written and read under the prefix; what it says if not.
    pub refusal: Option<String>,
    /// Whether it evicts values when it is full, or has no bound; else it will refuse new ones.
    pub makes_room: bool,
    /// How far its clock is from this machine's.
    pub clocks_apart: Duration,
    /// Whether connections are encrypted, or do not leave the machine.
    pub is_private: bool,
}

/// Looks at the server.
///
/// # Errors
/// When it cannot be reached or used at all.
pub async fn standing(settings: &Settings) -> Result<Standing, Error> {
    let link = Link::connect(settings).await?;
    let key = format!("{}:doctor", settings.prefix);
    let written = async {
        link.ask::<()>(redis::cmd("SET").arg(&key).arg("1").arg("PX").arg(1_000)).await?;
        link.ask::<Option<Vec<u8>>>(redis::cmd("GET").arg(&key)).await
    };
    let refusal = written.await.err().map(|error| error.to_string());
    let info = async |section: &str| link.ask_one::<String>(redis::cmd("INFO").arg(section)).await.unwrap_or_default();
    let (server, memory) = (info("server").await, info("memory").await);
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned()).unwrap_or_default()
    };
    let told = link.ask_one::<(u64, u64)>(&redis::cmd("TIME")).await.map_err(|error| server_error(settings, &error))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clocks_apart = Duration::from_secs(told.0).saturating_add(Duration::from_micros(told.1)).abs_diff(now);
    let is_bounded = !matches!(field(&memory, "maxmemory").as_str(), "" | "0");
    Ok(Standing {
        version: field(&server, "redis_version"),
        refusal,
        makes_room: !is_bounded || field(&memory, "maxmemory_policy") != "noeviction",
        clocks_apart,
        is_private: settings.is_private(),
    })
}
