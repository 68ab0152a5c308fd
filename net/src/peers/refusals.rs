//! What was refused lately, for `cluster status`, and how often it is logged.
//!
//! Bounded: a crowd of strangers replaces the oldest entries and is logged at most [`LINES_MAX`] times in [`LINES_EVERY`].

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use taskmaster_protocol::NodeId;
use taskmaster_protocol::peer::Reason;

/// Entries that are kept.
const REFUSALS_MAX: usize = 32;
/// How long an entry is shown after it last happened.
const KEPT: Duration = Duration::from_secs(10 * 60);
/// How often the same refusal is logged.
const REPEATED_EVERY: Duration = Duration::from_secs(60);
/// Lines that are logged in a while, whatever happens.
const LINES_MAX: u32 = 20;
const LINES_EVERY: Duration = Duration::from_secs(60);

/// A connection that was refused, by this node or by its peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The other side.
    pub address: SocketAddr,
    /// The other node, if it said which.
    pub node: Option<NodeId>,
    /// Why, for programs.
    pub reason: Reason,
    /// Why, for people: both parties, and what would be right.
    pub sentence: String,
    /// This node refused the other; else the other refused this one.
    pub by_us: bool,
    /// How often, lately.
    pub count: u64,
    /// When last, in milliseconds since 1970.
    pub last_ms: u64,
}

impl Refused {
    pub(super) fn new(
        address: SocketAddr,
        node: Option<NodeId>,
        reason: Reason,
        by_us: bool,
        sentence: String,
    ) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let last_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Self { address, node, reason, sentence, by_us, count: 1, last_ms }
    }

    fn is_like(&self, other: &Self) -> bool {
        self.address.ip() == other.address.ip()
            && (self.node, self.reason, self.by_us) == (other.node, other.reason, other.by_us)
    }
}

struct Entry {
    refused: Refused,
    last: Instant,
    logged: Option<Instant>,
}

pub(super) struct Refusals {
    entries: Vec<Entry>,
    lines: u32,
    lines_since: Instant,
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), lines: 0, lines_since: Instant::now() }
    }

    /// Notes a refusal and logs it, if it was not logged just before.
    pub(super) fn note(&mut self, mut refused: Refused) {
        let now = Instant::now();
        let mut logged = None;
        if let Some(at) = self.entries.iter().position(|entry| entry.refused.is_like(&refused)) {
            let before = self.entries.remove(at);
            refused.count = before.refused.count + 1;
            logged = before.logged;
        }
        if self.entries.len() == REFUSALS_MAX {
            self.entries.remove(0);
        }
        if logged.is_none_or(|logged| now - logged >= REPEATED_EVERY) && self.may_log(now) {
            log(&refused);
            logged = Some(now);
        }
        self.entries.push(Entry { refused, last: now, logged });
    }

    fn may_log(&mut self, now: Instant) -> bool {
        if now - self.lines_since >= LINES_EVERY {
            self.lines = 0;
            self.lines_since = now;
        }
        self.lines += 1;
        self.lines <= LINES_MAX
    }

    /// A connection with this node was made: what stood against it is past.
    pub(super) fn settled(&mut self, node: NodeId) {
        self.entries.retain(|entry| entry.refused.node != Some(node));
    }

    /// What was refused lately, the newest last.
    pub(super) fn list(&self) -> Vec<Refused> {
        let now = Instant::now();
        let recent = self.entries.iter().filter(|entry| now - entry.last < KEPT);
        recent.map(|entry| entry.refused.clone()).collect()
    }
}

fn log(refused: &Refused) {
    let Refused { address, sentence, count, .. } = refused;
    if refused.by_us {
        tracing::warn!(%address, count, "a peer was refused: {sentence}");
    } else {
        tracing::warn!(%address, count, "a peer refuses this node: {sentence}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(ip: u8, port: u16, reason: Reason) -> Refused {
        Refused::new(SocketAddr::from(([10, 0, 0, ip], port)), None, reason, true, "a sentence".to_owned())
    }

    #[test]
    fn the_same_refusal_is_one_entry_and_the_list_is_bounded() {
        let mut refusals = Refusals::new();
        for port in 0..100 {
            refusals.note(refused(1, port, Reason::Garbage));
        }
        refusals.note(refused(1, 5, Reason::Version));
        let list = refusals.list();
        assert_eq!((list.len(), list[0].count), (2, 100));
        for ip in 2..=200 {
            refusals.note(refused(ip, 1, Reason::Garbage));
        }
        assert_eq!(refusals.list().len(), REFUSALS_MAX);
        assert_eq!(
            refusals.list().last().map(|refused| refused.address.ip().to_string()),
            Some("10.0.0.200".to_owned())
        );
        assert!(!refusals.may_log(Instant::now()), "no more lines than allowed");
    }
}
