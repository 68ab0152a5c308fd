//! What may go wrong, and the plan of when: drawn before the run, so that parts of it can be left out of a repetition.

use std::fmt;
use std::str::FromStr;

use super::dice::Dice;

/// Kinds of faults, as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultSet(u8);

const NAMES: [(&str, FaultSet); 7] = [
    ("crash", FaultSet::CRASH),
    ("pause", FaultSet::PAUSE),
    ("clock", FaultSet::CLOCK),
    ("network", FaultSet::NETWORK),
    ("disk", FaultSet::DISK),
    ("membership", FaultSet::MEMBERSHIP),
    ("clients", FaultSet::CLIENTS),
];

impl FaultSet {
    /// Nothing goes wrong.
    pub const NONE: Self = Self(0);
    /// Processes die, by power loss or by themselves, and are shut down.
    pub const CRASH: Self = Self(1);
    /// Processes stand still for a while.
    pub const PAUSE: Self = Self(2);
    /// Clocks differ and jump.
    pub const CLOCK: Self = Self(4);
    /// Partitions (asymmetric ones too), resets and slow links between nodes, lost gossip.
    pub const NETWORK: Self = Self(8);
    /// Disks stall, fill up, rot and are lost.
    pub const DISK: Self = Self(16);
    /// Nodes come later, are drained and removed; partitions move; leaders are transferred.
    pub const MEMBERSHIP: Self = Self(32);
    /// Connections of producers and workers break; workers forget, stall, and end leases late or twice.
    pub const CLIENTS: Self = Self(64);
    /// Everything.
    pub const ALL: Self = Self(127);

    /// Whether all kinds of `other` are in the set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromStr for FaultSet {
    type Err = String;

    /// `all`, `none`, or kinds with commas between.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => return Ok(Self::ALL),
            "none" => return Ok(Self::NONE),
            _ => {}
        }
        text.split(',').try_fold(Self::NONE, |set, name| {
            let known = NAMES.iter().find(|(known, _)| *known == name.trim());
            let all = || NAMES.map(|(known, _)| known).join(", ");
            known
                .map(|(_, kind)| set.with(*kind))
                .ok_or_else(|| format!("no faults are called \"{name}\": all, none, or of {}", all()))
        })
    }
}

impl fmt::Display for FaultSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("all"),
            Self::NONE => f.write_str("none"),
            set => {
                let names: Vec<&str> =
                    NAMES.iter().filter(|(_, kind)| set.contains(*kind)).map(|(name, _)| *name).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

/// One thing that goes wrong. Places are the nodes' addresses, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process and the power go: unflushed writes land in part.
    PowerLoss {
        place: u16,
        down_us: u64,
    },
    /// The power goes everywhere.
    PowerLossEverywhere {
        down_us: u64,
    },
    /// The process alone dies; the kernel still resets its connections.
    Kill {
        place: u16,
        down_us: u64,
    },
    Shutdown {
        place: u16,
        down_us: u64,
    },
    Pause {
        place: u16,
        for_us: u64,
    },
    ClockJump {
        place: u16,
        by_us: i64,
    },
    /// Nothing passes from one place to another, in this direction.
    Cut {
        from: u16,
        to: u16,
        for_us: u64,
    },
    /// Nothing passes to or from the others; clients may reach it still.
    Isolate {
        place: u16,
        clients_too: bool,
        for_us: u64,
    },
    /// Two halves do not hear each other.
    Split {
        side: u16,
        for_us: u64,
    },
    PeerReset {
        from: u16,
        to: u16,
    },
    SlowNetwork {
        for_us: u64,
    },
    GossipLoss {
        percent: u64,
        for_us: u64,
    },
    DiskStall {
        place: u16,
        for_us: u64,
    },
    DiskFull {
        place: u16,
        for_us: u64,
    },
    /// A bit flips in what was once durable; the process dies and finds it at its start.
    BitRot {
        place: u16,
        down_us: u64,
    },
    /// The disk is replaced by an empty one.
    DiskLoss {
        place: u16,
        down_us: u64,
    },
    ClientReset {
        pick: u64,
    },
    NodeDropsClient {
        pick: u64,
    },
    Drain {
        place: u16,
    },
    Activate {
        place: u16,
    },
    /// Taken out of the cluster; the place starts anew with an empty disk.
    Remove {
        place: u16,
        down_us: u64,
    },
    Move {
        partition: u16,
        from: u16,
        to: u16,
    },
    Transfer {
        partition: u16,
        to: u16,
    },
    Rebalance,
}

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) at_us: u64,
    pub(crate) fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9} us  {:?}", self.at_us, self.fault)
    }
}

