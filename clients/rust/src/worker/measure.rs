//! Attempts whose use of the machine is measured: which of them run now, and what ran beside each.
//!
//! Kept for all workers of a client, which share its machine. What runs is told to every session, so that each node and shard knows
//! what the tasks that it assigns run beside, wherever those came from.
//!
//! Invariant: the time that two attempts ran beside each other is counted once for each of them, when the first of the two ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use taskmaster_protocol::body::{UsageRow, usage_known};
use tokio::sync::{mpsc, watch};

use super::context::{Contract, Event, Lease};

/// What an attempt used, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Processor time.
    pub cpu: Option<Duration>,
    /// Greatest memory, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Bytes read from devices and written to them.
    pub io_bytes: Option<u64>,
    /// How long some of it waited for a processor, for memory and for a device, as Linux tells of pressure.
    pub stalls: Option<[Duration; 3]>,
    /// It did all its work, so that it says how long such tasks take.
    pub is_whole: bool,
}

/// How many of a kind run, or ran on average in thousandths.
pub(super) type Share = (Arc<Contract>, u32);

/// What an attempt used, and what ran beside it.
pub(super) struct Measured {
    pub(super) row: UsageRow,
    pub(super) beside: Vec<Share>,
}

/// How long tasks of each kind ran beside an attempt.
type Together = Vec<(Arc<Contract>, Duration)>;

struct Running {
    number: u64,
    contract: Arc<Contract>,
    since: Instant,
    /// How long others ran beside it that have ended.
    beside: Together,
}

#[derive(Default)]
struct Present {
    running: Vec<Running>,
    next: u64,
}

/// The measured attempts that run.
pub(crate) struct Presence {
    present: Mutex<Present>,
    told: watch::Sender<Arc<[Share]>>,
}

impl Default for Presence {
    fn default() -> Self {
        Self { present: Mutex::default(), told: watch::Sender::new(Arc::default()) }
    }
}

/// Whether tasks of both are of one kind.
pub(super) fn is_same(a: &Contract, b: &Contract) -> bool {
    a.kind == b.kind && a.queue == b.queue
}

/// Adds to what is known of a kind.
fn add<T: std::ops::AddAssign>(all: &mut Vec<(Arc<Contract>, T)>, contract: &Arc<Contract>, more: T) {
    match all.iter_mut().find(|(of, _)| is_same(of, contract)) {
        Some((_, sum)) => *sum += more,
        None => all.push((Arc::clone(contract), more)),
    }
}

impl Presence {
    fn lock(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what runs, now and whenever it changes.
    pub(super) fn follow(&self) -> watch::Receiver<Arc<[Share]>> {
        self.told.subscribe()
    }

    fn tell(&self, present: &Present) {
        let mut kinds: Vec<Share> = Vec::new();
        present.running.iter().for_each(|running| add(&mut kinds, &running.contract, 1));
        self.told.send_replace(kinds.into());
    }

    fn begin(&self, contract: &Arc<Contract>, now: Instant) -> u64 {
        let mut present = self.lock();
        present.next += 1;
        let number = present.next;
        present.running.push(Running { number, contract: Arc::clone(contract), since: now, beside: Vec::new() });
        self.tell(&present);
        number
    }

    /// An attempt ended: since when it ran, and how long others ran beside it.
    fn end(&self, number: u64, now: Instant) -> Option<(Instant, Together)> {
        let mut present = self.lock();
        let at = present.running.iter().position(|running| running.number == number)?;
        let mut ended = present.running.swap_remove(at);
        for other in &mut present.running {
            let together = now.saturating_duration_since(ended.since.max(other.since));
            add(&mut ended.beside, &other.contract, together);
            add(&mut other.beside, &ended.contract, together);
        }
        self.tell(&present);
        Some((ended.since, ended.beside))
    }
}

/// A running attempt that is measured, from [`Context::measure`](super::Context::measure) to its end. Dropped without one, it teaches
/// nothing.
pub struct Measure {
    pub(super) cluster: Arc<crate::cluster::Cluster>,
    lease: Arc<Lease>,
    events: mpsc::UnboundedSender<Event>,
    number: u64,
}

impl Measure {
    pub(super) fn begin(
        cluster: Arc<crate::cluster::Cluster>,
        lease: Arc<Lease>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let number = cluster.presence.begin(&lease.contract, Instant::now());
        Self { cluster, lease, events, number }
    }

