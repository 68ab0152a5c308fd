//! Memoised tasks: one that ran answers for those with the same kind, version and payload.
//!
//! Such a task has a unique key made from what it is ([`taskmaster_protocol::memo`]). The task that holds the key runs; others with
//! the key *follow* it: they wait, each durable and with an id of its own, and end as it does: with a copy of its result, or of its
//! error when its attempts are used up. When the holder is cancelled or expires, which says nothing about the others, the follower
//! that came first takes the key and runs in its place, by its own contract. A holder that succeeded goes on answering for as long as
//! it is kept: a later task follows it if its result is young enough, and ends at once. A failure is not remembered: a later task runs.
//!
//! Invariants:
//! - Who holds a key and who follows it follow from the log alone, so replicas agree and a snapshot restores it.
//! - Of the tasks with a key that came to one partition, at most one is ready, delayed or leased, unless it was retried by hand while
//!   nobody was.
//! - A follower is `waiting`, and on no list but this one.
//! - Copies are made in bounded slices, one with each command; what is left of a large crowd has the next command, or a timer. The last
//!   one that ended holds the key from then on, so that the answer is kept as long as somebody waits for it.
//! - A run is answered for by bounded bytes: where copies of a large result would take more, the first of those that are left runs.
//!
//! What stores outside remember comes in with a submission ([`known`]), and goes out through [`Findings`]; nothing depends on either.

pub(crate) mod known;

use std::collections::{BTreeMap, BTreeSet};

use taskmaster_protocol::TaskId;
use taskmaster_protocol::memo::Key;

use crate::arena::{Arena, Handle};
use crate::command::submit::{copy, store};
use crate::extra::{pack_error, unpack_error};
use crate::partition::{Cx, Partition};
use crate::state::State;
use crate::task::Slot;

/// What unique keys of memoised tasks begin with: as a length it is longer than the namespace of any other unique key.
const MARK: [u8; 4] = [0xFF; 4];
/// Bytes of their unique keys.
pub(crate) const UNIQUE_BYTES: usize = MARK.len() + size_of::<Key>();
/// Followers that end with one command, and bytes of copies beyond which no more are made with it.
const FOLLOWERS_PER_COMMAND_MAX: usize = 4_096;
const COPIED_PER_COMMAND_MAX: usize = 128 << 20;
/// Results that wait to be taken from [`Findings`], and their bytes; what is beyond is not handed out.
const MADE_MAX: usize = 4_096;
const MADE_BYTES_MAX: usize = 64 << 20;

/// A result that a memoised task came to by running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// What it is the result of.
    pub key: Key,
    /// The task that ran.
    pub of: TaskId,
    /// When it succeeded, in microseconds since 1970.
    pub made_us: u64,
    /// The result.
    pub result: Vec<u8>,
}

/// A row of a submission whose result nobody here knows, and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The row.
    pub row: u32,
    /// Its key.
    pub key: Key,
}

/// Results for a store outside.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Longest result that is handed out; `None`: there is no store.
    pub(crate) result_bytes_max: Option<usize>,
    made: Vec<Made>,
    bytes: usize,
    /// Tasks that ended as another did and were not counted yet.
    ended: u64,
}

impl Findings {
    /// For a store that takes results of at most so many bytes, or none.
    pub(crate) fn new(result_bytes_max: Option<usize>) -> Self {
        Self { result_bytes_max, ..Self::default() }
    }

    fn put(&mut self, key: Key, of: TaskId, made_us: u64, result: &[u8]) {
        if self.result_bytes_max.is_none_or(|max| result.len() > max) {
            return;
        }
        if self.made.len() >= MADE_MAX || self.bytes + result.len() > MADE_BYTES_MAX {
            return;
        }
        self.bytes += result.len();
        self.made.push(Made { key, of, made_us, result: result.to_vec() });
    }

    /// How many tasks ended as another did since the last call.
    pub(crate) fn take_ended(&mut self) -> u64 {
        core::mem::take(&mut self.ended)
    }

