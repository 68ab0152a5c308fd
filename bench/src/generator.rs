//! One generator thread: an epoll loop that submits, works and completes on all of its connections.
//!
//! Each turn handles what arrived, makes the submissions that are due, and writes once per connection. In closed loop a
//! submission is due when fewer tasks than the backlog allows are unfinished and the connection has a free frame in its
//! window; in open loop when its intended time has come.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};

use crate::connection::{Completion, Connection, Link, Request};
use crate::ledger::Ledger;
use crate::routes::Routes;
use crate::schedule::{Clock, Schedule};
use crate::submission::{Encoder, Submission};

mod answers;

/// Longest time without looking at the clock for a stall or an abort.
const IDLE_NS_MAX: u64 = 200_000_000;
/// At high rates sends are gathered for this long, so that pacing does not take the CPU the node needs.
const PACE_NS: u64 = 100_000;
/// A send is late when it leaves this long after its intended time.
const LATE_NS: u64 = 1_000_000;
/// Longest latency that is told apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// The error of a thread that gives up because of another one's.
pub(crate) const ELSEWHERE: &str = "another generator thread failed";

/// What one thread is to do.
pub(crate) struct Plan {
    pub(crate) batch: u32,
    pub(crate) window_frames: usize,
    pub(crate) backlog_tasks: u64,
    pub(crate) credit: u32,
    pub(crate) completion_rows: usize,
    pub(crate) rate_per_s: Option<f64>,
    /// Tasks to queue before the load starts.
    pub(crate) queued: u64,
    /// Load before the measurement, in nanoseconds.
    pub(crate) warmup_ns: u64,
    /// Submissions after the warm-up, in nanoseconds.
    pub(crate) duration_ns: u64,
    /// Tasks to measure.
    pub(crate) tasks: u64,
    pub(crate) stall_ns: u64,
    pub(crate) verify: bool,
}

/// What all threads see.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) done: AtomicU64,
    pub(crate) abort: AtomicBool,
    /// Who leads what; `None` where one node has everything.
    pub(crate) routes: Option<Routes>,
}

/// How a thread waits for the others.
pub(crate) struct Gate {
    /// The queue is filled, or cannot be.
    pub(crate) filled: Sender<()>,
    /// When the load starts, in nanoseconds since the run's start.
    pub(crate) load_from_ns: Receiver<u64>,
}

/// What one thread found out.
pub(crate) struct Outcome {
    pub(crate) submit: Histogram<u64>,
    pub(crate) initiation: Histogram<u64>,
    pub(crate) end_to_end: Histogram<u64>,
    pub(crate) ledger: Ledger,
    pub(crate) tallies: Tallies,
}

/// Counts of unusual events, and times.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tallies {
    pub(crate) overloaded: u64,
    /// Requests refused because another node leads, and sent there.
    pub(crate) moved: u64,
    pub(crate) refused_completions: u64,
    pub(crate) redelivered: u64,
    pub(crate) late_sends: u64,
    /// Completions from the start of the measurement to the end of submissions.
    pub(crate) steady: u64,
    /// End of submissions, in nanoseconds since the run's start.
    pub(crate) submitted_ns: u64,
    /// Last acknowledged completion, in nanoseconds since the run's start.
    pub(crate) last_done_ns: u64,
    /// CPU time of the generator thread since the start of the measurement, in nanoseconds.
    pub(crate) cpu_ns: u64,
    /// Tasks done since the start of the measurement.
    pub(crate) handled: u64,
}

impl Tallies {
    pub(crate) fn add(&mut self, other: &Self) {
        self.overloaded += other.overloaded;
        self.moved += other.moved;
        self.refused_completions += other.refused_completions;
        self.redelivered += other.redelivered;
        self.late_sends += other.late_sends;
        self.steady += other.steady;
        self.submitted_ns = self.submitted_ns.max(other.submitted_ns);
        self.last_done_ns = self.last_done_ns.max(other.last_done_ns);
        self.cpu_ns += other.cpu_ns;
        self.handled += other.handled;
    }
}

/// What a generator thread is at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Submitting the tasks that stay ahead of the load; no worker has credit.
    Filling,
    /// Submitting, not measured yet.
    Warming,
    Measuring,
    /// Everything is submitted.
    Draining,
}

