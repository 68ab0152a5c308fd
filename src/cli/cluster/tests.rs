//! Behaviour of the cluster's commands before anything is sent.

use super::plan::plan;
use taskmaster_client::{NodeId, PartitionId};

use super::view::tests::healthy;
use super::*;

fn request(command: &Command) -> Result<ClusterChange, String> {
    plan(command, &healthy(4)).map(|change| change.request).map_err(|failure| failure.to_string())
}

#[test]
fn commands_become_requests_with_ids() {
    assert_eq!(request(&Command::Drain { node: "n2".to_owned() }), Ok(ClusterChange::Drain(NodeId(2))));
    let lead = Command::TransferLeader { partition: Group(Some(3)), node: "n3".to_owned() };
    let expected = ClusterChange::TransferLeader { partition: Some(PartitionId(3)), to: Some(NodeId(3)) };
    assert_eq!(request(&lead), Ok(expected));
    assert_eq!(request(&Command::Replication { replicas: "5".to_owned() }), Ok(ClusterChange::Replication(5)));
    assert_eq!(request(&Command::Rebalance), Ok(ClusterChange::Rebalance));
}

#[test]
fn what_cannot_be_meant_is_refused_before_it_is_sent() {
    let error = request(&Command::Drain { node: "n9".to_owned() }).unwrap_err();
    assert!(error.contains("did you mean"), "{error}");
    let far = Command::Move { partition: Group(Some(9)), from: "n1".to_owned(), to: "n2".to_owned() };
    assert!(request(&far).unwrap_err().contains("the cluster has 0 to 3"));
    let map = Command::Move { partition: Group(None), from: "n1".to_owned(), to: "n2".to_owned() };
    assert!(request(&map).unwrap_err().contains("kept by every node"));
    let alive = Command::Remove { node: "n1".to_owned(), force: false };
    assert!(request(&alive).unwrap_err().contains("cluster drain n1"));
    assert_eq!(request(&Command::Remove { node: "n1".to_owned(), force: true }), Ok(ClusterChange::Remove(NodeId(1))));
    let mut view = healthy(4);
    view.partitions[0].voters = vec![NodeId(1), NodeId(2)];
    view.partitions[0].replicas = vec![NodeId(1), NodeId(2)];
    let stranger = Command::TransferLeader { partition: Group(Some(0)), node: "n3".to_owned() };
    let error = plan(&stranger, &view).err().unwrap().to_string();
    assert_eq!(error, "n3 has no replica of partition 0; those that have one are n1, n2");
}

#[test]
fn groups_are_numbers_or_the_map() {
    assert_eq!("7".parse(), Ok(Group(Some(7))));
    assert_eq!("map".parse(), Ok(Group(None)));
    assert!("65535".parse::<Group>().is_err());
    assert!("x".parse::<Group>().unwrap_err().contains("give its number"));
}