/// What a plan is made for.
pub(crate) struct Extent {
    pub(crate) nodes: u16,
    pub(crate) partitions: u16,
    /// Faults end here.
    pub(crate) until_us: u64,
}

/// The most faults of each kind in ten virtual seconds.
const MOST: [(FaultSet, u64); 7] = [
    (FaultSet::CRASH, 5),
    (FaultSet::PAUSE, 2),
    (FaultSet::CLOCK, 2),
    (FaultSet::NETWORK, 6),
    (FaultSet::DISK, 5),
    (FaultSet::MEMBERSHIP, 5),
    (FaultSet::CLIENTS, 12),
];

/// Draws a plan, ordered by time.
pub(crate) fn plan(set: FaultSet, extent: &Extent, dice: &mut Dice) -> Vec<Planned> {
    let mut planned = Vec::new();
    for (kind, most) in MOST {
        // Drawn whether or not the kind is wanted: leaving one out leaves the others as they are.
        let mut dice = Dice::new(dice.roll());
        let most = (most * extent.until_us).div_ceil(10_000_000);
        for _ in 0..dice.range(0, most) {
            let at_us = dice.below(extent.until_us);
            let fault = draw(kind, extent, &mut dice);
            if set.contains(kind) {
                planned.extend(fault.map(|fault| Planned { at_us, fault }));
            }
        }
    }
    planned.sort_by_key(|planned| planned.at_us);
    planned
}

fn draw(kind: FaultSet, extent: &Extent, dice: &mut Dice) -> Option<Fault> {
    let (place, to) = (pick(dice, extent.nodes), pick(dice, extent.nodes));
    let down_us = if dice.chance(70) { dice.range(500, 800_000) } else { dice.range(800_000, 4_000_000) };
    let for_us = if dice.chance(70) { dice.range(20_000, 700_000) } else { dice.range(700_000, 4_000_000) };
    let several = extent.nodes > 1;
    let fault = match kind {
        FaultSet::CRASH => match dice.below(10) {
            0..=4 => Fault::PowerLoss { place, down_us },
            5..=7 => Fault::Kill { place, down_us },
            8 => Fault::Shutdown { place, down_us },
            _ => Fault::PowerLossEverywhere { down_us },
        },
        FaultSet::PAUSE => Fault::Pause { place, for_us },
        FaultSet::CLOCK => {
            let by_us = i64::try_from(dice.range(1_000, 20_000_000)).expect("small");
            Fault::ClockJump { place, by_us: if dice.chance(50) { by_us } else { -by_us } }
        }
        FaultSet::NETWORK if several => match dice.below(10) {
            0 | 1 if place != to => Fault::Cut { from: place, to, for_us },
            2 | 3 => Fault::Isolate { place, clients_too: dice.chance(50), for_us },
            4 => Fault::Split { side: 1 << place | 1 << to, for_us },
            5 => Fault::GossipLoss { percent: dice.range(10, 100), for_us },
            6 => Fault::SlowNetwork { for_us },
            _ if place != to => Fault::PeerReset { from: place, to },
            _ => return None,
        },
        FaultSet::DISK => match dice.below(10) {
            0..=2 => Fault::DiskStall { place, for_us: for_us.min(1_000_000) },
            3 | 4 => Fault::DiskFull { place, for_us },
            5..=7 if several => Fault::BitRot { place, down_us },
            _ if several => Fault::DiskLoss { place, down_us },
            _ => return None,
        },
        FaultSet::MEMBERSHIP if several => {
            let partition = pick(dice, extent.partitions);
            match dice.below(12) {
                0 | 1 => Fault::Drain { place },
                2 | 3 => Fault::Activate { place },
                4 => Fault::Remove { place, down_us },
                5..=7 => Fault::Move { partition, from: place, to },
                8 => Fault::Rebalance,
                _ => Fault::Transfer { partition, to },
            }
        }
        FaultSet::CLIENTS if dice.chance(60) => Fault::ClientReset { pick: dice.roll() },
        FaultSet::CLIENTS => Fault::NodeDropsClient { pick: dice.roll() },
        _ => return None,
    };
    Some(fault)
}

fn pick(dice: &mut Dice, count: u16) -> u16 {
    u16::try_from(dice.below(count.into())).expect("below a u16")
}
