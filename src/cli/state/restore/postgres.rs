//! `taskmaster state restore --from postgres`: queues' settings, finished tasks and the versions of their states come back from the database,
//! through a node that takes them. The data directory gets its name when all is there and the database knows the new cluster.

use std::collections::BTreeMap;

use serde_json::json;
use taskmaster_connect::postgres::{self, Returning, Source};
use tokio::sync::mpsc;

use super::Arguments;
use super::backup::Unfinished;
use crate::cli::connect::block_on;
use crate::cli::state::database::failed;
use crate::cli::{Exit, Failure};
use crate::config::Config;
use crate::doctor;
use crate::node::{Node, NodeHandle};
use crate::output::{Output, iso_time};

/// Parts between the database and the node.
const PARTS_MAX: usize = 4;

/// What came back.
#[derive(Default)]
struct Restored {
    /// The new cluster.
    cluster: u128,
    /// Tasks of each partition.
    tasks: BTreeMap<u16, u64>,
    queues: usize,
    versions: u64,
    /// Versions of which the database tells and has not all bytes.
    versions_missing: u64,
}

/// Carries it out.
pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let (mut config, settings) = arguments.database.load()?;
    if let Some(data_dir) = &arguments.data_dir {
        config.node.data_dir.clone_from(data_dir);
    }
    let unfinished = Unfinished::new(&config.node.data_dir)?;
    unfinished.path().clone_into(&mut config.node.data_dir);
    doctor::preflight().map_err(|unfit| Failure::new(Exit::Failed, unfit.to_string()))?;
    let (source, restored) = block_on(async {
        let mut session = postgres::connect(&settings).await.map_err(|error| failed(&error))?;
        postgres::check(&settings).await.map_err(|error| failed(&error))?;
        let sources = postgres::sources(&session).await.map_err(|error| failed(&error))?;
        let source = choose(sources, arguments.cluster.as_deref())?;
        let highest = source.positions.keys().max().copied().unwrap_or(0);
        if highest >= config.node.partitions {
            let message = format!(
                "the cluster had {} partitions or more, and node.partitions is {}: they must be as many",
                u32::from(highest) + 1,
                config.node.partitions
            );
            return Err(Failure::new(Exit::Usage, message));
        }
        let chunks = postgres::connect(&settings).await.map_err(|error| failed(&error))?;
        let restored = fill(config, &session, &chunks, &source).await?;
        let adopted = postgres::adopt(&mut session, &source, restored.cluster, &restored.tasks).await;
        adopted.map_err(|error| failed(&error))?;
        Ok((source, restored))
    })?;
    unfinished.finish()?;
    report(&source, &restored, output)?;
    Ok(Exit::Success)
}

fn choose(sources: Vec<Source>, wanted: Option<&str>) -> Result<Source, Failure> {
    let listed: Vec<String> = sources.iter().map(|source| format!("{:032x}", source.id)).collect();
    let mut fitting =
        sources.into_iter().zip(&listed).filter(|(_, id)| wanted.is_none_or(|wanted| wanted == id.as_str()));
    fitting.next().map(|(source, _)| source).ok_or_else(|| {
        let known = if listed.is_empty() { "none".to_owned() } else { listed.join(", ") };
        Failure::new(Exit::NotFound, format!("the database has no such cluster; it has {known}"))
    })
}

/// Starts a node and gives it what the database has.
async fn fill(
    mut config: Config,
    session: &postgres::Session,
    chunks: &postgres::Session,
    source: &Source,
) -> Result<Restored, Failure> {
    config.clustered = false;
    config.listen.address.set_port(0);
    let queues = postgres::queues(session, source).await.map_err(|error| failed(&error))?;
    let partitions = config.node.partitions;
    let (node, restorer) = Node::start_restoring(config)?;
    let (send, mut parts) = mpsc::channel::<Returning>(PARTS_MAX);
    let restoring = tokio::task::spawn_blocking(move || {
        let mut restored = Restored { queues: queues.len(), ..Restored::default() };
        // The settings first: they say how long the tasks are kept.
        for partition in (0..partitions).filter(|_| !queues.is_empty()) {
            restorer.configure(partition, &queues)?;
        }
        let mut versions = BTreeMap::new();
        while let Some(part) = parts.blocking_recv() {
            let partition = match &part {
                Returning::Tasks(batch) => batch.partition,
                Returning::States(states) => states.partition,
            };
            let holding = restorer.restore(part)?;
            restored.tasks.insert(partition, holding.last_number);
            versions.insert(partition, holding.versions);
        }
        restored.versions = versions.values().sum();
        Ok::<_, anyhow::Error>(restored)
    });
    let read = postgres::history(session, chunks, source, async |part| send.send(part).await.is_ok()).await;
    drop(send);
    let restored = restoring.await.map_err(anyhow::Error::from)?;
    let cluster = node.cluster();
    tokio::task::spawn_blocking(move || NodeHandle::shutdown(node)).await.map_err(anyhow::Error::from)??;
    let (versions, restored) = (read.map_err(|error| failed(&error))?, restored?);
    Ok(Restored { cluster, versions_missing: versions.saturating_sub(restored.versions), ..restored })
}

fn report(source: &Source, restored: &Restored, output: Output) -> Result<(), Failure> {
    let Restored { queues, versions, versions_missing, .. } = restored;
    let tasks: u64 = restored.tasks.values().sum();
    if output.is_json() {
        let partitions: Vec<_> = source
            .positions
            .iter()
            .map(|(partition, position)| {
                let tasks = restored.tasks.get(partition).copied().unwrap_or(0);
                json!({"partition": partition, "position": position, "tasks": tasks})
            })
            .collect();
        return Ok(output.json(&json!({
            "cluster": format!("{:032x}", source.id), "tasks": tasks, "versions": versions,
            "versions_missing": versions_missing, "queues": queues, "partitions": partitions,
        }))?);
    }
    let mut text = format!(
        "{tasks} finished tasks of cluster {:032x} are restored, as they were stored last at {}\n",
        source.id,
        iso_time(source.last_s * 1_000_000)
    );
    for (partition, position) in source.positions.iter().filter(|(_, position)| **position > 0) {
        let tasks = restored.tasks.get(partition).copied().unwrap_or(0);
        text.push_str(&format!("  partition {partition:>4} to position {position}: {tasks} tasks\n"));
    }
    text.push_str(&format!(
        "{versions} versions of tasks' states and the settings of {queues} queues are restored, too\n"
    ));
    if *versions_missing > 0 {
        text.push_str(&format!(
            "{versions_missing} versions are not: the database has not all bytes of their states\n"
        ));
    }
    text.push_str("what was not finished, or not stored by then, is not there\n");
    Ok(output.text(&text)?)
}
