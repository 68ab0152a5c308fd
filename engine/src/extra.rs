//! What few tasks need beyond their record: deadline, keys, workflow membership, the last error, progress.

use taskmaster_protocol::TaskId;

use crate::arena::Handle;
use crate::task::NONE;

/// Rare properties of one task.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    /// Not before this time, in microseconds since 1970; 0 for none.
    pub(crate) due_us: u64,
    /// Deadline, in microseconds since 1970; 0 for none.
    pub(crate) deadline_us: u64,
    /// The unique key is taken at least until then, in microseconds since 1970; 0: while the task is not final.
    pub(crate) unique_until_us: u64,
    /// Scoped unique key, or `NONE`.
    pub(crate) unique: Handle,
    /// Index of the concurrency key, or [`NONE`].
    pub(crate) key: u32,
    /// Index of the workflow, or [`NONE`].
    pub(crate) workflow: u32,
    /// Row within the workflow.
    pub(crate) row: u32,
    /// Tasks it needs that are not final yet.
    pub(crate) needs: u32,
    /// Step name.
    pub(crate) name: Handle,
    /// Last failure: code, message and log tail, packed by [`pack_error`].
    pub(crate) error: Handle,
    /// Last progress note.
    pub(crate) note: Handle,
    /// Progress in parts per thousand.
    pub(crate) done_permille: u32,
    /// Failures that do not count any more: those before the task was retried by hand.
    pub(crate) forgiven: u16,
    /// Payload of a succeeded task that may be forked: a workflow's, or one that saved state.
    pub(crate) input: Handle,
    /// Memoised, and the outcome is another's: the task that ran, and when it ended, in microseconds since 1970; else 0.
    pub(crate) memo_of: TaskId,
    pub(crate) memo_us: u64,
    /// Index of the versions of its state, or [`NONE`].
    pub(crate) history: u32,
    /// When it became ready, in microseconds since 1970. Volatile.
    pub(crate) ready_us: u64,
    /// When its latest attempt was assigned, in microseconds since 1970. Volatile.
    pub(crate) started_us: u64,
}

impl Default for Extra {
    fn default() -> Self {
        Self {
            due_us: 0,
            deadline_us: 0,
            unique_until_us: 0,
            unique: Handle::NONE,
            key: NONE,
            workflow: NONE,
            row: 0,
            needs: 0,
            name: Handle::NONE,
            error: Handle::NONE,
            note: Handle::NONE,
            done_permille: 0,
            forgiven: 0,
            input: Handle::NONE,
            memo_of: TaskId::default(),
            memo_us: 0,
            history: NONE,
            ready_us: 0,
            started_us: 0,
        }
    }
}

/// Packs the three parts of a failure into one blob: two u32 lengths, then code, message and log tail.
pub(crate) fn pack_error(code: &[u8], message: &[u8], log_tail: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(8 + code.len() + message.len() + log_tail.len());
    for part in [code, message] {
        packed.extend_from_slice(&u32::try_from(part.len()).expect("bounded at admission").to_le_bytes());
    }
    for part in [code, message, log_tail] {
        packed.extend_from_slice(part);
    }
    packed
}

/// The parts of a packed failure: code, message, log tail. Anything else reads as three empty parts.
pub(crate) fn unpack_error(packed: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let read = || {
        let (lengths, rest) = packed.split_at_checked(8)?;
        let code = u32::from_le_bytes(*lengths.first_chunk::<4>()?) as usize;
        let message = u32::from_le_bytes(*lengths.last_chunk::<4>()?) as usize;
        let (code, rest) = rest.split_at_checked(code)?;
        let (message, log_tail) = rest.split_at_checked(message)?;
        Some((code, message, log_tail))
    };
    read().unwrap_or_default()
}

/// A slab of extras.
#[derive(Default)]
pub(crate) struct Extras {
    items: Vec<Extra>,
    free: Vec<u32>,
}

impl Extras {
    pub(crate) fn insert(&mut self, extra: Extra) -> u32 {
        if let Some(index) = self.free.pop() {
            self.items[index as usize] = extra;
            return index;
        }
        self.items.push(extra);
        u32::try_from(self.items.len() - 1).expect("no more extras than task slots")
    }

    pub(crate) fn remove(&mut self, index: u32) -> Extra {
        self.free.push(index);
        core::mem::take(&mut self.items[index as usize])
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Extra> {
        self.items.get_mut(index as usize)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Extra> {
        self.items.get(index as usize)
    }

    pub(crate) fn reserved_bytes(&self) -> usize {
        self.items.capacity() * size_of::<Extra>() + self.free.capacity() * 4
    }
}

impl core::ops::Index<u32> for Extras {
    type Output = Extra;
    fn index(&self, index: u32) -> &Extra {
        &self.items[index as usize]
    }
}

impl core::ops::IndexMut<u32> for Extras {
    fn index_mut(&mut self, index: u32) -> &mut Extra {
        &mut self.items[index as usize]
    }
}
