//! `taskmaster submit`: one task from flags, or a stream of tasks from a file of JSON lines.
//!
//! A line is an object with the same names as the flags (`kind`, `queue`, `priority`, `delay`, `unique_key`...), plus
//! `payload`: a text is sent as it is, any other value as its JSON text, exactly as written in the file. What a line
//! leaves out, the flags say.
//!
//! A stream is resumable by unique keys: keys stay taken for a day unless told otherwise, so that the same file submitted
//! again after an interruption adds only what is missing.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use taskmaster_client::{Chance, ChanceUnknown, Client, State, SubmitOutcome, Submitted, Task};
use tokio::sync::mpsc;

use super::arguments::Description;
use super::connect::{block_on, connect};
use super::progress::Progress;
use super::task::print_result;
use super::{Exit, Failure, Global, log};
use crate::config::Interval;
use crate::output::{Output, human_count, human_us};

/// Unique window of streams, so that they are resumable.
const STREAM_WINDOW: Interval = Interval::ms(86_400_000);
/// Bytes of lines handed over at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks read ahead.
const CHUNKS_AHEAD: usize = 4;
/// Longest line: a payload of 1 MiB with every byte escaped, and room for the rest.
const LINE_BYTES_MAX: usize = 8 << 20;
/// Refusals that are shown.
const REFUSALS_SHOWN: usize = 10;

/// Arguments of `submit`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    description: Description,
    /// Payload: text, @FILE, or - for standard input
    #[arg(long, short, value_name = "TEXT", conflicts_with = "from")]
    payload: Option<String>,
    /// Wait for the task and print its result
    #[arg(long, conflicts_with = "from")]
    wait: bool,
    /// Longest wait
    #[arg(long, value_name = "TIME", requires = "wait")]
    timeout: Option<Interval>,
    /// Submit a task per line of this file (JSON objects); - for standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Tasks per request when streaming
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    batch: u32,
}

/// Carries `submit` out.
pub(crate) fn run(global: &Global, arguments: &Arguments) -> Result<Exit, Failure> {
    log::start_quiet(global.verbose);
    let output = global.output();
    match &arguments.from {
        Some(file) => block_on(stream(global, arguments, file, output)),
        None => block_on(single(global, arguments, output)),
    }
}

/// Bytes that a payload argument stands for.
fn payload_bytes(argument: Option<&str>) -> Result<Vec<u8>, Failure> {
    match argument {
        None => Ok(Vec::new()),
        Some("-") => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes)?;
            Ok(bytes)
        }
        Some(text) => match text.strip_prefix('@') {
            Some(path) => std::fs::read(path).map_err(|error| {
                Failure::new(Exit::NotFound, format!("the payload file {path} cannot be read: {error}"))
            }),
            None => Ok(text.as_bytes().to_vec()),
        },
    }
}

/// Longest wait for how likely a deadline is met.
const CHANCE_MAX: Duration = Duration::from_secs(1);

async fn single(global: &Global, arguments: &Arguments, output: Output) -> Result<Exit, Failure> {
    let task = arguments.description.task().ok_or_else(|| {
        Failure::usage("a task has a kind, the name of its handler: add --kind NAME (or --from FILE for many tasks)")
    })?;
    let task = task.payload(payload_bytes(arguments.payload.as_deref())?);
    let client = connect(global).await?;
    let outcome = client.submit(task).await?;
    if arguments.wait && outcome.is_kept() {
        return print_result(&client, outcome.id, arguments.timeout.map(|timeout| timeout.0), output).await;
    }
    let asks = outcome.is_kept() && arguments.description.deadline.is_some();
    // The task is accepted, whatever becomes of this question.
    let chance = if asks { tokio::time::timeout(CHANCE_MAX, client.chance(outcome.id)).await.ok() } else { None };
    let chance = chance.and_then(Result::ok);
    show_outcome(&outcome, chance, output)
}

/// How likely the deadline is met, for people.
fn chance_in_words(chance: &Chance) -> String {
    match chance.permille {
        Ok(permille) => format!(
            "the deadline is met with a probability of {}.{} %: {} tasks go before it on {} places, which takes about {}",
            permille / 10,
            permille % 10,
            human_count(chance.ahead),
            chance.places,
            human_us(u64::try_from(chance.wait.as_micros()).unwrap_or(u64::MAX))
        ),
        Err(why) => format!("whether the deadline is met is not known: {why}"),
    }
}

