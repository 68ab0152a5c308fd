//! Who is there and where, by gossip.

use core::net::SocketAddr;
use taskmaster_protocol::NodeId;

/// A node as gossip knows it. Zone, host and client ports are the map's: they would not fit many to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity, from its data directory; not zero.
    pub id: NodeId,
    /// The cluster it belongs to; 0: none yet.
    pub cluster: u128,
    /// Of two descriptions of a node the one with the higher bump is newer; see [`Member::bump_of_start`].
    pub bump: u64,
    /// Where its gossip and its shard 0's peers listen; shard n: port + n.
    pub peer: SocketAddr,
    /// How many shards it has.
    pub shards: u16,
    /// Format version of its software.
    pub version: u32,
    /// What people call it.
    pub name: String,
    /// It is there.
    pub is_alive: bool,
}

impl Member {
    /// The bump of a node's n-th start. `start` must grow with every start of a data directory, as its term does; the
    /// lower half counts what changes while the node runs.
    #[must_use]
    pub const fn bump_of_start(start: u32) -> u64 {
        (start as u64) << 32
    }
}

/// What to do after a call, and what it found out. Whoever calls empties it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Out {
    /// Datagrams to send.
    pub packets: Vec<(SocketAddr, Vec<u8>)>,
    /// Members that came, went or changed.
    pub changes: Vec<Member>,
    /// Sentences for the log.
    pub warnings: Vec<String>,
}

/// One node's view of who is there.
pub struct Membership {
    own: Member,
}

impl Membership {
    /// Begins alone; the first call of [`Membership::handle_timeout`] is due at once.
    #[must_use]
    pub fn new(own: Member, _cluster_name: &str, _seeds: Vec<SocketAddr>, _seed: u64, _now_us: u64) -> Self {
        Self { own }
    }

    /// Takes a datagram.
    pub fn handle_packet(&mut self, _from: SocketAddr, _packet: &[u8], _now_us: u64, _out: &mut Out) {}

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now_us: u64, _out: &mut Out) {}

    /// When [`Membership::handle_timeout`] is due next; may have changed after any call.
    #[must_use]
    pub fn next_wake_us(&self) -> u64 {
        0
    }

    /// Other addresses to look for a cluster at.
    pub fn set_seeds(&mut self, _seeds: Vec<SocketAddr>) {}

    /// This node belongs to a cluster from now on; told to the others at the next [`Membership::handle_timeout`].
    pub fn set_cluster(&mut self, cluster: u128) {
        self.own.cluster = cluster;
    }

    /// Says goodbye, so that others need not find out.
    pub fn leave(&mut self, _now_us: u64, _out: &mut Out) {}

    /// Who is there, this node not included, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        core::iter::empty()
    }
}
