//! The worker: takes tasks from queues, runs handlers by kind, and answers under leases.
//!
//! One session per shard of every node holds a connection and its leases; a shared runner holds the slots. Architecture
//! invariant: sessions never run handlers and handlers never touch connections; they meet in one bounded-by-leases event
//! channel.
//!
//! **Credit.** Each connection may push what its credit allows. A worker keeps what it holds near `concurrency +
//! prefetch`, and never runs more than `concurrency` at once: connections start with equal shares, and those with a
//! backlog get what is free. With several shards the worker may for a moment hold up to twice that and a share each; what
//! it holds beyond its slots waits here, with its lease extended, or is given back when the wait would be long. Unless
//! [`WorkerBuilder::prefetch`] says otherwise, about 2 ms of run time are held ready, so nothing for handlers that run
//! long.
//!
//! **Lost connections and nodes.** Handlers run on; the session connects again and answers under the same leases, or sends
//! the answers to who leads their partition by now. A task that the server gave to somebody else meanwhile is told by
//! [`Context::cancelled`]. Sessions come and go with the nodes of the cluster's map.

mod assign;
mod context;
mod courier;
mod credit;
mod fleet;
mod measure;
mod outbox;
pub(crate) mod room;
mod runner;
mod session;

pub use context::{Context, TaskError};
pub(crate) use measure::Presence;
pub use measure::{Measure, Used};
pub use runner::WorkerStats;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use taskmaster_protocol::{Code, TaskId};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::error::Error;
use crate::task::{DEFAULT_QUEUE, Payload, Resources};
use fleet::Fleet;
use runner::{Handler, Runner, SURPLUS_WAIT};
use session::{Drain, Offer, Witness};

/// How often a running worker looks at the cluster's map when nothing makes it look sooner.
const MAP_AGE: Duration = Duration::from_secs(1);

/// A worker under construction.
pub struct WorkerBuilder {
    client: Client,
    queues: Vec<String>,
    concurrency: u32,
    prefetch: Option<u32>,
    resources: Resources,
    name: String,
    handlers: HashMap<String, Handler>,
    default_handler: Option<Handler>,
    witness: Option<Witness>,
}

