//! Attempts of restartable tasks that run: in order of their start, and of few tasks a second one beside the first. Volatile, as leases are:
//! the next leader knows of neither, and the outcome of any of them is refused there as that of every earlier lease is.
//!
//! A second attempt is a second lease on the task: it has a token of its own and the number of the same attempt, so that the log needs to
//! know nothing of it. The task's record has the first one. When that ends and the task does not, the second takes its place there.
//! Tasks that are not restartable cost a look at their contract at the start, and one at a flag at the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::HashMap;
use taskmaster_protocol::TaskId;

use super::{Cx, DETACHED, Partition};
use crate::dispatch::PRIORITIES;
use crate::hash::FixedState;
use crate::state::State;
use crate::task::{Slot, flag};

/// What happened to attempts is kept of the latest so many tasks that ended.
const TOLD_MAX: usize = 1_024;
/// And so many sentences of each.
const SENTENCES_MAX: usize = 6;
/// Where the second of two attempts goes on alone, one beside it has to wait for so long, in microseconds.
const PAUSE_US: u64 = 1_000_000;

/// Where an attempt is among those that run: its priority, and its token.
pub(crate) type Place = (u8, u64);

/// What happened to a task's attempts: name of the fact, and a sentence.
pub(crate) type Sentence = (&'static str, String);

/// A second attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Second {
    pub(crate) token: u64,
    pub(crate) worker: u32,
    pub(crate) started_us: u64,
    /// When its lease ends.
    pub(crate) until_us: u64,
    /// With which of the task's resources it runs ([`crate::wishes::Wishes::set`]).
    pub(crate) set: u8,
}

/// What is known of a restartable task that runs, or to whose attempts something happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    /// Token of the first attempt; 0: none runs.
    token: u64,
    pub(crate) started_us: u64,
    /// Since when the task was ready.
    pub(crate) ready_us: u64,
    pub(crate) second: Option<Second>,
    /// No second attempt begins before.
    pub(crate) not_before_us: u64,
    /// How often it was ended for others.
    pub(crate) preempted: u8,
    /// When it is judged, 0 if that is not known yet; and how long it ran at most when it was given up, in microseconds.
    pub(crate) judged_us: u64,
    pub(crate) outlived_us: u64,
    /// It is being given up.
    is_lost: bool,
    /// Its number in the order of readiness, and while it waits again the list that it is on.
    number: u64,
    aside: Option<u32>,
    sentences: Vec<Sentence>,
}

/// Why one of two attempts is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// It ended by itself, or its worker is gone: nobody is to be told.
    Ended,
    /// The other one was first: its worker is to stop.
    Overtaken,
}

/// The attempts of a partition's restartable tasks.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    by_slot: HashMap<Slot, Attempt, FixedState>,
    /// First attempts that run, by priority and token: of a priority in order of their start.
    running: BTreeMap<Place, Slot>,
    /// Tasks with second attempts.
    doubled: BTreeSet<Slot>,
    told: VecDeque<(TaskId, Vec<Sentence>)>,
}

impl Attempts {
    /// First attempts that run.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// When the latest of them began.
    pub(crate) fn latest_us(&self) -> Option<u64> {
        let latest = |priority: usize| self.running.range(of_priority(priority)).next_back();
        let slots = (0..PRIORITIES).filter_map(latest).map(|(_, slot)| slot);
        slots.filter_map(|slot| Some(self.by_slot.get(slot)?.started_us)).max()
    }

    /// Second attempts that run.
    pub(crate) fn seconds(&self) -> usize {
        self.doubled.len()
    }

