//! `taskmaster state log|show|diff|branch|rollback|tag|gc|save|at`: the versions of a task's state;
//! `state migrate|status`: finished tasks in a database; and `state backup|verify|restore`: a node's data in other places.
//!
//! A version is named by its number, a tag, a branch (its head) or the beginning of its hash.

use std::io::Read as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use taskmaster_client::{Client, StateChange, StateHistory, TaskId, VersionView};

use super::connect::{block_on, connect};
use super::outcome::bytes_json;
use super::{Exit, Failure, Global, log};
use crate::output::{Output, Side, Table, human_bytes, iso_time};

mod at;
mod backup;
mod database;
mod diff;
mod restore;

/// What to do with a task's state.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the versions of a task's state, the newest first
    Log {
        /// Task id
        id: TaskId,
    },
    /// Write one version's bytes to standard output or a file
    Show {
        /// Task id
        id: TaskId,
        /// Number, tag, branch or hash [default: where the next attempt resumes]
        #[arg(long, value_name = "VERSION")]
        at: Option<String>,
        /// Write the bytes here
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Say what differs between two versions, and show it where it is text
    Diff {
        /// Task id
        id: TaskId,
        /// The older one: number, tag, branch or hash
        from: String,
        /// The newer one [default: where the next attempt resumes]
        to: Option<String>,
    },
    /// Make a branch, make another one current, or delete one
    Branch(BranchArguments),
    /// Let the next attempt resume from an earlier version
    Rollback {
        /// Task id
        id: TaskId,
        /// Number, tag, branch or hash
        #[arg(value_name = "VERSION")]
        to: String,
    },
    /// Name a version, so that it is kept; or delete a name
    Tag {
        /// Task id
        id: TaskId,
        /// The name
        name: String,
        /// Number, branch or hash [default: where the next attempt resumes]
        #[arg(long, value_name = "VERSION", conflicts_with = "delete")]
        at: Option<String>,
        /// Delete the name
        #[arg(long)]
        delete: bool,
    },
    /// Drop versions that are neither tagged nor on the way to a branch's head
    Gc {
        /// Task id
        id: TaskId,
        /// Keep only so many versions on the way to each head, itself included
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
    },
    /// Look at a partition as it was, in the data directory of a stopped node
    At(at::Arguments),
    /// Save a state from within a running task's process
    Save(SaveArguments),
    /// Create or update Taskmaster's schema in a PostgreSQL database
    Migrate(database::Database),
    /// Show how far finished tasks are checkpointed to the database, over all nodes
    Status,
    /// Copy what a node on this machine has, running or not, into a new directory or an object store
    Backup(backup::Arguments),
    /// Check every file of a backup
    Verify {
        /// The backup
        #[arg(value_name = "DIR|s3://BUCKET/PREFIX")]
        backup: backup::store::Location,
    },
    /// Bring tasks back from backups, or finished ones from the database, into a new data directory
    Restore(restore::Arguments),
}

/// A branch, and what to do with it.
#[derive(Debug, Args)]
pub(crate) struct BranchArguments {
    /// Task id
    id: TaskId,
    /// The branch
    name: String,
    /// Where it begins: number, tag, branch or hash [default: where the next attempt resumes]
    #[arg(long, value_name = "VERSION")]
    at: Option<String>,
    /// Make it current too, so that attempts resume from it; alone: an existing one
    #[arg(long)]
    switch: bool,
    /// Delete it; its versions stay until they are collected
    #[arg(long, conflicts_with_all = ["at", "switch"])]
    delete: bool,
}

/// What to save, and under which lease: the environment of a task's process says the latter.
#[derive(Debug, Args)]
pub(crate) struct SaveArguments {
    /// The state [default: standard input]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A word or two for people
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
    /// Task id
    #[arg(long, env = "TASKMASTER_TASK_ID", value_name = "ID")]
    task: TaskId,
    /// Token of the lease
    #[arg(long, env = "TASKMASTER_TOKEN", value_name = "TOKEN")]
    token: u64,
    /// Attempt
    #[arg(long, env = "TASKMASTER_ATTEMPT", value_name = "N")]
    attempt: u32,
    /// The version that the attempt began with
    #[arg(long, env = "TASKMASTER_STATE_VERSION", value_name = "N", default_value_t = 0)]
    began_with: u32,
}

