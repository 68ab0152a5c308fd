//! `taskmaster dev --nodes N`: a cluster on this machine, with workers in this process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use taskmaster_client::Worker;

use super::members::{Member, Members};
use super::{Arguments, layout, offer};
use crate::cli::connect::{block_on, connect_to};
use crate::cli::embedded::temporary_dir;
use crate::cli::signal::Stop;
use crate::cli::{Exit, Failure, Global, cluster, log};
use crate::config::{Config, Level};
use crate::doctor;
use crate::output::{Side, Table};
use crate::workers::{self, Offer};

/// Where the nodes keep their data unless something else is said.
const DEFAULT_ROOT: &str = "taskmaster-cluster";
/// Longest time until every node is in the cluster and every partition led.
const FORM_MAX: Duration = Duration::from_secs(30);
const FORM_POLL: Duration = Duration::from_millis(100);

/// Carries `dev --nodes` out.
pub(super) fn run(global: &Global, arguments: &Arguments, mut base: Config) -> Result<Exit, Failure> {
    if arguments.config.is_none() {
        base.log.level = Level::Warn;
    }
    log::start(base.log.level, base.log.format, global.verbose);
    doctor::preflight().map_err(|unfit| Failure::new(Exit::Failed, unfit.to_string()))?;
    let temporary = if arguments.temporary { Some(temporary_dir()?) } else { None };
    let root = match &temporary {
        Some(folder) => folder.path().to_owned(),
        None => root(&base)?,
    };
    let configs = layout::configs(&base, &root, arguments.nodes)?;
    let offer = (!arguments.no_workers).then(|| offer(&base));
    let exit = block_on(async {
        let mut stop = Stop::listen()?;
        let mut members = tokio::select! {
            started = Members::start(&configs, &[], &root, global.verbose) => started?,
            () = stop.asked() => return Ok(Exit::Interrupted),
        };
        let worker = tokio::select! {
            ready = form(global, &members, offer.as_ref()) => ready?,
            () = stop.asked() => return Ok(Exit::Interrupted),
        };
        greet(global, &members, offer.as_ref(), temporary.is_some())?;
        let is_all_gone = watch(&mut members, &mut stop).await;
        if is_all_gone {
            return Err(Failure::new(Exit::Failed, "no node is left"));
        }
        eprintln!("\ndraining: running tasks finish, others wait for the next start; Ctrl-C again ends at once");
        drain(members, worker, &mut stop).await
    })?;
    if temporary.is_none() && exit == Exit::Success {
        eprintln!("stopped; everything accepted is in {}", root.display());
    }
    Ok(exit)
}

/// The directory of all nodes.
fn root(base: &Config) -> Result<PathBuf, Failure> {
    let given = &base.node.data_dir;
    let root = if *given == Config::default().node.data_dir { Path::new(DEFAULT_ROOT) } else { given };
    if root.join("meta.toml").exists() {
        return Err(Failure::usage(format!(
            "{} is the data directory of a single node: give --data-dir another one for the nodes of a cluster",
            root.display()
        )));
    }
    Ok(root.to_owned())
}

/// Founds the cluster where there is none yet, waits until it serves, and starts workers.
async fn form(global: &Global, members: &Members, offer: Option<&Offer>) -> Result<Option<Worker>, Failure> {
    let mut is_founded = false;
    for member in &members.all {
        is_founded |= cluster::look(&member.address).await?.cluster.is_some();
    }
    let first = &members.all[0].address;
    if !is_founded {
        cluster::found(first).await?;
    }
    let give_up = Instant::now() + FORM_MAX;
    loop {
        let view = cluster::look(first).await?;
        let is_led = !view.partitions.is_empty() && view.partitions.iter().all(|partition| partition.leader.is_some());
        if is_led && cluster::takers(&view) >= members.all.len() {
            break;
        }
        if Instant::now() >= give_up {
            eprintln!(
                "not every node is in the cluster yet; `taskmaster --addr {first} cluster status` says what is missing"
            );
            break;
        }
        tokio::time::sleep(FORM_POLL).await;
    }
    match offer {
        Some(offer) => {
            let client = connect_to(&members.addresses(), global).await?;
            let offer = Offer { address: members.addresses(), ..offer.clone() };
            Ok(Some(workers::start(&client, &offer, None).await?))
        }
        None => Ok(None),
    }
}