    /// First attempts that run behind a place, by priority, the oldest first.
    pub(crate) fn behind(&self, (priority, token): Place) -> impl Iterator<Item = (Place, Slot)> + '_ {
        self.running.range((priority, token + 1)..).map(|(&place, &slot)| (place, slot))
    }

    /// First attempts that run and for which others may be more urgent: those of the lowest priority first, of them the youngest.
    pub(crate) fn least_urgent(&self) -> impl Iterator<Item = Slot> + '_ {
        self.running.range((1, 0)..).rev().map(|(_, &slot)| slot)
    }

    /// Of a task that runs or of which there is something to tell.
    pub(crate) fn get(&self, slot: Slot) -> Option<&Attempt> {
        self.by_slot.get(&slot)
    }

    /// When an attempt that runs is to be judged.
    pub(crate) fn judge_at(&mut self, slot: Slot, judged_us: u64) {
        if let Some(attempt) = self.by_slot.get_mut(&slot) {
            attempt.judged_us = judged_us;
        }
    }

    /// The list that a task waits on that was given up.
    pub(super) fn aside(&self, slot: Slot) -> Option<u32> {
        self.by_slot.get(&slot)?.aside
    }

    /// Tasks with second attempts.
    pub(crate) fn with_second(&self) -> impl Iterator<Item = Slot> + '_ {
        self.doubled.iter().copied()
    }

    pub(crate) fn reserved_bytes(&self) -> usize {
        let told = self.told.len() * size_of::<(TaskId, Vec<Sentence>)>();
        self.by_slot.allocation_size() + (self.running.len() + self.doubled.len()) * 4 * size_of::<u64>() + told
    }
}

fn of_priority(priority: usize) -> core::ops::RangeInclusive<Place> {
    let priority = u8::try_from(priority).unwrap_or(u8::MAX);
    (priority, 0)..=(priority, u64::MAX)
}

impl Partition {
    /// An attempt of a restartable task begins, which was ready since then and with this number. Whether one was given up before.
    pub(crate) fn attempt_begins(&mut self, slot: Slot, ready: (u64, u64), now_us: u64) -> bool {
        self.ready_no_longer(slot);
        let task = &mut self.tasks[slot];
        task.flags |= flag::WATCHED;
        let token = task.token;
        let attempt = self.attempts.by_slot.entry(slot).or_default();
        (attempt.token, attempt.started_us, (attempt.ready_us, attempt.number)) = (token, now_us, ready);
        (attempt.not_before_us, attempt.judged_us) = (0, 0);
        let is_again = attempt.outlived_us > 0;
        // What an earlier attempt had done says nothing of this one.
        if let Some(extra) = self.extras.get_mut(self.tasks[slot].extra) {
            extra.done_permille = 0;
        }
        let place = self.place(slot, token);
        self.attempts.running.insert(place, slot);
        is_again
    }

    /// A task is no longer on a list of its lane.
    pub(super) fn ready_no_longer(&mut self, slot: Slot) {
        if !self.tasks[slot].has(flag::WATCHED) {
            return;
        }
        if let Some(list) = self.attempts.by_slot.get_mut(&slot).and_then(|attempt| attempt.aside.take()) {
            self.leave_aside(slot, list);
        }
    }

    /// Where an attempt of a task is among those that run.
    fn place(&self, slot: Slot, token: u64) -> Place {
        (self.contracts[self.tasks[slot].contract].priority, token)
    }

    /// The second attempt of a task, if one runs.
    pub(crate) fn second(&self, slot: Slot) -> Option<&Second> {
        if !self.tasks[slot].has(flag::WATCHED) {
            return None;
        }
        self.attempts.get(slot)?.second.as_ref()
    }

    /// A second attempt begins; its worker's credit is taken.
    pub(crate) fn second_begins(&mut self, slot: Slot, second: Second, sentence: String) {
        let attempt = self.attempts.by_slot.get_mut(&slot).expect("it runs");
        attempt.second = Some(second);
        self.attempts.doubled.insert(slot);
        self.tell(slot, ("second_attempt", sentence));
    }

    /// A chance for a second attempt is passed over: there is none beside this attempt.
    pub(crate) fn pass_second(&mut self, slot: Slot) {
        if let Some(attempt) = self.attempts.by_slot.get_mut(&slot) {
            attempt.not_before_us = u64::MAX;
        }
    }

