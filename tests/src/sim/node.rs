//! A place where a node runs: its disks, its clock, and one life after another of its process.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use taskmaster_engine::checkpoint::Checkpoints;
use taskmaster_engine::cluster::controller::Limits;
use taskmaster_engine::cluster::{ClusterMap, Member, Membership, NodeInfo, SOFTWARE_VERSION};
use taskmaster_engine::{Config, ConnId};
use taskmaster_protocol::NodeId;

use super::Defect;
use super::dice::{Dice, mix};
use super::disk::Disk;
use super::scenario::{Scenario, Site};
use super::shard_loop::{ShardLoop, StartError};
use super::world::remembered::RESULT_BYTES_MAX;

const PEER_PORT: u16 = 7_000;
const CLUSTER_NAME: &str = "simulated";
/// The cluster that the first node founds.
const CLUSTER: u128 = 0x51_71_1a_7e;
/// Connection under which the world itself sends requests.
pub(crate) const OPERATOR: ConnId = ConnId(u64::MAX);

/// Where a place's gossip listens.
pub(crate) fn address_of(place: u16) -> SocketAddr {
    let [high, low] = place.to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, high, low + 1)), PEER_PORT)
}

/// The place at an address.
pub(crate) fn place_of(address: SocketAddr) -> Option<u16> {
    match address.ip() {
        IpAddr::V4(ip) if ip.octets()[..2] == [10, 0] => {
            let [.., high, low] = ip.octets();
            Some(u16::from_be_bytes([high, low.checked_sub(1)?]))
        }
        _ => None,
    }
}

/// One life of a node's process.
pub(crate) struct Node {
    /// Unique over the run.
    pub(crate) life: u64,
    pub(crate) loops: Vec<ShardLoop>,
    pub(crate) membership: Membership,
    /// When gossip is due next, as an event stands for it, in the world's time.
    pub(crate) gossip_us: u64,
    /// The newest map that shard 0 gave out.
    pub(crate) map: Option<Arc<ClusterMap>>,
}

/// A place.
pub(crate) struct Place {
    pub(crate) number: u16,
    pub(crate) site: Site,
    /// Identity of the data directory.
    pub(crate) id: NodeId,
    pub(crate) disks: Vec<Disk>,
    pub(crate) skew_us: i64,
    pub(crate) node: Option<Node>,
    /// The process stands still: what happens to it waits.
    pub(crate) is_paused: bool,
    /// Starts of this data directory.
    starts: u32,
    /// Data directories there were.
    generation: u64,
    founds: bool,
    /// Ids of nodes that were here and whose disks are gone.
    pub(crate) gone: BTreeSet<NodeId>,
}

impl Place {
    pub(crate) fn new(number: u16, site: Site, seed: u64) -> Self {
        let mut place = Self {
            number,
            site,
            id: NodeId(0),
            disks: Vec::new(),
            skew_us: site.skew_us,
            node: None,
            is_paused: false,
            starts: 0,
            generation: 0,
            founds: number == 0,
            gone: BTreeSet::new(),
        };
        place.replace_disks(seed);
        place
    }

    /// The disks are new and empty: whatever starts here next is a new node.
    pub(crate) fn replace_disks(&mut self, seed: u64) {
        if self.generation > 0 {
            self.gone.insert(self.id);
            self.founds = false;
        }
        self.generation += 1;
        self.starts = 0;
        self.id = NodeId(mix(seed ^ mix(u64::from(self.number) << 32 | self.generation)).max(1));
        self.disks = (0..self.site.shards).map(|_| Disk::default()).collect();
    }

    /// The process that runs, unless it stands still.
    pub(crate) fn running(&mut self) -> Option<&mut Node> {
        self.node.as_mut().filter(|_| !self.is_paused)
    }

    /// Its life, if it is there at all.
    pub(crate) fn life(&self) -> Option<u64> {
        self.node.as_ref().map(|node| node.life)
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            id: self.id,
            name: format!("n{}-{}", self.number, self.generation),
            zone: String::new(),
            host: format!("n{}", self.number),
            peer_port: PEER_PORT,
            client_ports: (0..self.site.shards).map(|shard| 7_400 + shard).collect(),
            version: SOFTWARE_VERSION,
        }
    }

    /// Starts the process from what is on the disks.
    pub(crate) fn start(
        &mut self,
        life: u64,
        scenario: &Scenario,
        now_us: u64,
        dice: &mut Dice,
        defect: Option<Defect>,
    ) -> Result<(), StartError> {
        self.starts += 1;
        let info = self.info();
        let mut loops = Vec::new();
        for (number, disk) in (0u16..).zip(&mut self.disks) {
            let config = Config {
                node: info.clone(),
                number,
                partitions: scenario.partitions,
                found: if self.founds { CLUSTER } else { 0 },
                replication: 3,
                limits: hurried(),
                seed: dice.roll(),
                memory_bytes_max: 1 << 30,
                log_bytes_kept: scenario.log_bytes_kept,
                transfer_bytes_per_s: scenario.transfer_bytes_per_s,
                kept_max: u32::MAX,
                retention_ms: 600_000,
                auto_create_queues: true,
                checkpoints: scenario.checkpoints.then_some(CHECKPOINTS),
                demote_above_bytes: scenario.checkpoints.then_some(WAITING_BYTES),
                events: scenario.events,
                logs_starts: false,
                memo_bytes_max: scenario.memo.then_some(RESULT_BYTES_MAX),
            };
            let mut shard = ShardLoop::start(config, disk, now_us, dice, defect)?;
            if scenario.restarts {
                // Runs are too short for guards to be sure.
                shard.shard.trust_learned();
            }
            loops.push(shard);
        }
        let own = Member {
            id: self.id,
            cluster: 0,
            bump: Member::bump_of_start(self.starts),
            peer: address_of(self.number),
            shards: self.site.shards,
            version: SOFTWARE_VERSION,
            name: info.name,
            is_alive: true,
        };
        let others = (0..u16::try_from(scenario.sites.len()).expect("few")).filter(|place| *place != self.number);
        let seeds = others.map(address_of).collect();
        let membership = Membership::new(own, CLUSTER_NAME, seeds, dice.roll(), now_us);
        self.node = Some(Node { life, loops, membership, gossip_us: u64::MAX, map: None });
        Ok(())
    }
}

/// Nothing is forgotten early, so that it can be read.
const CHECKPOINTS: Checkpoints = Checkpoints { waiting_max: 1 << 20, waiting_kib_max: 1 << 20, kept_ms: u32::MAX };

/// What waits in a partition's memory, in bytes: most of it leaves.
const WAITING_BYTES: u64 = 1_000;

/// A controller in a hurry: runs are short.
pub(crate) fn hurried() -> Limits {
    Limits { replace_after_us: 1_500_000, moves_max: 2, ..Limits::default() }
}