fn chance_json(chance: &Chance) -> serde_json::Value {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    json!({
        "probability": chance.permille.ok().map(|permille| f64::from(permille) / 1_000.0),
        "unknown": chance.permille.err().map(ChanceUnknown::name),
        "wait_ms": millis(chance.wait),
        "run_ms": millis(chance.run),
        "run_most_ms": millis(chance.run_most),
        "ahead": chance.ahead,
        "places": chance.places,
        "samples": chance.samples,
    })
}

fn show_outcome(outcome: &SubmitOutcome, chance: Option<Chance>, output: Output) -> Result<Exit, Failure> {
    let id = outcome.id.to_string();
    let (exit, word, holder, state) = match &outcome.result {
        Submitted::Accepted => (Exit::Success, "accepted", None, None),
        Submitted::Duplicate { state } => (Exit::Success, "duplicate", None, Some(*state)),
        Submitted::UniqueConflict { holder, state } => (Exit::Refused, "unique_conflict", Some(*holder), Some(*state)),
        Submitted::Forgotten => (Exit::Refused, "outcome_forgotten", None, None),
        Submitted::Refused(refusal) => return Err(Failure::new(Exit::Refused, refusal.to_string())),
    };
    if output.is_json() {
        let holder = holder.map(|holder| holder.to_string());
        let mut told = json!({"id": id, "result": word, "holder": holder, "state": state.map(State::name)});
        if let Some(chance) = chance {
            told["deadline"] = chance_json(&chance);
        }
        output.json(&told)?;
        return Ok(exit);
    }
    match (holder, state) {
        (Some(holder), Some(state)) => Err(Failure::new(
            exit,
            format!("the unique key is held by task {holder}, which is {state}; nothing was submitted"),
        )),
        _ if exit == Exit::Success => {
            output.text(&format!("{id}\n"))?;
            // Beside the id, which scripts read.
            if let Some(chance) = chance {
                eprintln!("{}", chance_in_words(&chance));
            }
            Ok(exit)
        }
        _ => Err(Failure::new(exit, format!("task {id}: its first outcome is not known any more"))),
    }
}

/// One line of a file.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

/// The task of a line; the error continues "FILE:LINE: ".
fn task_of(line: &str, flags: &Description) -> Result<Task, String> {
    let line: Line<'_> = serde_json::from_str(line).map_err(|error| format!("is no JSON object of a task: {error}"))?;
    let mut description = serde_json::from_value::<Description>(serde_json::Value::Object(line.rest))
        .map_err(|error| error.to_string())?
        .or(flags);
    if description.unique_key.is_some() {
        description.unique_window.get_or_insert(STREAM_WINDOW);
    }
    let task =
        description.task().ok_or("has no kind, the name of its handler: add \"kind\", or --kind for all lines")?;
    Ok(match line.payload.map(RawValue::get) {
        None | Some("null") => task,
        Some(text) if text.starts_with('"') => {
            task.payload(serde_json::from_str::<String>(text).map_err(|error| error.to_string())?)
        }
        Some(json) => task.payload(json),
    })
}

/// What became of a stream's tasks.
#[derive(Debug, Default)]
struct Tally {
    accepted: u64,
    known: u64,
    refused: u64,
    refusals: Vec<(u64, String, String)>,
}

impl Tally {
    fn count(&mut self, index: u64, outcome: &SubmitOutcome) {
        match &outcome.result {
            Submitted::Accepted => self.accepted += 1,
            Submitted::Duplicate { .. } | Submitted::UniqueConflict { .. } => self.known += 1,
            Submitted::Forgotten => self.refuse(index, "outcome_forgotten", "its first outcome is not known any more"),
            Submitted::Refused(refusal) => self.refuse(index, refusal.code.name(), &refusal.message),
        }
    }

    fn refuse(&mut self, index: u64, code: &str, message: &str) {
        self.refused += 1;
        if self.refusals.len() < REFUSALS_SHOWN {
            self.refusals.push((index + 1, code.to_owned(), message.to_owned()));
        }
    }
}

/// Lines of a file with the number of the first one, or what went wrong reading it.
type Chunk = Result<(u64, String), Failure>;

