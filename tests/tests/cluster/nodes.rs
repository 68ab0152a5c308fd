//! A cluster of processes on this machine: every node at an address of its own with the same ports, on the loopback device
//! or in a network namespace each.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use taskmaster_bench::networks::Networks;
use taskmaster_client::{Client, ClusterChange, ClusterView, GroupView, NodeId, PartitionId};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use super::probe::Probe;
use crate::process::{Running, Setup, command_within, directory};

/// Partitions of these clusters: few, so that each is looked at.
pub(crate) const PARTITIONS: u16 = 12;
const CLIENT_PORT: u16 = 7_700;
pub(crate) const PEER_PORT: u16 = 7_800;
const POLL: Duration = Duration::from_millis(20);

/// Waits for a condition.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, longest: Duration, mut is_so: impl FnMut() -> F) {
    let deadline = Instant::now() + longest;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {longest:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Where nodes have their addresses.
#[derive(Clone)]
pub(crate) enum Place {
    /// 127.a.b.0/24, of this cluster alone.
    Loopback([u8; 2]),
    Networks(Arc<Networks>),
}

impl Place {
    /// Another corner of the loopback device at each call.
    pub(crate) fn loopback() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id().wrapping_mul(32).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let [_, _, high, low] = number.to_be_bytes();
        // 127.0 is everybody's.
        Self::Loopback([high | 1, low])
    }

    pub(crate) fn host(&self, number: usize) -> IpAddr {
        let last = u8::try_from(number + 1).unwrap();
        match self {
            Self::Loopback([a, b]) => Ipv4Addr::new(127, *a, *b, last).into(),
            Self::Networks(_) => Networks::host(number),
        }
    }

    fn namespace(&self, number: usize) -> Option<String> {
        match self {
            Self::Loopback(_) => None,
            Self::Networks(networks) => networks.nodes().get(number).cloned(),
        }
    }

    /// Where the test itself stands.
    fn hub(&self) -> Option<&str> {
        match self {
            Self::Loopback(_) => None,
            Self::Networks(networks) => Some(networks.hub()),
        }
    }
}

/// A node, running or not.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) setup: Setup,
    pub(crate) process: Option<Running>,
    /// What it logged before its last start.
    log_before: String,
}

impl Node {
    /// A node that knows the first three of its place as seeds. `[cluster]` is the last section.
    pub(crate) fn new(directory: &TempDir, place: &Place, number: usize) -> Self {
        let name = format!("n{}", number + 1);
        let folder = directory.path().join(&name);
        std::fs::create_dir_all(&folder).unwrap();
        let host = place.host(number);
        let mut setup = Setup::at(&folder, SocketAddr::from((host, CLIENT_PORT)));
        let seeds: Vec<String> = (0..3).map(|seed| format!("\"{}:{PEER_PORT}\"", place.host(seed))).collect();
        setup.more = format!(
            "[limits]\nmemory = \"256MiB\"\n[cluster]\nname = \"faults\"\nnode_name = \"{name}\"\n\
             listen = \"{host}:{PEER_PORT}\"\nseeds = [{}]\n",
            seeds.join(", ")
        );
        setup.variables.push(("TASKMASTER_NODE__PARTITIONS", PARTITIONS.to_string()));
        setup.namespace = place.namespace(number);
        Self { name, setup, process: None, log_before: String::new() }
    }

    /// Replaces one line of its `[cluster]`.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        let set = |line: &str| if line.starts_with(key) { format!("{key} = {value}\n") } else { format!("{line}\n") };
        self.setup.more = self.setup.more.lines().map(set).collect();
    }

    pub(crate) fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.name);
        self.process = Some(self.setup.start());
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let process = self.process.take().unwrap();
        self.log_before.push_str(&process.log());
        process.kill();
    }

    /// SIGTERM, and success.
    pub(crate) fn terminate(&mut self) {
        let mut process = self.process.take().unwrap();
        let status = process.terminate();
        self.log_before.push_str(&process.log());
        assert!(status.success(), "{} ended with {status}: {}", self.name, self.log_before);
    }

    pub(crate) fn running(&self) -> &Running {
        self.process.as_ref().unwrap()
    }

    /// All that it logged.
    pub(crate) fn log(&self) -> String {
        self.log_before.clone() + &self.process.as_ref().map(Running::log).unwrap_or_default()
    }

    pub(crate) fn address(&self) -> String {
        self.setup.address.to_string()
    }

    /// The cluster as this node knows it; `None` if it does not say.
    pub(crate) async fn view(&self) -> Option<ClusterView> {
        Probe::connect(self.address()).await.ok()?.view().await.ok()
    }
}

