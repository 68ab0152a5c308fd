//! A store outside that remembers results of memoised tasks as Redis does: it knows some, forgets some, and is not always asked.

use std::collections::BTreeMap;

use taskmaster_engine::{Known, Made, Shard};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::memo::Key;

use super::World;
use crate::sim::dice::Dice;

/// Longest result that it takes, in bytes.
pub(crate) const RESULT_BYTES_MAX: usize = 1_000;

/// What it remembers.
#[derive(Default)]
pub(super) struct Remembered(BTreeMap<Key, Made>);

impl Remembered {
    /// What it knows for a request to a shard.
    pub(super) fn known(&self, shard: &Shard, header: &Header, body: &[u8], dice: &mut Dice) -> Vec<Known> {
        if self.0.is_empty() || dice.chance(30) {
            return Vec::new();
        }
        let unknown = shard.unknown_results(header, body);
        let known = unknown.iter().filter_map(|unknown| {
            let Made { of, made_us, result, .. } = self.0.get(&unknown.key).filter(|_| dice.chance(70))?.clone();
            Some(Known { row: unknown.row, of, made_us, result })
        });
        known.collect()
    }
}

impl World {
    /// Every shard gives what ran on it.
    pub(super) fn remember(&mut self) {
        if !self.options.memo {
            return;
        }
        let nodes = self.places.iter_mut().filter_map(|place| place.running());
        for own in nodes.flat_map(|node| &mut node.loops) {
            for made in own.shard.take_made() {
                self.remembered.0.insert(made.key, made);
            }
        }
        if self.dice.chance(5) {
            self.remembered.0.pop_first();
        }
    }
}
