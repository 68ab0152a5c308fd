//! Versions of states on their way back, in parts that are bounded however much a task saved.
//!
//! A part brings each chunk once for all that name it there, and none of a task twice in different parts: the task has it by then.

use std::collections::{HashMap, HashSet};

use crate::postgres::batch::{Place, Returning, SavedHistory, SavedVersion, StateChunk, States};
use crate::postgres::{Error, Session};

/// Bounds of a part, of which one version alone may be more: chunks with their bytes, chunks in all, and pieces of versions. With chunks of
/// 8 KiB and states of 8 MiB at most it fits a record of the log many times over.
const BROUGHT_MAX: usize = 1_024;
const CHUNKS_MAX: usize = 32_768;
const PIECES_MAX: usize = 131_072;
/// Pieces for which a version counts besides its own.
const VERSION_PIECES: usize = 64;

const CHUNKS: &str =
    "SELECT digest, bytes FROM taskmaster.state_chunk WHERE cluster = $1 AND partition = $2 AND digest = ANY ($3)";

/// What a task saved, and the cluster whose chunks it names.
pub(super) struct Saved {
    pub(super) cluster: i32,
    pub(super) id: u128,
    pub(super) history: SavedHistory,
    pub(super) chunks: Vec<[u8; 32]>,
}

/// Hands over what tasks of one partition saved, until it is told to end.
pub(super) async fn hand_over(
    session: &Session,
    partition: u16,
    saved: Vec<Saved>,
    take: &mut impl AsyncFnMut(Returning) -> bool,
) -> Result<bool, Error> {
    let mut part = Part::new(partition, 0);
    for Saved { cluster, id, history, chunks } in saved {
        // What the task has of earlier parts.
        let mut brought = HashSet::new();
        if part.cluster != cluster && !part.hand_over(session, cluster, &mut brought, take).await? {
            return Ok(false);
        }
        let head = SavedHistory { versions: Vec::new(), ..history };
        part.states.histories.push((id, head.clone()));
        for version in history.versions {
            if !part.has_room(&version, &chunks, &brought) {
                if !part.hand_over(session, cluster, &mut brought, take).await? {
                    return Ok(false);
                }
                part.states.histories.push((id, head.clone()));
            }
            part.add(version, &chunks, &brought);
        }
    }
    part.hand_over(session, 0, &mut HashSet::new(), take).await
}

/// A part under construction: all of one cluster.
struct Part {
    cluster: i32,
    states: States,
    places: HashMap<[u8; 32], u32>,
    /// Chunks whose bytes it brings.
    brings: HashSet<[u8; 32]>,
    pieces: usize,
}

impl Part {
    fn new(partition: u16, cluster: i32) -> Self {
        let states = States { partition, ..States::default() };
        Self { cluster, states, places: HashMap::new(), brings: HashSet::new(), pieces: 0 }
    }

    /// Whether a version fits. One alone always does.
    fn has_room(&self, version: &SavedVersion, chunks: &[[u8; 32]], brought: &HashSet<[u8; 32]>) -> bool {
        let named: HashSet<&[u8; 32]> = version.pieces.iter().map(|&place| &chunks[place as usize]).collect();
        let brings = named.iter().filter(|&&digest| !brought.contains(digest) && !self.brings.contains(digest)).count();
        self.pieces == 0
            || (self.brings.len() + brings <= BROUGHT_MAX
                && self.states.chunks.len() + named.len() <= CHUNKS_MAX
                && self.pieces + version.pieces.len() + VERSION_PIECES <= PIECES_MAX)
    }

    /// Adds a version to the last task.
    fn add(&mut self, version: SavedVersion, chunks: &[[u8; 32]], brought: &HashSet<[u8; 32]>) {
        self.pieces += version.pieces.len() + VERSION_PIECES;
        let pieces = version.pieces.iter().map(|&place| self.place(chunks[place as usize], brought)).collect();
        if let Some((_, history)) = self.states.histories.last_mut() {
            history.versions.push(SavedVersion { pieces, ..version });
        }
    }