/// Carries a state command out.
pub(crate) fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    log::start_quiet(global.verbose);
    let output = global.output();
    match &command {
        Command::At(arguments) => return at::run(arguments, output),
        Command::Migrate(database) => return database::migrate_schema(database, output),
        Command::Backup(arguments) => return backup::run(arguments, output),
        Command::Verify { backup } => return backup::verify(backup, output),
        Command::Restore(arguments) => return restore::run(arguments, output),
        Command::Status => return block_on(database::status(global, output)),
        _ => {}
    }
    block_on(async {
        let client = connect(global).await?;
        match command {
            Command::At(_)
            | Command::Migrate(_)
            | Command::Backup(_)
            | Command::Verify { .. }
            | Command::Restore(_)
            | Command::Status => unreachable!("carried out without a node, or asking all"),
            Command::Log { id } => show_log(&client, id, output).await,
            Command::Show { id, at, file } => show(&client, id, at.as_deref(), file, output).await,
            Command::Diff { id, from, to } => diff::run(&client, id, &from, to.as_deref(), output).await,
            Command::Branch(arguments) => branch(&client, arguments, output).await,
            Command::Rollback { id, to } => {
                let version = resolve(&client, id, Some(&to)).await?;
                let head = client.change_state(id, &StateChange::Rollback { version }).await?;
                said(output, id, head, &format!("the next attempt of {id} resumes from version {head}"))
            }
            Command::Tag { id, name, delete: true, .. } => {
                client.change_state(id, &StateChange::Untag { name: name.clone() }).await?;
                said(output, id, 0, &format!("tag {name} of {id} is gone"))
            }
            Command::Tag { id, name, at, delete: false } => {
                let version = some_version(&client, id, at.as_deref()).await?;
                let version = client.change_state(id, &StateChange::Tag { name: name.clone(), version }).await?;
                said(output, id, version, &format!("version {version} of {id} is tagged {name}"))
            }
            Command::Gc { id, keep } => gc(&client, id, keep, output).await,
            Command::Save(arguments) => save(&client, &arguments, output).await,
        }
    })
}

/// One sentence about a version, or an object.
fn said(output: Output, id: TaskId, version: u32, sentence: &str) -> Result<Exit, Failure> {
    if output.is_json() {
        output.json(&json!({"id": id.to_string(), "version": (version > 0).then_some(version)}))?;
    } else {
        output.text(&format!("{sentence}\n"))?;
    }
    Ok(Exit::Success)
}

/// The number of the version that a word names; without one, the head of the current branch.
pub(crate) async fn resolve(client: &Client, id: TaskId, named: Option<&str>) -> Result<u32, Failure> {
    if let Some(number) = named.and_then(|named| named.parse().ok()).filter(|number| *number > 0) {
        return Ok(number);
    }
    let history = client.state_log(id).await?;
    if history.versions.is_empty() {
        return Err(Failure::new(Exit::NotFound, format!("task {id} has saved no state")));
    }
    let Some(named) = named else { return Ok(history.head) };
    let mut names =
        history.tags.iter().chain(&history.branches).filter(|(name, version)| name == named && *version > 0);
    if let Some((_, version)) = names.next() {
        return Ok(*version);
    }
    let matching = |version: &&VersionView| named.len() >= 4 && hex(&version.digest).starts_with(named);
    let mut matches = history.versions.iter().rev().filter(matching);
    matches
        .next()
        .map(|version| version.number)
        .ok_or_else(|| Failure::new(Exit::NotFound, unknown(id, named, &history)))
}

async fn some_version(client: &Client, id: TaskId, named: Option<&str>) -> Result<Option<u32>, Failure> {
    match named {
        None => Ok(None),
        Some(_) => resolve(client, id, named).await.map(Some),
    }
}

fn unknown(id: TaskId, named: &str, history: &StateHistory) -> String {
    let latest: Vec<String> = history.versions.iter().rev().take(8).map(|version| version.number.to_string()).collect();
    let names: Vec<&str> = history.tags.iter().chain(&history.branches).map(|(name, _)| name.as_str()).collect();
    format!(
        "task {id} has no version \"{named}\"; the latest: {}; tags and branches: {}",
        latest.join(", "),
        names.join(", ")
    )
}

pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A version as an object.
pub(super) fn version_json(version: &VersionView) -> Value {
    json!({
        "version": version.number,
        "hash": version.short(),
        "digest": hex(&version.digest),
        "parent": (version.parent > 0).then_some(version.parent),
        "attempt": version.attempt,
        "bytes": version.size,
        "new_bytes": version.new_bytes,
        "chunks": version.chunks,
        "saved_at": iso_time(version.time_us),
        "label": version.label,
    })
}

fn names_json(names: &[(String, u32)]) -> Value {
    Value::Object(names.iter().map(|(name, version)| (name.clone(), json!(version))).collect::<Map<String, Value>>())
}

/// Branches and tags at a version; the current branch has a star.
fn names_at(history: &StateHistory, number: u32) -> String {
    let mut names = Vec::new();
    for (name, version) in &history.branches {
        if *version == number {
            names.push(if *name == history.current { format!("{name}*") } else { name.clone() });
        }
    }
    names.extend(history.tags.iter().filter(|(_, version)| *version == number).map(|(name, _)| name.clone()));
    names.join(", ")
}

