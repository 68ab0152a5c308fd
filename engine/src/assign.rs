//! Assign: matches ready tasks with workers that have credit, and pushes leases. Volatile.
//!
//! Within a queue the highest priority with a task that fits goes first; lanes of one priority take turns or go by what was
//! learned ([`crate::order`]), and workers take turns. Queue limits (rate, concurrency) bound every step.

mod apart;
mod contest;
mod reserved;

use std::collections::VecDeque;

use taskmaster_protocol::body::{self, Assign, AssignRow, AssignSpec};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Operation, PartitionId};

use crate::arena::Arena;
use crate::dispatch::{Dispatch, LaneRef, PRIORITIES};
use crate::effects::Effects;
use crate::entry::Start;
use crate::order::deadline::{Ends, Turn};
use crate::order::{By, LINE_MAX, Learned, Order};
use crate::partition::{ClassList, Partition, Pick};
use crate::permits;
use crate::reservations::Asks;
use crate::resources::Resources;
use crate::shares::Candidate;
use crate::state::State;
use crate::task::Slot;
use crate::timer::{Timer, TimerKind, Timers};
use crate::versions::History;
use crate::wishes::Wishes;
use crate::workflow::ByPaths;
use apart::{Chosen, Held};

/// Most rows and payload bytes of one assign frame.
const ROWS_MAX: u32 = 1_024;
const BYTES_MAX: usize = 4 << 20;
/// Most lanes that are looked at for one frame.
const LOOK_MAX: usize = 64;
/// Workers with at least this much credit take what there is; others share it.
const BULK_CREDIT: u32 = 64;

/// Buffers reused from frame to frame.
#[derive(Default)]
pub(crate) struct Scratch {
    body: Assign,
    contracts: Vec<u32>,
    /// Turns of lanes in line, with their place there and the list meant.
    turns: Vec<(Turn, usize, u32)>,
    /// First tasks of lists that have waited for too long: since when they are ready, then as above.
    overdue: Vec<(u64, usize, u32)>,
    /// Tasks that are held in this frame.
    held: Vec<Held>,
    /// What begins goes by age.
    by_age: bool,
    /// Attempts of restartable tasks that the present frame begins.
    restartable: u64,
    /// Some began since this was last looked at.
    pub(crate) has_restartable: bool,
    /// Attempts that began and are to be told, with their partitions.
    pub(crate) starts: Vec<(PartitionId, Start)>,
}

/// What assignment reads and changes.
pub(crate) struct Assigner<'a> {
    pub(crate) partitions: &'a mut [Option<Box<Partition>>],
    pub(crate) dispatch: &'a mut Dispatch,
    pub(crate) arena: &'a Arena,
    pub(crate) timers: &'a mut Timers,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) effects: &'a mut Effects,
    pub(crate) now_us: u64,
    /// Whether it is told that attempts begin.
    pub(crate) tells_starts: bool,
    /// Leases given in this call.
    pub(crate) assigned: u64,
}

