//! What nodes know of each other: who is there, what the cluster agreed on, and what to change next.
//!
//! [`map`] is the agreed part, a state machine replicated by the meta group. [`membership`] is the observed part: who is
//! alive and where, by gossip. [`controller`] compares the two and says which changes of the map are due.
//!
//! All three are pure: no clock, no randomness but a seed, no floats, no iteration over hash tables. Nothing here talks
//! to Raft or to a socket, and nothing here decides who leads a group: that is the groups' own election.

pub mod controller;
pub mod map;
pub mod membership;

pub use controller::{GroupReport, Limits, NodeHealth, View, plan};
pub use map::{ClusterMap, Command, NodeInfo, NodeStatus, Placement};
pub use membership::{Member, Membership, Out};

/// The number of the meta group, whose state is the [`ClusterMap`].
pub const META_GROUP: u16 = 0xFFFF;
/// Format version of this build's software, for [`NodeInfo::version`] and [`Member::version`]. A cluster takes nodes of
/// two adjacent versions.
pub const SOFTWARE_VERSION: u32 = 1;
/// Most nodes of a cluster.
pub const NODES_MAX: usize = 64;
/// Most entries of the map's node table: the nodes and the removed ones that are remembered.
pub const NODES_KEPT_MAX: usize = 256;
/// Most replicas that a partition may be asked to have.
pub const REPLICATION_MAX: u16 = 7;
/// Most replicas of a placement; a placement on its way may have more than asked for.
pub const REPLICAS_MAX: usize = 16;
/// Most voters of the meta group; the other nodes learn from it.
pub const META_VOTERS_MAX: u16 = 5;
/// Most shards of a node.
pub const SHARDS_MAX: usize = 1024;
/// Longest name of a node or a zone, in bytes.
pub const NODE_NAME_BYTES_MAX: usize = 63;
/// Longest host name, in bytes.
pub const HOST_BYTES_MAX: usize = 253;

/// The bytes are not what they should be; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They end too early, or do not end where they should.
    #[error("{what} has another length than its contents say")]
    Length {
        /// Which bytes.
        what: &'static str,
    },
    /// Written by another version.
    #[error("{what} has format {found}, this build reads format {expected}: use the version that wrote it")]
    Format {
        /// Which bytes.
        what: &'static str,
        /// Their version.
        found: u16,
        /// The version this build reads.
        expected: u16,
    },
    /// They read as something that cannot be.
    #[error("{what}: {why}")]
    Contents {
        /// Which bytes.
        what: &'static str,
        /// What is wrong with them.
        why: String,
    },
}
