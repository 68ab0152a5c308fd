//! Versions of tasks' state: what the server tells of them, and states cut by content so that saves bring only what is new.

use std::collections::HashMap;

use fastcdc::v2020::FastCDC;
use taskmaster_protocol::body::{
    self, ArchivedStateHistory, ArchivedVersionRow, SaveRow, SaveState, Segment, Span, put,
};
use taskmaster_protocol::state::{Address, address_of, digest_of};
use taskmaster_protocol::{Code, limits};

use crate::error::{Error, Refusal};

/// Sizes of chunks: at least, on average, at most, in bytes.
const CHUNK_BYTES_MIN: usize = 512;
const CHUNK_BYTES_AVERAGE: usize = 1_024;
/// Bytes of a digest in its short form.
const SHORT_BYTES: usize = 6;

/// One version of a task's state, as a save or a load names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its number within the task, from 1.
    pub number: u32,
    /// Length of the state, in bytes.
    pub size: u64,
    /// Address of the content: equal states cut alike have equal digests.
    pub digest: [u8; 32],
}

impl Version {
    /// The beginning of the digest as hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        short(&self.digest)
    }
}

fn short(digest: &[u8; 32]) -> String {
    digest[..SHORT_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One version as the history has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionView {
    /// Its number within the task, from 1.
    pub number: u32,
    /// The version it follows, which may have gone; 0: none.
    pub parent: u32,
    /// Address of the content.
    pub digest: [u8; 32],
    /// When it was saved, in microseconds since 1970.
    pub time_us: u64,
    /// The attempt that saved it.
    pub attempt: u32,
    /// Length of the state, in bytes.
    pub size: u64,
    /// Bytes that no other version or task of the partition had when it was saved.
    pub new_bytes: u64,
    /// Chunks it consists of.
    pub chunks: u32,
    /// What was said with the save.
    pub label: String,
}

impl VersionView {
    /// The beginning of the digest as hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        short(&self.digest)
    }

    fn read(row: &ArchivedVersionRow, label: &str) -> Self {
        Self {
            number: row.number.to_native(),
            parent: row.parent.to_native(),
            digest: row.digest,
            time_us: row.time_us.to_native(),
            attempt: row.attempt.to_native(),
            size: row.size.to_native(),
            new_bytes: row.new_bytes.to_native(),
            chunks: row.chunks.to_native(),
            label: label.to_owned(),
        }
    }
}

/// The versions of a task's state that are kept, with branches and tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateHistory {
    /// Versions, ascending.
    pub versions: Vec<VersionView>,
    /// Branches by name, each with the version at its head; 0: nothing was saved on it.
    pub branches: Vec<(String, u32)>,
    /// Tags by name.
    pub tags: Vec<(String, u32)>,
    /// The branch from which attempts resume; empty when nothing was saved.
    pub current: String,
    /// The version at its head; 0: nothing was saved.
    pub head: u32,
    /// Versions ever made.
    pub made: u32,
}

impl StateHistory {
    pub(crate) fn read(page: &ArchivedStateHistory) -> Result<Self, Error> {
        let mut history = Self {
            current: body::text(&page.bytes, page.current)?.to_owned(),
            head: page.head.to_native(),
            made: page.made.to_native(),
            ..Self::default()
        };
        for row in page.versions.iter() {
            history.versions.push(VersionView::read(row, body::text(&page.bytes, row.label)?));
        }
        for row in page.names.iter() {
            let names = if row.kind.to_native() == 0 { &mut history.branches } else { &mut history.tags };
            names.push((body::text(&page.bytes, row.name)?.to_owned(), row.version.to_native()));
        }
        Ok(history)
    }

    /// The version with this number.
    #[must_use]
    pub fn version(&self, number: u32) -> Option<&VersionView> {
        self.versions.iter().find(|version| version.number == number)
    }
}

/// A change of a task's history.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateChange {
    /// A new branch.
    Branch {
        /// Its name.
        name: String,
        /// Where it begins; `None`: at the head of the current branch.
        version: Option<u32>,
    },
    /// Another branch is the current one.
    Switch {
        /// Its name.
        name: String,
    },
    /// A branch goes; its versions stay until they are pruned.
    DeleteBranch {
        /// Its name.
        name: String,
    },
    /// The head of the current branch moves to this version.
    Rollback {
        /// Which.
        version: u32,
    },
    /// A name for a version, which is kept from then on.
    Tag {
        /// The tag.
        name: String,
        /// Which; `None`: the head of the current branch.
        version: Option<u32>,
    },
    /// A tag goes.
    Untag {
        /// The tag.
        name: String,
    },
    /// Versions go that are neither tagged nor on the way to a head.
    Prune {
        /// Versions kept on the way to each head, itself included; `None`: all.
        keep: Option<u32>,
    },
    /// As rollback; a final task that did not succeed runs again.
    Resume {
        /// Which; `None`: the head of the current branch.
        version: Option<u32>,
    },
}