impl Assigner<'_> {
    /// Serves every queue where something changed.
    pub(crate) fn run(&mut self) {
        while let Some(queue) = self.dispatch.next_dirty().or_else(|| self.run_contest()) {
            let own_first = self.dispatch.queues[queue as usize].permits.own_first;
            if !own_first {
                self.grant(queue);
            }
            if self.dispatch.shares.is_shared(queue) {
                self.dispatch.shares.contest.push(Candidate::new(queue, own_first));
                continue;
            }
            while self.dispatch.queues[queue as usize].with_credit > 0 {
                let permits = self.permits(queue);
                if permits == 0 || !self.assign_one_frame(queue, permits) {
                    break;
                }
            }
            self.was_served(queue, own_first);
        }
    }

    /// A queue has started what it could.
    fn was_served(&mut self, queue: u32, own_first: bool) {
        if own_first {
            self.grant(queue);
        }
        self.tell_owner(queue);
    }

    /// As owner of a queue's limits: answers shards that ask for permits, a fair share at a time.
    fn grant(&mut self, queue: u32) {
        let entry = &mut self.dispatch.queues[queue as usize];
        for (shard, note) in entry.permits.ask_quiet(self.now_us) {
            permits::encode(&entry.note(note), self.effects.peer(shard));
        }
        for _ in 0..self.dispatch.queues[queue as usize].permits.asking() {
            let available = self.permits(queue);
            let entry = &mut self.dispatch.queues[queue as usize];
            if !entry.permits.is_owner {
                return;
            }
            let own = u32::from(entry.with_credit > 0 && entry.waits());
            let sharers = entry.permits.asking() + own;
            let Some((shard, wanted)) = entry.permits.next_asking() else { return };
            let count = wanted.min(available.div_ceil(sharers));
            if count == 0 {
                return;
            }
            if let Some(bucket) = &mut entry.bucket {
                bucket.take(count);
            }
            entry.permits.own_first = true;
            let note = entry.permits.lend(shard, count);
            permits::encode(&entry.note(note), self.effects.peer(shard));
        }
    }

    /// As another shard: says to the owner how things stand, if there are limits.
    fn tell_owner(&mut self, queue: u32) {
        let now_us = self.now_us;
        let entry = &self.dispatch.queues[queue as usize];
        if entry.permits.is_owner || !entry.is_limited() {
            return;
        }
        let wanted = self.startable(queue);
        let entry = &mut self.dispatch.queues[queue as usize];
        let Some((owner, _)) = entry.permits.owner() else { return };
        if let Some(note) = entry.permits.need(entry.leased, wanted, now_us) {
            permits::encode(&entry.note(note), self.effects.peer(owner));
        }
    }

    /// How many tasks of a queue with limits could start if the limits let them. Permits that no worker here has room to
    /// use are better used by another shard.
    fn startable(&self, queue: u32) -> u32 {
        let entry = &self.dispatch.queues[queue as usize];
        if entry.with_credit == 0 || !entry.is_limited() {
            return 0;
        }
        let mut count = 0;
        for lane in entry.rings.iter().flatten() {
            let Some(partition) = self.partitions[usize::from(lane.partition)].as_deref() else { continue };
            let ready = &partition.lanes[lane.lane as usize];
            let asks = Asks { queue, priority: ready.priority, lane: *lane };
            let has_room = |&index: &u32| {
                let worker = &self.dispatch.workers[index as usize];
                ready.sets().any(|need| worker.has_room(need)) && !self.dispatch.keeps_from(index, &asks)
            };
            if partition.may_start(ready) && entry.workers.iter().any(has_room) {
                count = ROWS_MAX.min(count + ready.len);
            }
        }
        count
    }

    /// How many tasks the queue's limits let start.
    pub(crate) fn permits(&mut self, queue: u32) -> u32 {
        let now_us = self.now_us;
        let entry = &mut self.dispatch.queues[queue as usize];
        let mut permits = ROWS_MAX;
        if !entry.is_limited() {
            return permits;
        }
        if !entry.permits.is_owner {
            return permits.min(entry.permits.held);
        }
        if now_us < entry.permits.settles_us {
            if !entry.bucket_armed {
                entry.bucket_armed = true;
                let timer = Timer::of_index(PartitionId(0), TimerKind::Bucket, queue);
                self.timers.insert(entry.permits.settles_us, timer);
            }
            return 0;
        }
        let waits = entry.waits() || entry.permits.asking() > 0;
        if let Some(limit) = entry.concurrency {
            let free = limit.saturating_sub(entry.leased + entry.permits.lent()).min(u64::from(permits));
            permits = u32::try_from(free).expect("bounded by a u32");
        }
        if let Some(bucket) = &mut entry.bucket {
            permits = permits.min(bucket.available(now_us));
            if permits == 0 && waits && !entry.bucket_armed {
                entry.bucket_armed = true;
                let timer = Timer::of_index(PartitionId(0), TimerKind::Bucket, queue);
                self.timers.insert(bucket.next_us().max(now_us + 1), timer);
            }
        }
        permits
    }

    /// Whether a frame was sent.
    fn assign_one_frame(&mut self, queue: u32, permits: u32) -> bool {
        let is_sent = self.assign_next(queue, permits);
        // All lanes are in line again.
        let order = &mut self.dispatch.queues[queue as usize].order;
        if is_sent && order.is_full() {
            self.judge(queue);
        } else if is_sent && order.is_line_due(self.now_us) {
            self.judge_line(queue);
        }
        is_sent
    }

    fn assign_next(&mut self, queue: u32, permits: u32) -> bool {
        self.scratch.held.clear();
        let by = self.dispatch.queues[queue as usize].order.by();
        for priority in 0..PRIORITIES {
            if self.dispatch.queues[queue as usize].reserved > 0 && self.assign_reserved(queue, priority, permits, by) {
                return true;
            }
            if by != By::Turns && !self.dispatch.queues[queue as usize].rings[priority].is_empty() {
                if self.assign_in_order(queue, priority, permits, by) {
                    return true;
                }
                continue;
            }
            for _ in 0..self.dispatch.queues[queue as usize].rings[priority].len() {
                let entry = &mut self.dispatch.queues[queue as usize];
                let Some(lane) = entry.rings[priority].pop_front() else { break };
                if !stays_in_line(self.partitions, lane) {
                    continue;
                }
                let sent = self.assign_oldest(queue, lane, permits);
                self.dispatch.queues[queue as usize].rings[priority].push_back(lane);
                if sent {
                    return true;
                }
            }
        }
        !self.scratch.held.is_empty() && self.assign_held(queue, permits)
    }

    /// Like [`Self::assign_one_frame`] for one priority, by what was learned or by deadline: the list whose turn is the first of those
    /// that fit, or the one with the oldest task when that has waited for too long.
    fn assign_in_order(&mut self, queue: u32, priority: usize, permits: u32, by: By) -> bool {
        let now_us = self.now_us;
        let entry = &mut self.dispatch.queues[queue as usize];
        let may_age = entry.order.may_age(entry.leased);
        let looks_for_oldest = may_age > 0 && entry.order.looks_for_oldest(priority, now_us);
        self.take_turns(queue, priority, by, looks_for_oldest);
        if looks_for_oldest && self.assign_overdue(queue, priority, permits.min(may_age), by) {
            return true;
        }
        loop {
            let turns = &mut self.scratch.turns;
            let first = (0..turns.len()).min_by_key(|&place| (turns[place].0, place));
            let Some((_, at, list)) = first.map(|first| turns.swap_remove(first)) else { return false };
            let lane = self.dispatch.queues[queue as usize].rings[priority][at];
            let pick = match by {
                By::Deadline => {
                    let until = turns.iter().map(|(turn, ..)| *turn).min().unwrap_or(Turn::LAST);
                    Pick::Deadline { list, ends: self.ends(lane, list), until }
                }
                By::Rank | By::Turns => Pick::List { list, until_us: u64::MAX },
            };
            if self.assign_lane(queue, lane, pick, permits) {
                self.send_back(queue, priority, at);
                return true;
            }
        }
    }

    /// Lets tasks start that have waited for too long, of the oldest that fits and those behind it: whether some did.
    fn assign_overdue(&mut self, queue: u32, priority: usize, permits: u32, by: By) -> bool {
        let mut overdue = core::mem::take(&mut self.scratch.overdue);
        overdue.sort_unstable();
        self.scratch.by_age = true;
        let order = &self.dispatch.queues[queue as usize].order;
        let until_us = if by == By::Deadline { order.aged_us(self.now_us) } else { u64::MAX };
        let went = overdue.iter().find(|&&(_, at, list)| {
            let lane = self.dispatch.queues[queue as usize].rings[priority][at];
            self.assign_lane(queue, lane, Pick::List { list, until_us }, permits)
        });
        if let Some(&(_, at, _)) = went {
            self.send_back(queue, priority, at);
        }
        let went = went.is_some();
        self.scratch.by_age = false;
        self.dispatch.queues[queue as usize].order.oldest_went(priority, !overdue.is_empty(), went);
        self.scratch.overdue = overdue;
        went
    }

    /// A lane in line goes to its end.
    fn send_back(&mut self, queue: u32, priority: usize, at: usize) {
        let ring = &mut self.dispatch.queues[queue as usize].rings[priority];
        let lane = ring.remove(at);
        ring.extend(lane);
    }

    /// Notes whose turn it is in each list of the lanes in line, and, if they are looked for, the first tasks that have waited for too long:
    /// since when they are ready, their lane's place in line, and their list.
    fn take_turns(&mut self, queue: u32, priority: usize, by: By, looks: bool) {
        let (now_us, mut at) = (self.now_us, 0);
        let entry = &mut self.dispatch.queues[queue as usize];
        let (gives_up, aged_us) = (entry.order.gives_up(), entry.order.aged_us(now_us));
        self.scratch.turns.clear();
        self.scratch.overdue.clear();
        // Of a long line a part that changes from frame to frame is looked at.
        let count = entry.rings[priority].len();
        if count > LOOK_MAX {
            entry.rings[priority].rotate_left(1);
        }
        while at < entry.rings[priority].len().min(LOOK_MAX) {
            let lane = entry.rings[priority][at];
            if !stays_in_line(self.partitions, lane) {
                entry.rings[priority].remove(at);
                continue;
            }
            let partition = self.partitions[usize::from(lane.partition)].as_deref().expect("it is in line");
            let lists = &partition.lanes[lane.lane as usize].lists;
            for (list, of) in (0u32..).zip(lists).filter(|(_, of)| of.list.len > 0) {
                let turn = turn_of(&mut self.dispatch.learned, partition, of, (by, gives_up), now_us);
                self.scratch.turns.push((turn, at, list));
                if looks {
                    let ready_us = partition.tasks[of.list.head].at_us;
                    if ready_us <= aged_us {
                        self.scratch.overdue.push((ready_us, at, list));
                    }
                }
            }
            at += 1;
        }
    }

    /// When tasks of a lane's list end that start now.
    fn ends(&mut self, lane: LaneRef, list: u32) -> Ends {
        let partition = self.partitions[usize::from(lane.partition)].as_deref().expect("it is in line");
        let class = partition.lanes[lane.lane as usize].lists[list as usize].class;
        self.dispatch.learned.ends(class, self.now_us)
    }

    /// Replays what a queue served.
    fn judge(&mut self, queue: u32) {
        let entry = &mut self.dispatch.queues[queue as usize];
        let lists = waiting_lists(self.partitions, &entry.rings);
        let waiting = lists.clone().map(|(_, of)| of.list.len as usize).sum();
        let places = usize::try_from(entry.leased).unwrap_or(usize::MAX);
        let classes = lists.map(|(_, of)| of.class);
        entry.order.judge(&self.dispatch.learned, (places, waiting), classes, self.now_us);
    }

    /// Plays what waits in a queue, of each list a part.
    fn judge_line(&mut self, queue: u32) {
        let entry = &mut self.dispatch.queues[queue as usize];
        let lists = waiting_lists(self.partitions, &entry.rings);
        let waiting: usize = lists.clone().map(|(_, of)| of.list.len as usize).sum();
        let line = lists.flat_map(|(partition, of)| {
            let part = (of.list.len as usize * LINE_MAX).div_ceil(waiting);
            of.list.iter(&partition.tasks).take(part).map(|slot| (of.class, partition.tasks[slot].at_us))
        });
        let line: Vec<(u32, u64)> = line.take(2 * LINE_MAX).collect();
        let places = usize::try_from(entry.leased).unwrap_or(usize::MAX);
        entry.order.judge_line(&self.dispatch.learned, (places, waiting), &line, self.now_us);
    }

    /// Lets tasks of a lane start.
    fn assign_lane(&mut self, queue: u32, lane: LaneRef, pick: Pick, permits: u32) -> bool {
        let partition = self.partitions[usize::from(lane.partition)].as_deref().expect("checked by the caller");
        let ready = &partition.lanes[lane.lane as usize];
        let (class, len) = match pick {
            Pick::Oldest => (None, ready.len),
            Pick::List { list, .. } | Pick::Deadline { list, .. } => {
                let of = &ready.lists[list as usize];
                (Some(of.class), of.list.len)
            }
        };
        let chosen = self.choose(queue, lane, pick, class, len);
        chosen.is_some_and(|chosen| self.start(queue, lane, pick, &chosen, permits.min(len)))
    }

    /// Lets up to so many tasks of a lane start on a worker.
    fn start(&mut self, queue: u32, lane: LaneRef, pick: Pick, chosen: &Chosen, permits: u32) -> bool {
        let partition = self.partitions[usize::from(lane.partition)].as_deref_mut().expect("checked by the caller");
        let ready = &partition.lanes[lane.lane as usize];
        let (worker, count) = (chosen.worker, chosen.count.min(permits));
        let (conn, set) = (self.dispatch.workers[worker as usize].conn, chosen.set);
        let need = ready.wishes.set(&ready.resources, set).clone();
        let priority = ready.priority;
        let entry = &mut self.dispatch.queues[queue as usize];
        // Of a measured kind this one was chosen for its worker.
        let within = entry.goes_by_paths().filter(|_| chosen.place.is_none() && !self.scratch.by_age);
        let (leased, order) = (entry.leased, &mut entry.order);
        let aged_us = order.aged_us(self.now_us);
        let is_watching = order.is_watching(&mut self.dispatch.learned, self.now_us);
        let mut watching = is_watching.then_some((order, leased));
        let (learned, now_us) = (&self.dispatch.learned, self.now_us);
        let paths = within.map(|within| ByPaths { within, learned, aged_us, now_us });
        let source = Source { lane: lane.lane, pick, set, paths };
        let taken =
            fill(partition, self.arena, self.scratch, source, worker, count, self.now_us, self.timers, &mut watching);
        if taken == 0 {
            return false;
        }
        self.dispatch.take_credit(queue, worker, taken, &need);
        if self.dispatch.workers[worker as usize].reserved.is_some() {
            let asks = Asks { queue, priority, lane };
            self.dispatch.begins_on_reserved(worker, &asks, (&need, taken), chosen.spare, self.now_us);
        }
        if let Some((kind, place)) = chosen.place {
            self.dispatch.begins_at(queue, kind, place, self.now_us);
        }
        let entry = &mut self.dispatch.queues[queue as usize];
        entry.leases_begin(taken);
        if self.scratch.by_age {
            entry.order.aged_begin(taken);
        }
        self.assigned += u64::from(taken);
        if self.scratch.restartable > 0 {
            self.scratch.has_restartable = true;
            self.dispatch.restarts.attempts_begin(self.scratch.restartable, self.now_us);
        }
        if self.tells_starts {
            let of = |row: &AssignRow| Start { id: row.id, locator: row.locator, attempt: row.attempt };
            self.scratch.starts.extend(self.scratch.body.rows.iter().map(|row| (partition.id, of(row))));
        }
        let header = Header::request(Operation::Assign, 0, Some(partition.id));
        frame::encode(self.effects.buffer(conn), header, &self.scratch.body);
        true
    }
}

