//! What tests look at and plant, and nothing else calls.

use raft::eraftpb::{Entry, EntryType};

use super::Shard;
use super::group::Group;

/// Bugs that a simulator must notice.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Fencing tokens start again with every leader.
    ReuseToken,
    /// A new leader does not know which unique keys are taken.
    ForgetUniqueKeys,
    /// After an installed snapshot an entry is applied before the one that precedes it.
    ApplyOutOfOrder,
}

/// What is planted, and whether it is due.
#[derive(Default)]
pub(super) struct Hooks {
    planted: Option<Planted>,
    /// A snapshot was installed and nothing was applied out of order since.
    is_due: bool,
}

impl Hooks {
    pub(super) fn installed(&mut self) {
        self.is_due = self.planted == Some(Planted::ApplyOutOfOrder);
    }

    /// Entries as they are to be applied.
    pub(super) fn order(&mut self, entries: &mut [Entry]) {
        if !self.is_due {
            return;
        }
        let is_command = |entry: &Entry| entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty();
        let first = entries.windows(2).position(|two| two.iter().all(is_command));
        if let Some(first) = first {
            entries.swap(first, first + 1);
            self.is_due = false;
        }
    }
}

impl Shard {
    /// Plants a bug.
    #[doc(hidden)]
    pub fn plant(&mut self, planted: Planted) {
        self.hooks.planted = Some(planted);
    }

    /// Queues of the policy `auto` go by what was learned, whatever their guards say.
    #[doc(hidden)]
    pub fn trust_learned(&mut self) {
        self.dispatch.trusts_learned = true;
        self.dispatch.queues.iter_mut().for_each(|queue| queue.order.is_trusted = true);
    }

    /// The term in which this shard leads a group and serves it.
    #[doc(hidden)]
    #[must_use]
    pub fn serving(&self, group: u16) -> Option<u64> {
        self.group(group).map(|group| group.serving).filter(|term| *term > 0)
    }

    /// Groups whose replica here has no vote.
    #[doc(hidden)]
    pub fn learning(&self) -> impl Iterator<Item = u16> + '_ {
        self.groups.iter().flatten().filter(|group| !group.replica.is_voter()).map(|group| group.number)
    }

    /// A group is served from here on.
    pub(super) fn spoil(&mut self, group: &Group) {
        let place = self.partitions.get_mut(usize::from(group.number)).and_then(Option::as_deref_mut);
        let Some(partition) = place else { return };
        match self.hooks.planted {
            Some(Planted::ReuseToken) => partition.last_token = 1 << 40,
            Some(Planted::ForgetUniqueKeys) => partition.forget_unique(),
            Some(Planted::ApplyOutOfOrder) | None => {}
        }
    }
}
