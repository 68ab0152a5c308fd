//! Requests that wait for their answers: a slab whose slot numbers, with a generation, are the correlation ids.
//!
//! Invariants: a correlation id is used once; an answer that comes after its waiter left is ignored.

use tokio::sync::{mpsc, oneshot};

use super::Message;

/// Where tagged answers of several requests arrive; `None` means the connection ended without an answer.
pub type Mailbox = mpsc::UnboundedSender<(u64, Option<Message>)>;

/// Who waits for an answer.
pub(super) enum Waiter {
    /// One caller; dropping the sender tells it that the connection ended.
    Caller(oneshot::Sender<Message>),
    /// A mailbox shared by many requests, with the tag of this one.
    Mailbox(Mailbox, u64),
}

impl Waiter {
    pub(super) fn deliver(self, message: Message) {
        // A receiver that left does not want the answer any more.
        match self {
            Self::Caller(sender) => drop(sender.send(message)),
            Self::Mailbox(mailbox, tag) => drop(mailbox.send((tag, Some(message)))),
        }
    }

    fn lost(self) {
        if let Self::Mailbox(mailbox, tag) = self {
            drop(mailbox.send((tag, None)));
        }
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    waiter: Option<Waiter>,
}

/// The slab.
#[derive(Default)]
pub(super) struct Pending {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Pending {
    /// Registers a waiter and names it.
    pub(super) fn insert(&mut self, waiter: Waiter) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("waiting requests are bounded by memory far below 2^32")
        });
        let slot = &mut self.slots[index as usize];
        // Generation 0 is left to the hello, whose correlation is 1.
        slot.generation = slot.generation.wrapping_add(1).max(1);
        slot.waiter = Some(waiter);
        (u64::from(slot.generation) << 32) | u64::from(index)
    }

    /// Takes the waiter of a correlation, unless it left.
    pub(super) fn take(&mut self, correlation: u64) -> Option<Waiter> {
        let bytes = correlation.to_le_bytes();
        let index = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let generation = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let slot = self.slots.get_mut(index as usize)?;
        if slot.generation != generation {
            return None;
        }
        let waiter = slot.waiter.take()?;
        self.free.push(index);
        Some(waiter)
    }

    /// Tells every waiter that no answer will come.
    pub(super) fn clear(&mut self) {
        for slot in self.slots.drain(..) {
            if let Some(waiter) = slot.waiter {
                waiter.lost();
            }
        }
        self.free.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_does_not_reach_the_next_user_of_its_slot() {
        let mut pending = Pending::default();
        let (first, _receiver) = oneshot::channel();
        let old = pending.insert(Waiter::Caller(first));
        assert!(pending.take(old).is_some());
        let (second, _receiver) = oneshot::channel();
        let new = pending.insert(Waiter::Caller(second));
        assert_ne!(old, new);
        assert!(pending.take(old).is_none());
        assert!(pending.take(new).is_some());
        assert!(pending.take(u64::MAX).is_none());
    }
}