    /// All that is there.
    pub(crate) fn take(&mut self) -> Vec<Made> {
        self.bytes = 0;
        core::mem::take(&mut self.made)
    }
}

/// Followers: when they were submitted, which they are, and where.
type Crowd = BTreeSet<(u64, TaskId, Slot)>;

/// Who follows whom in a partition.
#[derive(Debug, Default)]
pub(crate) struct Followers {
    by_key: BTreeMap<Key, Crowd>,
    /// Keys with followers whose holder has succeeded or failed.
    due: BTreeSet<Key>,
    count: usize,
}

impl Followers {
    /// Memory held, in bytes.
    pub(crate) fn reserved_bytes(&self) -> usize {
        self.count * 2 * size_of::<(u64, TaskId, Slot)>()
    }

    /// Whether some follower only waits for its copy to be made.
    pub(crate) fn are_due(&self) -> bool {
        !self.due.is_empty()
    }
}

/// The unique key of a memoised task.
pub(crate) fn unique_key(key: &Key) -> [u8; UNIQUE_BYTES] {
    let mut bytes = [0; UNIQUE_BYTES];
    bytes[..MARK.len()].copy_from_slice(&MARK);
    bytes[MARK.len()..].copy_from_slice(key);
    bytes
}

/// The key in the unique key of a memoised task; `None` for other tasks'.
pub(crate) fn key_in(unique: &[u8]) -> Option<Key> {
    unique.strip_prefix(&MARK)?.try_into().ok()
}

/// What a follower ends with.
enum End {
    Result(Handle),
    Error(Handle),
}

/// How a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No result that would do, and nobody is about to have one.
    Free,
    /// Its holder is unfinished.
    Busy,
    /// Its holder has a result that will do, of so many bytes.
    Known(usize),
}

impl Partition {
    /// How a key stands for a task to which a result of this age, in milliseconds, will do; 0: of any age.
    pub(crate) fn memo_standing(&self, key: &Key, age_max_ms: u32, arena: &Arena, now_us: u64) -> Standing {
        let Some(holder) = self.unique_holder(&unique_key(key), arena) else { return Standing::Free };
        let task = &self.tasks[holder];
        if !task.state.is_final() {
            return Standing::Busy;
        }
        let (_, made_us) = self.maker(holder);
        let is_young = age_max_ms == 0 || now_us.saturating_sub(made_us) <= u64::from(age_max_ms) * 1_000;
        if task.state == State::Succeeded && is_young {
            Standing::Known(arena.get(task.blob).len())
        } else {
            Standing::Free
        }
    }

    /// The task that ran for a task's outcome, and when it came to it.
    fn maker(&self, slot: Slot) -> (TaskId, u64) {
        let task = &self.tasks[slot];
        match self.extras.get(task.extra) {
            Some(extra) if extra.memo_us != 0 => (extra.memo_of, extra.memo_us),
            _ => (task.id, task.at_us),
        }
    }

    /// The key of a memoised task.
    fn memo_key(&self, slot: Slot, arena: &Arena) -> Option<Key> {
        let unique = self.extras.get(self.tasks[slot].extra)?.unique;
        if unique == Handle::NONE { None } else { key_in(arena.get(unique)) }
    }

    /// Whether a task is memoised.
    pub(crate) fn is_memoised(&self, slot: Slot, arena: &Arena) -> bool {
        self.memo_key(slot, arena).is_some()
    }

    /// The task that a memoised one follows.
    pub(crate) fn followed(&self, slot: Slot, arena: &Arena) -> Option<Slot> {
        let key = self.memo_key(slot, arena)?;
        self.unique_holder(&unique_key(&key), arena).filter(|&holder| holder != slot)
    }

