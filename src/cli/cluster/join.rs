//! `taskmaster cluster join`: a look at what a node would find when it joins, and the request that it looks somewhere else.
//!
//! Nothing is started here: a node joins by itself, when it is started with seeds or a DNS name in `[cluster]`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpStream, lookup_host};

use super::ask::Asker;
use super::status::id_json;
use super::view;
use crate::cli::{Exit, Failure, Global};
use crate::config::{self, Config};
use crate::output::{Output, Tint};
use crate::reachable;

use taskmaster_client::{ClusterChange, ClusterView, NodeId, NodeStatus};
use taskmaster_storage::datadir::DataDir;

/// Longest wait for one address.
const REACH_MAX: Duration = Duration::from_secs(2);

/// One address that was tried.
struct Tried {
    address: String,
    /// Why it does not answer.
    failure: Option<String>,
}

/// Tells the node at the global address to look for its cluster at these peer addresses.
pub(super) async fn look_there(global: &Global, seeds: &[String]) -> Result<Exit, Failure> {
    let mut asker = Asker::connect(global.address()).await?;
    asker.carry(&ClusterChange::Join { peers: seeds.join(",") }).await?;
    let output = global.output();
    if output.is_json() {
        output.json(&json!({"request": "join", "seeds": seeds}))?;
    } else {
        output.text(&format!(
            "the node at {} looks for its cluster at {}; `taskmaster cluster status` shows when it is in\n",
            global.address(),
            seeds.join(", ")
        ))?;
    }
    Ok(Exit::Success)
}

/// Checks what a node with this configuration would find.
pub(super) async fn check(global: &Global, file: &Path) -> Result<Exit, Failure> {
    let config = config::load(Some(file))?.config;
    if !config.clustered {
        return Err(Failure::usage(format!(
            "{} has no section [cluster], so its node stands alone: add one with seeds or dns",
            file.display()
        )));
    }
    let tried = reach_all(&config).await?;
    // The seeds speak the protocol of peers; what the cluster thinks is asked from a node's client port.
    let view = match &global.addr {
        Some(address) => Some(Asker::connect(address).await?.view().await?),
        None => None,
    };
    let objections = objections(&config, view.as_ref())?;
    let output = global.output();
    if output.is_json() {
        output.json(&report_json(&tried, view.as_ref(), &objections))?;
    } else {
        output.text(&report_text(&config, &tried, view.as_ref(), &objections, output))?;
    }
    let is_alone = tried.iter().all(|tried| tried.failure.is_some());
    Ok(if is_alone || !objections.is_empty() { Exit::Failed } else { Exit::Success })
}

/// Seeds and what the DNS name stands for, each tried once.
async fn reach_all(config: &Config) -> Result<Vec<Tried>, Failure> {
    let cluster = &config.cluster;
    let mut addresses: Vec<String> = cluster.seeds.clone();
    if !cluster.dns.is_empty() {
        addresses.push(reachable::dns_target(&cluster.dns, cluster.listen.port()));
    }
    if addresses.is_empty() {
        return Err(Failure::usage(
            "[cluster] has neither seeds nor dns: the node would wait for `taskmaster cluster bootstrap` or for others \
             that name it as a seed",
        ));
    }
    let mut tried = Vec::new();
    for name in addresses {
        let found = lookup_host(&name).await.map(BTreeSet::from_iter);
        match found {
            Ok(found) => {
                for address in found {
                    let failure = reach(address).await.err();
                    let shown = address.to_string();
                    let address = if shown == name { name.clone() } else { format!("{name} ({shown})") };
                    tried.push(Tried { address, failure });
                }
            }
            Err(error) => tried.push(Tried { address: name, failure: Some(format!("the name is not known: {error}")) }),
        }
    }
    Ok(tried)
}

async fn reach(address: std::net::SocketAddr) -> Result<(), String> {
    match tokio::time::timeout(REACH_MAX, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {REACH_MAX:?}: a firewall, or the wrong address")),
    }
}

