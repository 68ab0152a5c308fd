//! Bytes of the map and of its commands; `docs/formats/cluster.md` is their page.
//!
//! Little-endian, without padding. No length that the bytes state is believed before the bytes are there, and what was
//! read is checked as a whole before anybody sees it. Checksums are the container's business: the log, the snapshot and
//! the peer frame have theirs.

use super::{ClusterMap, Command, NodeInfo, NodeStatus, Placement};
use crate::cluster::Malformed;
use taskmaster_protocol::NodeId;

/// Version of the map's layout.
pub const MAP_FORMAT: u16 = 1;
/// Version of the commands' layout.
pub const COMMAND_FORMAT: u16 = 1;

const MAP: &str = "a cluster map";
const COMMAND: &str = "a command to the cluster map";
/// In a leader's place: nobody in particular.
const NO_LEADER: u8 = 0xFF;
/// Bytes of a placement with one replica, the least.
const PLACEMENT_BYTES_MIN: usize = 4 + 8 + 8;
/// Bytes of a node's fixed part.
const NODE_BYTES_MIN: usize = 20;

/// Reads fields off the front of bytes.
struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or(Malformed::Length { what: self.what })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>().ok_or(Malformed::Length { what: self.what })?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn node_id(&mut self) -> Result<NodeId, Malformed> {
        self.u64().map(NodeId)
    }

    fn text(&mut self, len: usize) -> Result<String, Malformed> {
        let bytes = self.take(len)?;
        core::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|error| self.contents(format!("text is not UTF-8: {error}")))
    }

    /// Room for `count` items, each at least `bytes_min` long, if so many can be there at all.
    fn room<T>(&self, count: usize, bytes_min: usize) -> Result<Vec<T>, Malformed> {
        if self.bytes.len() / bytes_min < count {
            return Err(Malformed::Length { what: self.what });
        }
        Ok(Vec::with_capacity(count))
    }

    fn format(&mut self, expected: u16) -> Result<(), Malformed> {
        let found = self.u16()?;
        if found == expected { Ok(()) } else { Err(Malformed::Format { what: self.what, found, expected }) }
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Malformed::Length { what: self.what }) }
    }

    fn contents(&self, why: impl Into<String>) -> Malformed {
        Malformed::Contents { what: self.what, why: why.into() }
    }

    fn node_info(&mut self) -> Result<(NodeInfo, NodeStatus), Malformed> {
        let id = self.node_id()?;
        let version = self.u32()?;
        let peer_port = self.u16()?;
        let ports = usize::from(self.u16()?);
        let [status, name, zone, host] = self.array()?;
        let status = NodeStatus::from_number(status)
            .ok_or_else(|| self.contents(format!("node {id} has the unknown status {status}")))?;
        let (name, zone, host) =
            (self.text(usize::from(name))?, self.text(usize::from(zone))?, self.text(usize::from(host))?);
        let mut client_ports = self.room(ports, 2)?;
        for _ in 0..ports {
            client_ports.push(self.u16()?);
        }
        let info = NodeInfo { id, name, zone, host, peer_port, client_ports, version };
        info.validate().map_err(|why| self.contents(why))?;
        Ok((info, status))
    }

    fn placement(&mut self) -> Result<Placement, Malformed> {
        let [count, leader, settled, zero] = self.array()?;
        if settled > 1 || zero != 0 {
            return Err(self.contents("a placement has unknown flags"));
        }
        let mut replicas = self.room(usize::from(count), 8)?;
        for _ in 0..count {
            replicas.push(self.node_id()?);
        }
        let leader = match leader {
            NO_LEADER => None,
            at => Some(*replicas.get(usize::from(at)).ok_or_else(|| self.contents("a leader is no replica"))?),
        };
        Ok(Placement { replicas, leader, settled: settled == 1, placed: 0 })
    }

    /// A placement of a map, and since when it is.
    fn placement_since(&mut self) -> Result<Placement, Malformed> {
        let placement = self.placement()?;
        Ok(Placement { placed: self.u64()?, ..placement })
    }
}

/// A length that validation keeps below 256.
fn short(len: usize) -> u8 {
    u8::try_from(len).expect("texts and replica lists of a valid map are bounded")
}

fn put_node(out: &mut Vec<u8>, info: &NodeInfo, status: NodeStatus) {
    out.extend_from_slice(&info.id.0.to_le_bytes());
    out.extend_from_slice(&info.version.to_le_bytes());
    out.extend_from_slice(&info.peer_port.to_le_bytes());
    let ports = u16::try_from(info.client_ports.len()).expect("shards of a node are bounded");
    out.extend_from_slice(&ports.to_le_bytes());
    out.extend_from_slice(&[status.number(), short(info.name.len()), short(info.zone.len()), short(info.host.len())]);
    for text in [&info.name, &info.zone, &info.host] {
        out.extend_from_slice(text.as_bytes());
    }
    for port in &info.client_ports {
        out.extend_from_slice(&port.to_le_bytes());
    }
}

