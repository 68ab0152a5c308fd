//! Listings: a partition's memory, slot by slot, then what the store outside has, the latest first.
//!
//! Where there are checkpoints a number tells the two parts apart: final tasks that were checkpointed when the listing began are left
//! to the second part, whether memory still has them or not. The cursor carries the number, so that a task that leaves memory meanwhile
//! does not come twice.

use taskmaster_protocol::PartitionId;
use taskmaster_protocol::body::{self, ArchivedListTasks, CURSOR_STORED, Malformed, TaskPage};

use super::task::describe;
use crate::arena::Arena;
use crate::contract::DEFAULT_NAMESPACE;
use crate::dispatch::Dispatch;
use crate::partition::Partition;
use crate::state::State;
use crate::task::{Slot, Task};

/// Most rows per page, and slots looked at per request, so that a listing never holds the shard up.
const ROWS_MAX: u32 = 1_000;
const SLOTS_MAX: u32 = 50_000;
/// A place in the store as the first number of a cursor: the clusters back, then the number.
const BACK_SHIFT: u32 = 56;
const NUMBER_MASK: u64 = (1 << BACK_SHIFT) - 1;

/// A place in what the store has of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPlace {
    /// How many clusters back: 0 is this one, 1 the one that it was restored from, and so on.
    pub back: u8,
    /// The tasks up to this number there are left.
    pub number: u64,
}

impl StoredPlace {
    fn cursor(self) -> u64 {
        CURSOR_STORED | (u64::from(self.back & 0x7F) << BACK_SHIFT) | (self.number & NUMBER_MASK)
    }
}

/// A page of what the store has of a partition, the latest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPage {
    /// The cluster.
    pub cluster: u128,
    /// The partition.
    pub partition: PartitionId,
    /// Namespace.
    pub namespace: String,
    /// Only this queue; empty for all.
    pub queue: String,
    /// Only this kind; empty for all.
    pub kind: String,
    /// Only these states, all of them final.
    pub states: Vec<State>,
    /// Most rows.
    pub limit: u32,
    /// Where the page begins.
    pub from: StoredPlace,
    /// A store that is not known to have all up to this number has not all that belongs to the listing.
    pub checkpointed: u64,
}

impl StoredPage {
    /// The cursor that goes on at a place, or is at the end.
    #[must_use]
    pub fn cursor(&self, next: Option<StoredPlace>) -> [u64; 2] {
        next.map_or([0; 2], |next| [next.cursor(), self.checkpointed])
    }
}

/// Which tasks are wanted.
struct Filter<'a> {
    /// Empty for all.
    namespace: &'a str,
    queue: &'a str,
    kind: &'a str,
    states: u32,
    limit: u32,
}

impl<'a> Filter<'a> {
    fn of(body: &'a ArchivedListTasks) -> Result<Self, Malformed> {
        let namespace = body::text(&body.bytes, body.namespace)?;
        Ok(Self {
            namespace: if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace },
            queue: body::text(&body.bytes, body.queue)?,
            kind: body::text(&body.bytes, body.kind)?,
            states: body.states.to_native(),
            limit: body.limit.to_native().clamp(1, ROWS_MAX),
        })
    }

    fn wants(&self, state: State) -> bool {
        self.states == 0 || self.states & (1 << state.number()) != 0
    }

    fn matches(&self, partition: &Partition, task: &Task) -> bool {
        let contract = &partition.contracts[task.contract];
        let queue = &partition.queues[contract.queue as usize];
        (self.namespace.is_empty() || queue.namespace == self.namespace)
            && (self.queue.is_empty() || queue.name == self.queue)
            && (self.kind.is_empty() || contract.kind == self.kind)
            && self.wants(task.state)
    }

    fn final_states(&self) -> Vec<State> {
        State::ALL.into_iter().filter(|&state| state.is_final() && self.wants(state)).collect()
    }
}

/// Where a listing goes on.
enum Cursor {
    /// From this slot on, without what is checkpointed up to this number.
    Memory(Slot, u64),
    /// From this place on, in a store that has all up to this number.
    Stored(StoredPlace, u64),
}

