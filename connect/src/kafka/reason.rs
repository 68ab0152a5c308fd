//! Why something is wrong, as librdkafka says it: of a wrong password or an unknown authority its codes say only "transport failure" or
//! "timed out".

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::said;

/// For how long is listened to what was said.
const LISTEN: Duration = Duration::from_millis(200);

/// How long a sentence may have to do with an error that comes after it.
const RELATED_MAX: Duration = Duration::from_secs(60);

/// What was said last, and when.
#[derive(Debug, Default)]
pub(super) struct Reason(Mutex<Option<(Instant, String)>>);

impl Reason {
    /// Takes a sentence in.
    pub(super) fn heard(&self, error: &KafkaError, sentence: &str) {
        if !self.follows(error) {
            self.note(sentence);
        }
    }

    fn note(&self, sentence: &str) {
        // How long it took is another each time, and would make it news.
        let sentence = sentence.split(" (after ").next().unwrap_or_default();
        if !sentence.is_empty() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), sentence.to_owned()));
        }
    }

    /// Whether an error only follows from what was said: that all brokers are gone, from what was said of each.
    pub(super) fn follows(&self, error: &KafkaError) -> bool {
        error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) && self.last().is_some()
    }

    fn last(&self) -> Option<String> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _)| at.elapsed() < RELATED_MAX).map(|(_, sentence)| sentence.clone())
    }

    /// An error, with what was said of it.
    pub(super) fn of(&self, error: &KafkaError) -> String {
        match self.last() {
            Some(sentence) => format!("{}: {sentence}", said(error)),
            None => said(error),
        }
    }

    /// The same as an error. What was said is all that is left of it, unless nothing was.
    pub(super) fn error_of(&self, error: KafkaError) -> KafkaError {
        if self.last().is_some() { KafkaError::ClientCreation(self.of(&error)) } else { error }
    }
}

impl ClientContext for Reason {
    fn error(&self, error: KafkaError, reason: &str) {
        self.heard(&error, reason);
    }

    /// To consumers errors come as codes alone, and what failed with a broker stands in the log.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" {
            self.note(message.split_once("]: ").map_or(message, |(_thread, sentence)| sentence));
        }
    }
}

impl ConsumerContext for Reason {}

/// Who only asks, and is told why there is no answer.
pub(super) type Asker = BaseConsumer<Reason>;

/// An error of a consumer that is not polled otherwise, with what was said of it.
pub(super) fn explained(asker: &Asker, error: &KafkaError) -> String {
    let until = Instant::now() + LISTEN;
    while Instant::now() < until {
        // What it is itself, a message or an error, was asked for by nobody.
        let _ = asker.poll(LISTEN / 8);
    }
    asker.client().context().of(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_of_a_broker_stays_when_all_are_gone_and_is_the_same_each_time() {
        let reason = Reason::default();
        let global = KafkaError::Global;
        assert_eq!(
            reason.of(&global(RDKafkaErrorCode::OperationTimedOut)),
            said(&global(RDKafkaErrorCode::OperationTimedOut))
        );
        reason.heard(&global(RDKafkaErrorCode::Authentication), "b:1: wrong password (after 12ms in state AUTH_REQ)");
        reason.heard(&global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        let first = reason.of(&global(RDKafkaErrorCode::Authentication));
        assert!(first.ends_with(": b:1: wrong password"), "{first}");
        reason.heard(&global(RDKafkaErrorCode::Authentication), "b:1: wrong password (after 7ms in state AUTH_REQ)");
        assert_eq!(reason.of(&global(RDKafkaErrorCode::Authentication)), first);
    }
}
