//! `taskmaster dev`: one node and workers in this process, for trying things out. Ctrl-C drains; data stays. With `--nodes`,
//! a cluster of processes ([`several`]).

pub(super) mod layout;
pub(super) mod members;
mod several;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use taskmaster_client::Worker;

use super::connect::{block_on, connect_to};
use super::embedded::{Embedded, temporary_dir};
use super::signal::Stop;
use super::{Exit, Failure, Global, log, serve};
use crate::config::{self, Config, Level};
use crate::workers::{self, Offer};

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Configuration; flags win
    #[arg(long, value_name = "FILE", env = "TASKMASTER_CONFIG")]
    config: Option<PathBuf>,
    /// Nodes: more than one make a cluster, a process each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Data directory [default: ./taskmaster-data; of several nodes ./taskmaster-cluster]
    #[arg(long, value_name = "DIR", conflicts_with = "temporary")]
    data_dir: Option<PathBuf>,
    /// A data directory that is removed at the end
    #[arg(long)]
    temporary: bool,
    /// Address to listen on; further nodes and ports follow it
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// Shards; 0 means one per core
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Most tasks at once; 0 means twice the cores
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// Queue that the workers serve (repeatable)
    #[arg(long, value_name = "NAME")]
    queue: Vec<String>,
    /// Start no workers
    #[arg(long)]
    no_workers: bool,
}

impl Arguments {
    /// The configuration with the flags over it.
    fn config(&self) -> Result<Config, Failure> {
        let mut config = config::load(self.config.as_deref())?.config;
        if let Some(data_dir) = &self.data_dir {
            config.node.data_dir.clone_from(data_dir);
        }
        if let Some(listen) = self.listen {
            config.listen.address = listen;
        }
        if let Some(shards) = self.shards {
            config.node.shards = shards;
        }
        if let Some(concurrency) = self.concurrency {
            config.workers.concurrency = concurrency;
        }
        if !self.queue.is_empty() {
            config.workers.queues.clone_from(&self.queue);
        }
        let mut problems = Vec::new();
        config.check_together(&mut problems);
        match problems.first() {
            Some(problem) => Err(Failure::usage(problem.message.clone())),
            None => Ok(config),
        }
    }
}

/// What the configuration's workers offer.
pub(crate) fn offer(config: &Config) -> Offer {
    Offer {
        name: format!("{}-workers", config.node.name),
        queues: config.workers.queues.clone(),
        concurrency: config.worker_concurrency(),
        builtins: true,
        exec: config.workers.exec,
        grace: Some(config.workers.grace.0),
        withheld: config.secret_variables(),
        ..Offer::default()
    }
}

/// Carries `dev` out.
pub(crate) fn run(global: &Global, arguments: &Arguments) -> Result<Exit, Failure> {
    let mut config = arguments.config()?;
    if arguments.nodes > 1 {
        return several::run(global, arguments, config);
    }
    if arguments.config.is_none() {
        config.log.level = Level::Warn;
    }
    log::start(config.log.level, config.log.format, global.verbose);
    let temporary = if arguments.temporary { Some(temporary_dir()?) } else { None };
    if let Some(folder) = &temporary {
        config.node.data_dir = folder.path().join("data");
    }
    let offer = offer(&config);
    block_on(async {
        let node = Embedded::start(config, temporary)?;
        // From here on; until here the signals' defaults end the process.
        let mut stop = Stop::listen()?;
        let worker = if arguments.no_workers { None } else { Some(start_worker(global, &node, &offer).await?) };
        greet(global, &node, worker.is_some().then_some(&offer))?;
        stop.asked().await;
        eprintln!("\ndraining: running tasks finish, others wait for the next start; Ctrl-C again ends at once");
        if let Some(worker) = worker {
            tokio::select! {
                ended = worker.shutdown() => drop(ended?),
                () = stop.asked() => std::process::exit(Exit::Interrupted.number().into()),
            }
        }
        let kept = (!node.is_temporary()).then(|| node.data_dir().display().to_string());
        let exit = serve::finish(node, &mut stop).await?;
        if let Some(data_dir) = kept {
            eprintln!("stopped; everything accepted is in {data_dir}");
        }
        Ok(exit)
    })
}

async fn start_worker(global: &Global, node: &Embedded, offer: &Offer) -> Result<Worker, Failure> {
    let client = connect_to(&node.address().to_string(), global).await?;
    let offer = Offer { address: node.address().to_string(), ..offer.clone() };
    workers::start(&client, &offer, None).await
}

/// What a newcomer needs to know.
fn greet(global: &Global, node: &Embedded, offer: Option<&Offer>) -> Result<(), Failure> {
    let output = global.output();
    let address = node.address().to_string();
    let concurrency = offer.map_or(0, |offer| offer.concurrency);
    if output.is_json() {
        let queues = offer.map(|offer| offer.queues.clone()).unwrap_or_default();
        let data_dir = node.data_dir().display().to_string();
        let pid = std::process::id();
        output.json(&json!({
            "listening": address, "data_dir": data_dir, "temporary": node.is_temporary(),
            "concurrency": concurrency, "queues": queues, "pid": pid,
        }))?;
        return Ok(());
    }
    let removed = if node.is_temporary() { " (removed at the end)" } else { "" };
    let workers = offer.map_or_else(
        || "none".to_owned(),
        |offer| format!("{concurrency} at once on queue {}", offer.queues.join(", ")),
    );
    let flag = if address == "127.0.0.1:7700" { String::new() } else { format!(" --addr {address}") };
    output.text(&format!(
        "taskmaster {} is up\n\n  address  {address}\n  data     {}{removed}\n  workers  {workers}\n\n\
         Try, in another terminal:\n  taskmaster{flag} submit --kind sleep --payload 200 --wait\n  \
         taskmaster{flag} submit --kind exec --payload '{{\"run\": \"date; uname -r\"}}' --wait\n  \
         taskmaster{flag} queue list\n\nCtrl-C drains and stops.\n",
        env!("CARGO_PKG_VERSION"),
        node.data_dir().display(),
    ))?;
    Ok(())
}