/// Reads whole lines on a thread of its own: reading standard input blocks.
fn read_ahead(file: PathBuf) -> mpsc::Receiver<Chunk> {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut next_line = 1;
        let result = open(&file).and_then(|mut reader| {
            loop {
                let mut text = String::new();
                let first_line = next_line;
                while text.len() < CHUNK_BYTES {
                    let before = text.len();
                    let limit = LINE_BYTES_MAX as u64 + 1;
                    reader.by_ref().take(limit).read_line(&mut text).map_err(|error| {
                        Failure::usage(format!("{}:{next_line}: cannot be read: {error}", file.display()))
                    })?;
                    if text.len() - before > LINE_BYTES_MAX {
                        let message = format!("{}:{next_line}: the line is longer than 8 MiB", file.display());
                        return Err(Failure::usage(message));
                    }
                    if text.len() == before {
                        break;
                    }
                    next_line += 1;
                }
                // A closed channel means that nobody wants more.
                if text.is_empty() || sender.blocking_send(Ok((first_line, text))).is_err() {
                    return Ok(());
                }
            }
        });
        if let Err(failure) = result {
            let _nobody_listens = sender.blocking_send(Err(failure));
        }
    });
    receiver
}

fn open(file: &Path) -> Result<Box<dyn BufRead>, Failure> {
    if file == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let opened = File::open(file)
        .map_err(|error| Failure::new(Exit::NotFound, format!("{} cannot be read: {error}", file.display())))?;
    Ok(Box::new(BufReader::with_capacity(CHUNK_BYTES, opened)))
}

async fn stream(global: &Global, arguments: &Arguments, file: &Path, output: Output) -> Result<Exit, Failure> {
    let client = connect(global).await?;
    let start = Instant::now();
    let tally = Arc::new(Mutex::new(Tally::default()));
    let pushed = push_all(&client, arguments, file, &tally, output.is_json()).await;
    let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    show_tally(&tally, start.elapsed(), output)?;
    pushed?;
    Ok(if tally.refused > 0 { Exit::Refused } else { Exit::Success })
}

async fn push_all(
    client: &Client,
    arguments: &Arguments,
    file: &Path,
    tally: &Arc<Mutex<Tally>>,
    quiet: bool,
) -> Result<(), Failure> {
    let size = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    let mut progress = Progress::new("submit", size, quiet);
    let mut chunks = read_ahead(file.to_owned());
    let reported = Arc::clone(tally);
    let mut bulk = client
        .submitter()
        .batch_rows(usize::try_from(arguments.batch).expect("a batch is bounded"))
        .on_outcome(move |index, outcome| {
            reported.lock().unwrap_or_else(PoisonError::into_inner).count(index, &outcome);
        });
    let mut done_bytes = 0;
    let mut problem = None;
    'chunks: while let Some(chunk) = chunks.recv().await {
        let (first_line, text) = match chunk {
            Ok(chunk) => chunk,
            Err(failure) => {
                problem = Some(failure);
                break;
            }
        };
        for (line, number) in text.lines().zip(first_line..) {
            if line.trim().is_empty() {
                continue;
            }
            match task_of(line, &arguments.description) {
                Ok(task) => bulk.push(task).await?,
                Err(error) => {
                    problem = Some(Failure::usage(format!("{}:{number}: {error}", file.display())));
                    break 'chunks;
                }
            }
        }
        done_bytes += text.len() as u64;
        progress.set(done_bytes, || {
            let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            format!("{} accepted, {} already there", human_count(tally.accepted), human_count(tally.known))
        });
    }
    bulk.finish().await?;
    progress.finish();
    problem.map_or(Ok(()), Err)
}