/// Why the cluster would not have the node, as far as can be known from outside.
fn objections(config: &Config, view: Option<&ClusterView>) -> Result<Vec<String>, Failure> {
    let mut objections = Vec::new();
    if let Err(reason) = reachable::host(config) {
        objections.push(reason);
    }
    let Some(view) = view else { return Ok(objections) };
    if view.cluster.is_none() {
        objections.push(
            "The node at --addr belongs to no cluster itself: `taskmaster cluster bootstrap` founds one.".to_owned(),
        );
        return Ok(objections);
    }
    let name = reachable::node_name(config);
    let own = DataDir::peek(&config.node.data_dir).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let own = own.map_or(NodeId(0), |meta| reachable::node_id(meta.id));
    match view::present(view).find(|node| node.name == name) {
        Some(node) if node.id != own => objections.push(format!(
            "A node named {name} is in the cluster already: give this one another cluster.node_name, or, if it is the same \
             machine with a new disk, `taskmaster cluster remove {name}` first.",
        )),
        _ => {}
    }
    if view::node(view, own).is_some_and(|node| node.status == NodeStatus::Removed) {
        objections
            .push("This node was removed from the cluster: give it an empty data directory to join anew.".to_owned());
    }
    let (here, there) = (usize::from(config.node.partitions), view.partitions.len());
    if here != there {
        objections
            .push(format!("The cluster has {there} partitions and node.partitions is {here}: configure {there}."));
    }
    Ok(objections)
}

fn report_json(tried: &[Tried], view: Option<&ClusterView>, objections: &[String]) -> Value {
    let tried = tried
        .iter()
        .map(|tried| json!({"address": tried.address, "reachable": tried.failure.is_none(), "failure": tried.failure}));
    json!({
        "seeds": tried.collect::<Vec<_>>(),
        "cluster": view.and_then(|view| view.cluster).map(|cluster| format!("{cluster:032x}")),
        "answered_by": view.map_or(Value::Null, |view| id_json(view.answered_by)),
        "objections": objections,
    })
}

fn report_text(
    config: &Config,
    tried: &[Tried],
    view: Option<&ClusterView>,
    objections: &[String],
    output: Output,
) -> String {
    let mut text = String::new();
    for Tried { address, failure } in tried {
        text.push_str(&match failure {
            None => format!("{}  {address} answers\n", output.tint(Tint::Good, " ok ")),
            Some(failure) => format!("{}  {address}: {failure}\n", output.tint(Tint::Caution, "warn")),
        });
    }
    if let Some((view, cluster)) = view.and_then(|view| Some((view, view.cluster?))) {
        text.push_str(&format!("      cluster {:032x} with {} node(s)\n", cluster, view::present(view).count()));
    }
    for objection in objections {
        text.push_str(&format!("{}  {objection}\n", output.tint(Tint::Bad, "FAIL")));
    }
    let name = reachable::node_name(config);
    text.push_str(&match (tried.iter().any(|tried| tried.failure.is_none()), objections.is_empty()) {
        (false, _) => "\nNo seed answers: a node with this configuration would wait.\n".to_owned(),
        (true, false) => "\nThe cluster would not have this node as it is.\n".to_owned(),
        (true, true) if view.is_none() => format!(
            "\nA node {name} started with this file joins by itself. With --addr NODE the cluster is asked as well.\n"
        ),
        (true, true) => format!("\nA node {name} started with this file joins by itself.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::healthy;
    use super::*;

    fn config() -> Config {
        let folder = std::env::temp_dir().join("taskmaster-no-such-folder");
        let mut config = Config { clustered: true, ..Config::default() };
        config.node.data_dir = folder;
        config.node.partitions = 4;
        config.cluster.node_name = "n4".to_owned();
        config.cluster.listen = "127.0.0.1:7800".parse().unwrap();
        config
    }

    #[test]
    fn what_the_cluster_would_object_to_is_told_beforehand() {
        let view = healthy(4);
        assert_eq!(objections(&config(), Some(&view)).unwrap(), Vec::<String>::new());
        let mut same_name = config();
        same_name.cluster.node_name = "n2".to_owned();
        assert!(
            objections(&same_name, Some(&view)).unwrap()[0].starts_with("A node named n2 is in the cluster already")
        );
        let mut partitions = config();
        partitions.node.partitions = 64;
        assert!(objections(&partitions, Some(&view)).unwrap()[0].ends_with("configure 4."));
        let nobody = ClusterView::default();
        assert!(objections(&config(), Some(&nobody)).unwrap()[0].contains("belongs to no cluster itself"));
    }
}