/// Tells of nodes that end, until a stop is asked for; true when none is left.
async fn watch(members: &mut Members, stop: &mut Stop) -> bool {
    loop {
        tokio::select! {
            () = stop.asked() => return false,
            ended = members.next_end() => {
                let Member { name, file, ended, .. } = ended;
                let how = ended.map_or_else(String::new, |status| format!(" ({status})"));
                eprintln!("{name}  ended{how}; to start it again: taskmaster serve --config {}", file.display());
            }
        }
        if members.running() == 0 {
            return true;
        }
    }
}

/// Workers first, then nodes; another signal meanwhile ends everything at once.
async fn drain(mut members: Members, worker: Option<Worker>, stop: &mut Stop) -> Result<Exit, Failure> {
    if let Some(worker) = worker {
        tokio::select! {
            ended = worker.shutdown() => drop(ended?),
            () = stop.asked() => return Ok(end_at_once(&members)),
        }
    }
    members.signal(Signal::TERM);
    let mut exit = Exit::Success;
    while members.running() > 0 {
        tokio::select! {
            ended = members.next_end() => {
                if !ended.ended.is_some_and(|status| status.success()) {
                    eprintln!("{}  did not stop cleanly", ended.name);
                    exit = Exit::Failed;
                }
            }
            () = stop.asked() => return Ok(end_at_once(&members)),
        }
    }
    Ok(exit)
}

fn end_at_once(members: &Members) -> Exit {
    members.signal(Signal::KILL);
    Exit::Interrupted
}

/// What a newcomer needs to know.
fn greet(global: &Global, members: &Members, offer: Option<&Offer>, temporary: bool) -> Result<(), Failure> {
    let output = global.output();
    let concurrency = offer.map_or(0, |offer| offer.concurrency);
    let queues = offer.map(|offer| offer.queues.clone()).unwrap_or_default();
    if output.is_json() {
        let node = |member: &Member| {
            json!({
                "name": member.name, "listening": member.address, "data_dir": member.data_dir.display().to_string(),
                "config": member.file.display().to_string(), "pid": member.pid,
            })
        };
        output.json(&json!({
            "nodes": members.all.iter().map(node).collect::<Vec<_>>(), "temporary": temporary,
            "concurrency": concurrency, "queues": queues, "pid": std::process::id(),
        }))?;
        return Ok(());
    }
    let mut table =
        Table::new(&[("node", Side::Left), ("address", Side::Left), ("pid", Side::Right), ("data", Side::Left)]);
    for member in &members.all {
        let data = member.data_dir.display().to_string();
        table.row(vec![member.name.clone(), member.address.clone(), member.pid.to_string(), data]);
    }
    let workers = if concurrency == 0 {
        "none".to_owned()
    } else {
        format!("{concurrency} at once on queue {}", queues.join(", "))
    };
    let (first, last) = (&members.all[0], &members.all[members.all.len() - 1]);
    let flag = if first.address == "127.0.0.1:7700" { String::new() } else { format!(" --addr {}", first.address) };
    let removed = if temporary { " (data is removed at the end)" } else { "" };
    output.text(&format!(
        "taskmaster {} is up with {} nodes{removed}\n\n{}\nworkers: {workers}\n\n\
         Try, in another terminal:\n  taskmaster{flag} cluster status --watch\n  \
         taskmaster --addr {} submit --kind sleep --payload 200 --wait\n  kill -9 {}\n\nCtrl-C drains and stops.\n",
        env!("CARGO_PKG_VERSION"),
        members.all.len(),
        table.render(),
        last.address,
        last.pid,
    ))?;
    Ok(())
}
