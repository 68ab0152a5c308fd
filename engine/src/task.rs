//! The task record and its slab, with the intrusive lists that order tasks.
//!
//! Invariants:
//! - A task occupies 64 bytes (one cache line) in a chunked slab; a slot number stays valid until the task is evicted.
//! - A task is on at most one list at a time, so one pair of links suffices: a lane (ready), a key's queue (ready but
//!   blocked), a lease list (leased) or a retention list (final).
//! - What few tasks need (deadline, keys, workflow, error) is in [`crate::extra::Extra`].

use taskmaster_protocol::TaskId;

use crate::State;
use crate::arena::Handle;

/// Slot number of a task within its partition.
pub(crate) type Slot = u32;
/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// Bits of [`Task::flags`].
pub(crate) mod flag {
    /// Somebody awaits this task's outcome.
    pub(crate) const AWAITED: u8 = 1;
    /// Ready, but its concurrency key is at its limit.
    pub(crate) const BLOCKED: u8 = 2;
    /// The present lease's expiry has been proposed to the log and not been applied yet.
    pub(crate) const EXPIRING: u8 = 4;
    /// The deadline passed in a queue that only flags.
    pub(crate) const LATE: u8 = 8;
    /// Already written to the snapshot in progress, or younger than it (parity of the snapshot's number).
    pub(crate) const SNAPSHOT_PARITY: u8 = 16;
    /// An outcome of the present lease is on its way to the log: the lease cannot be given back any more.
    pub(crate) const SETTLING: u8 = 64;
    /// Holds a place of its concurrency key.
    pub(crate) const KEY_HELD: u8 = 32;
    /// Restartable, and something is known of its attempts beside this record ([`crate::partition`]).
    pub(crate) const WATCHED: u8 = 128;
}

/// One task.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) id: TaskId,
    /// Ready: since when; leased: lease expiry; delayed: due; final: when it became so. Microseconds since 1970.
    pub(crate) at_us: u64,
    /// Ready: its number in the order of readiness; leased: the fencing token, term (24 bits) and counter (40 bits); final: its
    /// number in order of retention.
    pub(crate) token: u64,
    /// Payload; of a succeeded task, its result.
    pub(crate) blob: Handle,
    /// Index of its `Extra`, or [`NONE`].
    pub(crate) extra: u32,
    /// Index of its contract.
    pub(crate) contract: u32,
    pub(crate) next: Slot,
    pub(crate) prev: Slot,
    /// Leased: the worker, as its index in the dispatcher; final: its retention list.
    pub(crate) worker: u32,
    /// Attempts that ended without success.
    pub(crate) failures: u16,
    pub(crate) state: State,
    pub(crate) flags: u8,
}

impl Task {
    /// A task that was never tried, on no list.
    pub(crate) const fn new(id: TaskId, contract: u32, extra: u32, blob: Handle, state: State, at_us: u64) -> Self {
        Self {
            id,
            at_us,
            token: 0,
            blob,
            extra,
            contract,
            next: NONE,
            prev: NONE,
            worker: 0,
            failures: 0,
            state,
            flags: 0,
        }
    }
}

const _: () = assert!(size_of::<Task>() == 64, "a task record is one cache line");

impl Task {
    /// Whether all bits of `flags` are set.
    pub(crate) const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// This attempt's number, from 1.
    pub(crate) fn attempt(&self) -> u32 {
        u32::from(self.failures) + 1
    }
}

const CHUNK_BITS: u32 = 8;
const CHUNK: usize = 1 << CHUNK_BITS;

/// A chunked slab of tasks. Growth never moves a task.
#[derive(Default)]
pub(crate) struct Tasks {
    chunks: Vec<Box<[Task; CHUNK]>>,
    /// Slots that can be used again, the latest freed first. Beside the tasks: a freed task's cache line is not read again.
    free: Vec<Slot>,
    used: u32,
    live: u32,
}

impl Tasks {
    /// Stores a task and returns its slot.
    pub(crate) fn insert(&mut self, task: Task) -> Slot {
        self.live += 1;
        if let Some(slot) = self.free.pop() {
            self[slot] = task;
            return slot;
        }
        let slot = self.used;
        assert!(slot < NONE - 1, "slots of one partition are bounded by the admission limit");
        if (slot as usize).is_multiple_of(CHUNK) {
            self.chunks.push(vacant_chunk());
        }
        self.used += 1;
        self[slot] = task;
        slot
    }

    /// Gives the slot back. The caller has taken the task off its list.
    pub(crate) fn remove(&mut self, slot: Slot) {
        self[slot].id = TaskId::default();
        self.free.push(slot);
        self.live -= 1;
    }

    /// The task at `slot` if there is one.
    pub(crate) fn get(&self, slot: Slot) -> Option<&Task> {
        let task = &self.chunks.get((slot >> CHUNK_BITS) as usize)?[slot as usize & (CHUNK - 1)];
        (task.id != TaskId::default()).then_some(task)
    }

    /// Number of tasks.
    pub(crate) const fn len(&self) -> usize {
        self.live as usize
    }

    /// Slots ever used; slots below may be free.
    pub(crate) const fn slots(&self) -> u32 {
        self.used
    }

    /// Memory held, in bytes.
    pub(crate) fn reserved_bytes(&self) -> usize {
        let free = self.free.capacity() * size_of::<Slot>();
        self.chunks.len() * CHUNK * size_of::<Task>() + self.chunks.capacity() * size_of::<Box<[Task; CHUNK]>>() + free
    }
}

