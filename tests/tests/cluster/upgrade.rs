//! A rolling upgrade: nodes of two adjacent versions in one cluster, under load; a version further on is kept out.

use std::time::Duration;

use super::ledger::Load;
use super::nodes::{Cluster, Node, until};

/// What a debug build takes as its version in place of its own.
const ANNOUNCED: &str = "TASKMASTER_ANNOUNCED_VERSION";

impl Node {
    fn announces(&mut self, version: u32) {
        self.setup.variables.retain(|(name, _)| *name != ANNOUNCED);
        self.setup.variables.push((ANNOUNCED, version.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_upgraded_node_by_node_under_load() {
    let mut cluster = Cluster::start().await;
    let before = cluster.view().await.nodes[0].version;
    let client = cluster.client().await;
    let load = Load::start(&client).await;
    for number in 0..3 {
        cluster.nodes[number].terminate();
        cluster.nodes[number].announces(before + 1);
        cluster.nodes[number].start();
        cluster.whole().await;
        let name = cluster.nodes[number].name.clone();
        until("the new version in the map (needs a debug build)", Duration::from_secs(60), || async {
            let view = cluster.view().await;
            view.nodes.iter().any(|node| node.name == name && node.version == before + 1)
        })
        .await;
        if number < 2 {
            let mixed = format!("versions {before} to {}", before + 1);
            cluster.problem(number, &[&mixed, "complete the upgrade"]).await;
        }
        load.goes_on(&format!("after the upgrade of {name}")).await;
    }
    assert_eq!(load.failed(), Vec::<String>::new());
    load.settle("rolling upgrade").await;

    // Two versions ahead of the others, and one behind all of them by two.
    let ahead = cluster.add();
    cluster.nodes[ahead].announces(before + 3);
    cluster.nodes[ahead].start();
    let sentence = cluster.logged(ahead, &["version", "upgrade one version at a time"]).await;
    eprintln!("two versions ahead: {sentence}");
    cluster.logged(0, &["version", "upgrade one version at a time"]).await;
    cluster.problem(0, &["version", "upgrade one version at a time"]).await;
    cluster.problem(ahead, &["version", "upgrade one version at a time"]).await;
    assert_eq!(cluster.view().await.nodes.len(), 3, "it was not let in");
}
