//! The opening exchange: versions, limits, features and the shard map.

use rkyv::{Archive, Deserialize, Serialize};

use super::Span;

/// Bits of [`Hello::features`] and [`HelloReply::features`].
pub mod feature {
    /// The server takes [`super::super::Usage`].
    pub const USAGE: u64 = 1;
}

/// First request of a connection.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Hello {
    /// Optional features the client understands: bits of [`feature`].
    pub features: u64,
    /// Client software and version (UTF-8), for logs.
    pub client: Span,
    /// Byte area.
    pub bytes: Vec<u8>,
    /// Lowest protocol version spoken.
    pub version_min: u8,
    /// Highest protocol version spoken.
    pub version_max: u8,
}

/// What the server settled on.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct HelloReply {
    /// Features in force: those that both sides understand.
    pub features: u64,
    /// Server clock, in microseconds since 1970.
    pub server_time_us: u64,
    /// Identity of the node's data directory.
    pub node: [u64; 2],
    /// Largest frame body taken, in bytes.
    pub body_bytes_max: u32,
    /// Largest payload taken, in bytes.
    pub payload_bytes_max: u32,
    /// Most rows per frame.
    pub rows_max: u32,
    /// Most credit per connection, in tasks.
    pub credit_max: u32,
    /// TCP port of each shard, by shard number. Every port takes every request; the owner's answers sooner.
    pub shard_ports: Vec<u16>,
    /// Owning shard of each partition, by partition number; its length is the partition count.
    pub partition_shards: Vec<u16>,
    /// Server software and version (UTF-8).
    pub server: Span,
    /// Byte area.
    pub bytes: Vec<u8>,
    /// Shard this connection is attached to.
    pub shard: u16,
    /// Protocol version in force.
    pub version: u8,
}
