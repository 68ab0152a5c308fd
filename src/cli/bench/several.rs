//! `bench --nodes N`: load on a cluster of own nodes, beside a single one; strikes under load; and what idle nodes cost.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use serde_json::{Value, json};
use taskmaster_bench::failover::{self, FailoverOptions, Faults, Strike};
use taskmaster_bench::networks::{self, Networks};
use taskmaster_bench::{Options, Report, idle};
use tokio::time::Instant;

use super::nodes::{Nodes, led, put_load};
use super::{Arguments, Fault, rejoin, show};
use crate::cli::connect::block_on;
use crate::cli::dev::layout::shards_each;
use crate::cli::signal::Stop;
use crate::cli::{Exit, Failure, Global};
use crate::config::Config;

/// Rate under strikes when none is given, in tasks per second.
const RATE_DEFAULT: f64 = 20_000.0;
/// Tasks per submission under strikes: small, so that every partition is asked again soon.
const FAILOVER_BATCH: u32 = 16;
/// Clients under strikes.
const FAILOVER_CLIENTS: u32 = 4;
/// Load on a whole cluster before each strike.
const CALM: Duration = Duration::from_millis(1_500);
/// From a kill to the next start, and the length of a stop or of a partition.
const KILLED: Duration = Duration::from_secs(2);
const STOPPED: Duration = Duration::from_secs(3);
/// Longest standstill at the end with tasks undone.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// Before an idle cluster is measured.
const COOL: Duration = Duration::from_secs(15);

/// Carries `bench --nodes` out.
pub(super) fn run(global: &Global, arguments: &Arguments, config: &Config) -> Result<Exit, Failure> {
    let networks = match arguments.failover {
        Some(Fault::Partition) => Some(networks_for(arguments.nodes)?),
        _ => None,
    };
    block_on(async {
        let mut stop = Stop::listen()?;
        tokio::select! {
            measured = measure(global, arguments, config, networks) => {
                let (json, text, good) = measured?;
                show(global, json, &text, good)
            }
            // Nodes end with this process, the directory with what is dropped here.
            () = stop.asked() => Ok(Exit::Interrupted),
        }
    })
}

/// Networks for the nodes; from here on this process is among the clients in their hub.
fn networks_for(nodes: u16) -> Result<Networks, Failure> {
    let networks = Networks::new(u8::try_from(nodes).unwrap_or(u8::MAX))?;
    networks::enter(networks.hub())?;
    Ok(networks)
}

async fn measure(
    global: &Global,
    arguments: &Arguments,
    config: &Config,
    networks: Option<Networks>,
) -> Result<(Value, String, bool), Failure> {
    let mut config = config.clone();
    if config.node.shards == 0 {
        // Those of the single node beside it, too.
        config.node.shards = shards_each(arguments.nodes).min(config.node.partitions);
    }
    let config = &config;
    if let Some(time) = arguments.idle {
        return rest(global, arguments, config, time.0).await;
    }
    if let Some(tasks) = arguments.rejoin {
        return rejoin::run(global, arguments, config, tasks).await;
    }
    if let Some(fault) = arguments.failover {
        return strike(global, arguments, config, fault, networks).await;
    }
    let options = arguments.options(global.output().is_json())?;
    let single = match arguments.baseline {
        true => Some(load(global, config, 1, options.clone()).await?),
        false => None,
    };
    let cluster = load(global, config, arguments.nodes, options).await?;
    let good = cluster.is_exact() && single.as_ref().is_none_or(Report::is_exact);
    let Some(single) = single else {
        let json = serde_json::to_value(&cluster).map_err(anyhow::Error::from)?;
        return Ok((json, cluster.to_string(), good));
    };
    let ratios = ratios(&cluster, &single);
    let mut text = format!("one node\n\n{single}\n\n{} nodes\n\n{cluster}\n\n", arguments.nodes);
    for (name, ratio) in &ratios {
        writeln!(text, "  {name:<28}{ratio:>8.2} times the single node's").map_err(anyhow::Error::from)?;
    }
    let ratios: serde_json::Map<String, Value> =
        ratios.into_iter().map(|(name, ratio)| (name.replace(' ', "_"), json!(ratio))).collect();
    Ok((json!({"cluster": cluster, "single": single, "ratios": ratios}), text, good))
}

/// What the cluster takes or does for each of the single node's.
fn ratios(cluster: &Report, single: &Report) -> Vec<(&'static str, f64)> {
    let of = |figure: fn(&Report) -> Option<f64>| Some(figure(cluster)? / figure(single)?);
    let all = [
        ("tasks per s", of(|report| Some(report.tasks_per_s))),
        ("cpu per task, all nodes", of(Report::cpu_us_per_task)),
        ("log per task and replica", of(Report::wal_bytes_per_task)),
        ("records per task and replica", of(Report::record_bytes_per_task)),
    ];
    all.into_iter().filter_map(|(name, ratio)| Some((name, ratio?))).collect()
}

