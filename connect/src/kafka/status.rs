//! How streams are doing, for metrics and for people: written by the readers, read by anyone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Source;

/// How a source is doing on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// Offset of the next message that becomes a task.
    pub position: u64,
    /// Messages that are there and have not become tasks, as far as is known.
    pub lag: u64,
    /// Messages that became tasks, or would have but for a unique key, since the start.
    pub tasks: u64,
    /// Messages that went to the dead-letter topic.
    pub letters: u64,
    /// Nothing is taken for now: the engine is full, nobody takes it, or a dead letter is not taken.
    pub is_paused: bool,
    /// Nothing is read any more until somebody acts; the last error says why.
    pub is_stopped: bool,
}

/// How the streams of a node are doing.
#[derive(Debug, Default)]
pub struct Status {
    sources: Mutex<BTreeMap<Source, SourceStatus>>,
    last_errors: Mutex<BTreeMap<String, String>>,
}

impl Status {
    /// Changes what is known of a source.
    pub(super) fn of(&self, source: &Source, change: impl FnOnce(&mut SourceStatus)) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(status) = sources.get_mut(source) {
            change(status);
        } else {
            change(sources.entry(source.clone()).or_default());
        }
    }

    /// Where a source stands that is read here.
    pub(super) fn position(&self, source: &Source) -> Option<u64> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).get(source).map(|status| status.position)
    }

    /// The source's messages end here, as far as is known. A source that is not read here is none of ours.
    pub(super) fn end(&self, source: &Source, end: u64) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(status) = sources.get_mut(source) {
            status.lag = end.saturating_sub(status.position);
        }
    }

    /// Another node reads the source from here on.
    pub(super) fn gone(&self, source: &Source) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).remove(source);
    }

    /// Something went wrong; whether that is news.
    pub(super) fn failed(&self, stream: &str, sentence: &str) -> bool {
        let mut errors = self.last_errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors.insert(stream.to_owned(), sentence.to_owned()).as_deref() != Some(sentence)
    }

    /// The sources that this node reads.
    #[must_use]
    pub fn sources(&self) -> Vec<(Source, SourceStatus)> {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.iter().map(|(source, status)| (source.clone(), status.clone())).collect()
    }

    /// The latest failure of each stream that had one.
    #[must_use]
    pub fn last_errors(&self) -> Vec<(String, String)> {
        let errors = self.last_errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors.iter().map(|(stream, error)| (stream.clone(), error.clone())).collect()
    }

    /// Counters by name: sums, and the lag of each source.
    #[must_use]
    pub fn counters(&self) -> Vec<(String, u64)> {
        let sources = self.sources();
        let sum = |of: fn(&SourceStatus) -> u64| sources.iter().map(|(_, status)| of(status)).sum();
        let mut counters = vec![
            ("stream_sources".to_owned(), sources.len() as u64),
            ("stream_tasks".to_owned(), sum(|status| status.tasks)),
            ("stream_dead_letters".to_owned(), sum(|status| status.letters)),
            ("stream_paused".to_owned(), sum(|status| status.is_paused.into())),
            ("stream_stopped".to_owned(), sum(|status| status.is_stopped.into())),
            ("stream_lag".to_owned(), sum(|status| status.lag)),
        ];
        for (source, status) in &sources {
            counters.push((format!("stream_lag/{}/{}/{}", source.stream, source.topic, source.number), status.lag));
        }
        counters
    }
}

/// The status that all streams of a node share.
pub(super) type Shared = Arc<Status>;