/// A state with the version it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateBytes {
    /// What is known of the version, except for its label.
    pub version: VersionView,
    /// Lengths of its chunks, in bytes.
    pub chunks: Vec<u32>,
    /// The state.
    pub bytes: Vec<u8>,
}

impl StateBytes {
    pub(crate) fn begin(row: &ArchivedVersionRow) -> Self {
        Self { version: VersionView::read(row, ""), chunks: Vec::new(), bytes: Vec::new() }
    }

    /// Its chunks with their addresses.
    pub fn chunks(&self) -> impl Iterator<Item = (&[u8], [u8; 32])> {
        let mut at = 0;
        self.chunks.iter().map(move |&len| {
            let chunk = &self.bytes[at..at + len as usize];
            at += len as usize;
            (chunk, address_of(chunk))
        })
    }

    /// Whether the bytes are what the digest says.
    pub(crate) fn check(self) -> Result<Self, Error> {
        let addresses: Vec<Address> = self.chunks().map(|(_, address)| address).collect();
        if digest_of(&addresses) != self.version.digest {
            return Err(Error::Decode(format!("version {} is not what its digest says", self.version.number)));
        }
        Ok(self)
    }

    pub(crate) fn named(&self) -> Version {
        Version { number: self.version.number, size: self.version.size, digest: self.version.digest }
    }
}

/// The lease under which a state is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) id: taskmaster_protocol::TaskId,
    pub(crate) token: u64,
    pub(crate) locator: u32,
    pub(crate) attempt: u32,
}

/// A version that the server has, as far as it is known here.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) number: u32,
    addresses: Vec<Address>,
    /// Where each chunk ends.
    ends: Vec<usize>,
    bytes: Vec<u8>,
}

impl Known {
    /// Only the number is known.
    pub(crate) fn number(number: u32) -> Self {
        Self { number, ..Self::default() }
    }

    /// What was cut is the version with this number.
    pub(crate) fn new(number: u32, cut: Cut<'_>) -> Self {
        let ends = cut.chunks.iter().map(|&(at, len)| at + len).collect();
        Self { number, addresses: cut.addresses, ends, bytes: cut.bytes.to_vec() }
    }

    /// What was read.
    pub(crate) fn of(state: StateBytes) -> Self {
        let addresses = state.chunks().map(|(_, address)| address).collect();
        let mut end = 0;
        let ends = state.chunks.iter().map(|&len| {
            end += len as usize;
            end
        });
        Self { number: state.version.number, addresses, ends: ends.collect(), bytes: state.bytes }
    }

    fn len(&self) -> usize {
        self.addresses.len()
    }

    /// The chunk that begins at a place, if one does.
    fn chunk_at(&self, at: usize) -> Option<usize> {
        match at {
            0 => (self.len() > 0).then_some(0),
            at => self.ends.binary_search(&at).ok().map(|chunk| chunk + 1).filter(|chunk| *chunk < self.len()),
        }
    }

    /// Which chunk has this address.
    fn places(&self) -> HashMap<Address, u32> {
        self.addresses.iter().copied().zip(0..).collect()
    }
}

/// A state that was cut.
pub(crate) struct Cut<'a> {
    bytes: &'a [u8],
    chunks: Vec<(usize, usize)>,
    addresses: Vec<Address>,
    /// Which chunk of the version before it is, where that is known without looking.
    same: Vec<Option<u32>>,
    pub(crate) digest: Address,
}

