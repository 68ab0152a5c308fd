//! The cluster as a node told it, as owned values; names of nodes to ids.
//!
//! Invariant: no value was trusted for a length: a span outside its area is an error and not a panic.

use std::collections::BTreeMap;

use taskmaster_protocol::NodeId;
use taskmaster_protocol::body::{
    self, ArchivedClusterMapReply, ArchivedNodeRow, ArchivedPartitionRow, ArchivedSpan, Malformed,
};

use crate::config::did_you_mean;

/// What an operator did with a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Status {
    /// It takes replicas.
    #[default]
    Active,
    /// Its replicas move away.
    Draining,
    /// It is no longer one of the cluster.
    Removed,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeView {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) zone: String,
    /// Where it is reached, without a port.
    pub(crate) host: String,
    /// Ports of its shards for clients.
    pub(crate) client_ports: Vec<u16>,
    pub(crate) peer_port: u32,
    pub(crate) status: Status,
    pub(crate) is_alive: bool,
    /// When it was last heard from, in milliseconds since 1970; 0 for never.
    pub(crate) seen_ms: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) disk_bytes_free: u64,
    pub(crate) leaders: u32,
    pub(crate) replicas: u32,
    /// Format version of its software.
    pub(crate) version: u32,
}

impl NodeView {
    /// Its state in a word.
    pub(crate) fn state(&self) -> &'static str {
        match (self.status, self.is_alive) {
            (Status::Removed, _) => "removed",
            (_, false) => "down",
            (Status::Draining, true) => "draining",
            (Status::Active, true) => "alive",
        }
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> Option<String> {
        let port = self.client_ports.first()?;
        let is_v6 = self.host.contains(':');
        Some(if is_v6 { format!("[{}]:{port}", self.host) } else { format!("{}:{port}", self.host) })
    }
}

/// A partition, or the group that keeps the map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartitionView {
    /// 0 if unknown.
    pub(crate) leader: u64,
    pub(crate) term: u64,
    pub(crate) applied: u64,
    pub(crate) committed: u64,
    /// Nodes that should have it.
    pub(crate) replicas: Vec<u64>,
    pub(crate) voters: Vec<u64>,
    pub(crate) learners: Vec<u64>,
    /// Entries by which the slowest replica is behind.
    pub(crate) lag: u32,
    pub(crate) is_settled: bool,
}

/// The cluster as one of its nodes knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterView {
    /// Zero while the node belongs to none.
    pub(crate) cluster: u128,
    pub(crate) version: u64,
    /// The node that answered.
    pub(crate) node: u64,
    pub(crate) replication: u32,
    pub(crate) meta: PartitionView,
    pub(crate) nodes: Vec<NodeView>,
    pub(crate) partitions: Vec<PartitionView>,
    /// What the node itself has to say.
    pub(crate) warnings: Vec<String>,
}

impl ClusterView {
    /// Reads an answer.
    ///
    /// # Errors
    /// A span outside its area, or text that is not UTF-8.
    pub(crate) fn read(reply: &ArchivedClusterMapReply) -> Result<Self, Malformed> {
        let [hi, lo] = [reply.cluster[0].to_native(), reply.cluster[1].to_native()];
        let warnings = reply.warnings.iter().map(|&span| body::text(&reply.bytes, span).map(str::to_owned));
        Ok(Self {
            cluster: (u128::from(hi) << 64) | u128::from(lo),
            version: reply.version.to_native(),
            node: reply.node.to_native(),
            replication: reply.replication.to_native(),
            meta: partition(reply, &reply.meta)?,
            nodes: reply.nodes.iter().map(|row| node(reply, row)).collect::<Result<_, _>>()?,
            partitions: reply.partitions.iter().map(|row| partition(reply, row)).collect::<Result<_, _>>()?,
            warnings: warnings.collect::<Result<_, _>>()?,
        })
    }

    /// The node of this id.
    pub(crate) fn node(&self, id: u64) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// How a node is called: its name, else its id.
    pub(crate) fn name(&self, id: u64) -> String {
        self.node(id).map_or_else(|| NodeId(id).to_string(), |node| node.name.clone())
    }

