//! Nodes that find each other by names, which come to stand for other addresses while they run: as a headless service of
//! Kubernetes does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use taskmaster_bench::networks::Networks;
use taskmaster_client::ClusterChange;

use super::networks::inside;
use super::nodes::{Cluster, Place, until};
use super::probe::Probe;

/// `/etc/hosts` as the nodes in one namespace see it: `ip netns exec` lays it over the machine's.
struct Hosts {
    folder: PathBuf,
}

impl Hosts {
    fn new(namespace: &str) -> Self {
        let folder = PathBuf::from("/etc/netns").join(namespace);
        std::fs::create_dir_all(&folder).unwrap();
        let hosts = Self { folder };
        hosts.write(&[]);
        hosts
    }

    /// Names and their addresses from now on, in the same file, since that is the one that was laid over.
    fn write(&self, names: &[(&str, String)]) {
        let lines = names.iter().map(|(name, address)| format!("{address} {name}\n"));
        std::fs::write(self.folder.join("hosts"), "127.0.0.1 localhost\n".to_owned() + &lines.collect::<String>())
            .unwrap();
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn nodes_meet_when_their_names_come_to_stand_for_each_other() {
    let networks = Arc::new(Networks::new(3).unwrap());
    let hosts: Vec<Hosts> = networks.nodes().iter().map(|node| Hosts::new(node)).collect();
    inside(networks.hub(), || meet(Arc::clone(&networks), &hosts));
}

async fn meet(networks: Arc<Networks>, hosts: &[Hosts]) {
    let mut cluster = Cluster::planned(Place::Networks(networks)).await;
    // The first two look for each other under one name, the third for the first under its own.
    for (number, node) in cluster.nodes.iter_mut().enumerate() {
        node.set("seeds", if number == 2 { "[\"first.test:7800\"]" } else { "[]" });
        let dns = if number == 2 { "" } else { "all.test" };
        node.setup.more.push_str(&format!("dns = \"{dns}\"\ndns_interval = \"1s\"\n"));
        node.start();
    }
    let founder = Probe::connect(cluster.nodes[0].address()).await.unwrap();
    founder.change(&ClusterChange::Bootstrap).await.unwrap();
    cluster.logged(1, &["all.test", "cannot be resolved"]).await;
    cluster.logged(2, &["first.test", "cannot be resolved"]).await;
    assert_eq!(cluster.view().await.nodes.len(), 1);
    let host = |number: usize| Networks::host(number).to_string();
    let both = [("all.test", host(0)), ("all.test", host(1))];
    hosts[0].write(&both);
    hosts[1].write(&both);
    until("the second node joins", Duration::from_secs(60), || async { cluster.view().await.nodes.len() == 2 }).await;
    hosts[2].write(&[("first.test", host(0))]);
    cluster.whole().await;
    assert_eq!(cluster.view().await.nodes.len(), 3);
}