/// The state of one generator thread; [`Generator::run`] uses it up.
pub(crate) struct Generator<'a> {
    plan: Plan,
    shared: &'a Shared,
    poll: OwnedFd,
    encoder: Encoder,
    /// The first so many connections submit.
    producers: usize,
    /// The connections from this one on work.
    workers_from: usize,
    next_producer: usize,
    phase: Phase,
    schedule: Option<Schedule>,
    /// Start of the measurement, in nanoseconds since the run's start.
    measure_from_ns: u64,
    /// End of submissions, likewise.
    submit_until_ns: u64,
    /// Sequence number of the next task; in open loop also its place in the schedule.
    next: u64,
    measured: u64,
    /// Tasks done when the measurement started.
    done_before: u64,
    /// CPU time of this thread when the measurement started, in nanoseconds.
    cpu_before_ns: u64,
    /// Open loop: earliest time of the next send.
    paced_ns: u64,
    /// Last time the node answered.
    progress_ns: u64,
    /// Submit and completion frames without an answer, including the delayed ones.
    awaited_submits: u64,
    awaited_completes: u64,
    /// Requests waiting to be sent again.
    delayed: usize,
    /// Version of the routes that the connections' partitions follow.
    routed: u64,
    /// Node that leads each partition; empty where one node has everything.
    leaders: Vec<Option<usize>>,
    pool: Vec<Completion>,
    outcome: Outcome,
}