async fn load(global: &Global, config: &Config, count: u16, options: Options) -> Result<Report, Failure> {
    let nodes = Nodes::start(config, count, None, global.verbose).await?;
    let measured = put_load(&nodes.infos(), &options).await;
    nodes.end().await;
    measured
}

async fn rest(
    global: &Global,
    arguments: &Arguments,
    config: &Config,
    time: Duration,
) -> Result<(Value, String, bool), Failure> {
    let nodes = Nodes::start(config, arguments.nodes, None, global.verbose).await?;
    tokio::time::sleep(COOL).await;
    let pids: Vec<u32> = nodes.members.all.iter().map(|member| member.pid).collect();
    let replicas = u64::from(config.node.partitions) + 1;
    let measuring = tokio::task::spawn_blocking(move || idle::measure(&pids, replicas, time));
    let idle = measuring.await.map_err(anyhow::Error::from)??;
    let text = format!(
        "{} idle nodes with {} replicas each: {:.2} µs of CPU per second and replica; each node {:?} µs per second",
        arguments.nodes,
        replicas,
        idle.us_per_s_and_replica,
        idle.cpu_us_per_s.iter().map(|us| us.round()).collect::<Vec<_>>()
    );
    Ok((serde_json::to_value(&idle).map_err(anyhow::Error::from)?, text, true))
}

async fn strike(
    global: &Global,
    arguments: &Arguments,
    config: &Config,
    fault: Fault,
    networks: Option<Networks>,
) -> Result<(Value, String, bool), Failure> {
    let nodes = Nodes::start(config, arguments.nodes, networks, global.verbose).await?;
    let options = FailoverOptions {
        rounds: arguments.rounds,
        rate_per_s: arguments.rate.unwrap_or(RATE_DEFAULT),
        batch: arguments.batch.unwrap_or(FAILOVER_BATCH),
        clients: arguments.connections.unwrap_or(FAILOVER_CLIENTS),
        payload_bytes: u32::try_from(arguments.payload.0).unwrap_or(u32::MAX),
        calm: CALM,
        down: if fault == Fault::Kill { KILLED } else { STOPPED },
        drain_max: DRAIN_MAX,
        progress: !global.output().is_json(),
    };
    let addresses = nodes.members.addresses();
    let mut striker = Striker { nodes, fault, struck: 0 };
    let report = failover::run(&options, &addresses, &mut striker).await?;
    let good = report.is_exact();
    Ok((serde_json::to_value(&report).map_err(anyhow::Error::from)?, report.to_string(), good))
}

/// Strikes own nodes.
struct Striker {
    nodes: Nodes,
    fault: Fault,
    struck: usize,
}

impl Striker {
    fn networks(&self) -> anyhow::Result<&Networks> {
        self.nodes.networks.as_ref().context("the nodes have no networks of their own")
    }
}

impl Faults for Striker {
    async fn strike(&mut self) -> anyhow::Result<Strike> {
        let view = self.nodes.whole().await?;
        let Some(node) = view.nodes.iter().max_by_key(|node| led(&view, node.id).len()) else {
            anyhow::bail!("the map has no nodes");
        };
        let members = &self.nodes.members;
        let Some(number) = members.all.iter().position(|member| member.name == node.name) else {
            anyhow::bail!("{} is no node of this run", node.name);
        };
        let strike = Strike { node: node.id, name: node.name.clone(), led: led(&view, node.id), at: Instant::now() };
        match self.fault {
            Fault::Kill => {
                members.signal_one(number, Signal::KILL);
                self.nodes.members.next_end().await;
            }
            Fault::Stop => members.signal_one(number, Signal::STOP),
            Fault::Partition => self.networks()?.cut(number)?,
        }
        self.struck = number;
        Ok(strike)
    }

    async fn heal(&mut self) -> anyhow::Result<()> {
        let members = &mut self.nodes.members;
        match self.fault {
            Fault::Kill => members.restart(self.struck).await?,
            Fault::Stop => members.signal_one(self.struck, Signal::CONT),
            Fault::Partition => self.networks()?.heal(self.struck)?,
        }
        let members = &self.nodes.members;
        let ended = members.all.iter().filter(|member| member.ended.is_some()).count();
        anyhow::ensure!(ended == 0, "{ended} nodes ended by themselves");
        Ok(())
    }
}
