//! The thread that asks Redis about memoised tasks and tells it what they came to; what is long of ended tasks goes there and comes from
//! there, too.
//!
//! It is started only where Redis is configured, and is not the [foreign](crate::foreign) one: somebody waits for an answer from here within
//! two milliseconds, and there batches for a database are made for longer than that. Queues are as there: towards the thread tokio's,
//! back those of [`crate::answers`].

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc as thread_queue;
use std::thread;

use anyhow::Context;
use taskmaster_connect::redis::{self, Answers, Cache, Of, Question, Request, Settings, Status, Value};
use taskmaster_engine::{Made, Unknown};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::answers::{Backs, backs};
use crate::config::Config;

/// Questions and results that wait for the thread at most.
const REQUESTS_MAX: usize = 4_096;
/// Questions of one shard without an answer at most: as many answers fit its queue.
pub(crate) const QUESTIONS_MAX: usize = 1_024;
/// What results on their way to the server may be charged, over all shards; and blobs of ended tasks.
const KEEPING_BYTES_MAX: u64 = 64 << 20;

/// An answer: the number of the question, and by key what was found.
pub(crate) type Answer = (u64, Vec<Option<Value>>);

/// A shard's end of the queues.
pub(crate) struct Port {
    shard: usize,
    requests: mpsc::Sender<Request>,
    /// Answers: each question has one.
    pub(crate) answers: thread_queue::Receiver<Answer>,
    /// Has something to read when there are answers.
    pub(crate) wake: Option<UnixStream>,
    /// How the server is doing.
    pub(crate) status: Arc<Status>,
}

/// Starts the thread if Redis is configured, and gives each shard its port, and a way to what it keeps of ended tasks if it shall keep
/// some. The thread ends with the ports and that way.
///
/// # Errors
/// What is wrong with the configuration. A server that cannot be reached does not keep a node from starting.
pub(crate) fn start(config: &Config, shards: usize) -> anyhow::Result<(Vec<Port>, Option<Cache>)> {
    if !config.redis.is_configured() {
        return Ok((Vec::new(), None));
    }
    let settings = config.redis.settings()?;
    let status = Arc::new(Status::default());
    let (requests, queue) = mpsc::channel(REQUESTS_MAX);
    let (backs, own) = backs(shards, QUESTIONS_MAX)?;
    let blob_bytes_max = config.redis.result_bytes_max().unwrap_or(0);
    let cache = config
        .redis
        .history
        .then(|| Cache::new(requests.clone(), Arc::clone(&status), KEEPING_BYTES_MAX, blob_bytes_max));
    let ports = own.into_iter().enumerate().map(|(shard, (answers, wake))| {
        let (requests, status) = (requests.clone(), Arc::clone(&status));
        Port { shard, requests, answers, wake: Some(wake), status }
    });
    let ports = ports.collect();
    let runtime =
        runtime::Builder::new_current_thread().enable_all().build().context("the I/O runtime cannot start")?;
    let body = move || serve(&runtime, settings, queue, backs, status);
    thread::Builder::new().name("memo".to_owned()).spawn(body).context("the thread for Redis cannot start")?;
    Ok((ports, cache))
}

fn serve(
    runtime: &runtime::Runtime,
    settings: Settings,
    queue: mpsc::Receiver<Request>,
    backs: Backs<Answer>,
    status: Arc<Status>,
) {
    LocalSet::new().block_on(runtime, redis::serve(settings, queue, Box::new(backs), status));
}

impl Answers for Backs<Answer> {
    fn found(&self, by: usize, number: u64, values: Vec<Option<Value>>) {
        self.send(by, (number, values));
    }
}

impl Port {
    /// Asks for results; `false` when the server is away, or too many ask.
    pub(crate) fn ask(&self, number: u64, unknown: &[Unknown]) -> bool {
        let keys = unknown.iter().map(|unknown| unknown.key).collect();
        let question = Question { by: self.shard, number, keys };
        !self.status.is_away() && self.requests.try_send(Request::Find(question)).is_ok()
    }

    /// Gives results to be remembered, if there is room for them.
    pub(crate) fn keep(&self, made: Vec<Made>) {
        for Made { key, of, made_us, result } in made {
            let len = result.len();
            if !self.status.may_keep(len, KEEPING_BYTES_MAX) {
                continue;
            }
            let value = Value { of: of.as_u128(), made_us, result };
            if self.requests.try_send(Request::Keep(Of::Memo, key, value)).is_err() {
                self.status.not_kept(len);
            }
        }
    }
}
