//! What the map knows of a node.

use crate::cluster::{HOST_BYTES_MAX, NODE_NAME_BYTES_MAX, SHARDS_MAX};
use core::fmt;
use taskmaster_protocol::NodeId;

/// A node as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its identity, from its data directory; not zero.
    pub id: NodeId,
    /// What people call it; no two nodes of a cluster have the same name.
    pub name: String,
    /// Where it stands or falls together with others; empty when nobody said.
    pub zone: String,
    /// The host name or address by which others and clients reach it.
    pub host: String,
    /// TCP port of shard 0's peers and UDP port of gossip; shard n listens on `peer_port + n`.
    pub peer_port: u16,
    /// Client port of each shard.
    pub client_ports: Vec<u16>,
    /// Format version of its software.
    pub version: u32,
}

/// What a node is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeStatus {
    /// It may hold replicas.
    Active,
    /// Its replicas are to move away; it stays a node.
    Draining,
    /// It is gone for good; its id never comes back.
    Removed,
}

impl NodeStatus {
    /// Its number in bytes.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Active => 0,
            Self::Draining => 1,
            Self::Removed => 2,
        }
    }

    /// The status with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Active),
            1 => Some(Self::Draining),
            2 => Some(Self::Removed),
            _ => None,
        }
    }
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Removed => "removed",
        })
    }
}

impl NodeInfo {
    /// How many shards it has.
    #[must_use]
    pub const fn shards(&self) -> usize {
        self.client_ports.len()
    }

    /// Whether the description makes sense by itself.
    ///
    /// # Errors
    /// A sentence that says what does not.
    pub fn validate(&self) -> Result<(), String> {
        if self.id.0 == 0 {
            return Err("a node's id is not zero".to_owned());
        }
        check_text("name of a node", &self.name, 1, NODE_NAME_BYTES_MAX)?;
        check_text("zone of a node", &self.zone, 0, NODE_NAME_BYTES_MAX)?;
        check_text("host of a node", &self.host, 1, HOST_BYTES_MAX)?;
        let shards = self.client_ports.len();
        if !(1..=SHARDS_MAX).contains(&shards) {
            return Err(format!("node \"{}\" has {shards} client ports: one per shard is needed", self.name));
        }
        if self.client_ports.contains(&0) || self.peer_port == 0 {
            return Err(format!("node \"{}\" has a port 0: others need to know the real one", self.name));
        }
        if usize::from(self.peer_port) + shards - 1 > usize::from(u16::MAX) {
            return Err(format!(
                "node \"{}\" needs {shards} peer ports from {}: they end above 65535",
                self.name, self.peer_port
            ));
        }
        Ok(())
    }
}

pub(in crate::cluster) fn check_text(what: &str, text: &str, bytes_min: usize, bytes_max: usize) -> Result<(), String> {
    if !(bytes_min..=bytes_max).contains(&text.len()) {
        return Err(format!("the {what} has {} bytes: {bytes_min} to {bytes_max} are possible", text.len()));
    }
    if let Some(character) = text.chars().find(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!("the {what} contains the character {character:?}"));
    }
    Ok(())
}
