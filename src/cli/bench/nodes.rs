//! Real nodes for measurements: `serve` processes of this program on a temporary directory of a real disk.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use taskmaster_bench::networks::Networks;
use taskmaster_bench::{NodeInfo, Options, Report};
use taskmaster_client::{ClusterView, NodeId};
use tempfile::TempDir;

use crate::cli::cluster;
use crate::cli::dev::layout;
use crate::cli::dev::members::Members;
use crate::cli::embedded::temporary_dir;
use crate::cli::{Exit, Failure};
use crate::config::Config;

/// Longest time until every partition has all its replicas.
const WHOLE_MAX: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);
/// A cluster is whole when no replica lags by more entries than a loaded one has under way.
const LAG_MAX: u32 = 2_000;
/// How long a map may take to be asked for from a node that may hang.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Running nodes; their directory goes with them.
pub(super) struct Nodes {
    pub(super) members: Members,
    /// Replicas that a partition has in this cluster.
    replicas: usize,
    /// Their networks, where they have some of their own.
    pub(super) networks: Option<Networks>,
    _root: TempDir,
}

impl Nodes {
    /// Starts `count` nodes and makes them a cluster; a single one stands alone.
    ///
    /// # Errors
    /// What keeps a node from starting, or the cluster from becoming whole.
    pub(super) async fn start(
        base: &Config,
        count: u16,
        networks: Option<Networks>,
        verbose: u8,
    ) -> Result<Self, Failure> {
        let mut base = base.clone();
        base.listen.address.set_port(0);
        let defaults = Config::default();
        if base.cluster.moves_max == defaults.cluster.moves_max {
            // The start is not measured: all replicas may be made at once.
            base.cluster.moves_max = 256;
        }
        let root = temporary_dir()?;
        let mut configs = layout::configs(&base, root.path(), count)?;
        if count == 1 {
            configs[0].clustered = false;
        }
        let namespaces = networks.as_ref().map_or(&[][..], Networks::nodes);
        if networks.is_some() {
            spread(&mut configs);
        }
        let members = Members::start(&configs, namespaces, root.path(), verbose).await?;
        let replicas = if count == 1 { 1 } else { usize::from(base.cluster.replication.min(count)) };
        let nodes = Self { members, replicas, networks, _root: root };
        if count > 1 {
            cluster::found(&nodes.members.all[0].address).await?;
        }
        nodes.whole().await?;
        Ok(nodes)
    }

    /// Ends all of them at once.
    pub(super) async fn end(mut self) {
        self.members.signal(Signal::KILL);
        while self.members.running() > 0 {
            self.members.next_end().await;
        }
    }

    /// For the load generator.
    pub(super) fn infos(&self) -> Vec<NodeInfo> {
        let info = |member: &crate::cli::dev::members::Member| NodeInfo {
            addr: member.address.clone(),
            data_dir: Some(member.data_dir.clone()),
            pid: Some(member.pid),
        };
        self.members.all.iter().map(info).collect()
    }

    /// Waits until every node is heard, every partition has all its voters and a leader, and leaders are spread.
    ///
    /// # Errors
    /// What is missing after a while.
    pub(super) async fn whole(&self) -> Result<ClusterView, Failure> {
        self.whole_within(LAG_MAX).await
    }

    /// The same, and no replica lags by more than these entries.
    ///
    /// # Errors
    /// As [`Self::whole`].
    pub(super) async fn whole_within(&self, lag_max: u32) -> Result<ClusterView, Failure> {
        self.seen("the cluster is not whole", |view| self.missing(view, lag_max)).await
    }

    /// Waits until others lead what a member led that is gone.
    ///
    /// # Errors
    /// When they do not after a while.
    pub(super) async fn led_by_others(&self, gone: usize) -> Result<ClusterView, Failure> {
        let name = &self.members.all[gone].name;
        let count = |view: &ClusterView| {
            let node = view.nodes.iter().find(|node| node.name == *name);
            node.map_or(0, |node| led(view, node.id).len())
                + view.partitions.iter().filter(|group| group.leader.is_none()).count()
        };
        let missing = |view: &ClusterView| Some(count(view)).filter(|&count| count > 0);
        self.seen("partitions have no leader", |view| missing(view).map(|count| format!("{count} of them"))).await
    }

    /// Looks at the map until nothing is missing in it.
    async fn seen(&self, what: &str, missing: impl Fn(&ClusterView) -> Option<String>) -> Result<ClusterView, Failure> {
        let give_up = Instant::now() + WHOLE_MAX;
        loop {
            let missing = match self.look().await {
                Ok(view) => match missing(&view) {
                    None => return Ok(view),
                    Some(missing) => missing,
                },
                Err(failure) => failure.to_string(),
            };
            if Instant::now() >= give_up {
                let message = format!("{what} after {WHOLE_MAX:?}: {missing}");
                return Err(Failure::new(Exit::Failed, message));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn look(&self) -> Result<ClusterView, Failure> {
        let looking = cluster::look(&self.members.all[0].address);
        match tokio::time::timeout(LOOK_MAX, looking).await {
            Ok(view) => view,
            Err(_) => Err(Failure::new(Exit::Failed, "a node does not tell the map")),
        }
    }

    fn missing(&self, view: &ClusterView, lag_max: u32) -> Option<String> {
        let count = self.members.all.len();
        let takers = cluster::takers(view);
        if takers < count {
            return Some(format!("{takers} of {count} nodes take part"));
        }
        if view.partitions.is_empty() {
            return Some("it has no partitions yet".to_owned());
        }
        for (number, group) in view.partitions.iter().enumerate() {
            let (voters, settled, lag) = (group.voters.len(), group.is_settled, group.lag);
            let is_complete = count == 1 || (voters == self.replicas && settled && group.learners.is_empty());
            if group.leader.is_none() || !is_complete || lag > lag_max {
                return Some(format!(
                    "partition {number} has leader {:?}, {voters} voters, settled {settled}, lag {lag}",
                    group.leader
                ));
            }
        }
        let most = view.partitions.len().div_ceil(count) + view.partitions.len() / 6 + 1;
        let busiest = view.nodes.iter().map(|node| led(view, node.id).len()).max().unwrap_or(0);
        (busiest > most).then(|| format!("one node leads {busiest} partitions"))
    }
}

/// Gives each node the address of its own network.
fn spread(configs: &mut [Config]) {
    for (number, config) in configs.iter_mut().enumerate() {
        config.listen.address.set_ip(Networks::host(number));
        config.cluster.listen.set_ip(Networks::host(number));
    }
    let seeds: Vec<String> = configs.iter().map(|config| config.cluster.listen.to_string()).collect();
    configs.iter_mut().for_each(|config| config.cluster.seeds.clone_from(&seeds));
}

/// Puts load on running nodes.
///
/// # Errors
/// As [`taskmaster_bench::run_nodes`].
pub(super) async fn put_load(infos: &[NodeInfo], options: &Options) -> Result<Report, Failure> {
    let (infos, options) = (infos.to_vec(), options.clone());
    let measuring = tokio::task::spawn_blocking(move || taskmaster_bench::run_nodes(&options, &infos));
    Ok(measuring.await.map_err(anyhow::Error::from)??)
}

/// The partitions that a node leads.
pub(super) fn led(view: &ClusterView, node: NodeId) -> Vec<u16> {
    (0..).zip(&view.partitions).filter(|(_, group)| group.leader == Some(node)).map(|(number, _)| number).collect()
}
