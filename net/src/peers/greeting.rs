//! Whether two nodes fit each other: the same on both sides, without I/O.

use taskmaster_protocol::peer::{PeerHello, PeerRefusal, Reason};

use super::link::Link;

/// Compares what this side says of itself with what the other said. Gives the peer protocol version to speak.
///
/// Each side's `to_node` and `to_shard` name whom it believes to talk to.
///
/// # Errors
/// The refusal, with a sentence that names both and says what would be right.
pub(super) fn judge(own: &PeerHello, theirs: &PeerHello) -> Result<u8, PeerRefusal> {
    let refused = |reason, sentence| Err(PeerRefusal { reason, node: own.node, sentence });
    let version = own.peer_version_max.min(theirs.peer_version_max);
    if version < own.peer_version_min.max(theirs.peer_version_min) {
        let sentence = format!(
            "{theirs} speaks the peer protocol {} to {} and {own} {} to {}: upgrade one version at a time",
            theirs.peer_version_min, theirs.peer_version_max, own.peer_version_min, own.peer_version_max
        );
        return refused(Reason::PeerVersion, sentence);
    }
    if own.cluster_name != theirs.cluster_name {
        let sentence = format!(
            "{theirs} belongs to the cluster \"{}\" and {own} to \"{}\": nodes of one cluster have the same cluster name; \
             otherwise remove the other's address from the seeds",
            theirs.cluster_name, own.cluster_name
        );
        return refused(Reason::ClusterName, sentence);
    }
    if own.cluster != 0 && theirs.cluster != 0 && own.cluster != theirs.cluster {
        let sentence = format!(
            "{theirs} is in the cluster {:032x} and {own} in {:032x}, which were founded separately and never mix: \
             start one of them with an empty data directory to let it join the other's",
            theirs.cluster, own.cluster
        );
        return refused(Reason::ClusterId, sentence);
    }
    // Under one name it is the node itself, at the address where another one lived before.
    if own.node == theirs.node && own.node_name != theirs.node_name {
        let sentence = format!(
            "{theirs} has the same id as {own}: a data directory was copied; start one of them with an empty one"
        );
        return refused(Reason::SameNode, sentence);
    }
    if theirs.to_node != own.node || own.to_node != theirs.node {
        let (dialer, wanted, found) =
            if theirs.to_node == own.node { (own, own.to_node, theirs) } else { (theirs, theirs.to_node, own) };
        let sentence = format!(
            "{dialer} looks for node {wanted} at this address, where {found} lives: correct the address of {wanted}, or \
             remove that node if it is gone for good"
        );
        return refused(Reason::OtherNode, sentence);
    }
    if theirs.to_shard != own.shard || own.to_shard != theirs.shard {
        let sentence = format!(
            "{theirs} looks for shard {} of {own} at this address, where shard {} listens: shard n listens on the \
             peer port plus n",
            theirs.to_shard, own.shard
        );
        return refused(Reason::OtherShard, sentence);
    }
    if own.version.abs_diff(theirs.version) > 1 {
        let sentence = format!(
            "{theirs} has format version {} and {own} {}: only adjacent versions work together; upgrade one version at a \
             time",
            theirs.version, own.version
        );
        return refused(Reason::Version, sentence);
    }
    Ok(version)
}

/// Under TLS: whether the other side may call itself what it does.
///
/// # Errors
/// The refusal.
pub(super) fn trust(link: &Link, own: &PeerHello, theirs: &PeerHello) -> Result<(), PeerRefusal> {
    if link.vouches_for(&theirs.node_name) {
        return Ok(());
    }
    let sentence = format!(
        "{theirs} shows {own} a certificate that is not made out to it: its subject alternative names must contain DNS:{}",
        theirs.node_name
    );
    Err(PeerRefusal { reason: Reason::Tls, node: own.node, sentence })
}

#[cfg(test)]
mod tests {
    use taskmaster_protocol::NodeId;

    use super::*;

    fn hello(node: u64, to_node: u64) -> PeerHello {
        PeerHello {
            peer_version_min: 1,
            peer_version_max: 1,
            version: 3,
            cluster: 9,
            node: NodeId(node),
            to_node: NodeId(to_node),
            shard: 0,
            to_shard: 0,
            cluster_name: "c".to_owned(),
            node_name: format!("n{node}"),
        }
    }

    fn reason(own: &PeerHello, theirs: &PeerHello) -> Reason {
        let (here, there) = (judge(own, theirs).unwrap_err(), judge(theirs, own).unwrap_err());
        assert_eq!(here.reason, there.reason, "both sides see the same");
        for sentence in [&here.sentence, &there.sentence] {
            assert!(sentence.contains(&own.node_name) && sentence.contains(&theirs.node_name), "{sentence}");
            assert!(sentence.contains(": "), "{sentence}");
        }
        here.reason
    }

    #[test]
    fn nodes_fit_within_one_cluster_or_while_one_is_in_none() {
        assert_eq!(judge(&hello(1, 2), &hello(2, 1)), Ok(1));
        assert_eq!(judge(&hello(1, 2), &PeerHello { cluster: 0, ..hello(2, 1) }), Ok(1));
        assert_eq!(judge(&hello(1, 2), &PeerHello { version: 4, ..hello(2, 1) }), Ok(1));
        let newer = PeerHello { peer_version_max: 2, ..hello(2, 1) };
        assert_eq!(judge(&hello(1, 2), &newer), Ok(1));
    }

    #[test]
    fn what_does_not_fit_is_refused_for_the_same_reason_on_both_sides() {
        let own = hello(1, 2);
        let other_name = PeerHello { cluster_name: "d".to_owned(), ..hello(2, 1) };
        assert_eq!(reason(&own, &other_name), Reason::ClusterName);
        assert_eq!(reason(&own, &PeerHello { cluster: 8, ..hello(2, 1) }), Reason::ClusterId);
        let copy = PeerHello { node_name: "copy".to_owned(), ..hello(1, 2) };
        assert_eq!(reason(&hello(1, 1), &copy), Reason::SameNode);
        assert_eq!(reason(&hello(1, 2), &hello(3, 1)), Reason::OtherNode);
        assert_eq!(reason(&own, &PeerHello { to_shard: 1, ..hello(2, 1) }), Reason::OtherShard);
        assert_eq!(reason(&own, &PeerHello { version: 5, ..hello(2, 1) }), Reason::Version);
        assert_eq!(
            reason(&hello(1, 1), &hello(1, 2)),
            Reason::OtherNode,
            "a node that reaches itself at another's address"
        );
        let newer = PeerHello { peer_version_min: 2, peer_version_max: 3, ..hello(2, 1) };
        assert_eq!(reason(&own, &newer), Reason::PeerVersion);
    }
}