async fn show_log(client: &Client, id: TaskId, output: Output) -> Result<Exit, Failure> {
    let history = client.state_log(id).await?;
    if output.is_json() {
        let versions: Vec<Value> = history.versions.iter().map(version_json).collect();
        output.json(&json!({
            "id": id.to_string(),
            "current": history.current,
            "head": (history.head > 0).then_some(history.head),
            "made": history.made,
            "versions": versions,
            "branches": names_json(&history.branches),
            "tags": names_json(&history.tags),
        }))?;
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&[
        ("version", Side::Right),
        ("hash", Side::Left),
        ("parent", Side::Right),
        ("attempt", Side::Right),
        ("size", Side::Right),
        ("new", Side::Right),
        ("saved", Side::Left),
        ("names", Side::Left),
        ("label", Side::Left),
    ]);
    for version in history.versions.iter().rev() {
        table.row(vec![
            version.number.to_string(),
            version.short(),
            if version.parent == 0 { String::new() } else { version.parent.to_string() },
            version.attempt.to_string(),
            human_bytes(version.size),
            human_bytes(version.new_bytes),
            iso_time(version.time_us),
            names_at(&history, version.number),
            version.label.clone(),
        ]);
    }
    output.text(&if table.is_empty() { format!("task {id} has saved no state\n") } else { table.render() })?;
    Ok(Exit::Success)
}

async fn show(
    client: &Client,
    id: TaskId,
    version: Option<&str>,
    file: Option<PathBuf>,
    output: Output,
) -> Result<Exit, Failure> {
    let number = resolve(client, id, version).await?;
    let state = client.read_state(id, Some(number)).await?;
    if let Some(path) = &file {
        std::fs::write(path, &state.bytes)
            .map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", path.display())))?;
    }
    if output.is_json() {
        let mut object = version_json(&state.version);
        object["state"] = if file.is_some() { Value::Null } else { bytes_json(&state.bytes) };
        output.json(&object)?;
    } else if let Some(path) = file {
        output.text(&format!("version {number}, {}, is in {}\n", human_bytes(state.version.size), path.display()))?;
    } else {
        output.bytes(&state.bytes)?;
    }
    Ok(Exit::Success)
}

async fn branch(client: &Client, arguments: BranchArguments, output: Output) -> Result<Exit, Failure> {
    let BranchArguments { id, name, at, switch, delete } = arguments;
    if delete {
        client.change_state(id, &StateChange::DeleteBranch { name: name.clone() }).await?;
        return said(
            output,
            id,
            0,
            &format!("branch {name} of {id} is gone; its versions stay until they are collected"),
        );
    }
    let history = client.state_log(id).await?;
    let exists = history.branches.iter().any(|(known, _)| *known == name);
    let mut head = 0;
    if !(exists && switch && at.is_none()) {
        let version = some_version(client, id, at.as_deref()).await?;
        head = client.change_state(id, &StateChange::Branch { name: name.clone(), version }).await?;
    }
    if switch {
        head = client.change_state(id, &StateChange::Switch { name: name.clone() }).await?;
        return said(output, id, head, &format!("attempts of {id} resume from branch {name}, version {head}"));
    }
    said(output, id, head, &format!("branch {name} of {id} begins at version {head}"))
}

async fn gc(client: &Client, id: TaskId, keep: Option<u32>, output: Output) -> Result<Exit, Failure> {
    let gone = client.change_state(id, &StateChange::Prune { keep }).await?;
    let left = client.state_log(id).await?.versions.len();
    if output.is_json() {
        output.json(&json!({"id": id.to_string(), "removed": gone, "kept": left}))?;
    } else {
        output.text(&format!("{gone} versions are gone, {left} are kept\n"))?;
    }
    Ok(Exit::Success)
}

async fn save(client: &Client, arguments: &SaveArguments, output: Output) -> Result<Exit, Failure> {
    let bytes = match &arguments.file {
        Some(path) => {
            std::fs::read(path).map_err(|error| Failure::new(Exit::NotFound, format!("{}: {error}", path.display())))?
        }
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes)?;
            bytes
        }
    };
    let (id, attempt) = (arguments.task, arguments.attempt);
    // On top of what this attempt saved before, whatever became of the branch meanwhile.
    let history = client.state_log(id).await?;
    let own = |version: &&VersionView| version.attempt == attempt && version.number > arguments.began_with;
    let parent = history.versions.iter().rev().find(own).map_or(arguments.began_with, |version| version.number);
    let version = client.save_state(id, arguments.token, attempt, parent, &arguments.label, &bytes).await?;
    let (number, hash) = (version.number, version.short());
    if output.is_json() {
        output.json(&json!({"id": id.to_string(), "version": number, "hash": hash, "bytes": version.size}))?;
    } else {
        output.text(&format!("{number} {hash}\n"))?;
    }
    Ok(Exit::Success)
}