fn show_tally(tally: &Tally, elapsed: Duration, output: Output) -> Result<(), Failure> {
    let total = tally.accepted + tally.known + tally.refused;
    let rate = u128::from(total) * 1_000_000 / elapsed.as_micros().max(1);
    let rate = u64::try_from(rate).unwrap_or(u64::MAX);
    if output.is_json() {
        let refusals: Vec<_> = tally
            .refusals
            .iter()
            .map(|(task, code, message)| json!({"task": task, "code": code, "message": message}))
            .collect();
        output.json(&json!({
            "submitted": total,
            "accepted": tally.accepted,
            "already_known": tally.known,
            "refused": tally.refused,
            "refusals": refusals,
            "elapsed_s": elapsed.as_secs_f64(),
            "tasks_per_s": rate,
        }))?;
        return Ok(());
    }
    for (task, code, message) in &tally.refusals {
        eprintln!("task {task}: {message} [{code}]");
    }
    let [accepted, known, refused, rate] = [tally.accepted, tally.known, tally.refused, rate].map(human_count);
    output.text(&format!("{accepted} accepted, {known} already there, {refused} refused ({rate} tasks/s)\n"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskmaster_client::TestServer;

    async fn client() -> Client {
        Client::builder().connect_in_memory(&TestServer::start()).await.unwrap()
    }

    fn arguments(from: &Path) -> Arguments {
        Arguments {
            description: Description { kind: Some("send".into()), ..Description::default() },
            payload: None,
            wait: false,
            timeout: None,
            from: Some(from.to_owned()),
            batch: 7,
        }
    }

    #[test]
    fn payloads_are_sent_as_written() {
        let flags = Description { kind: Some("k".into()), ..Description::default() };
        let payload = |line: &str| format!("{:?}", task_of(line, &flags).unwrap());
        assert_eq!(payload(r#"{"payload": "a\nb"}"#), payload_of(b"a\nb"));
        assert_eq!(payload(r#"{"payload": {"b": 1.50,  "a": 2}}"#), payload_of(br#"{"b": 1.50,  "a": 2}"#));
        assert_eq!(payload(r#"{"payload": null}"#), payload_of(b""));
    }

    fn payload_of(bytes: &[u8]) -> String {
        let flags = Description { kind: Some("k".into()), ..Description::default() };
        format!("{:?}", flags.task().unwrap().payload(bytes))
    }

    #[tokio::test]
    async fn a_stream_submitted_twice_adds_only_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tasks.ndjson");
        let lines: String = (0..100).map(|n| format!("{{\"unique_key\": \"k{n}\", \"payload\": {n}}}\n")).collect();
        std::fs::write(&file, lines).unwrap();
        let client = client().await;
        for (accepted, known) in [(100, 0), (0, 100)] {
            let tally = Arc::new(Mutex::new(Tally::default()));
            push_all(&client, &arguments(&file), &file, &tally, true).await.unwrap();
            let tally = tally.lock().unwrap();
            assert_eq!((tally.accepted, tally.known, tally.refused), (accepted, known, 0), "{:?}", tally.refusals);
        }
    }

    #[tokio::test]
    async fn a_line_that_is_memoised_and_has_a_key_is_refused_with_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tasks.ndjson");
        let lines = [
            "{\"memo\": \"1\", \"unique_key\": \"k\"}",
            "{\"memo_age\": \"1h\"}",
            "{\"memo\": \"1\", \"memo_age\": \"1h\"}",
        ];
        std::fs::write(&file, lines.join("\n")).unwrap();
        let tally = Arc::new(Mutex::new(Tally::default()));
        push_all(&client().await, &arguments(&file), &file, &tally, true).await.unwrap();
        let tally = tally.lock().unwrap();
        assert_eq!((tally.accepted, tally.refused), (1, 2));
        for (number, sentence) in [(1, "no unique key"), (2, "not memoised")] {
            let refusal = tally.refusals.iter().find(|(task, ..)| *task == number).unwrap();
            assert!(refusal.2.contains(sentence), "{refusal:?}");
        }
    }

    #[tokio::test]
    async fn a_bad_line_is_named_and_the_lines_before_it_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tasks.ndjson");
        std::fs::write(&file, "{}\n\n{}\n{\"knd\": \"x\"}\n{}\n").unwrap();
        let tally = Arc::new(Mutex::new(Tally::default()));
        let failure = push_all(&client().await, &arguments(&file), &file, &tally, true).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.to_string().contains("tasks.ndjson:4: unknown field `knd`"), "{failure}");
        assert_eq!(tally.lock().unwrap().accepted, 2);
    }

    #[tokio::test]
    async fn a_missing_file_is_not_found() {
        let file = Path::new("no/such/file");
        let tally = Arc::new(Mutex::new(Tally::default()));
        let failure = push_all(&client().await, &arguments(file), file, &tally, true).await.unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound);
    }
}
