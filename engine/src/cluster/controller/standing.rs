//! What may be asked of each node.

use super::{Limits, Node, View};
use crate::cluster::{ClusterMap, NodeStatus};
use std::collections::BTreeMap;
use taskmaster_protocol::NodeId;

/// What may be asked of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Active and there: it may be given replicas.
    Usable,
    /// Active and down for a short time: it keeps what it has.
    Waiting,
    /// Active and down for so long that it is replaced where there is a spare.
    Lost,
    /// Draining: its replicas go elsewhere.
    Leaving,
    /// Removed.
    Gone,
}

impl Standing {
    /// It counts for how many replicas are possible.
    pub(super) const fn is_active(self) -> bool {
        matches!(self, Self::Usable | Self::Waiting | Self::Lost)
    }

    /// It keeps the replicas that it has.
    pub(super) const fn keeps(self) -> bool {
        matches!(self, Self::Usable | Self::Waiting)
    }
}

pub(super) fn nodes(map: &ClusterMap, view: &View, limits: &Limits, now_us: u64) -> BTreeMap<NodeId, Node> {
    let mut zones: Vec<&str> = map.nodes.iter().map(|(info, _)| info.zone.as_str()).collect();
    zones.sort_unstable();
    zones.dedup();
    let node = |zone: &str, id: NodeId, status: NodeStatus| {
        let health = view.nodes.get(&id);
        let is_alive = health.is_some_and(|health| health.is_alive);
        let is_overdue =
            health.is_some_and(|health| now_us.saturating_sub(health.down_since_us) > limits.replace_after_us);
        let standing = match status {
            NodeStatus::Active if is_alive => Standing::Usable,
            NodeStatus::Active if is_overdue => Standing::Lost,
            NodeStatus::Active => Standing::Waiting,
            NodeStatus::Draining => Standing::Leaving,
            NodeStatus::Removed => Standing::Gone,
        };
        let zone = zones.binary_search(&zone).expect("each node's zone is among all zones");
        Node { standing, is_alive, zone, replicas: 0 }
    };
    map.nodes.iter().map(|(info, status)| (info.id, node(&info.zone, info.id, *status))).collect()
}