    /// The node that an operator means: by id, or by the name of one that was not removed.
    ///
    /// # Errors
    /// A sentence with the nearest name.
    pub(crate) fn find(&self, text: &str) -> Result<&NodeView, String> {
        let by_id = text.parse::<NodeId>().ok().and_then(|NodeId(id)| self.node(id));
        let present = || self.nodes.iter().filter(|node| node.status != Status::Removed);
        if let Some(node) = by_id.or_else(|| present().find(|node| node.name == text)) {
            return Ok(node);
        }
        let hint = did_you_mean(text, present().map(|node| node.name.as_str()));
        let names: Vec<&str> = present().map(|node| node.name.as_str()).collect();
        Err(format!("no node of the cluster has the name or id \"{text}\"{hint}; its nodes are {}", names.join(", ")))
    }

    /// Nodes alive that take replicas.
    pub(crate) fn takers(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_alive && node.status == Status::Active).count()
    }

    /// Whether each node is alive, by id.
    pub(crate) fn living(&self) -> BTreeMap<u64, bool> {
        self.nodes.iter().map(|node| (node.id, node.is_alive && node.status != Status::Removed)).collect()
    }
}

fn node(reply: &ArchivedClusterMapReply, row: &ArchivedNodeRow) -> Result<NodeView, Malformed> {
    let text = |span| body::text(&reply.bytes, span).map(str::to_owned);
    let ports = piece(reply.ports.as_slice(), row.ports)?;
    Ok(NodeView {
        id: row.id.to_native(),
        name: text(row.name)?,
        zone: text(row.zone)?,
        host: text(row.host)?,
        client_ports: ports.iter().map(|port| port.to_native()).collect(),
        peer_port: row.peer_port.to_native(),
        status: match row.status.to_native() {
            0 => Status::Active,
            1 => Status::Draining,
            _ => Status::Removed,
        },
        is_alive: row.alive.to_native() != 0,
        seen_ms: row.seen_ms.to_native(),
        disk_bytes: row.disk_bytes.to_native(),
        disk_bytes_free: row.disk_bytes_free.to_native(),
        leaders: row.leaders.to_native(),
        replicas: row.replicas.to_native(),
        version: row.version.to_native(),
    })
}

fn partition(reply: &ArchivedClusterMapReply, row: &ArchivedPartitionRow) -> Result<PartitionView, Malformed> {
    let ids = |span| piece(reply.ids.as_slice(), span).map(|ids| ids.iter().map(|id| id.to_native()).collect());
    Ok(PartitionView {
        leader: row.leader.to_native(),
        term: row.term.to_native(),
        applied: row.applied.to_native(),
        committed: row.committed.to_native(),
        replicas: ids(row.replicas)?,
        voters: ids(row.voters)?,
        learners: ids(row.learners)?,
        lag: row.lag.to_native(),
        is_settled: row.settled.to_native() != 0,
    })
}

/// Elements that a span counts out.
fn piece<T>(area: &[T], span: ArchivedSpan) -> Result<&[T], Malformed> {
    let (at, len) = (span.at.to_native() as usize, span.len.to_native() as usize);
    area.get(at..)
        .and_then(|rest| rest.get(..len))
        .ok_or_else(|| Malformed(format!("span {at}+{len} lies outside the area of {} elements", area.len())))
}

#[cfg(test)]
pub(super) mod tests {
    use taskmaster_protocol::body::{ClusterMapReply, NodeRow, PartitionRow, Span};

    use super::*;