impl Cursor {
    fn of(body: &ArchivedListTasks) -> Self {
        let [place, checkpointed] = [0, 1].map(|half| body.cursor[half].to_native());
        if place & CURSOR_STORED == 0 {
            return Self::Memory(Slot::try_from(place).unwrap_or(Slot::MAX), checkpointed);
        }
        let back = u8::try_from((place & !CURSOR_STORED) >> BACK_SHIFT).expect("seven bits");
        Self::Stored(StoredPlace { back, number: place & NUMBER_MASK }, checkpointed)
    }
}

/// What a listing is answered with.
pub(crate) enum Listed {
    /// A page.
    Page(TaskPage),
    /// What the store says.
    Stored(StoredPage),
}

/// A page of tasks that match, and where the rest is.
pub(crate) fn list(
    partition: &Partition,
    body: &ArchivedListTasks,
    cluster: u128,
    arena: &Arena,
    dispatch: &Dispatch,
) -> Result<Listed, Malformed> {
    let filter = Filter::of(body)?;
    let (slot, checkpointed) = match Cursor::of(body) {
        Cursor::Memory(0, _) if partition.has_checkpoints() => (0, partition.checkpointed),
        Cursor::Memory(slot, checkpointed) => (slot, checkpointed),
        Cursor::Stored(from, checkpointed) => {
            let [namespace, queue, kind] = [filter.namespace, filter.queue, filter.kind].map(str::to_owned);
            let (states, limit) = (filter.final_states(), filter.limit);
            let partition = partition.id;
            let page = StoredPage { cluster, partition, namespace, queue, kind, states, limit, from, checkpointed };
            return Ok(Listed::Stored(page));
        }
    };
    let mut page = TaskPage::default();
    let end = in_memory(partition, &filter, slot, checkpointed, &mut page, arena, dispatch);
    page.cursor = match end {
        Some(slot) => [slot.into(), checkpointed],
        None if checkpointed == 0 || filter.final_states().is_empty() => [0; 2],
        None => [StoredPlace { back: 0, number: checkpointed }.cursor(), checkpointed],
    };
    Ok(Listed::Page(page))
}

/// A page of what memory has, all of it; of all namespaces where none is named.
pub(crate) fn past(
    partition: &Partition,
    body: &ArchivedListTasks,
    arena: &Arena,
    dispatch: &Dispatch,
) -> Result<TaskPage, Malformed> {
    let mut page = TaskPage::default();
    let filter = Filter { namespace: body::text(&body.bytes, body.namespace)?, ..Filter::of(body)? };
    let slot = Slot::try_from(body.cursor[0].to_native()).unwrap_or(Slot::MAX);
    let end = in_memory(partition, &filter, slot, 0, &mut page, arena, dispatch);
    page.cursor = [end.unwrap_or(0).into(), 0];
    Ok(page)
}

/// Fills a page from a slot on; where to go on, unless it came to the end.
fn in_memory(
    partition: &Partition,
    filter: &Filter<'_>,
    mut slot: Slot,
    checkpointed: u64,
    page: &mut TaskPage,
    arena: &Arena,
    dispatch: &Dispatch,
) -> Option<Slot> {
    let end = partition.tasks.slots();
    let last = end.min(slot.saturating_add(SLOTS_MAX));
    while slot < last && page.rows.len() < filter.limit as usize {
        if let Some(task) = partition.tasks.get(slot)
            && filter.matches(partition, task)
            && !is_stored(partition, task, checkpointed)
        {
            describe(partition, slot, arena, dispatch, false, page);
        }
        slot += 1;
    }
    (slot < end).then_some(slot)
}

/// Lists a task that the store has as memory has it: not at all if it lived on since it was checkpointed by then.
pub(crate) fn kept(
    partition: &Partition,
    slot: Slot,
    checkpointed: u64,
    arena: &Arena,
    dispatch: &Dispatch,
    page: &mut TaskPage,
) {
    if is_stored(partition, &partition.tasks[slot], checkpointed) {
        describe(partition, slot, arena, dispatch, false, page);
    }
}

/// Whether a task is final and checkpointed by then.
fn is_stored(partition: &Partition, task: &Task, checkpointed: u64) -> bool {
    checkpointed > 0 && partition.retention_ms(task).is_some() && task.token <= checkpointed
}