/// The lists of lanes in line that have tasks, with their partitions.
fn waiting_lists<'a>(
    partitions: &'a [Option<Box<Partition>>],
    rings: &'a [VecDeque<LaneRef>; PRIORITIES],
) -> impl Iterator<Item = (&'a Partition, &'a ClassList)> + Clone {
    let lists = rings.iter().flatten().filter_map(|lane| {
        let partition = partitions[usize::from(lane.partition)].as_deref()?;
        Some(partition.lanes[lane.lane as usize].lists.iter().map(move |of| (partition, of)))
    });
    lists.flatten().filter(|(_, of)| of.list.len > 0)
}

/// Whether a lane has tasks that may start; if not, its partition is told that it leaves the line.
fn stays_in_line(partitions: &mut [Option<Box<Partition>>], lane: LaneRef) -> bool {
    let Some(partition) = partitions[usize::from(lane.partition)].as_deref_mut() else { return false };
    let stays = partition.may_start(&partition.lanes[lane.lane as usize]);
    if !stays {
        partition.lane_left(lane.lane);
    }
    stays
}

/// Whose turn it is in a list that is not empty; `by` with whether tasks are given up.
pub(crate) fn turn_of(
    learned: &mut Learned,
    partition: &Partition,
    of: &ClassList,
    (by, gives_up): (By, bool),
    now_us: u64,
) -> Turn {
    match by {
        By::Deadline => {
            let ends = learned.ends(of.class, now_us);
            of.next_by_deadline(ends, &partition.tasks).map_or(Turn::LAST, |(turn, _)| turn)
        }
        By::Rank | By::Turns => Turn::by_rank(learned.rank(of.class, now_us, gives_up)),
    }
}