impl WorkerBuilder {
    /// A queue to take tasks from; call it again for more. `default` if none is named.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queues.push(queue.into());
        self
    }

    /// Handlers that run at once; the number of cores unless told.
    #[must_use]
    pub fn concurrency(mut self, concurrency: u32) -> Self {
        self.concurrency = concurrency.max(1);
        self
    }

    /// Tasks held ready beyond `concurrency`; about 2 ms of run time unless told.
    #[must_use]
    pub fn prefetch(mut self, prefetch: u32) -> Self {
        self.prefetch = Some(prefetch);
        self
    }

    /// Resources offered: tasks run while theirs fit beside each other, whichever shards and nodes they come from; those that find no room
    /// are given back. Not counted unless told.
    #[must_use]
    pub fn resources(mut self, resources: Resources) -> Self {
        self.resources = resources;
        self
    }

    /// Worker name, shown by `task get` and `task why`; the client's name unless told.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The handler of a kind. Its value becomes the result, its error a failed attempt, and so does a panic (where
    /// panics unwind).
    #[must_use]
    pub fn handler<F, Fut, R>(mut self, kind: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, TaskError>> + Send + 'static,
        R: Into<Payload>,
    {
        self.handlers.insert(kind.into(), boxed(handler));
        self
    }

    /// The handler of all other kinds. Without one such tasks fail with code `no_handler`.
    #[must_use]
    pub fn default_handler<F, Fut, R>(mut self, handler: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, TaskError>> + Send + 'static,
        R: Into<Payload>,
    {
        self.default_handler = Some(boxed(handler));
        self
    }

    /// Called with each answer that the server has taken ([`Code::Ok`]) or refused, and why: `already_final` and `stale_lease`
    /// for attempts that came too late. Meant for accounts of what became of every task; it must be quick.
    #[must_use]
    pub fn on_answer(mut self, witness: impl Fn(TaskId, Code) + Send + Sync + 'static) -> Self {
        self.witness = Some(Box::new(witness));
        self
    }

    /// Connects to every shard of every node and begins to take tasks.
    ///
    /// # Errors
    /// When a shard cannot be reached (of several nodes: none can) or refuses the subscription; later losses are repaired,
    /// not reported.
    pub async fn start(mut self) -> Result<Worker, Error> {
        if self.queues.is_empty() {
            self.queues.push(DEFAULT_QUEUE.to_owned());
        }
        let cluster = Arc::clone(self.client.cluster());
        let (handlers, default_handler) = (self.handlers, self.default_handler);
        let runner = Runner::new(
            Arc::clone(&cluster),
            self.concurrency,
            self.prefetch,
            &self.resources,
            handlers,
            default_handler,
        );
        let (to_drain, drain) = watch::channel(Drain::No);
        let offer = Arc::new(Offer {
            cluster,
            runner: Arc::new(runner),
            queues: self.queues,
            resources: self.resources,
            namespace: self.client.namespace().to_owned(),
            worker: self.name,
            witness: self.witness,
            drain,
        });
        let (alive, ended) = mpsc::channel(1);
        let fleet = Fleet::new(Arc::clone(&offer), alive);
        fleet.begin().await?;
        tokio::spawn(follow(fleet));
        Ok(Worker { offer, to_drain, ended })
    }
}

fn boxed<F, Fut, R>(handler: F) -> Handler
where
    F: Fn(Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, TaskError>> + Send + 'static,
    R: Into<Payload>,
{
    Box::new(move |context| {
        let answer = handler(context);
        Box::pin(async move { answer.await.map(Into::into) })
    })
}

/// Keeps a session with every shard of every node, and what is held within what can be run.
async fn follow(fleet: Fleet) {
    let offer = Arc::clone(&fleet.offer);
    let (mut drain, mut topology) = (offer.drain.clone(), offer.cluster.follow());
    let mut shed_at: Option<Instant> = None;
    let mut look_at = Instant::now() + MAP_AGE;
    loop {
        let alarm = shed_at.map_or(look_at, |at| at.min(look_at));
        tokio::select! {
            () = sleep_until(alarm) => {}
            Ok(()) = topology.changed() => drop(topology.borrow_and_update()),
            () = offer.runner.has_surplus.notified() => {
                shed_at.get_or_insert(Instant::now() + SURPLUS_WAIT);
            }
            _ = drain.changed() => return,
        }
        let now = Instant::now();
        if shed_at.is_some_and(|at| at <= now) {
            shed_at = offer.runner.shed(now.into_std()).then(|| now + SURPLUS_WAIT);
        }
        if look_at <= now {
            look_at = now + MAP_AGE;
            if offer.cluster.topology().has_map {
                let cluster = Arc::clone(&offer.cluster);
                // Whether anybody answered shows in the topology.
                tokio::spawn(async move { drop(cluster.learn_if_older(MAP_AGE / 2).await) });
            }
        }
        fleet.complete();
    }
}

/// A running worker. Dropping it stops it at once: leases run out and other workers take over. Prefer
/// [`Worker::shutdown`].
pub struct Worker {
    offer: Arc<Offer>,
    to_drain: watch::Sender<Drain>,
    /// Closed when every session ended.
    ended: mpsc::Receiver<()>,
}

impl Worker {
    /// A worker that takes tasks with `client`'s connections settings and namespace, on connections of its own.
    #[must_use]
    pub fn builder(client: &Client) -> WorkerBuilder {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        WorkerBuilder {
            client: client.clone(),
            queues: Vec::new(),
            concurrency: u32::try_from(cores).unwrap_or(u32::MAX),
            prefetch: None,
            resources: Resources::default(),
            name: client.name().to_owned(),
            handlers: HashMap::new(),
            default_handler: None,
            witness: None,
        }
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        self.offer.runner.stats()
    }

    /// Takes no new tasks, gives back what has not started, waits for running handlers and until the server has their
    /// answers.
    ///
    /// # Errors
    /// None; the result leaves room for future kinds of shutdown.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        self.to_drain.send_replace(Drain::Finish);
        self.join().await;
        Ok(())
    }

    /// Like [`Worker::shutdown`], but gives running handlers up after this long: they are told by
    /// [`Context::cancelled`], and their tasks go to other workers when the leases run out.
    ///
    /// # Errors
    /// [`Error::Timeout`] when handlers were given up.
    pub async fn shutdown_within(mut self, longest: Duration) -> Result<(), Error> {
        self.to_drain.send_replace(Drain::Finish);
        if tokio::time::timeout(longest, self.join()).await.is_ok() {
            return Ok(());
        }
        self.to_drain.send_replace(Drain::GiveUp);
        self.join().await;
        Err(Error::timeout(longest))
    }

    /// Waits until all sessions ended: nothing is ever sent, the channel only closes.
    async fn join(&mut self) {
        while self.ended.recv().await.is_some() {}
    }
}
