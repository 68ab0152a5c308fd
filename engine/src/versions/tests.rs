//! The graph and the chunk store against a model that keeps whole states.

use std::collections::BTreeMap;

use proptest::prelude::*;
use taskmaster_protocol::state::{address_of, digest_of};

use super::{Piece, Save, Unsaved, Versions};
use crate::arena::Arena;
use crate::versions::History;

/// Saves a state given as chunks, whole or as runs of the parent's chunks where they are the same.
fn save(
    versions: &mut Versions,
    arena: &mut Arena,
    index: u32,
    parent: (u32, &[Vec<u8>]),
    chunks: &[Vec<u8>],
    is_whole: bool,
) -> Result<u32, Unsaved> {
    let digest = digest_of(&chunks.iter().map(|chunk| address_of(chunk)).collect::<Vec<_>>());
    let pieces = chunks.iter().map(|chunk| match parent.1.iter().position(|known| known == chunk) {
        Some(from) if !is_whole => Piece::Run { from: from.try_into().unwrap(), count: 1 },
        _ => Piece::Bytes(chunk),
    });
    let save = Save { parent: parent.0, digest, label: "", attempt: 1, time_us: 5 };
    versions.save(index, &save, pieces, arena)
}

fn read(versions: &Versions, arena: &Arena, index: u32, number: u32) -> Vec<u8> {
    let version = &versions.get(index).unwrap().versions[&number];
    version.chunks.iter().flat_map(|&chunk| versions.chunks.bytes(chunk, arena)).copied().collect()
}