/// A worker with credit and room.
enum Found {
    /// And how many tasks it may take.
    Worker(u32, u32),
    /// All that there are, are kept for somebody.
    Reserved,
    None,
}

/// How many tasks a worker may take with this credit, of so many that wait, while so many workers have credit.
fn share_of(credit: u32, ready: u32, with_credit: u32) -> u32 {
    if credit >= BULK_CREDIT { credit } else { credit.min(ready.div_ceil(with_credit.max(1))) }
}

/// The worker whose turn it is among those with credit and room that are not kept for others; of those with the most labels that
/// tasks prefer.
fn choose(dispatch: &mut Dispatch, queue: u32, ready: u32, need: &Resources, wishes: &Wishes) -> Found {
    let entry = &dispatch.queues[queue as usize];
    let count = entry.workers.len();
    let (mut is_kept, mut best) = (false, None::<(usize, usize, u32, u32)>);
    for step in 0..count {
        let position = (entry.cursor + step) % count;
        let index = entry.workers[position];
        let worker = &dispatch.workers[index as usize];
        if worker.credit == 0 {
            continue;
        }
        let take = share_of(worker.credit, ready, entry.with_credit);
        let fits = need.fits_on(worker.capacity.as_ref(), &worker.used, take);
        if fits > 0 && worker.reserved.is_some() {
            is_kept = true;
        } else if fits > 0 {
            let labels = wishes.labels_of(worker.capacity.as_ref());
            if best.is_none_or(|(most, ..)| labels > most) {
                best = Some((labels, position, index, fits));
            }
            if labels == wishes.labels.len() {
                break;
            }
        }
    }
    match best {
        Some((_, position, index, fits)) => {
            dispatch.queues[queue as usize].cursor = (position + 1) % count;
            Found::Worker(index, fits)
        }
        None if is_kept => Found::Reserved,
        None => Found::None,
    }
}