impl<'a> Cut<'a> {
    /// Cuts a state by its content. Where it begins and ends like the version before, the cuts are that one's: a cut depends
    /// on nothing but the bytes of its chunk. So the work grows with what changed.
    pub(crate) fn new(bytes: &'a [u8], before: &Known) -> Result<Self, Refusal> {
        if bytes.len() > limits::STATE_BYTES_MAX {
            let message = format!(
                "the state has {} bytes, at most {} are kept: keep what is larger in a store and save a reference",
                bytes.len(),
                limits::STATE_BYTES_MAX
            );
            return Err(Refusal::local(Code::TooLarge, message));
        }
        let mut cut = Self { bytes, chunks: Vec::new(), addresses: Vec::new(), same: Vec::new(), digest: [0; 32] };
        let shorter = bytes.len().min(before.bytes.len());
        let begin = common(shorter, |at, len| bytes[at..at + len] == before.bytes[at..at + len]);
        let end = common(shorter - begin, |at, len| tail(bytes, at, len) == tail(&before.bytes, at, len));
        // The last chunk ends where the state ends, and not where its content says; the cutter looks at two bytes behind a cut.
        let whole = before.ends.iter().take(before.len().saturating_sub(1)).take_while(|&&at| at + 2 <= begin).count();
        (0..whole).for_each(|chunk| cut.reuse(before, chunk, |at| at));
        let from = if whole == 0 { 0 } else { before.ends[whole - 1] };
        for found in FastCDC::new(&bytes[from..], CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, limits::STATE_CHUNK_BYTES_MAX) {
            let at = from + found.offset;
            // As far from the end as in the version before.
            let there = (at + before.bytes.len()).checked_sub(bytes.len()).filter(|_| at + end >= bytes.len());
            if let Some(first) = there.and_then(|there| before.chunk_at(there)) {
                let moved = |place: usize| place + bytes.len() - before.bytes.len();
                (first..before.len()).for_each(|chunk| cut.reuse(before, chunk, moved));
                break;
            }
            if found.length > 0 {
                cut.chunks.push((at, found.length));
                cut.addresses.push(address_of(&bytes[at..at + found.length]));
                cut.same.push(None);
            }
        }
        cut.digest = digest_of(&cut.addresses);
        Ok(cut)
    }

    /// Takes a chunk of the version before over; `moved` says where a place of that one is.
    fn reuse(&mut self, before: &Known, chunk: usize, moved: impl Fn(usize) -> usize) {
        let begin = if chunk == 0 { 0 } else { before.ends[chunk - 1] };
        self.chunks.push((moved(begin), before.ends[chunk] - begin));
        self.addresses.push(before.addresses[chunk]);
        self.same.push(u32::try_from(chunk).ok());
    }

    /// A save on top of a version: runs of its chunks where they are the same, and the rest. The second is whether there are any
    /// such runs. The version is the one that the state was cut after, or one of which nothing is known.
    pub(crate) fn body(&self, holder: &Holder, parent: &Known, label: &str) -> (SaveState, bool) {
        let mut body = SaveState::default();
        let label = put(&mut body.bytes, label.as_bytes());
        let places = if parent.len() > 0 && self.same.contains(&None) { parent.places() } else { HashMap::new() };
        let mut run: Option<Segment> = None;
        for (index, (address, &(at, len))) in self.addresses.iter().zip(&self.chunks).enumerate() {
            if let Some(open) = &mut run {
                if parent.addresses.get((open.from + open.count) as usize) == Some(address) {
                    open.count += 1;
                    continue;
                }
                body.segments.push(*open);
            }
            let same = self.same[index].filter(|_| parent.len() > 0).or_else(|| places.get(address).copied());
            run = same.map(|from| Segment { from, count: 1, data: Span::default() });
            if run.is_none() {
                let data = put(&mut body.bytes, &self.bytes[at..at + len]);
                body.segments.push(Segment { data, ..Segment::default() });
            }
        }
        body.segments.extend(run);
        let has_runs = body.segments.iter().any(|segment| segment.count > 0);
        body.rows.push(SaveRow {
            id: holder.id,
            token: holder.token,
            locator: holder.locator,
            attempt: holder.attempt,
            parent: parent.number,
            reserved: 0,
            digest: self.digest,
            label,
            segments: Span { at: 0, len: u32::try_from(body.segments.len()).expect("a state has bounded chunks") },
        });
        (body, has_runs)
    }
}

/// The `len` bytes before the last `at`.
fn tail(bytes: &[u8], at: usize, len: usize) -> &[u8] {
    &bytes[bytes.len() - at - len..bytes.len() - at]
}