/// Nodes that know each other.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) place: Place,
    pub(crate) directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Three nodes that were not started.
    pub(crate) async fn planned(place: Place) -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        let directory = directory();
        let nodes = (0..3).map(|number| Node::new(&directory, &place, number)).collect();
        Self { nodes, place, directory, _turn: turn }
    }

    /// Three nodes that have formed a cluster in which every partition has three voters.
    pub(crate) async fn start() -> Self {
        let mut cluster = Self::planned(Place::loopback()).await;
        cluster.form().await;
        cluster
    }

    /// Starts all nodes and waits until they are one cluster.
    pub(crate) async fn form(&mut self) {
        self.nodes.iter_mut().for_each(Node::start);
        let founder = Probe::connect(self.nodes[0].address()).await.unwrap();
        founder.change(&ClusterChange::Bootstrap).await.unwrap();
        self.whole().await;
    }

    /// Adds a node to be started.
    pub(crate) fn add(&mut self) -> usize {
        let number = self.nodes.len();
        self.nodes.push(Node::new(&self.directory, &self.place, number));
        number
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_with(Duration::from_secs(60)).await
    }

    pub(crate) async fn client_with(&self, call_timeout: Duration) -> Client {
        let addresses: Vec<String> = self.nodes.iter().map(Node::address).collect();
        Client::builder()
            .backoff(Duration::from_millis(10), Duration::from_millis(200))
            .answer_timeout(Duration::from_secs(10))
            .call_timeout(call_timeout)
            .wait_for_node(Duration::from_secs(30))
            .connect(addresses)
            .await
            .unwrap()
    }

    /// Waits until every running node sees every partition led, settled on three voters and without lag, and all alive.
    pub(crate) async fn whole(&self) {
        until("a whole cluster", Duration::from_secs(90), || async { self.is_whole().await }).await;
    }

    async fn is_whole(&self) -> bool {
        let running: Vec<&Node> = self.nodes.iter().filter(|node| node.process.is_some()).collect();
        for node in &running {
            let Some(view) = node.view().await else { return false };
            let there = view.nodes.iter().filter(|node| node.is_alive).count();
            let is_well = |group: &GroupView| group.leader.is_some() && group.is_settled && group.voters.len() == 3;
            if view.partitions.is_empty() || there < running.len() || !view.partitions.iter().all(is_well) {
                return false;
            }
        }
        true
    }

    /// What some running node knows.
    pub(crate) async fn view(&self) -> ClusterView {
        for node in self.nodes.iter().filter(|node| node.process.is_some()) {
            if let Some(view) = node.view().await {
                return view;
            }
        }
        panic!("no node tells of the cluster");
    }

    /// The id of a node, as it says itself.
    pub(crate) async fn id(&self, number: usize) -> NodeId {
        self.nodes[number].view().await.and_then(|view| view.answered_by).unwrap()
    }

    /// The running node that leads most partitions.
    pub(crate) async fn busiest(&self) -> usize {
        let view = self.view().await;
        let led = |node: &Node| {
            let id = view.nodes.iter().find(|row| row.name == node.name).map(|row| row.id);
            view.partitions.iter().filter(|group| group.leader == id).count()
        };
        let running = (0..self.nodes.len()).filter(|&number| self.nodes[number].process.is_some());
        running.max_by_key(|&number| led(&self.nodes[number])).unwrap()
    }

    /// Waits until all replicas of all partitions have come to the same index, and every node says that none lags.
    pub(crate) async fn agreed(&self) {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let mut seen: Vec<Vec<(usize, u64, u32)>> = vec![Vec::new(); usize::from(PARTITIONS)];
            for (number, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.process.is_some()) {
                let view = node.view().await.unwrap_or_default();
                let told = view.partitions.iter().enumerate();
                told.for_each(|(partition, group)| seen[partition].push((number, group.applied, group.lag)));
            }
            let do_agree = |all: &Vec<(usize, u64, u32)>| {
                all.len() > 1 && all.iter().all(|(_, applied, lag)| (*applied, *lag) == (all[0].1, 0))
            };
            if seen.iter().all(do_agree) {
                return;
            }
            assert!(Instant::now() < deadline, "replicas (node, applied, lag) do not come to one index: {seen:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Lets a node lead a partition. The cluster may choose otherwise soon after.
    pub(crate) async fn let_lead(&self, client: &Client, number: usize, partition: PartitionId) {
        let id = self.id(number).await;
        let change = ClusterChange::TransferLeader { partition: Some(partition), to: Some(id) };
        until("another leader", Duration::from_secs(60), || async {
            client.change_cluster(&change).await.unwrap();
            let view = self.nodes[number].view().await;
            view.is_some_and(|view| view.partitions[usize::from(partition.0)].leader == Some(id))
        })
        .await;
    }

    /// Runs a command of the command line against a node.
    pub(crate) fn command(&self, number: usize, arguments: &[&str]) -> Output {
        let mut command = command_within(self.place.hub());
        command.args(["--output", "json", "--addr", &self.nodes[number].address()]).args(arguments).output().unwrap()
    }

    /// `cluster status` of a node: its exit code, and what it prints.
    pub(crate) fn status(&self, number: usize) -> (Option<i32>, Value) {
        let output = self.command(number, &["cluster", "status"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Waits until a node's `cluster status` has a problem with all of these words; the sentence.
    pub(crate) async fn problem(&self, number: usize, words: &[&str]) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let (_, status) = self.status(number);
            let problems = status["problems"].as_array().cloned().unwrap_or_default();
            let sentences = problems.iter().filter_map(|problem| problem["message"].as_str());
            for sentence in sentences {
                if words.iter().all(|word| sentence.contains(word)) {
                    return sentence.to_owned();
                }
            }
            assert!(Instant::now() < deadline, "`cluster status` does not say {words:?}: {status:#}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until a node has logged a line with all of these words; the line.
    pub(crate) async fn logged(&self, number: usize, words: &[&str]) -> String {
        self.nodes[number].logged(words).await
    }
}

impl Node {
    /// As [`Cluster::logged`].
    pub(crate) async fn logged(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| words.iter().all(|word| line.contains(word))) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "{} does not log {words:?}: {log}", self.name);
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Lines of each log that a failed test prints, beside the frames of a backtrace.
const LINES_SHOWN: usize = 40;

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = node.log();
                let lines: Vec<&str> = log.lines().collect();
                let counted = (0..lines.len()).rev().filter(|&at| !lines[at].starts_with(' '));
                let first = counted.take(LINES_SHOWN).last().unwrap_or(0);
                let shown = lines[first..].join("\n");
                eprintln!("---- {}, at the end ----\n{shown}", node.name);
            }
        }
    }
}
