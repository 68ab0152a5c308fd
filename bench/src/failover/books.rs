//! The account of a load through failures: every task, and every submission of the present round.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskmaster_client::{Code, TaskId};
use tokio::time::Instant;

use super::{Round, Strike};
use crate::ledger::Ledger;
use crate::submission::sequence;

/// A submission of the present round.
struct Sent {
    partition: u16,
    intended: Instant,
    acknowledged: Option<Instant>,
}

#[derive(Default)]
struct Pages {
    ledger: Option<Ledger>,
    sent: BTreeMap<u64, Sent>,
    late_max: Duration,
    errors: Vec<String>,
    failed: u64,
    stale: u64,
    settled: u64,
}

/// Kept by everybody who sends and hears.
pub(super) struct Books {
    /// 24 random bits in the ids of this run's tasks.
    run: u64,
    pages: Mutex<Pages>,
}

/// Errors that are told in full.
const ERRORS_MAX: usize = 16;

/// Everything that happened.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    pub(super) acknowledged: u64,
    pub(super) done: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) stale: u64,
    pub(super) settled: u64,
    pub(super) failed: u64,
    pub(super) errors: Vec<String>,
    pub(super) elapsed_s: f64,
    pub(super) generator_cpu_s: f64,
}

impl Books {
    pub(super) fn new(run: u64) -> Self {
        let pages = Pages { ledger: Some(Ledger::new(true)), ..Pages::default() };
        Self { run: run & 0xFF_FFFF, pages: Mutex::new(pages) }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn run(&self) -> u64 {
        self.run
    }

    /// A submission leaves now.
    pub(super) fn send(&self, first: u64, partition: u16, intended: Instant) {
        let mut pages = self.pages();
        pages.late_max = pages.late_max.max(intended.elapsed());
        pages.sent.insert(first, Sent { partition, intended, acknowledged: None });
    }

    /// A submission was acknowledged.
    pub(super) fn acknowledge(&self, first: u64, count: u64) {
        let (mut pages, now) = (self.pages(), Instant::now());
        pages.ledger().acknowledge(first, count);
        if let Some(sent) = pages.sent.get_mut(&first) {
            sent.acknowledged = Some(now);
        }
    }

    /// A submission was given up.
    pub(super) fn fail(&self, first: u64, error: String) {
        let mut pages = self.pages();
        pages.failed += 1;
        pages.sent.remove(&first);
        if pages.errors.len() < ERRORS_MAX {
            pages.errors.push(error);
        }
    }

    /// A worker's answer was taken or refused.
    pub(super) fn answer(&self, id: TaskId, code: Code) {
        let Some(sequence) = sequence(id.lo, self.run) else { return };
        let mut pages = self.pages();
        match code {
            Code::Ok => pages.ledger().complete(sequence),
            Code::AlreadyFinal => {
                pages.settled += 1;
                pages.ledger().settle(sequence);
            }
            _ => pages.stale += 1,
        }
    }

    /// Tasks acknowledged and not done.
    pub(super) fn pending(&self) -> u64 {
        self.pages().ledger().missing()
    }

    /// The account so far.
    pub(super) fn account(&self) -> Account {
        let mut pages = self.pages();
        let (stale, settled, failed) = (pages.stale, pages.settled, pages.failed);
        let errors = pages.errors.clone();
        let ledger = pages.ledger();
        let (acknowledged, done, duplicated) = (ledger.acknowledged, ledger.done, ledger.duplicated);
        let lost = ledger.missing();
        Account { acknowledged, done, lost, duplicated, stale, settled, failed, errors, ..Account::default() }
    }

    /// Forgets answered submissions.
    pub(super) fn begin_round(&self) {
        let mut pages = self.pages();
        pages.sent.retain(|_, sent| sent.acknowledged.is_none());
        pages.late_max = Duration::ZERO;
    }

    /// What clients noticed of a strike since the round began.
    pub(super) fn end_round(&self, strike: &Strike) -> Round {
        let pages = self.pages();
        let now = Instant::now();
        let (mut gap, mut gap_of) = (Duration::ZERO, None);
        let mut first: BTreeMap<u16, Instant> = BTreeMap::new();
        let mut unanswered = 0;
        for sent in pages.sent.values() {
            let ended = sent.acknowledged.unwrap_or(now);
            // What was sent long before and answered before the strike says nothing about it.
            if ended >= strike.at && ended - sent.intended > gap {
                (gap, gap_of) = (ended - sent.intended, Some(sent));
            }
            unanswered += u64::from(sent.acknowledged.is_none() && sent.intended.elapsed() > Duration::from_secs(1));
            if sent.intended >= strike.at && sent.acknowledged.is_some() {
                first.entry(sent.partition).and_modify(|at| *at = (*at).min(ended)).or_insert(ended);
            }
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let of = |partition: &u16| first.get(partition).copied().unwrap_or(now) - strike.at;
        Round {
            node: strike.name.clone(),
            led: strike.led.len() as u64,
            gap_ms: ms(gap),
            gap_at_ms: gap_of.map_or(0.0, |sent| ms(sent.intended - strike.at) - ms(strike.at - sent.intended)),
            gap_is_led: gap_of.is_some_and(|sent| strike.led.contains(&sent.partition)),
            partition_gaps_ms: strike.led.iter().map(|partition| ms(of(partition))).collect(),
            unanswered,
            generator_late_ms_max: ms(pages.late_max),
        }
    }
}

impl Pages {
    fn ledger(&mut self) -> &mut Ledger {
        self.ledger.get_or_insert_with(|| Ledger::new(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskmaster_client::{NodeId, PartitionId};

    #[test]
    fn a_task_is_done_once_however_often_it_is_heard_of() {
        let books = Books::new(5);
        let id = |sequence| crate::submission::task_id(1, PartitionId(0), 5, sequence);
        books.acknowledge(0, 4);
        books.answer(id(0), Code::Ok);
        books.answer(id(1), Code::StaleLease);
        books.answer(id(1), Code::AlreadyFinal);
        books.answer(id(1), Code::AlreadyFinal);
        books.answer(id(2), Code::Ok);
        books.answer(id(2), Code::Ok);
        let account = books.account();
        assert_eq!((account.done, account.lost, account.duplicated, account.stale), (3, 1, 1, 1));
    }

    #[test]
    fn gaps_count_from_intended_times_and_from_the_strike() {
        let books = Books::new(1);
        let at = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        books.send(0, 7, at.checked_sub(Duration::from_millis(10)).unwrap());
        books.send(1, 7, at + Duration::from_millis(5));
        books.acknowledge(0, 1);
        books.acknowledge(1, 1);
        let strike = Strike { node: NodeId(1), name: "n1".into(), led: vec![7, 8], at };
        let round = books.end_round(&strike);
        assert!((2_010.0..12_500.0).contains(&round.gap_ms), "{}", round.gap_ms);
        assert!(round.partition_gaps_ms.iter().all(|gap| (2_000.0..12_490.0).contains(gap)));
    }
}
