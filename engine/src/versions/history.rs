//! The versions of one task's state: numbers, parents, branches, tags.
//!
//! A version follows its parent; the branch whose head is the parent moves to it if it is the current one. A save on top of
//! another version than the head (of an attempt whose branch was rolled back under it) is kept as a line of its own.

use core::hash::{Hash as _, Hasher};
use std::collections::{BTreeMap, BTreeSet};

use taskmaster_protocol::limits;
use taskmaster_protocol::state::Address;

/// The branch that a history begins with.
pub(crate) const MAIN: &str = "main";

/// One version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// The version it follows, which may have gone; 0: none.
    pub(crate) parent: u32,
    pub(crate) attempt: u32,
    pub(crate) time_us: u64,
    pub(crate) size: u64,
    /// Bytes that nobody in the partition had when it was saved.
    pub(crate) new_bytes: u64,
    pub(crate) digest: Address,
    pub(crate) label: Box<str>,
    pub(crate) chunks: Box<[u32]>,
}

/// The versions of one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) versions: BTreeMap<u32, Version>,
    /// Versions ever made: the highest number.
    pub(crate) made: u32,
    /// Heads by branch; 0: nothing was saved on it.
    pub(crate) branches: BTreeMap<Box<str>, u32>,
    pub(crate) tags: BTreeMap<Box<str>, u32>,
    /// The branch from which attempts resume.
    pub(crate) current: Box<str>,
    /// Chunks that the versions name in all.
    references: usize,
    label_bytes: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            versions: BTreeMap::new(),
            made: 0,
            branches: BTreeMap::from([(MAIN.into(), 0)]),
            tags: BTreeMap::new(),
            current: MAIN.into(),
            references: 0,
            label_bytes: 0,
        }
    }
}

impl History {
    /// The version to resume from; 0: none was saved.
    pub(crate) fn head(&self) -> u32 {
        self.branches.get(&self.current).copied().unwrap_or(0)
    }

    /// Adds a version and returns its number.
    pub(crate) fn push(&mut self, version: Version) -> u32 {
        self.made = self.made.checked_add(1).expect("a task lives for fewer than 2^32 saves");
        let parent = version.parent;
        self.put(self.made, version);
        self.advance(parent, self.made);
        self.made
    }

    /// Adds a version with its number.
    pub(crate) fn put(&mut self, number: u32, version: Version) {
        self.references += version.chunks.len();
        self.label_bytes += version.label.len();
        self.versions.insert(number, version);
    }

    /// Moves the current branch from a version to one that follows it.
    pub(crate) fn advance(&mut self, parent: u32, number: u32) {
        if let Some(head) = self.branches.get_mut(&self.current).filter(|head| **head == parent) {
            *head = number;
        }
    }

    fn take(&mut self, number: u32) -> Option<Version> {
        let version = self.versions.remove(&number)?;
        self.references -= version.chunks.len();
        self.label_bytes -= version.label.len();
        Some(version)
    }

    fn is_named(&self, number: u32) -> bool {
        self.branches.values().chain(self.tags.values()).any(|&named| named == number)
    }

    pub(crate) fn is_full(&self, chunks: usize) -> bool {
        self.versions.len() >= limits::STATE_VERSIONS_MAX || self.references + chunks > limits::STATE_REFERENCES_MAX
    }

    /// Whether a version with so many chunks fits beside those that must be kept.
    pub(crate) fn has_room(&self, chunks: usize) -> bool {
        if !self.is_full(chunks) {
            return true;
        }
        let named: BTreeSet<u32> = self.branches.values().chain(self.tags.values()).copied().collect();
        let kept = named.iter().filter_map(|number| self.versions.get(number));
        kept.map(|version| version.chunks.len()).sum::<usize>() + chunks <= limits::STATE_REFERENCES_MAX
    }

    /// Takes out the oldest versions that need not be kept, until one with so many chunks fits.
    pub(crate) fn make_room(&mut self, chunks: usize, gone: &mut Vec<Version>) {
        let mut after = 0;
        while self.is_full(chunks) {
            let next = self.versions.range(after..).map(|(&number, _)| number).find(|&number| !self.is_named(number));
            let Some(number) = next else { return };
            gone.extend(self.take(number));
            after = number;
        }
    }

    /// Takes out the versions that are neither tagged nor among the `keep` latest on the way to a head; 0 keeps the whole way.
    pub(crate) fn prune(&mut self, keep: u32) -> Vec<Version> {
        let mut kept: BTreeSet<u32> = self.tags.values().copied().collect();
        for &head in self.branches.values() {
            let (mut number, mut left) = (head, if keep == 0 { u32::MAX } else { keep });
            while let Some(version) = self.versions.get(&number).filter(|_| left > 0) {
                kept.insert(number);
                (number, left) = (version.parent, left - 1);
            }
        }
        let going: Vec<u32> = self.versions.keys().copied().filter(|number| !kept.contains(number)).collect();
        going.into_iter().filter_map(|number| self.take(number)).collect()
    }

    /// Hashes all that replicas agree on: chunks by what they are, not where.
    pub(crate) fn hash(&self, hasher: &mut impl Hasher) {
        (self.made, &self.branches, &self.tags, &self.current).hash(hasher);
        for (number, version) in &self.versions {
            (number, version.parent, version.attempt, version.time_us, version.size, version.new_bytes).hash(hasher);
            (version.digest, &version.label, version.chunks.len()).hash(hasher);
        }
    }

    /// About what its chunks take, in bytes: what its versions added to those that were there, and no less than the largest.
    pub(crate) fn chunk_bytes(&self) -> u64 {
        let versions = self.versions.values();
        let (added, largest) =
            versions.fold((0u64, 0), |(added, largest), of| (added.saturating_add(of.new_bytes), largest.max(of.size)));
        added.max(largest)
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let names = self.branches.len() + self.tags.len();
        let versions = self.versions.len() * (size_of::<Version>() + 16);
        size_of::<Self>() + versions + self.references * 4 + self.label_bytes + names * (limits::NAME_BYTES_MAX + 24)
    }
}
