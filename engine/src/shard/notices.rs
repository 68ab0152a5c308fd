//! What operators should know and no state shows: for the node's log once a while, and for the answers about the cluster as
//! long as it is fresh.
//!
//! Invariant: bounded; the same sentence is one notice, however often it is given.

use std::collections::VecDeque;

/// Notices that are remembered.
const NOTICES_MAX: usize = 32;
/// How long a notice is fresh after it was last given, in microseconds.
const FRESH_US: u64 = 90_000_000;
/// How often the same sentence is logged, in microseconds.
const REPEATED_US: u64 = 60_000_000;

struct Notice {
    sentence: String,
    given_us: u64,
    logged_us: u64,
}

/// All of a shard, the oldest first.
#[derive(Default)]
pub(super) struct Notices {
    known: VecDeque<Notice>,
    to_log: Vec<String>,
}

impl Notices {
    /// Something to be shown, and logged unless somebody did.
    pub(super) fn give(&mut self, sentence: String, is_logged: bool, now_us: u64) {
        let before = self.known.iter().position(|notice| notice.sentence == sentence);
        let mut logged_us = before.and_then(|place| self.known.remove(place)).map_or(0, |notice| notice.logged_us);
        if !is_logged && (logged_us == 0 || now_us.saturating_sub(logged_us) >= REPEATED_US) {
            logged_us = now_us;
            self.to_log.push(sentence.clone());
        }
        self.known.truncate(NOTICES_MAX - 1);
        self.known.push_front(Notice { sentence, given_us: now_us, logged_us });
    }

    /// What was not logged yet.
    pub(super) fn take(&mut self) -> Vec<String> {
        core::mem::take(&mut self.to_log)
    }

    /// What is to be shown, the newest first.
    pub(super) fn fresh(&self, now_us: u64) -> impl Iterator<Item = &str> {
        let is_fresh = move |notice: &&Notice| now_us.saturating_sub(notice.given_us) < FRESH_US;
        self.known.iter().filter(is_fresh).map(|notice| notice.sentence.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_logged_once_a_while_and_shown_while_fresh() {
        let mut notices = Notices::default();
        for second in 0..120 {
            notices.give("so it is".to_owned(), false, 1 + second * 1_000_000);
        }
        assert_eq!(notices.take(), ["so it is", "so it is"]);
        assert_eq!(notices.fresh(125_000_000).collect::<Vec<_>>(), ["so it is"]);
        assert_eq!(notices.fresh(125_000_000 + FRESH_US).count(), 0);
    }

    #[test]
    fn many_sentences_replace_the_oldest() {
        let mut notices = Notices::default();
        for number in 0..100u64 {
            notices.give(number.to_string(), true, 1 + number);
        }
        assert_eq!(notices.take(), Vec::<String>::new());
        assert_eq!(notices.fresh(200).count(), NOTICES_MAX);
        assert_eq!(notices.fresh(200).next(), Some("99"));
    }
}