    /// A new memoised task, which is waiting and on no list, runs or follows.
    pub(crate) fn enter_memoised(&mut self, slot: Slot, key: &Key, age_max_ms: u32, cx: &mut Cx<'_>) {
        match self.memo_standing(key, age_max_ms, cx.arena, cx.time_us) {
            Standing::Free => self.run_memoised(slot, cx),
            Standing::Busy => self.follow_holder(slot, key),
            Standing::Known(_) => {
                self.follow_holder(slot, key);
                self.followers.due.insert(*key);
            }
        }
    }

    /// A new memoised task, which is waiting and on no list, ends with a result from outside.
    pub(crate) fn enter_known(
        &mut self,
        slot: Slot,
        key: &Key,
        of: TaskId,
        made_us: u64,
        result: &[u8],
        cx: &mut Cx<'_>,
    ) {
        if self.memo_standing(key, 0, cx.arena, cx.time_us) == Standing::Free {
            self.hold_unique(slot, cx.arena);
        }
        self.end_by(slot, of, made_us, End::Result(store(cx.arena, result)), cx);
    }

    fn run_memoised(&mut self, slot: Slot, cx: &mut Cx<'_>) {
        self.hold_unique(slot, cx.arena);
        self.enter_ready(slot, cx);
    }

    fn follow_holder(&mut self, slot: Slot, key: &Key) {
        let task = &self.tasks[slot];
        self.followers.count += 1;
        self.followers.by_key.entry(*key).or_default().insert((task.at_us, task.id, slot));
    }

    /// A waiting task is taken off whatever it waits for.
    pub(crate) fn unfollow(&mut self, slot: Slot, arena: &Arena) {
        if self.followers.count == 0 {
            return;
        }
        let Some(key) = self.memo_key(slot, arena) else { return };
        let Some(crowd) = self.followers.by_key.get_mut(&key) else { return };
        let task = &self.tasks[slot];
        self.followers.count -= usize::from(crowd.remove(&(task.at_us, task.id, slot)));
        if crowd.is_empty() {
            self.followers.by_key.remove(&key);
            self.followers.due.remove(&key);
        }
    }

    /// A task with a unique key became final.
    pub(crate) fn unique_ended(&mut self, slot: Slot, cx: &mut Cx<'_>) {
        let Some(key) = self.memo_key(slot, cx.arena) else { return };
        let task = &self.tasks[slot];
        let (id, at_us, blob, is_own) = (task.id, task.at_us, task.blob, self.extras[task.extra].memo_us == 0);
        let succeeded = task.state == State::Succeeded;
        if succeeded && is_own && self.is_leading() {
            cx.findings.put(key, id, at_us, cx.arena.get(blob));
        }
        if self.followers.by_key.contains_key(&key) && self.followed(slot, cx.arena).is_none() {
            if self.tasks[slot].state.answers_for_others() {
                self.followers.due.insert(key);
            } else {
                self.promote(&key, cx);
            }
        }
    }

    /// A final task is about to be forgotten, and its unique key free.
    pub(crate) fn unique_forgotten(&mut self, slot: Slot, cx: &mut Cx<'_>) {
        if self.followers.count == 0 || self.followed(slot, cx.arena).is_some() {
            return;
        }
        if let Some(key) = self.memo_key(slot, cx.arena) {
            self.promote(&key, cx);
        }
    }

    /// The follower that came first takes the key and runs; the others follow it.
    fn promote(&mut self, key: &Key, cx: &mut Cx<'_>) {
        self.followers.due.remove(key);
        let first = self.followers.by_key.get(key).and_then(|crowd| crowd.first().copied());
        let Some((_, _, slot)) = first else { return };
        crate::snapshot::touch(self, slot, cx.arena);
        self.unfollow(slot, cx.arena);
        self.run_memoised(slot, cx);
    }