    fn place(&mut self, digest: [u8; 32], brought: &HashSet<[u8; 32]>) -> u32 {
        if !brought.contains(&digest) {
            self.brings.insert(digest);
        }
        *self.places.entry(digest).or_insert_with(|| {
            self.states.chunks.push(StateChunk { digest, bytes: Place::default() });
            u32::try_from(self.states.chunks.len() - 1).unwrap_or(u32::MAX)
        })
    }

    /// The chunks that a task has once it has this part: those of versions of which no byte is lost, since others do not come back.
    fn kept(&self, history: &SavedHistory, brought: &HashSet<[u8; 32]>) -> Vec<[u8; 32]> {
        let is_there = |chunk: &StateChunk| chunk.bytes.len > 0 || brought.contains(&chunk.digest);
        let chunks = |version: &SavedVersion| -> Vec<StateChunk> {
            version.pieces.iter().filter_map(|&place| self.states.chunks.get(place as usize).copied()).collect()
        };
        let versions = history.versions.iter().map(chunks).filter(|chunks| chunks.iter().all(is_there));
        versions.flatten().map(|chunk| chunk.digest).collect()
    }

    /// Hands it over with its bytes and begins the next one. What its last task then has is added to what it had.
    async fn hand_over(
        &mut self,
        session: &Session,
        next: i32,
        brought: &mut HashSet<[u8; 32]>,
        take: &mut impl AsyncFnMut(Returning) -> bool,
    ) -> Result<bool, Error> {
        let mut done = core::mem::replace(self, Self::new(self.states.partition, next));
        let last = done.states.histories.last().filter(|(_, history)| !history.versions.is_empty()).map(|(id, _)| *id);
        done.states.histories.retain(|(_, history)| !history.versions.is_empty());
        if done.states.histories.is_empty() {
            return Ok(true);
        }
        let digests: Vec<&[u8]> = done.brings.iter().map(|digest| &digest[..]).collect();
        if !digests.is_empty() {
            let partition = i32::from(done.states.partition);
            for row in session.client.query(CHUNKS, &[&done.cluster, &partition, &digests]).await? {
                let (digest, bytes): (&[u8], &[u8]) = (row.try_get(0)?, row.try_get(1)?);
                let place = digest.first_chunk().and_then(|digest| done.places.get(digest));
                let Some(chunk) = place.and_then(|&place| done.states.chunks.get_mut(place as usize)) else { continue };
                let at = u32::try_from(done.states.bytes.len()).unwrap_or(u32::MAX);
                chunk.bytes = Place { at, len: u32::try_from(bytes.len()).unwrap_or(u32::MAX) };
                done.states.bytes.extend_from_slice(bytes);
            }
        }
        let of_last = done.states.histories.last().filter(|(id, _)| Some(*id) == last);
        let kept = of_last.map_or_else(Vec::new, |(_, history)| done.kept(history, brought));
        brought.extend(kept);
        Ok(take(Returning::States(done.states)).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_a_version_that_lost_one_are_brought_again() {
        let (there, earlier, lost, alone) = ([1; 32], [2; 32], [3; 32], [4; 32]);
        let mut part = Part::new(0, 1);
        let chunks = [there, earlier, lost, alone];
        let brought = HashSet::from([earlier]);
        part.states.histories.push((7, SavedHistory::default()));
        for pieces in [vec![0, 1], vec![2, 3], vec![0, 2]] {
            part.add(SavedVersion { pieces, ..SavedVersion::default() }, &chunks, &brought);
        }
        assert_eq!(part.brings, HashSet::from([there, lost, alone]));
        for digest in [there, alone] {
            let place = part.places[&digest] as usize;
            part.states.chunks[place].bytes.len = 1;
        }
        let kept: HashSet<[u8; 32]> = part.kept(&part.states.histories[0].1, &brought).into_iter().collect();
        assert_eq!(kept, HashSet::from([there, earlier]), "a task has no chunk that only a lost version names");
    }
}