#[cold]
fn vacant_chunk() -> Box<[Task; CHUNK]> {
    let vacant = Task {
        id: TaskId::default(),
        at_us: 0,
        token: 0,
        blob: Handle::NONE,
        extra: NONE,
        contract: 0,
        next: NONE,
        prev: NONE,
        worker: 0,
        failures: 0,
        state: State::Waiting,
        flags: 0,
    };
    let chunk = vec![vacant; CHUNK].into_boxed_slice();
    chunk.try_into().unwrap_or_else(|_| unreachable!("made with the chunk's length"))
}

impl core::ops::Index<Slot> for Tasks {
    type Output = Task;
    #[inline]
    fn index(&self, slot: Slot) -> &Task {
        &self.chunks[(slot >> CHUNK_BITS) as usize][slot as usize & (CHUNK - 1)]
    }
}

impl core::ops::IndexMut<Slot> for Tasks {
    #[inline]
    fn index_mut(&mut self, slot: Slot) -> &mut Task {
        &mut self.chunks[(slot >> CHUNK_BITS) as usize][slot as usize & (CHUNK - 1)]
    }
}

/// A doubly linked list through the tasks' links. Order is insertion order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    pub(crate) head: Slot,
    pub(crate) tail: Slot,
    pub(crate) len: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, len: 0 }
    }
}

impl List {
    /// Appends a task that is on no list.
    pub(crate) fn push_back(&mut self, tasks: &mut Tasks, slot: Slot) {
        let tail = self.tail;
        {
            let task = &mut tasks[slot];
            task.prev = tail;
            task.next = NONE;
        }
        if tail == NONE {
            self.head = slot;
        } else {
            tasks[tail].next = slot;
        }
        self.tail = slot;
        self.len += 1;
    }

    /// Puts a task that is on no list before all others.
    pub(crate) fn push_front(&mut self, tasks: &mut Tasks, slot: Slot) {
        let head = self.head;
        {
            let task = &mut tasks[slot];
            task.prev = NONE;
            task.next = head;
        }
        if head == NONE {
            self.tail = slot;
        } else {
            tasks[head].prev = slot;
        }
        self.head = slot;
        self.len += 1;
    }

    /// Puts a task that is on no list behind the last one whose number is no higher.
    pub(crate) fn insert_by_number(&mut self, tasks: &mut Tasks, slot: Slot) {
        self.insert_near(tasks, slot, u32::MAX);
    }

    /// The same if that place is so near to an end of the list: whether it is.
    pub(crate) fn insert_near(&mut self, tasks: &mut Tasks, slot: Slot, steps: u32) -> bool {
        let number = tasks[slot].token;
        // From both ends: it is near one of them as a rule.
        let (mut last, mut first) = (self.tail, self.head);
        let place = (0..steps).find_map(|_| {
            if last == NONE || tasks[last].token <= number {
                return Some((last, if last == NONE { self.head } else { tasks[last].next }));
            }
            if tasks[first].token > number {
                return Some((tasks[first].prev, first));
            }
            (last, first) = (tasks[last].prev, tasks[first].next);
            None
        });
        match place {
            None => return false,
            Some((_, NONE)) => self.push_back(tasks, slot),
            Some((NONE, _)) => self.push_front(tasks, slot),
            Some((before, next)) => {
                (tasks[slot].prev, tasks[slot].next) = (before, next);
                (tasks[before].next, tasks[next].prev) = (slot, slot);
                self.len += 1;
            }
        }
        true
    }

    /// The first task and another one change places, and numbers.
    pub(crate) fn change_with_first(&mut self, tasks: &mut Tasks, slot: Slot) {
        let first = self.head;
        if first == slot {
            return;
        }
        let (number, place) = (tasks[first].token, tasks[slot].token);
        self.unlink(tasks, first);
        let (before, next) = (tasks[slot].prev, tasks[slot].next);
        self.unlink(tasks, slot);
        self.push_front(tasks, slot);
        (tasks[slot].token, tasks[first].token) = (number, place);
        if next == NONE {
            return self.push_back(tasks, first);
        }
        let before = if before == NONE { slot } else { before };
        (tasks[first].prev, tasks[first].next) = (before, next);
        (tasks[before].next, tasks[next].prev) = (first, first);
        self.len += 1;
    }

    /// Takes a task of this list off it.
    pub(crate) fn unlink(&mut self, tasks: &mut Tasks, slot: Slot) {
        let (prev, next) = (tasks[slot].prev, tasks[slot].next);
        if prev == NONE {
            debug_assert_eq!(self.head, slot);
            self.head = next;
        } else {
            tasks[prev].next = next;
        }
        if next == NONE {
            self.tail = prev;
        } else {
            tasks[next].prev = prev;
        }
        self.len -= 1;
    }

    /// The first task.
    pub(crate) fn first(&self) -> Option<Slot> {
        Some(self.head).filter(|&head| head != NONE)
    }

    /// Its tasks, in order.
    pub(crate) fn iter<'a>(&self, tasks: &'a Tasks) -> impl Iterator<Item = Slot> + use<'a> {
        core::iter::successors(self.first(), |&slot| Some(tasks[slot].next).filter(|&next| next != NONE))
    }

    /// Takes the first task off the list.
    pub(crate) fn pop_front(&mut self, tasks: &mut Tasks) -> Option<Slot> {
        let head = self.head;
        if head == NONE {
            return None;
        }
        self.unlink(tasks, head);
        Some(head)
    }
}