    /// Extends the lease of a second attempt; `worker` holds it from here on, if it is known.
    pub(crate) fn extend_second(&mut self, slot: Slot, worker: Option<u32>, cx: &mut Cx<'_>) {
        let contract = &self.contracts[self.tasks[slot].contract];
        let lease_us = u64::from(self.lease_lists[contract.lease_list as usize].lease_ms) * 1_000;
        let Some(second) = self.attempts.by_slot.get_mut(&slot).and_then(|attempt| attempt.second.as_mut()) else {
            return;
        };
        second.until_us = cx.time_us + lease_us;
        if let Some(worker) = worker.filter(|&worker| worker != second.worker) {
            let queue = self.queues[contract.queue as usize].dispatch;
            let (before, set) = (core::mem::replace(&mut second.worker, worker), second.set);
            cx.dispatch.move_lease(queue, before, worker, self.need_with(slot, set));
        }
    }

    /// A second attempt failed, was given back or has run out.
    pub(crate) fn second_came_to_nothing(&mut self, slot: Slot, over: Over, cx: &mut Cx<'_>) {
        cx.dispatch.learned.second_ended(self.class(slot), false);
        self.drop_second(slot, over, cx);
    }

    /// Ends a second attempt, and the first goes on, with no further one beside it.
    pub(crate) fn drop_second(&mut self, slot: Slot, over: Over, cx: &mut Cx<'_>) {
        let Some(attempt) = self.attempts.by_slot.get_mut(&slot) else { return };
        let Some(second) = attempt.second.take() else { return };
        attempt.not_before_us = u64::MAX;
        self.attempts.doubled.remove(&slot);
        let task = &self.tasks[slot];
        self.lease_over(slot, (second.worker, task.id, second.token), second.set, second.started_us, over, cx);
    }

    /// Ends the first of two attempts: the second is the only one from here on.
    pub(crate) fn promote_second(&mut self, slot: Slot, over: Over, cx: &mut Cx<'_>) {
        let Some(attempt) = self.attempts.by_slot.get_mut(&slot) else { return };
        let Some(second) = attempt.second.take() else { return };
        let first_us = core::mem::replace(&mut attempt.started_us, second.started_us);
        let token = core::mem::replace(&mut attempt.token, second.token);
        (attempt.not_before_us, attempt.judged_us) = (cx.time_us + PAUSE_US, 0);
        cx.dispatch.restarts.attempt_ended(first_us, cx.time_us);
        cx.dispatch.restarts.attempts_begin(1, second.started_us);
        let (before, place) = (self.place(slot, token), self.place(slot, second.token));
        self.attempts.doubled.remove(&slot);
        self.attempts.running.remove(&before);
        self.attempts.running.insert(place, slot);
        if let Some(extra) = self.extras.get_mut(self.tasks[slot].extra) {
            (extra.started_us, extra.done_permille) = (second.started_us, 0);
        }
        let task = &self.tasks[slot];
        let (id, worker) = (task.id, task.worker);
        let contract = &self.contracts[task.contract];
        let (list, from) =
            (contract.lease_list, if worker & DETACHED != 0 { self.grace_list() } else { contract.lease_list });
        self.lease_lists[from as usize].list.unlink(&mut self.tasks, slot);
        let lease_list = &mut self.lease_lists[list as usize];
        // Its lease begins anew: the list is in the order of their ends.
        let until_us = cx.time_us + u64::from(lease_list.lease_ms) * 1_000;
        let task = &mut self.tasks[slot];
        (task.token, task.worker, task.at_us) = (second.token, second.worker, until_us);
        lease_list.list.push_back(&mut self.tasks, slot);
        self.arm_lease_list(list, cx.timers);
        self.started.insert(slot, second.started_us);
        let set = self.set_of(slot);
        self.runs_with(slot, second.set);
        self.lease_over(slot, (worker & !DETACHED, id, token), set, first_us, over, cx);
    }

