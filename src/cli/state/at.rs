//! `taskmaster state at`: a partition as it was, from the snapshots and the log of a data directory, and from the database what memory had
//! forgotten by then. Nothing is changed there; the node must be stopped, or the directory a copy.

mod ended;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use taskmaster_client::{State, TaskId};
use taskmaster_engine::{Horizon, Moment, Shard};
use taskmaster_protocol::body::{ListTasks, ReadState, Span, StateHistory, TaskInfo, TaskPage, VersionRow};
use taskmaster_protocol::{FrameBuffer, PartitionId};
use taskmaster_storage::datadir::DataDir;
use taskmaster_storage::snapshot;

use super::database::Database;
use crate::cli::instant::parse_time;
use crate::cli::left::{Left, failed};
use crate::cli::outcome::bytes_json;
use crate::cli::{Exit, Failure};
use crate::output::{Output, Side, Table, human_bytes, iso_time, pairs};
use crate::shard_loop::recovery::Rebuild;
use crate::workers::now_us;

/// When, where and what.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("when").required(true).args(["position", "time"]))]
pub(crate) struct Arguments {
    /// After this entry of the partition's log
    #[arg(long, value_name = "N")]
    position: Option<u64>,
    /// At this time, in UTC (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    time: Option<u64>,
    /// Data directory of a node that is stopped, or a copy of one
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    database: Database,
    /// Which cluster of the database (32 hexadecimal digits) [default: the directory's, or else the only one]
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,
    /// The partition; of a task its id says it
    #[arg(long, value_name = "N", required_unless_present = "id")]
    partition: Option<u16>,
    /// A task; without one, all are listed
    id: Option<TaskId>,
    /// Version of the task's state to write to --file
    #[arg(long, value_name = "VERSION", requires = "file", requires = "id")]
    state: Option<u32>,
    /// Write the bytes of the task's state here
    #[arg(long, value_name = "FILE", requires = "id")]
    file: Option<PathBuf>,
}

/// Goes back: the shard as it was, and where its partition stands.
fn go_back(dir: &Path, partition: PartitionId, horizon: Horizon) -> Result<(Shard, Moment), Failure> {
    let dir = DataDir::open_as_it_is(dir).map_err(failed)?;
    let (shards, partitions) = (dir.meta().shards, dir.meta().partitions);
    if u32::from(partition.0) >= partitions {
        return Err(Failure::new(Exit::NotFound, format!("the directory has {partitions} partitions, from 0")));
    }
    let left = Left::new(&dir, u32::from(partition.0) % shards.max(1));
    let config = left.config()?;
    let empty = || {
        let mut shard = Shard::new(config.clone(), now_us());
        shard.stop_at(partition, horizon);
        shard
    };
    let mut past = Rebuild::new(empty, None);
    let mut earliest = None;
    for seq in left.snapshots()?.into_iter().map(Some).chain([None]) {
        let after_seq = match left.begin(&mut past, seq) {
            Ok(after_seq) => after_seq,
            Err(snapshot::Error::Damaged { .. }) => continue,
            Err(error) => return Err(failed(error)),
        };
        let begins = past.shard.moment(partition).unwrap_or_default();
        let is_later = match horizon {
            Horizon::Index(index) => begins.index > index,
            Horizon::TimeUs(time_us) => begins.time_us > time_us,
        };
        if is_later {
            earliest = Some(begins);
            continue;
        }
        match left.replay(&mut past, after_seq) {
            Ok(()) => {}
            // The log does not reach back to its beginning any more.
            Err(_) if seq.is_none() && earliest.is_some() => break,
            Err(failure) => return Err(failure),
        }
        let Some(moment) = past.shard.moment(partition) else {
            return Err(Failure::new(Exit::NotFound, format!("partition {partition} is not in this directory")));
        };
        return Ok((past.shard, moment));
    }
    let earliest = earliest.unwrap_or_default();
    let (index, time) = (earliest.index, iso_time(earliest.time_us));
    let message = format!(
        "the directory reaches back to position {index} of partition {partition}, {time}: what was before is gone"
    );
    Err(Failure::new(Exit::NotFound, message))
}

fn bytes_of<B: taskmaster_protocol::Body>(body: &B) -> FrameBuffer {
    let mut bytes = FrameBuffer::new();
    body.append_to(&mut bytes);
    bytes
}

