//! Who leads which partition: asked of the nodes by one thread, read by the generators.
//!
//! Invariants: generators never wait for the map; a version grows whenever a leader differs, so that looking for news costs
//! one load of an atomic; a node that does not answer is passed over for the next one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::control::Control;

/// How often the map is asked for when nobody is in need of it.
const LOOK: Duration = Duration::from_millis(200);
/// How often the scout sees whether somebody is in need of it, and so the least time between two looks.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest wait until every partition is led.
const LED_MAX: Duration = Duration::from_secs(30);

/// A shard of a node: its place in the list of nodes, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) node: usize,
    pub(crate) shard: u16,
}

/// The leaders, as last heard.
#[derive(Debug)]
pub(crate) struct Routes {
    /// Shards of each node.
    shards: Vec<u16>,
    /// Identity of each node.
    ids: Vec<u64>,
    leaders: Mutex<Vec<Option<usize>>>,
    version: AtomicU64,
    /// Somebody was told that a partition's leader is elsewhere.
    is_wanted: AtomicBool,
}

impl Routes {
    /// Asks every node who it is, and one of them who leads, until all partitions are led.
    pub(crate) fn learn(controls: &mut [Control], shards: Vec<u16>) -> Result<Self> {
        let ids = controls.iter_mut().map(|control| Ok(control.leaders()?.node)).collect::<Result<Vec<u64>>>()?;
        let routes = Self {
            shards,
            ids,
            leaders: Mutex::default(),
            version: AtomicU64::new(0),
            is_wanted: AtomicBool::new(false),
        };
        let give_up = Instant::now() + LED_MAX;
        loop {
            let heard = controls.first_mut().context("a cluster has nodes")?.leaders()?;
            routes.take(&heard.leaders);
            let leaders = routes.leaders();
            if !leaders.is_empty() && leaders.iter().all(Option::is_some) {
                return Ok(routes);
            }
            ensure!(Instant::now() < give_up, "after {LED_MAX:?} not every partition is led");
            thread::sleep(PAUSE);
        }
    }

    /// Grows with each change.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The node that leads each partition, by partition number.
    pub(crate) fn leaders(&self) -> Vec<Option<usize>> {
        self.leaders.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the scout look at once.
    pub(crate) fn want(&self) {
        self.is_wanted.store(true, Ordering::Release);
    }

    /// The place of a partition on a node.
    pub(crate) fn place(&self, node: usize, partition: u16) -> Place {
        Place { node, shard: partition % self.shards[node] }
    }

    /// Every shard of every node, nodes taking turns.
    pub(crate) fn places(&self) -> Vec<Place> {
        let shards_max = self.shards.iter().copied().max().unwrap_or(0);
        let nodes = || self.shards.iter().enumerate();
        let row = |shard| nodes().filter(move |(_, count)| shard < **count).map(move |(node, _)| Place { node, shard });
        (0..shards_max).flat_map(row).collect()
    }

    /// Follows the leaders until `is_over`.
    pub(crate) fn scout(&self, controls: &mut [Control], is_over: &AtomicBool) {
        let (mut turn, mut looked) = (0, Instant::now());
        while !is_over.load(Ordering::Acquire) {
            thread::sleep(PAUSE);
            if !self.is_wanted.swap(false, Ordering::AcqRel) && looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            match controls[turn].leaders() {
                Ok(heard) => self.take(&heard.leaders),
                Err(_) => turn = (turn + 1) % controls.len(),
            }
        }
    }

    fn take(&self, leaders: &[u64]) {
        let node = |id: &u64| self.ids.iter().position(|known| known == id);
        let heard: Vec<Option<usize>> = leaders.iter().map(node).collect();
        let mut known = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != heard {
            *known = heard;
            self.version.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        let (leaders, version) = (Mutex::default(), AtomicU64::new(0));
        Routes { shards: vec![1, 2, 2], ids: vec![7, 8, 9], leaders, version, is_wanted: AtomicBool::new(false) }
    }

    #[test]
    fn only_news_grow_the_version_and_unknown_leaders_are_none() {
        let routes = routes();
        routes.take(&[7, 9, 0]);
        assert_eq!((routes.version(), routes.leaders()), (1, vec![Some(0), Some(2), None]));
        routes.take(&[7, 9, 0]);
        assert_eq!(routes.version(), 1);
        routes.take(&[7, 9, 8]);
        assert_eq!(routes.version(), 2);
    }

    #[test]
    fn places_cover_every_shard_and_nodes_take_turns() {
        let routes = routes();
        let places: Vec<(usize, u16)> = routes.places().iter().map(|place| (place.node, place.shard)).collect();
        assert_eq!(places, [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1)]);
        assert_eq!(routes.place(2, 5), Place { node: 2, shard: 1 });
    }
}