fn put_placement(out: &mut Vec<u8>, replicas: &[NodeId], leader: Option<NodeId>, settled: bool) {
    let leader = leader.map_or(NO_LEADER, |leader| {
        short(replicas.iter().position(|id| *id == leader).expect("a preferred leader is one of the replicas"))
    });
    out.extend_from_slice(&[short(replicas.len()), leader, u8::from(settled), 0]);
    for id in replicas {
        out.extend_from_slice(&id.0.to_le_bytes());
    }
}

impl ClusterMap {
    /// Appends the map's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAP_FORMAT.to_le_bytes());
        out.extend_from_slice(&self.replication.to_le_bytes());
        let nodes = u16::try_from(self.nodes.len()).expect("nodes are bounded");
        out.extend_from_slice(&nodes.to_le_bytes());
        let partitions = u16::try_from(self.partitions.len()).expect("partitions are bounded");
        out.extend_from_slice(&partitions.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.cluster.to_le_bytes());
        for (info, status) in &self.nodes {
            put_node(out, info, *status);
        }
        for (_, placement) in self.groups() {
            put_placement(out, &placement.replicas, placement.leader, placement.settled);
            out.extend_from_slice(&placement.placed.to_le_bytes());
        }
    }

    /// Reads a map.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are not one, all of them.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader { bytes, what: MAP };
        reader.format(MAP_FORMAT)?;
        let replication = reader.u16()?;
        let (node_count, partition_count) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
        let version = reader.u64()?;
        let cluster = u128::from_le_bytes(reader.array()?);
        let mut nodes = reader.room(node_count, NODE_BYTES_MIN)?;
        for _ in 0..node_count {
            nodes.push(reader.node_info()?);
        }
        let meta = reader.placement_since()?;
        let mut partitions = reader.room(partition_count, PLACEMENT_BYTES_MIN)?;
        for _ in 0..partition_count {
            partitions.push(reader.placement_since()?);
        }
        reader.end()?;
        let map = Self { cluster, version, nodes, meta, partitions, replication };
        map.validate().map_err(|why| reader.contents(why))?;
        Ok(map)
    }
}

impl Command {
    const fn kind(&self) -> u16 {
        match self {
            Self::Join(_) => 1,
            Self::Update(_) => 2,
            Self::SetStatus { .. } => 3,
            Self::Place { .. } => 4,
            Self::Prefer { .. } => 5,
            Self::Settled { .. } => 6,
            Self::SetReplication(_) => 7,
        }
    }

    /// Appends the command's bytes.
    ///
    /// # Panics
    /// If a text or list is longer than any valid command's; [`ClusterMap::check`] refuses those.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&COMMAND_FORMAT.to_le_bytes());
        out.extend_from_slice(&self.kind().to_le_bytes());
        match self {
            Self::Join(info) | Self::Update(info) => put_node(out, info, NodeStatus::Active),
            Self::SetStatus { node, status } => {
                out.extend_from_slice(&node.0.to_le_bytes());
                out.push(status.number());
            }
            Self::Place { group, replicas, leader } => {
                out.extend_from_slice(&group.to_le_bytes());
                out.extend_from_slice(&leader.map_or(0, |leader| leader.0).to_le_bytes());
                put_placement(out, replicas, None, false);
            }
            Self::Prefer { group, leader } => {
                out.extend_from_slice(&group.to_le_bytes());
                out.extend_from_slice(&leader.map_or(0, |leader| leader.0).to_le_bytes());
            }
            Self::Settled { group, replicas } => {
                out.extend_from_slice(&group.to_le_bytes());
                put_placement(out, replicas, None, true);
            }
            Self::SetReplication(replication) => out.extend_from_slice(&replication.to_le_bytes()),
        }
    }

    /// Reads a command. Whether it makes sense is for [`ClusterMap::apply`] to say.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are not one, all of them.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader { bytes, what: COMMAND };
        reader.format(COMMAND_FORMAT)?;
        let command = match reader.u16()? {
            1 => Self::Join(reader.node_info()?.0),
            2 => Self::Update(reader.node_info()?.0),
            3 => {
                let (node, status) = (reader.node_id()?, reader.u8()?);
                let status = NodeStatus::from_number(status).ok_or_else(|| reader.contents("unknown status"))?;
                Self::SetStatus { node, status }
            }
            4 => {
                let (group, leader) = (reader.u16()?, reader.u64()?);
                let replicas = reader.placement()?.replicas;
                Self::Place { group, replicas, leader: (leader != 0).then_some(NodeId(leader)) }
            }
            5 => {
                let (group, leader) = (reader.u16()?, reader.u64()?);
                Self::Prefer { group, leader: (leader != 0).then_some(NodeId(leader)) }
            }
            6 => Self::Settled { group: reader.u16()?, replicas: reader.placement()?.replicas },
            7 => Self::SetReplication(reader.u16()?),
            kind => return Err(reader.contents(format!("unknown kind {kind}"))),
        };
        reader.end()?;
        Ok(command)
    }
}