/// How many bytes of at most `max` are the same one after the other, by whether `len` of them behind the first `at` are.
fn common(max: usize, are_same: impl Fn(usize, usize) -> bool) -> usize {
    const BLOCK: usize = 64;
    let mut at = 0;
    while at + BLOCK <= max && are_same(at, BLOCK) {
        at += BLOCK;
    }
    while at < max && are_same(at, 1) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use taskmaster_protocol::{PartitionId, TaskId};

    use super::*;

    const HOLDER: Holder = Holder { id: TaskId::new(1, PartitionId(0), 1, 1), token: 1, locator: 0, attempt: 1 };

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33).to_le_bytes()[0]
        };
        (0..len).map(|_| next()).collect()
    }

    fn known(state: &[u8]) -> Known {
        Known::new(1, Cut::new(state, &Known::default()).unwrap())
    }

    /// What the server would put together.
    fn rebuilt(body: &SaveState, parent: &Known) -> Vec<u8> {
        let mut state = Vec::new();
        for segment in &body.segments {
            state.extend_from_slice(&body.bytes[segment.data.at as usize..][..segment.data.len as usize]);
            for chunk in segment.from as usize..(segment.from + segment.count) as usize {
                let begin = if chunk == 0 { 0 } else { parent.ends[chunk - 1] };
                state.extend_from_slice(&parent.bytes[begin..parent.ends[chunk]]);
            }
        }
        state
    }

    /// Bytes of a save of `after` on top of `before`, in the log and on the wire.
    fn cost(before: &[u8], after: &[u8]) -> usize {
        let parent = known(before);
        let cut = Cut::new(after, &parent).unwrap();
        let (body, _) = cut.body(&HOLDER, &parent, "");
        assert_eq!(rebuilt(&body, &parent), after);
        let mut out = taskmaster_protocol::FrameBuffer::new();
        taskmaster_protocol::Body::append_to(&body, &mut out);
        out.len() + 32
    }

    #[test]
    fn a_mebibyte_of_which_one_percent_changed_costs_at_most_five_percent() {
        let before = noise(1 << 20, 7);
        let share = |after: &[u8]| cost(&before, after) as f64 / before.len() as f64;
        let one_percent = before.len() / 100;
        let mut shares = Vec::new();
        // In one place, in ten places, and as an insertion.
        for (pieces, seed) in [(1usize, 11u64), (1, 12), (10, 13), (10, 14)] {
            let mut after = before.clone();
            for piece in 0..pieces {
                let len = one_percent / pieces;
                let at = (before.len() / pieces) * piece + usize::try_from(seed).unwrap() * 997;
                after[at..at + len].copy_from_slice(&noise(len, seed * 100 + piece as u64));
            }
            shares.push(share(&after));
        }
        let mut after = before.clone();
        after.splice(300_000..300_000, noise(one_percent, 99));
        shares.push(share(&after));
        println!("{shares:.4?} of the state is new");
        assert!(shares.iter().all(|share| *share <= 0.05), "{shares:?}");
        let same = cost(&before, &before);
        assert!(same < 300, "{same} bytes for no change");
    }

    #[test]
    fn states_of_any_length_are_put_together_again() {
        for len in [0usize, 1, 511, 512, 2_048, 8_192, 8_193, 100_000] {
            let state = noise(len, 3);
            let cut = known(&state);
            assert_eq!(cut.ends.last().copied().unwrap_or(0), len);
            cost(&[], &state);
            cost(&state, &[]);
            cost(&state, &[&state[len / 2..], &state[..len / 2]].concat());
        }
        assert!(Cut::new(&vec![0; limits::STATE_BYTES_MAX + 1], &Known::default()).is_err());
        let zeros = vec![0; limits::STATE_BYTES_MAX];
        assert!(known(&zeros).len() <= limits::STATE_CHUNKS_MAX);
    }

    fn cuts(cut: &Cut<'_>) -> Vec<usize> {
        cut.chunks.iter().map(|&(at, len)| at + len).collect()
    }

    #[test]
    fn a_change_next_to_a_cut_is_seen() {
        let before = noise(60_000, 5);
        let parent = known(&before);
        for &cut in &parent.ends {
            for at in cut.saturating_sub(3)..(cut + 4).min(before.len()) {
                let mut changed = before.clone();
                changed[at] ^= 0x55;
                for after in
                    [&changed, &before[..at], &[&before[..at], &before[(at + 700).min(before.len())..]].concat()[..]]
                {
                    assert_eq!(cuts(&Cut::new(after, &parent).unwrap()), known(after).ends, "{at} beside {cut}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn a_state_is_cut_alike_whatever_was_before_it(
            len in 0usize..60_000,
            edits in proptest::collection::vec((any::<u16>(), 0usize..3_000, 0usize..3_000, any::<u64>()), 0..5),
        ) {
            let before = noise(len, 5);
            let mut after = before.clone();
            for (at, gone, new, seed) in edits {
                let at = usize::from(at) % (after.len() + 1);
                let until = (at + gone).min(after.len());
                after.splice(at..until, noise(new, seed));
            }
            let parent = known(&before);
            let (fresh, after_it) = (known(&after), Cut::new(&after, &parent).unwrap());
            prop_assert_eq!(&fresh.addresses, &after_it.addresses);
            prop_assert_eq!(fresh.ends, cuts(&after_it));
            let (body, _) = after_it.body(&HOLDER, &parent, "");
            prop_assert_eq!(rebuilt(&body, &parent), after);
        }
    }
}