fn text(area: &[u8], span: Span) -> String {
    String::from_utf8_lossy(slice(area, span)).into_owned()
}

fn slice(area: &[u8], span: Span) -> &[u8] {
    area.get(span.at as usize..).and_then(|rest| rest.get(..span.len as usize)).unwrap_or_default()
}

/// What is shown of a task, in memory or ended.
struct Shown {
    id: TaskId,
    state: &'static str,
    namespace: String,
    queue: String,
    kind: String,
    name: String,
    attempt: u32,
    payload: Vec<u8>,
    result: Vec<u8>,
    error: String,
}

fn state_name(number: u8) -> &'static str {
    State::from_number(number).map_or("unknown", State::name)
}

impl Shown {
    fn new(page: &TaskPage, info: &TaskInfo) -> Self {
        let (text, slice) = (|span| text(&page.bytes, span), |span| slice(&page.bytes, span).to_vec());
        Self {
            id: info.id,
            state: state_name(info.state),
            namespace: text(info.namespace),
            queue: text(info.queue),
            kind: text(info.kind),
            name: text(info.name),
            attempt: info.attempt,
            payload: slice(info.payload),
            result: slice(info.result),
            error: text(info.error),
        }
    }

    fn json(&self) -> Value {
        json!({
            "id": self.id.to_string(),
            "state": self.state,
            "namespace": self.namespace,
            "queue": self.queue,
            "kind": self.kind,
            "name": self.name,
            "attempt": self.attempt,
            "payload": bytes_json(&self.payload),
            "result": bytes_json(&self.result),
            "error": self.error,
        })
    }

    /// Its row of a listing.
    fn row(&self) -> Vec<String> {
        let texts = [self.state, &self.namespace, &self.queue, &self.kind, &self.name].map(str::to_owned);
        [vec![self.id.to_string()], texts.into(), vec![self.attempt.to_string()]].concat()
    }

    fn facts(&self) -> String {
        pairs(&[
            ("id", self.id.to_string()),
            ("state", self.state.to_owned()),
            ("namespace", self.namespace.clone()),
            ("queue", self.queue.clone()),
            ("kind", self.kind.clone()),
            ("attempt", self.attempt.to_string()),
            ("payload", human_bytes(self.payload.len() as u64)),
            ("result", human_bytes(self.result.len() as u64)),
        ])
    }
}

fn moment_json(moment: &Moment) -> Value {
    json!({
        "position": moment.index,
        "time": iso_time(moment.time_us),
        "last_position": moment.last_index,
        "last_time": iso_time(moment.last_time_us),
    })
}

/// Carries `state at` out.
pub(super) fn run(arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let partition = arguments.id.map_or_else(|| arguments.partition.unwrap_or(0), |id| id.partition().0);
    let horizon = match (arguments.position, arguments.time) {
        (Some(index), _) => Horizon::Index(index),
        (None, time_us) => Horizon::TimeUs(time_us.unwrap_or(0)),
    };
    let (shard, moment) = go_back(&arguments.data_dir, PartitionId(partition), horizon)?;
    if let Horizon::Index(index) = horizon
        && index > moment.last_index
    {
        let message =
            format!("partition {partition} ends at position {}, {}", moment.last_index, iso_time(moment.last_time_us));
        return Err(Failure::new(Exit::NotFound, message));
    }
    let ended = ended::look(arguments, PartitionId(partition), &moment)?;
    match arguments.id {
        Some(id) => one(&shard, id, &moment, ended, arguments, output),
        None => list(&shard, PartitionId(partition), &moment, ended, output),
    }
}

fn head(moment: &Moment) -> String {
    pairs(&[
        ("position", format!("{} of {}", moment.index, moment.last_index)),
        ("time", format!("{} of {}", iso_time(moment.time_us), iso_time(moment.last_time_us))),
    ])
}