    /// Three nodes in two zones that each have a replica of `partitions` partitions, led in turn; all is well.
    pub(in crate::cli::cluster) fn healthy(partitions: u16) -> ClusterView {
        let nodes = (1..=3u64).map(|id| NodeView {
            id,
            name: format!("n{id}"),
            zone: if id == 3 { "b".to_owned() } else { "a".to_owned() },
            host: format!("10.0.0.{id}"),
            client_ports: vec![7_701, 7_702],
            peer_port: 7_800,
            is_alive: true,
            seen_ms: 1_000_000,
            disk_bytes: 100 << 30,
            disk_bytes_free: 40 << 30,
            leaders: 1,
            replicas: u32::from(partitions),
            version: 1,
            ..NodeView::default()
        });
        let row = |leader: u64| PartitionView {
            leader,
            term: 3,
            applied: 90,
            committed: 90,
            replicas: vec![1, 2, 3],
            voters: vec![1, 2, 3],
            is_settled: true,
            ..PartitionView::default()
        };
        ClusterView {
            cluster: 7,
            version: 12,
            node: 1,
            replication: 3,
            meta: row(2),
            nodes: nodes.collect(),
            partitions: (0..partitions).map(|number| row(u64::from(number % 3) + 1)).collect(),
            warnings: Vec::new(),
        }
    }

    fn archived(reply: &ClusterMapReply) -> Vec<u8> {
        let mut frame = taskmaster_protocol::FrameBuffer::new();
        let header = taskmaster_protocol::Header::request(taskmaster_protocol::Operation::ClusterMap, 0, None);
        taskmaster_protocol::frame::encode(&mut frame, header, reply);
        let (parsed, _) = taskmaster_protocol::frame::parse(&frame).unwrap().unwrap();
        parsed.body.to_vec()
    }

    fn read(reply: &ClusterMapReply) -> Result<ClusterView, Malformed> {
        let mut aligned = taskmaster_protocol::FrameBuffer::new();
        aligned.extend_from_slice(&archived(reply));
        ClusterView::read(body::access::<ArchivedClusterMapReply>(&aligned)?)
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let mut reply = ClusterMapReply { cluster: [1, 2], node: 9, replication: 3, ..ClusterMapReply::default() };
        let name = body::put(&mut reply.bytes, b"n1");
        let warning = body::put(&mut reply.bytes, b"so it is");
        reply.warnings.push(warning);
        reply.ports = vec![7_700, 7_701];
        reply.ids = vec![9, 8];
        let ports = Span { at: 1, len: 1 };
        reply.nodes.push(NodeRow { id: 9, name, ports, status: 1, alive: 1, ..NodeRow::default() });
        let voters = Span { at: 0, len: 2 };
        reply.partitions.push(PartitionRow { leader: 9, voters, settled: 1, ..PartitionRow::default() });
        let view = read(&reply).unwrap();
        assert_eq!(view.cluster, (1 << 64) | 2);
        assert_eq!((view.nodes[0].name.as_str(), view.nodes[0].state()), ("n1", "draining"));
        assert_eq!(view.nodes[0].client_ports, [7_701]);
        assert_eq!(view.partitions[0].voters, [9, 8]);
        assert_eq!(view.warnings, ["so it is"]);
    }

    #[test]
    fn spans_outside_their_area_are_errors() {
        let far = Span { at: 1, len: u32::MAX };
        let node = ClusterMapReply { nodes: vec![NodeRow { ports: far, ..NodeRow::default() }], ..Default::default() };
        assert!(read(&node).is_err());
        let row = PartitionRow { voters: far, ..PartitionRow::default() };
        assert!(read(&ClusterMapReply { partitions: vec![row], ..Default::default() }).is_err());
        assert!(read(&ClusterMapReply { warnings: vec![far], ..Default::default() }).is_err());
    }

    #[test]
    fn nodes_are_found_by_name_or_id_and_suggested_when_misspelt() {
        let mut view = healthy(1);
        view.nodes[2].status = Status::Removed;
        assert_eq!(view.find("n2").unwrap().id, 2);
        assert_eq!(view.find(&NodeId(3).to_string()).unwrap().name, "n3");
        let error = view.find("n3").unwrap_err();
        assert!(error.contains("did you mean 'n1'?") && error.ends_with("its nodes are n1, n2"), "{error}");
        assert_eq!(view.nodes[0].address().unwrap(), "10.0.0.1:7701");
        view.nodes[0].host = "fe80::1".to_owned();
        assert_eq!(view.nodes[0].address().unwrap(), "[fe80::1]:7701");
    }
}