/// Which tasks start.
struct Source<'a> {
    lane: u32,
    pick: Pick,
    /// With which of their resources ([`crate::wishes::Wishes::set`]).
    set: u8,
    /// Where tasks of a workflow take each other's turns.
    paths: Option<ByPaths<'a>>,
}

/// Leases up to `count` tasks of a lane and describes them in the scratch body. Returns how many.
#[expect(clippy::too_many_arguments, reason = "the parts of the shard that leasing touches")]
fn fill(
    partition: &mut Partition,
    arena: &Arena,
    scratch: &mut Scratch,
    Source { lane, pick, set, paths }: Source<'_>,
    worker: u32,
    count: u32,
    now_us: u64,
    timers: &mut Timers,
    watching: &mut Option<(&mut Order, u64)>,
) -> u32 {
    let body = &mut scratch.body;
    body.rows.clear();
    body.specs.clear();
    body.bytes.clear();
    scratch.contracts.clear();
    scratch.restartable = 0;
    let mut taken = 0;
    while taken < count && body.bytes.len() < BYTES_MAX {
        let next = partition.take_next(lane, pick, paths);
        let Some((slot, class)) = next else { break };
        let ready_us = partition.tasks[slot].at_us;
        partition.set_state(slot, State::Leased);
        partition.runs_with(slot, set);
        if scratch.by_age {
            partition.went_by_age(slot, ready_us);
        }
        let token = partition.next_token();
        let task = &mut partition.tasks[slot];
        let ready_number = core::mem::replace(&mut task.token, token);
        task.worker = worker;
        let contract = &partition.contracts[task.contract];
        let list = contract.lease_list;
        task.at_us = now_us + u64::from(partition.lease_lists[list as usize].lease_ms) * 1_000;
        let (id, attempt, blob) = (task.id, task.attempt(), task.blob);
        let (mut version, mut deadline_us) = (0, 0);
        if let Some(extra) = partition.extras.get_mut(task.extra) {
            (extra.started_us, deadline_us) = (now_us, extra.deadline_us);
            version = partition.versions.get(extra.history).map_or(0, History::head);
        }
        let (number, restartable) = (task.contract, contract.restartable);
        let spec = match scratch.contracts.iter().position(|&known| known == number) {
            Some(position) => position,
            None => {
                put_spec(partition, number, set, body);
                scratch.contracts.push(number);
                scratch.contracts.len() - 1
            }
        };
        partition.lease_lists[list as usize].list.push_back(&mut partition.tasks, slot);
        partition.arm_lease_list(list, timers);
        let mut is_again = false;
        if restartable {
            is_again = partition.attempt_begins(slot, (ready_us, ready_number), now_us);
            scratch.restartable += 1;
        }
        body.rows.push(AssignRow {
            id,
            token,
            ready_us,
            payload: body::put(&mut body.bytes, arena.get(blob)),
            locator: slot,
            spec: u32::try_from(spec).expect("no more specs than rows"),
            attempt,
            version,
        });
        taken += 1;
        // One that was given up before was noted then.
        if let Some((order, leased)) = watching.as_mut().filter(|_| !is_again) {
            let lease = (partition.id, token);
            order.note(lease, [ready_us, now_us, deadline_us], class, *leased + u64::from(taken));
        }
    }
    taken
}