    /// Ends followers of holders that ran to their end, as many as one command may.
    pub(crate) fn end_followers(&mut self, cx: &mut Cx<'_>) {
        let (mut ended, mut copied) = (0, 0);
        while let Some(key) = self.followers.due.first().copied() {
            let Some(holder) = self.unique_holder(&unique_key(&key), cx.arena) else {
                self.promote(&key, cx);
                continue;
            };
            let holder_task = &self.tasks[holder];
            if !holder_task.state.answers_for_others() {
                // It was taken over by a task that wanted a younger result, or was retried by hand: that one is followed.
                self.followers.due.remove(&key);
                continue;
            }
            let (blob, (of, made_us)) = (holder_task.blob, self.maker(holder));
            let error = (holder_task.state == State::Failed).then(|| self.shared_error(holder, cx.arena));
            let mut last = None;
            while let Some((_, _, slot)) = self.followers.by_key.get(&key).and_then(|crowd| crowd.first().copied()) {
                if copied > COPIED_PER_COMMAND_MAX && last.is_some() {
                    self.promote(&key, cx);
                    break;
                }
                if ended == FOLLOWERS_PER_COMMAND_MAX || copied > COPIED_PER_COMMAND_MAX {
                    if let Some(last) = last {
                        self.hold_unique(last, cx.arena);
                    }
                    return;
                }
                crate::snapshot::touch(self, slot, cx.arena);
                self.unfollow(slot, cx.arena);
                let blob = match &error {
                    Some(error) => store(cx.arena, error),
                    None if blob == Handle::NONE => blob,
                    None => copy(cx.arena, blob),
                };
                copied += cx.arena.get(blob).len();
                ended += 1;
                let end = if error.is_some() { End::Error(blob) } else { End::Result(blob) };
                self.end_by(slot, of, made_us, end, cx);
                last = Some(slot);
            }
        }
    }

    /// A failed task's error as its followers have it: without the log, which is of its own run.
    fn shared_error(&self, slot: Slot, arena: &Arena) -> Vec<u8> {
        let error = self.extras[self.tasks[slot].extra].error;
        let (code, message, _) = unpack_error(arena.get(error));
        pack_error(code, message, b"")
    }

    /// A waiting task ends as another did.
    fn end_by(&mut self, slot: Slot, of: TaskId, made_us: u64, end: End, cx: &mut Cx<'_>) {
        let extra = self.extra_mut(slot);
        (extra.memo_of, extra.memo_us) = (of, made_us.max(1));
        cx.findings.ended += 1;
        match end {
            End::Result(result) => self.finish(slot, State::Succeeded, result, cx),
            End::Error(error) => {
                cx.arena.free(core::mem::replace(&mut extra.error, error));
                self.finish(slot, State::Failed, Handle::NONE, cx);
            }
        }
    }

    /// A final task that is retried follows another instead, where one runs for its key already.
    pub(crate) fn follow_again(&mut self, slot: Slot, arena: &Arena, now_us: u64) -> bool {
        let Some(holder) = self.followed(slot, arena) else { return false };
        if self.tasks[holder].state.is_final() {
            return false;
        }
        let key = self.memo_key(slot, arena).expect("it follows by its key");
        self.set_state(slot, State::Waiting);
        self.tasks[slot].at_us = now_us;
        self.follow_holder(slot, &key);
        true
    }

    /// After a restore: waiting tasks with a memo key that another holds follow it.
    pub(crate) fn restore_follower(&mut self, slot: Slot, arena: &Arena) {
        let Some(key) = self.memo_key(slot, arena) else { return };
        self.follow_holder(slot, &key);
        let holder = self.followed(slot, arena);
        if holder.is_some_and(|holder| self.tasks[holder].state.answers_for_others()) {
            self.followers.due.insert(key);
        }
    }

    /// Which task's outcome a final task has, and of when, if it did not run itself.
    pub(crate) fn memo_of(&self, slot: Slot) -> Option<(TaskId, u64)> {
        let extra = self.extras.get(self.tasks[slot].extra).filter(|extra| extra.memo_us != 0)?;
        Some((extra.memo_of, extra.memo_us))
    }
}
