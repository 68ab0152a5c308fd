//! Concurrency keys: how many tasks with the same key run at once, and who is next.

use super::{Cx, Partition};
use crate::dispatch::Dispatch;
use crate::task::{List, Slot, flag};

/// A concurrency key.
#[derive(Debug, Default)]
pub(crate) struct Key {
    pub(crate) bytes: Vec<u8>,
    pub(crate) limit: u32,
    pub(crate) held: u32,
    pub(crate) waiting: List,
    pub(crate) tasks: u32,
}

impl Partition {
    /// A task's concurrency key is free for the next one: after its end, or before a pause between attempts.
    pub(crate) fn release_key(&mut self, slot: Slot, cx: &mut Cx<'_>) {
        if !self.tasks[slot].has(flag::KEY_HELD) {
            return;
        }
        self.tasks[slot].flags &= !flag::KEY_HELD;
        let index = self.extras[self.tasks[slot].extra].key;
        let key = &mut self.keys[index as usize];
        key.held -= 1;
        self.unblock(index, cx.dispatch);
    }

    fn unblock(&mut self, index: u32, dispatch: &mut Dispatch) {
        loop {
            let key = &mut self.keys[index as usize];
            if key.held >= key.limit {
                return;
            }
            let Some(next) = key.waiting.pop_front(&mut self.tasks) else { return };
            key.held += 1;
            let task = &mut self.tasks[next];
            task.flags = (task.flags & !flag::BLOCKED) | flag::KEY_HELD;
            self.push_lane(next, dispatch);
        }
    }

    /// The concurrency key with these bytes, made on first use; the latest limit holds.
    pub(crate) fn key(&mut self, bytes: Vec<u8>, limit: u32, dispatch: &mut Dispatch) -> u32 {
        let limit = limit.max(1);
        if let Some(&index) = self.key_by_bytes.get(&bytes) {
            let key = &mut self.keys[index as usize];
            key.tasks += 1;
            key.limit = limit;
            self.unblock(index, dispatch);
            return index;
        }
        self.key_bytes += 2 * bytes.len();
        let key = Key { bytes: bytes.clone(), limit, tasks: 1, ..Key::default() };
        let index = if let Some(index) = self.free_keys.pop() {
            self.keys[index as usize] = key;
            index
        } else {
            self.keys.push(key);
            u32::try_from(self.keys.len() - 1).expect("no more keys than task slots")
        };
        self.key_by_bytes.insert(bytes, index);
        index
    }

    pub(super) fn drop_key(&mut self, index: u32) {
        let key = &mut self.keys[index as usize];
        key.tasks -= 1;
        if key.tasks == 0 {
            self.key_bytes -= 2 * key.bytes.len();
            self.key_by_bytes.remove(&key.bytes);
            *key = Key::default();
            self.free_keys.push(index);
        }
    }
}