    /// One of two leases on a task is over, which had this set of its resources and had begun at `started_us`.
    fn lease_over(&self, slot: Slot, lease: (u32, TaskId, u64), set: u8, started_us: u64, over: Over, cx: &mut Cx<'_>) {
        let contract = &self.contracts[self.tasks[slot].contract];
        let queue = self.queues[contract.queue as usize].dispatch;
        cx.dispatch.lease_ended(queue, lease.0, self.need_with(slot, set));
        let restarts = &mut cx.dispatch.restarts;
        restarts.second_over(cx.time_us);
        restarts.counters.wasted_us += cx.time_us.saturating_sub(started_us);
        if over == Over::Overtaken {
            cx.revoked.push(lease);
        }
    }

    /// An outcome under `token` is about to end a leased task, or its attempt: whoever else runs it is told to stop.
    pub(crate) fn settle_attempts(&mut self, slot: Slot, token: u64, cx: &mut Cx<'_>) {
        let task = &self.tasks[slot];
        if !task.has(flag::WATCHED) || task.state != State::Leased {
            return;
        }
        let second = self.second(slot).map(|second| second.token);
        if second.is_some() {
            let won = second == Some(token);
            let class = self.class(slot);
            cx.dispatch.learned.second_ended(class, won);
            cx.dispatch.restarts.counters.second_won += u64::from(won);
            let sentence = if won {
                "it ended first, and the first attempt was told to stop"
            } else {
                "the first one ended before it"
            };
            self.tell(slot, ("second_attempt_end", sentence.to_owned()));
            if won {
                self.promote_second(slot, Over::Overtaken, cx);
            } else {
                self.drop_second(slot, Over::Overtaken, cx);
            }
        }
        // The lease of the outcome may have been given up for lost since it was admitted.
        let task = &self.tasks[slot];
        if task.token != token {
            cx.revoked.push((task.worker & !DETACHED, task.id, task.token));
        }
    }

    /// Ends the attempt of a restartable task, which is the first of its line again and has not failed by it.
    pub(crate) fn end_attempt_for_others(&mut self, slot: Slot, cx: &mut Cx<'_>) {
        let Some(attempt) = self.attempts.by_slot.get_mut(&slot) else { return };
        attempt.preempted = attempt.preempted.saturating_add(1);
        let ready_us = attempt.ready_us;
        let task = &self.tasks[slot];
        cx.revoked.push((task.worker & !DETACHED, task.id, task.token));
        self.detach(slot, cx);
        self.enter_ready_first(slot, ready_us, cx);
    }

    /// Ends the attempt of a restartable task that has outlived what was expected: it waits as one that is known to take longer, as old as it
    /// was. It has not failed by it.
    pub(crate) fn give_up_attempt(&mut self, slot: Slot, cx: &mut Cx<'_>) {
        let class = self.class(slot);
        let Some(attempt) = self.attempts.by_slot.get_mut(&slot) else { return };
        attempt.is_lost = true;
        attempt.outlived_us = attempt.outlived_us.max(cx.time_us.saturating_sub(attempt.started_us));
        let (ready_us, number) = (attempt.ready_us, attempt.number);
        let class = cx.dispatch.learned.outlived(class, attempt.outlived_us);
        let task = &self.tasks[slot];
        cx.revoked.push((task.worker & !DETACHED, task.id, task.token));
        self.detach(slot, cx);
        self.set_state(slot, State::Ready);
        self.ready_since(slot, ready_us);
        let list = self.push_lane_aside(slot, class, number, cx.dispatch);
        self.attempts.by_slot.get_mut(&slot).expect("it is told of").aside = Some(list);
    }

    /// The lease of a watched task ends, whatever becomes of the task.
    pub(super) fn attempt_ends(&mut self, slot: Slot, cx: &mut Cx<'_>) {
        self.drop_second(slot, Over::Overtaken, cx);
        let Some(attempt) = self.attempts.by_slot.get_mut(&slot) else { return };
        let token = core::mem::take(&mut attempt.token);
        let is_told = !attempt.sentences.is_empty();
        if core::mem::take(&mut attempt.is_lost) {
            cx.dispatch.restarts.attempt_lost(attempt.started_us, cx.time_us);
        } else if token != 0 {
            cx.dispatch.restarts.attempt_ended(attempt.started_us, cx.time_us);
        }
        let place = self.place(slot, token);
        self.attempts.running.remove(&place);
        if !is_told {
            self.attempts.by_slot.remove(&slot);
            self.tasks[slot].flags &= !flag::WATCHED;
        }
    }