#[derive(Clone, Debug)]
enum Step {
    /// On a task, on top of one of its versions: chunks as numbers, which repeat.
    Save {
        task: usize,
        parent: u8,
        chunks: Vec<u8>,
        is_whole: bool,
    },
    Branch {
        task: usize,
        version: u8,
    },
    Tag {
        task: usize,
        version: u8,
    },
    Prune {
        task: usize,
        keep: u32,
    },
    Fork {
        task: usize,
        version: u8,
    },
    Forget {
        task: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let task = 0usize..4;
    prop_oneof![
        8 => (task.clone(), any::<u8>(), proptest::collection::vec(0u8..12, 0..9), any::<bool>())
            .prop_map(|(task, parent, chunks, is_whole)| Step::Save { task, parent, chunks, is_whole }),
        1 => (task.clone(), any::<u8>()).prop_map(|(task, version)| Step::Branch { task, version }),
        1 => (task.clone(), any::<u8>()).prop_map(|(task, version)| Step::Tag { task, version }),
        1 => (task.clone(), 0u32..4).prop_map(|(task, keep)| Step::Prune { task, keep }),
        1 => (task.clone(), any::<u8>()).prop_map(|(task, version)| Step::Fork { task, version }),
        1 => task.prop_map(|task| Step::Forget { task }),
    ]
}

/// What a task should have: chunks by version.
#[derive(Clone, Debug, Default)]
struct Model {
    index: u32,
    states: BTreeMap<u32, Vec<Vec<u8>>>,
}

impl Model {
    fn pick(&self, number: u8) -> Option<u32> {
        self.states.keys().nth(usize::from(number) % self.states.len().max(1)).copied()
    }
}

fn carry_out(step: Step, tasks: &mut [Model], versions: &mut Versions, arena: &mut Arena) {
    match step {
        Step::Save { task, parent, chunks, is_whole } => {
            let model = &mut tasks[task];
            let parent = model.pick(parent).unwrap_or(0);
            let base = model.states.get(&parent).cloned().unwrap_or_default();
            let chunks: Vec<Vec<u8>> = chunks.iter().map(|&kind| vec![kind; 20 + usize::from(kind)]).collect();
            let before = versions.get(model.index).unwrap().made;
            let number = save(versions, arena, model.index, (parent, &base), &chunks, is_whole).unwrap();
            if number > before {
                assert_eq!(number, before + 1);
                model.states.insert(number, chunks);
            } else {
                assert_eq!(model.states[&number], chunks, "found again");
                assert_eq!(versions.get(model.index).unwrap().versions[&number].parent, parent);
            }
        }
        Step::Branch { task, version } => {
            if let Some(version) = tasks[task].pick(version) {
                versions.edit(tasks[task].index, |history| history.branches.insert("other".into(), version));
            }
        }
        Step::Tag { task, version } => {
            if let Some(version) = tasks[task].pick(version) {
                versions.edit(tasks[task].index, |history| history.tags.insert("good".into(), version));
            }
        }
        Step::Prune { task, keep } => {
            let index = tasks[task].index;
            let gone = versions.prune(index, keep, arena);
            let history = versions.get(index).unwrap();
            let named: Vec<u32> = history.branches.values().chain(history.tags.values()).copied().collect();
            assert!(named.iter().all(|number| *number == 0 || history.versions.contains_key(number)));
            let before = tasks[task].states.len();
            tasks[task].states.retain(|number, _| history.versions.contains_key(number));
            assert_eq!(before - tasks[task].states.len(), gone as usize);
        }
        Step::Fork { task, version } => {
            let Some(version) = tasks[task].pick(version) else { return };
            let index = versions.fork(tasks[task].index, version).unwrap();
            let states = BTreeMap::from([(1, tasks[task].states[&version].clone())]);
            let other = (task + 1) % tasks.len();
            versions.remove(tasks[other].index, arena);
            tasks[other] = Model { index, states };
        }
        Step::Forget { task } => {
            versions.remove(tasks[task].index, arena);
            tasks[task] = Model { index: versions.insert(History::default()), states: BTreeMap::new() };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn versions_are_the_models_and_chunks_are_counted_exactly(steps in proptest::collection::vec(step(), 1..80)) {
        let (mut versions, mut arena) = (Versions::default(), Arena::new(u64::MAX));
        let mut tasks: Vec<Model> =
            (0..4).map(|_| Model { index: versions.insert(History::default()), ..Model::default() }).collect();
        for step in steps {
            carry_out(step, &mut tasks, &mut versions, &mut arena);
            let mut distinct = BTreeMap::new();
            for model in &tasks {
                for (&number, chunks) in &model.states {
                    prop_assert_eq!(read(&versions, &arena, model.index, number), chunks.concat());
                    chunks.iter().for_each(|chunk| *distinct.entry(chunk.clone()).or_insert(0u64) += 1);
                }
            }
            prop_assert_eq!(versions.chunks.counts(), (distinct.len(), distinct.values().sum()));
            let bytes: usize = distinct.keys().map(Vec::len).sum();
            prop_assert_eq!(arena.stats().live_bytes, bytes as u64);
        }
        for model in &tasks {
            versions.remove(model.index, &mut arena);
        }
        prop_assert_eq!((versions.chunks.counts(), versions.bytes), ((0, 0), 0));
        prop_assert_eq!(arena.stats().objects, 0);
    }
}

#[test]
fn a_save_that_does_not_add_up_changes_nothing() {
    let (mut versions, mut arena) = (Versions::default(), Arena::new(u64::MAX));
    let index = versions.insert(History::default());
    let state = vec![b"one".to_vec(), b"two".to_vec()];
    assert_eq!(save(&mut versions, &mut arena, index, (0, &[]), &state, true), Ok(1));
    let before = (versions.get(index).cloned(), versions.chunks.counts(), arena.stats().live_bytes);
    let wrong = Save { parent: 1, digest: [7; 32], label: "", attempt: 1, time_us: 5 };
    let pieces = [Piece::Run { from: 0, count: 2 }, Piece::Bytes(b"three")];
    assert_eq!(versions.save(index, &wrong, pieces.into_iter(), &mut arena), Err(Unsaved::Digest));
    let beyond = [Piece::Bytes(b"three"), Piece::Run { from: 1, count: 2 }];
    assert_eq!(versions.save(index, &wrong, beyond.into_iter(), &mut arena), Err(Unsaved::Parent));
    let unborn = Save { parent: 2, ..wrong };
    assert_eq!(versions.save(index, &unborn, core::iter::empty(), &mut arena), Err(Unsaved::Parent));
    assert_eq!((versions.get(index).cloned(), versions.chunks.counts(), arena.stats().live_bytes), before);
}

#[test]
fn old_versions_go_beyond_the_bound_and_heads_and_tags_stay() {
    use taskmaster_protocol::limits::STATE_VERSIONS_MAX;
    let (mut versions, mut arena) = (Versions::default(), Arena::new(u64::MAX));
    let index = versions.insert(History::default());
    let mut number = 0;
    for step in 0..STATE_VERSIONS_MAX + 10 {
        let state = vec![step.to_le_bytes().to_vec()];
        number = save(&mut versions, &mut arena, index, (number, &[]), &state, true).unwrap();
        if number == 3 {
            versions.edit(index, |history| history.tags.insert("keep".into(), 3));
        }
        if number == 5 {
            versions.edit(index, |history| history.branches.insert("old".into(), 5));
        }
    }
    let kept: Vec<u32> = versions.get(index).unwrap().versions.keys().copied().collect();
    assert_eq!(kept.len(), STATE_VERSIONS_MAX);
    assert_eq!(kept[..3], [3, 5, 13]);
    assert_eq!(versions.chunks.counts().0, STATE_VERSIONS_MAX);
}