    /// The attempt ended and used so much; the server learns of it which tasks are better kept apart. Say it before the handler returns.
    pub fn ended(self, used: Used) {
        let now = Instant::now();
        let Some((since, beside)) = self.cluster.presence.end(self.number, now) else { return };
        let row = row(&self.lease, now.saturating_duration_since(since), &used);
        let share = |(contract, together): (Arc<Contract>, Duration)| {
            let permille = together.as_micros().saturating_mul(1_000) / u128::from(row.run_us);
            (contract, u32::try_from(permille).unwrap_or(u32::MAX))
        };
        let measured =
            Measured { row, beside: beside.into_iter().map(share).filter(|(_, share)| *share > 0).collect() };
        // Without a session there is nobody to tell.
        drop(self.events.send(Event::Measured(Box::new(measured))));
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        self.cluster.presence.end(self.number, Instant::now());
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn row(lease: &Lease, ran: Duration, used: &Used) -> UsageRow {
    let bit = |is_known: bool, bit: u32| if is_known { bit } else { 0 };
    let stalls = used.stalls.unwrap_or_default().map(micros);
    UsageRow {
        id: lease.id,
        token: lease.token,
        run_us: micros(ran).max(1),
        cpu_us: used.cpu.map_or(0, micros),
        memory_peak_bytes: used.memory_peak_bytes.unwrap_or(0),
        io_bytes: used.io_bytes.unwrap_or(0),
        cpu_stalled_us: stalls[0],
        memory_stalled_us: stalls[1],
        io_stalled_us: stalls[2],
        locator: lease.locator,
        known: bit(used.cpu.is_some(), usage_known::CPU)
            | bit(used.memory_peak_bytes.is_some(), usage_known::MEMORY)
            | bit(used.io_bytes.is_some(), usage_known::IO)
            | bit(used.stalls.is_some(), usage_known::STALLS),
        is_whole: used.is_whole.into(),
        reserved: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::room::Need;

    fn contract(kind: &str) -> Arc<Contract> {
        Arc::new(Contract {
            kind: kind.to_owned(),
            queue: "q".to_owned(),
            lease: Duration::from_secs(1),
            attempts_max: 1,
            need: Need::default(),
        })
    }

    #[test]
    fn what_ran_beside_an_attempt_is_counted_once_whoever_ends_first() {
        let (presence, start) = (Presence::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let names = |all: Together| {
            let mut names: Vec<(String, u128)> =
                all.into_iter().map(|(of, together)| (of.kind.clone(), together.as_millis())).collect();
            names.sort();
            names
        };
        let long = presence.begin(&contract("long"), at(0));
        let first = presence.begin(&contract("short"), at(10));
        let second = presence.begin(&contract("short"), at(20));
        let told = presence.follow();
        let running: Vec<(String, u32)> = told.borrow().iter().map(|(of, count)| (of.kind.clone(), *count)).collect();
        assert_eq!(running, [("long".to_owned(), 1), ("short".to_owned(), 2)]);
        let (since, beside) = presence.end(first, at(40)).unwrap();
        assert_eq!((since, names(beside)), (at(10), vec![("long".to_owned(), 30), ("short".to_owned(), 20)]));
        let (_, beside) = presence.end(long, at(50)).unwrap();
        assert_eq!(names(beside), [("short".to_owned(), 60)], "30 ms of the first and 30 of the second");
        let (_, beside) = presence.end(second, at(70)).unwrap();
        assert_eq!(names(beside), [("long".to_owned(), 30), ("short".to_owned(), 20)]);
        assert!(told.borrow().is_empty() && presence.end(second, at(80)).is_none());
    }
}
