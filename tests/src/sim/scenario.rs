//! What a run is made of, as its options and its seed say: sizes, actors, and the plan of faults.

use taskmaster_engine::events::Events;

use super::Options;
use super::dice::Dice;
use super::faults::{Extent, FaultSet, Planned, plan};
use super::streams::{READERS, SOURCES};

/// Most nodes of a simulated cluster.
const NODES_MAX: u16 = 9;

/// A node's address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// Shards of whichever node runs there.
    pub(crate) shards: u16,
    /// When the first node starts there.
    pub(crate) starts_us: u64,
    /// Its clock, against the right one.
    pub(crate) skew_us: i64,
}

/// The sizes of a run.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) sites: Vec<Site>,
    pub(crate) partitions: u16,
    pub(crate) producers: u64,
    pub(crate) workers: u64,
    /// Readers of streams.
    pub(crate) stream_readers: u32,
    /// Load and faults end here.
    pub(crate) calm_from_us: u64,
    /// Log blocks between two snapshots of a shard.
    pub(crate) snapshot_every: u64,
    /// Bytes of a shard's groups' logs kept for followers that lag: few, so that snapshots are sent.
    pub(crate) log_bytes_kept: u64,
    /// Final tasks are checkpointed.
    pub(crate) checkpoints: bool,
    /// It is told what happens: in some runs with room for so little that some is dropped.
    pub(crate) events: Option<Events>,
    /// A store outside remembers results of memoised tasks.
    pub(crate) memo: bool,
    /// Tasks may be restartable.
    pub(crate) restarts: bool,
    /// Bytes of snapshots that a shard sends per second.
    pub(crate) transfer_bytes_per_s: u64,
    pub(crate) faults: Vec<Planned>,
    /// Source of everything else.
    pub(crate) dice: Dice,
}

impl Scenario {
    pub(crate) fn new(options: &Options) -> Self {
        let mut dice = Dice::new(options.seed);
        let nodes = match (options.nodes, dice.below(10)) {
            (0, 0 | 1) => 1,
            (0, 2..=7) => 3,
            (0, 8) => 4,
            (0, _) => 5,
            (nodes, _) => nodes.min(NODES_MAX),
        };
        let short_us = dice.range(1_500_000, 6_000_000);
        let calm_from_us = if options.minutes == 0 { short_us } else { u64::from(options.minutes) * 60_000_000 };
        let partitions = u16::try_from(dice.range(1, 3)).expect("few");
        let has_skew = options.faults.contains(FaultSet::CLOCK) && dice.chance(60);
        let joins_late = options.faults.contains(FaultSet::MEMBERSHIP) && dice.chance(30);
        let sites = (0..nodes).map(|place| {
            let skew_us_max = if dice.chance(80) { 50_000 } else { 2_000_000 };
            let skew_us = i64::try_from(dice.below(skew_us_max)).expect("small");
            let late_us = if joins_late && place > 0 { dice.below(calm_from_us) } else { dice.below(100_000) };
            Site {
                shards: 1 + u16::from(dice.chance(30)),
                starts_us: if place == 0 { 0 } else { late_us },
                skew_us: match (has_skew, dice.chance(50)) {
                    (false, _) => 0,
                    (true, true) => skew_us,
                    (true, false) => -skew_us,
                },
            }
        });
        let sites = sites.collect();
        let extent = Extent { nodes, partitions, until_us: calm_from_us };
        let faults = plan(options.faults, &extent, &mut Dice::new(dice.roll()));
        Self {
            sites,
            partitions,
            producers: dice.range(1, 3),
            workers: dice.range(1, 4),
            stream_readers: if options.streams { SOURCES * READERS } else { 0 },
            calm_from_us,
            snapshot_every: dice.range(5, 120),
            log_bytes_kept: if dice.chance(60) { dice.range(1 << 10, 64 << 10) } else { 1 << 20 },
            checkpoints: options.checkpoints,
            events: options.events.then(|| events_of(options.seed)),
            memo: options.memo,
            restarts: options.restarts,
            transfer_bytes_per_s: if dice.chance(20) { dice.range(16 << 10, 1 << 20) } else { 1 << 30 },
            faults,
            dice: Dice::new(dice.roll()),
        }
    }
}

/// Without chance, so that runs with and without events are alike.
const fn events_of(seed: u64) -> Events {
    Events { waiting_kib_max: if seed.is_multiple_of(8) { 1 } else { 1 << 20 }, starts: !seed.is_multiple_of(3) }
}