    /// Notes what happened to a task's attempts.
    pub(crate) fn tell(&mut self, slot: Slot, sentence: Sentence) {
        if let Some(attempt) = self.attempts.by_slot.get_mut(&slot) {
            if attempt.sentences.len() == SENTENCES_MAX {
                attempt.sentences.remove(0);
            }
            attempt.sentences.push(sentence);
        }
    }

    /// A watched task is final: what happened to its attempts is kept for a while.
    pub(super) fn attempts_final(&mut self, slot: Slot) {
        let task = &mut self.tasks[slot];
        task.flags &= !flag::WATCHED;
        let id = task.id;
        let Some(attempt) = self.attempts.by_slot.remove(&slot) else { return };
        if self.attempts.told.len() == TOLD_MAX {
            self.attempts.told.pop_front();
        }
        self.attempts.told.push_back((id, attempt.sentences));
    }

    /// What happened to a task's attempts.
    pub(crate) fn told(&self, slot: Slot) -> &[Sentence] {
        let task = &self.tasks[slot];
        if task.has(flag::WATCHED) {
            return self.attempts.get(slot).map_or(&[], |attempt| &attempt.sentences);
        }
        let found = self.attempts.told.iter().rev().find(|(id, _)| *id == task.id);
        found.map_or(&[], |(_, sentences)| sentences)
    }

    /// A worker is gone: where it had one of two attempts, the other goes on.
    pub(crate) fn worker_gone(&mut self, worker: u32, cx: &mut Cx<'_>) {
        for slot in self.attempts.with_second().collect::<Vec<_>>() {
            let task = &self.tasks[slot];
            // An outcome that is on its way to the log ends both.
            if task.has(flag::SETTLING) {
                continue;
            }
            if self.second(slot).is_some_and(|second| second.worker == worker) {
                self.drop_second(slot, Over::Ended, cx);
            } else if self.tasks[slot].worker & !DETACHED == worker {
                self.promote_second(slot, Over::Ended, cx);
            }
        }
    }

    /// Ends second attempts whose lease has run out.
    pub(crate) fn expire_seconds(&mut self, cx: &mut Cx<'_>) {
        for slot in self.attempts.with_second().collect::<Vec<_>>() {
            let is_over = self.second(slot).is_some_and(|second| second.until_us <= cx.time_us);
            if is_over && !self.tasks[slot].has(flag::SETTLING) {
                self.second_came_to_nothing(slot, Over::Overtaken, cx);
            }
        }
    }

    /// An attempt failed: if another one goes on, that is all that becomes of it.
    pub(crate) fn failed_beside(&mut self, slot: Slot, token: u64, cx: &mut Cx<'_>) {
        let Some(second) = self.second(slot).map(|second| second.token) else { return };
        if self.tasks[slot].has(flag::SETTLING) {
            return;
        }
        self.tell(slot, ("second_attempt_end", "one of the two attempts failed, and the other went on".to_owned()));
        if token == second {
            self.second_came_to_nothing(slot, Over::Ended, cx);
        } else {
            self.promote_second(slot, Over::Ended, cx);
        }
    }

    /// This replica leads no longer, and its leases have ended.
    pub(super) fn forget_attempts(&mut self, cx: &mut Cx<'_>) {
        let waiting = self.attempts.by_slot.iter().filter(|(_, attempt)| attempt.aside.is_some());
        let mut waiting: Vec<Slot> = waiting.map(|(&slot, _)| slot).collect();
        waiting.sort_unstable_by_key(|&slot| (core::cmp::Reverse(self.tasks[slot].token), slot));
        // They were ready before those behind them, as far as that is known.
        for slot in waiting {
            self.detach(slot, cx);
            self.push_lane_first(slot, cx.dispatch);
        }
        for &slot in self.attempts.by_slot.keys() {
            self.tasks[slot].flags &= !flag::WATCHED;
        }
        self.attempts = Attempts::default();
    }
}