fn list(
    shard: &Shard,
    partition: PartitionId,
    moment: &Moment,
    ended: Vec<Shown>,
    output: Output,
) -> Result<Exit, Failure> {
    let (mut tasks, mut cursor) = (Vec::new(), [0; 2]);
    loop {
        let body = bytes_of(&ListTasks { cursor, limit: 1_000, ..ListTasks::default() });
        let page = shard.past_tasks(partition, &body).map_err(failed)?;
        cursor = page.cursor;
        tasks.extend(page.rows.iter().map(|info| Shown::new(&page, info)));
        if cursor == [0; 2] {
            break;
        }
    }
    let kept: HashSet<TaskId> = tasks.iter().map(|task| task.id).collect();
    tasks.extend(ended.into_iter().filter(|task| !kept.contains(&task.id)));
    if output.is_json() {
        let tasks: Vec<Value> = tasks.iter().map(Shown::json).collect();
        output.json(&json!({"at": moment_json(moment), "tasks": tasks}))?;
        return Ok(Exit::Success);
    }
    let columns = ["id", "state", "namespace", "queue", "kind", "name", "attempt"];
    let mut table = Table::new(&columns.map(|name| (name, Side::Left)));
    tasks.iter().for_each(|task| table.row(task.row()));
    let listed = if table.is_empty() { "no tasks\n".to_owned() } else { table.render() };
    output.text(&format!("{}\n{listed}", head(moment)))?;
    Ok(Exit::Success)
}

fn one(
    shard: &Shard,
    id: TaskId,
    moment: &Moment,
    ended: Vec<Shown>,
    arguments: &Arguments,
    output: Output,
) -> Result<Exit, Failure> {
    let Some((page, history)) = shard.past_task(id) else {
        if let Some(task) = ended.first().filter(|_| arguments.file.is_none()) {
            return show(task, moment, None, output);
        }
        let message = format!("at position {} there is no task {id}", moment.index);
        return Err(Failure::new(Exit::NotFound, message));
    };
    if let Some(file) = &arguments.file {
        std::fs::write(file, state_bytes(shard, id, arguments.state.unwrap_or(0))?)?;
    }
    let info = page.rows.first().ok_or_else(|| failed("a page without its task"))?;
    show(&Shown::new(&page, info), moment, Some(&history), output)
}

/// Shows a task; without a history of its states it was in the database alone.
fn show(task: &Shown, moment: &Moment, history: Option<&StateHistory>, output: Output) -> Result<Exit, Failure> {
    if output.is_json() {
        let version = |history: &StateHistory, row: &VersionRow| {
            json!({
                "version": row.number,
                "parent": (row.parent > 0).then_some(row.parent),
                "bytes": row.size,
                "saved_at": iso_time(row.time_us),
                "label": text(&history.bytes, row.label),
            })
        };
        let versions = |history: &StateHistory| history.versions.iter().map(|row| version(history, row)).collect();
        output.json(&json!({
            "at": moment_json(moment),
            "task": task.json(),
            "head": history.map(|history| history.head).filter(|head| *head > 0),
            "versions": history.map_or_else(Vec::new, versions),
        }))?;
        return Ok(Exit::Success);
    }
    let versions = history.map_or_else(|| "it had left memory; this is from the database\n".to_owned(), versions_text);
    output.text(&format!("{}\n{}{versions}", head(moment), task.facts()))?;
    Ok(Exit::Success)
}

fn versions_text(history: &StateHistory) -> String {
    if history.versions.is_empty() {
        return "no state was saved\n".to_owned();
    }
    let mut table = Table::new(&[
        ("version", Side::Right),
        ("parent", Side::Right),
        ("size", Side::Right),
        ("saved", Side::Left),
        ("label", Side::Left),
    ]);
    for row in history.versions.iter().rev() {
        table.row(vec![
            row.number.to_string(),
            row.parent.to_string(),
            human_bytes(row.size),
            iso_time(row.time_us),
            text(&history.bytes, row.label),
        ]);
    }
    format!("\n{}", table.render())
}

fn state_bytes(shard: &Shard, id: TaskId, version: u32) -> Result<Vec<u8>, Failure> {
    let (mut bytes, mut from) = (Vec::new(), 0);
    loop {
        let page = shard.past_state(&bytes_of(&ReadState { id, version, from })).map_err(failed)?;
        bytes.extend_from_slice(&page.bytes);
        from += u32::try_from(page.lengths.len()).unwrap_or(u32::MAX);
        if from >= page.version.chunks || page.lengths.is_empty() {
            return Ok(bytes);
        }
    }
}