impl<'a> Generator<'a> {
    /// A generator whose first `producers` connections submit and whose connections from `workers_from` on work.
    pub(crate) fn new(
        plan: Plan,
        encoder: Encoder,
        producers: usize,
        workers_from: usize,
        shared: &'a Shared,
    ) -> Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        let outcome = Outcome {
            submit: histogram()?,
            initiation: histogram()?,
            end_to_end: histogram()?,
            ledger: Ledger::new(plan.verify),
            tallies: Tallies::default(),
        };
        Ok(Self {
            plan,
            shared,
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            encoder,
            producers,
            workers_from,
            next_producer: 0,
            phase: Phase::Filling,
            schedule: None,
            measure_from_ns: u64::MAX,
            submit_until_ns: u64::MAX,
            next: 0,
            measured: 0,
            done_before: 0,
            cpu_before_ns: 0,
            paced_ns: 0,
            progress_ns: 0,
            awaited_submits: 0,
            awaited_completes: 0,
            delayed: 0,
            routed: 0,
            leaders: Vec::new(),
            pool: Vec::new(),
            outcome,
        })
    }

    /// Fills the queue, waits for the other threads, and runs until every acknowledged task is done, or nothing has moved
    /// for the stall limit.
    pub(crate) fn run(mut self, connections: &mut [Connection], gate: &Gate) -> Result<Outcome> {
        let filled = self.fill(connections);
        let is_awaited = gate.filled.send(()).is_ok();
        filled?;
        ensure!(is_awaited, ELSEWHERE);
        let load_from_ns = gate.load_from_ns.recv().context(ELSEWHERE)?;
        self.phase = Phase::Warming;
        self.measure_from_ns = load_from_ns + self.plan.warmup_ns;
        self.submit_until_ns = self.measure_from_ns.saturating_add(self.plan.duration_ns);
        if let Some(per_s) = self.plan.rate_per_s {
            self.schedule = Some(Schedule::new(per_s, load_from_ns, self.next));
            rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        }
        for connection in &mut connections[self.workers_from..] {
            connection.link.credit_owed = self.plan.credit;
            connection.link.give_credit();
        }
        self.turn_until_done(connections)?;
        let tallies = &mut self.outcome.tallies;
        tallies.cpu_ns = thread_cpu_ns() - self.cpu_before_ns;
        tallies.handled = self.outcome.ledger.done - self.done_before;
        Ok(self.outcome)
    }

    fn fill(&mut self, connections: &mut [Connection]) -> Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        for (connection, number) in connections.iter().zip(0u64..) {
            epoll::add(&self.poll, connection.link.stream(), epoll::EventData::new_u64(number), flags)?;
        }
        if self.plan.queued == 0 { Ok(()) } else { self.turn_until_done(connections) }
    }

    fn turn_until_done(&mut self, connections: &mut [Connection]) -> Result<()> {
        let mut events = Vec::with_capacity(connections.len().clamp(16, 1024));
        while let Some(due_ns) = self.send_due(connections)? {
            let wait_ns = due_ns.saturating_sub(self.shared.clock.now_ns());
            let timeout = Timespec::try_from(Duration::from_nanos(wait_ns))?;
            events.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let done_before = self.outcome.ledger.done;
            for event in &events {
                self.turn(&mut connections[usize::try_from(event.data.u64())?])?;
            }
            self.shared.done.fetch_add(self.outcome.ledger.done - done_before, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sends what is due. When to look again, or `None` when the run is over.
    fn send_due(&mut self, connections: &mut [Connection]) -> Result<Option<u64>> {
        let now_ns = self.shared.clock.now_ns();
        if self.outcome.ledger.done == self.next && self.awaited_submits == 0 {
            self.progress_ns = now_ns;
        }
        let mut due_ns = now_ns + IDLE_NS_MAX;
        self.follow(connections);
        if self.delayed > 0 {
            due_ns = due_ns.min(self.resend(connections, now_ns));
        }
        self.enter_phase(now_ns);
        let next_ns = match (self.phase, self.schedule) {
            (Phase::Draining, _) => None,
            (_, Some(schedule)) => self.submit_open(connections, schedule, now_ns),
            (_, None) => self.submit_closed(connections, now_ns),
        };
        if next_ns.is_none() && matches!(self.phase, Phase::Warming | Phase::Measuring) {
            self.phase = Phase::Draining;
            self.outcome.tallies.submitted_ns = now_ns;
            self.outcome.tallies.steady = self.outcome.ledger.done - self.done_before;
        }
        for connection in connections.iter_mut().filter(|connection| !connection.link.out.is_empty()) {
            connection.link.flush()?;
        }
        ensure!(!self.shared.abort.load(Ordering::Relaxed), ELSEWHERE);
        let done = self.phase == Phase::Filling || self.outcome.ledger.done >= self.outcome.ledger.acknowledged;
        if next_ns.is_none() && self.awaited_submits + self.awaited_completes == 0 && done {
            return Ok(None);
        }
        if now_ns - self.progress_ns > self.plan.stall_ns {
            let ledger = &self.outcome.ledger;
            ensure!(
                self.awaited_submits == 0 && ledger.acknowledged > 0,
                "the node has answered nothing for {} s: {} submit and {} completion requests wait, {} tasks are \
                 acknowledged and {} done",
                self.plan.stall_ns / 1_000_000_000,
                self.awaited_submits,
                self.awaited_completes,
                ledger.acknowledged,
                ledger.done
            );
            return Ok(None);
        }
        Ok(Some(due_ns.min(next_ns.unwrap_or(u64::MAX))))
    }

    fn enter_phase(&mut self, now_ns: u64) {
        if self.phase == Phase::Warming && now_ns >= self.measure_from_ns {
            self.phase = Phase::Measuring;
            self.done_before = self.outcome.ledger.done;
            self.cpu_before_ns = thread_cpu_ns();
        }
    }

    /// Whether the backlog has room for so many more tasks.
    fn has_room(&self, count: u64) -> bool {
        self.phase == Phase::Filling
            || self.next - self.outcome.ledger.done + count <= self.plan.backlog_tasks + self.plan.queued
    }

    /// Submits while backlog and windows allow. `None` when everything is submitted.
    fn submit_closed(&mut self, connections: &mut [Connection], now_ns: u64) -> Option<u64> {
        let mut full = 0;
        while full < self.producers {
            let left = match self.phase {
                Phase::Filling => self.plan.queued - self.next,
                Phase::Measuring if now_ns < self.submit_until_ns => self.plan.tasks - self.measured,
                Phase::Warming => u64::MAX,
                Phase::Measuring | Phase::Draining => 0,
            };
            if left == 0 {
                return None;
            }
            let count = u64::from(self.plan.batch).min(left);
            if !self.has_room(count) {
                break;
            }
            let link = self.rotate(connections);
            if !link.has_partitions() || link.unacknowledged() >= self.plan.window_frames {
                full += 1;
                continue;
            }
            full = 0;
            self.submit(link, count, now_ns, now_ns);
            if self.phase == Phase::Measuring {
                self.measured += count;
            }
        }
        Some(u64::MAX)
    }

    /// Submits everything whose time has come. When the next time comes, or `None` when everything is submitted.
    fn submit_open(&mut self, connections: &mut [Connection], schedule: Schedule, now_ns: u64) -> Option<u64> {
        let first_measured = schedule.first_at(self.measure_from_ns);
        let end = schedule.first_at(self.submit_until_ns).min(first_measured.saturating_add(self.plan.tasks));
        let due = schedule.first_at(now_ns.saturating_add(1)).min(end);
        if now_ns >= self.paced_ns {
            let mut full = 0;
            while self.next < due && full < self.producers {
                let count = u64::from(self.plan.batch).min(due - self.next);
                if !self.has_room(count) {
                    break;
                }
                let link = self.rotate(connections);
                if !link.has_partitions() || link.unacknowledged() >= self.plan.window_frames {
                    full += 1;
                    continue;
                }
                full = 0;
                let intended_ns = schedule.intended_ns(self.next);
                if now_ns - intended_ns > LATE_NS {
                    self.outcome.tallies.late_sends += count;
                }
                self.submit(link, count, intended_ns, now_ns);
            }
            if self.next < due {
                // The node is too far behind: its next answer makes room, the lateness shows in the latencies.
                return Some(u64::MAX);
            }
            self.paced_ns = now_ns + PACE_NS;
        }
        (self.next < end).then(|| schedule.intended_ns(self.next).max(self.paced_ns))
    }

    fn rotate<'c>(&mut self, connections: &'c mut [Connection]) -> &'c mut Link {
        let at = self.next_producer;
        self.next_producer = (at + 1) % self.producers;
        &mut connections[at].link
    }

    fn submit(&mut self, link: &mut Link, count: u64, intended_ns: u64, now_ns: u64) {
        let Some(partition) = link.rotate_partition() else { return };
        let submission = Submission {
            first: self.next,
            count: u32::try_from(count).expect("at most a batch"),
            partition,
            intended_ns,
            unix_ms: self.shared.clock.unix_ms(now_ns),
            is_resend: false,
        };
        self.next += count;
        self.awaited_submits += 1;
        self.send(link, Request::Submit(submission));
    }

    /// Puts a request into the connection's output.
    fn send(&mut self, link: &mut Link, request: Request) {
        match request {
            Request::Submit(submission) => {
                let (correlation, submission) = link.submits.insert(submission);
                self.encoder.encode(&mut link.out.frames, correlation, submission, self.schedule);
            }
            Request::Complete(completion) => link.send_completion(completion),
        }
    }

    /// Sends again what is due, each request to where its partition is led. When the next such request is due.
    fn resend(&mut self, connections: &mut [Connection], now_ns: u64) -> u64 {
        let mut next_ns = u64::MAX;
        for number in 0..connections.len() {
            let mut at = 0;
            while let Some(delayed) = connections[number].link.delayed.get(at) {
                if delayed.due_ns > now_ns {
                    next_ns = next_ns.min(delayed.due_ns);
                    at += 1;
                } else {
                    let request = connections[number].link.delayed.swap_remove(at).request;
                    self.delayed -= 1;
                    let number = self.home(connections, number, request.partition());
                    self.send(&mut connections[number].link, request);
                }
            }
        }
        next_ns
    }

    /// Gives the connections the partitions that are led where they end, when that has changed.
    fn follow(&mut self, connections: &mut [Connection]) {
        let Some(routes) = self.shared.routes.as_ref().filter(|routes| routes.version() != self.routed) else { return };
        self.routed = routes.version();
        self.leaders = routes.leaders();
        for link in connections.iter_mut().map(|connection| &mut connection.link) {
            let is_there = |partition: u16, leader: Option<usize>| {
                leader.is_some_and(|leader| routes.place(leader, partition) == link.place)
            };
            let led = (0..).zip(&self.leaders).filter(|(partition, leader)| is_there(*partition, **leader));
            link.set_partitions(led.map(|(partition, _)| partition).collect());
        }
    }

    /// The connection for a request about a partition: `number` itself if it ends there or nobody is known to lead.
    fn home(&self, connections: &[Connection], number: usize, partition: u16) -> usize {
        let Some(routes) = &self.shared.routes else { return number };
        let leader = self.leaders.get(usize::from(partition)).copied().flatten();
        let Some(place) = leader.map(|leader| routes.place(leader, partition)) else { return number };
        let after = (0..connections.len()).map(|step| (number + step) % connections.len());
        let mut there = after.filter(|&at| connections[at].link.place == place);
        there.next().unwrap_or(number)
    }
}

fn thread_cpu_ns() -> u64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(spent.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(spent.tv_nsec).unwrap_or(0)
}