/// Adds a contract to a body, of which tasks run with these resources.
fn put_spec(partition: &Partition, contract: u32, set: u8, body: &mut Assign) {
    let contract = &partition.contracts[contract];
    let queue = &partition.queues[contract.queue as usize];
    let need = contract.wishes.set(&contract.resources, set);
    body.specs.push(AssignSpec {
        memory_bytes: need.memory_bytes,
        cpu_milli: u32::try_from(need.cpu_milli).unwrap_or(u32::MAX),
        gpu_milli: u32::try_from(need.gpu_milli).unwrap_or(u32::MAX),
        queue: body::put(&mut body.bytes, queue.name.as_bytes()),
        kind: body::put(&mut body.bytes, contract.kind.as_bytes()),
        custom: body::put(&mut body.bytes, need.custom_pairs().as_bytes()),
        lease_ms: contract.lease_ms,
        attempts_max: u32::from(contract.retry.attempts_max),
    });
}

/// Describes one more lease on a task, under `token` and with this set of its resources; the task has been ready since `ready_us`.
pub(crate) fn describe(
    partition: &Partition,
    arena: &Arena,
    slot: Slot,
    (token, set, ready_us): (u64, u8, u64),
    body: &mut Assign,
) {
    let task = &partition.tasks[slot];
    put_spec(partition, task.contract, set, body);
    let history = partition.extras.get(task.extra).and_then(|extra| partition.versions.get(extra.history));
    body.rows.push(AssignRow {
        id: task.id,
        token,
        ready_us,
        payload: body::put(&mut body.bytes, arena.get(task.blob)),
        locator: slot,
        spec: 0,
        attempt: task.attempt(),
        version: history.map_or(0, History::head),
    });
}
