//! Which node and shard a request goes to, and calls that survive the loss of connections, nodes and leaders.
//!
//! Invariants: at most one connection for requests per shard; a call is repeated only with the same ids, and with the
//! resend flag once an earlier copy may have been carried out, until its time is over; a refusal is repeated only if the
//! server said when, or that another node leads.
//!
//! **Failover.** Who leads is learnt from the map (`learn.rs`), again whenever a call fails: all calls that wait on a lost
//! connection look at one fresh map and go on at once, or wait for the election in small steps (`pace.rs`). A node that
//! is merely silent is doubted after [`SUSPECT`] (`doubt.rs`): when the map names another leader meanwhile, the call moves
//! there; when it answers on a new connection only, the old one is given up.

mod doubt;
mod learn;
mod pace;
mod topology;

use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use taskmaster_protocol::frame::FLAG_RESEND;
use taskmaster_protocol::{Body, Code, Header, Operation, PartitionId};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::error::Error;
use crate::memory::TestServer;
use crate::routing::IdMaker;
use crate::wire::{Connection, Message, Options, Pushes, ServerInfo};
use crate::worker::Presence;

use learn::{Looks, Seed, open_seed};
use pace::Election;
pub(crate) use pace::{Backoff, jittered};
pub(crate) use topology::{Place, Topology};

/// A request unanswered for this long makes the client look whether another node leads by now.
const SUSPECT: Duration = Duration::from_millis(150);
/// The same for requests that the server holds.
const SUSPECT_HELD: Duration = Duration::from_secs(1);

/// How long and how often to try.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    /// Longest time of one call, repetitions included.
    pub(crate) call: Duration,
    /// Longest wait for one answer; then the connection is given up.
    pub(crate) answer: Duration,
    /// First wait between connection attempts.
    pub(crate) backoff: Duration,
    /// Longest wait between connection attempts.
    pub(crate) backoff_max: Duration,
}

/// Where connections come from.
#[derive(Clone)]
pub(crate) enum Connector {
    /// TCP addresses, `host:port`, tried in order.
    Tcp(Vec<String>),
    /// A server in this process.
    Memory(TestServer),
}

impl Connector {
    /// Whether there is more than one address to try.
    fn has_choice(&self) -> bool {
        matches!(self, Self::Tcp(addresses) if addresses.len() > 1)
    }
}

/// Whom a request is for.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// Any shard of any node.
    Any,
    /// The leader of a partition.
    Partition(PartitionId),
    /// One shard of one node, as [`Place::key`] names it.
    Shard((u64, u16)),
    /// The leader of the group that keeps the map.
    Meta,
}

/// The cluster as the client sees it.
pub(crate) struct Cluster {
    connector: Connector,
    options: Options,
    pub(crate) patience: Patience,
    pub(crate) ids: IdMaker,
    topology: watch::Sender<Arc<Topology>>,
    looks: AtomicU64,
    looking: tokio::sync::Mutex<Looks>,
    turn: AtomicUsize,
    /// What the workers of this client run.
    pub(crate) presence: Presence,
}

/// How one attempt ended without an answer.
enum Failed {
    /// An error of the connection or the server.
    By(Error),
    /// Another node leads by now; the request may or may not have been carried out.
    Moved,
    /// Nobody leads.
    NoLeader,
}

impl Cluster {
    /// Connects to the first address that answers and learns the map.
    pub(crate) async fn connect(connector: Connector, options: Options, patience: Patience) -> Result<Self, Error> {
        let Seed { connection, said } = open_seed(&connector, &options).await?;
        let info = connection.info();
        let alone = Topology::of_hello(info, said.seen);
        let topology = match &said.map {
            Some(map) => alone.with_map(map, info, said.seen),
            None => alone,
        };
        let answered_by = said.map.as_ref().and_then(|map| map.answered_by).map_or(0, |id| id.0);
        if let Some(place) = topology.place((answered_by, info.shard)) {
            place.node.link(place.shard).set(Arc::new(connection));
        }
        Ok(Self {
            connector,
            options,
            patience,
            ids: IdMaker::new(),
            topology: watch::Sender::new(Arc::new(topology)),
            looks: AtomicU64::new(0),
            looking: tokio::sync::Mutex::default(),
            turn: AtomicUsize::new(0),
            presence: Presence::default(),
        })
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.borrow())
    }

    /// Tells of every topology that replaces the present one.
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Topology>> {
        self.topology.subscribe()
    }

    pub(crate) fn partitions(&self) -> u16 {
        self.topology().partitions()
    }

    /// Sends a request to the leader of `partition` until it is answered or its time is over.
    pub(crate) async fn call<B: Body + Sync>(
        &self,
        operation: Operation,
        partition: PartitionId,
        body: &B,
    ) -> Result<Message, Error> {
        self.call_for(operation, Target::Partition(partition), body, Duration::ZERO).await
    }

    /// Like [`Cluster::call`], to any target, for a request that the server itself may hold for `held`.
    pub(crate) async fn call_for<B: Body + Sync>(
        &self,
        operation: Operation,
        target: Target,
        body: &B,
        held: Duration,
    ) -> Result<Message, Error> {
        let partition = if let Target::Partition(partition) = target { Some(partition) } else { None };
        self.call_with(&mut Header::request(operation, 0, partition), target, body, held).await
    }

    /// Like [`Cluster::call_for`], with a header that may have the resend flag already, and has it afterwards if an earlier
    /// copy than the one answered may have arrived.
    pub(crate) async fn call_with<B: Body + Sync>(
        &self,
        header: &mut Header,
        target: Target,
        body: &B,
        held: Duration,
    ) -> Result<Message, Error> {
        let allowed = self.patience.call + held;
        let give_up = Instant::now() + allowed;
        let mut wait = Backoff::new(&self.patience);
        let mut election = Election::new(&self.patience);
        let mut refused = None;
        loop {
            let looks = self.looks();
            let topology = self.topology();
            let place = self.choose(&topology, target, &election)?;
            let failed = match &place {
                None => Failed::NoLeader,
                Some(place) => match self.attempt(&topology, place, target, *header, (body, held, give_up)).await {
                    Ok(message) => match message.accepted() {
                        Ok(message) => return Ok(message),
                        Err(error) => Failed::By(error),
                    },
                    Err(failed) => failed,
                },
            };
            if failed.may_have_been_carried_out() {
                header.flags |= FLAG_RESEND;
            }
            let pause = match &failed {
                Failed::By(Error::Refused(refusal)) if refusal.code == Code::WrongPartition && wait.is_fresh() => {
                    self.learn_since(looks).await?;
                    wait.next()
                }
                failed if failed.is_another_nodes(&topology) => {
                    // Whether anybody knew better shows in the topology.
                    drop(timeout_at(give_up, self.learn_since(looks)).await);
                    if self.is_elsewhere(target, place.as_ref()) {
                        Duration::ZERO
                    } else {
                        failed.least_wait().max(election.next(Instant::now()))
                    }
                }
                Failed::By(Error::Lost { .. } | Error::Timeout { .. } | Error::Connect { .. }) => wait.next(),
                Failed::By(Error::Refused(refusal)) if refusal.is_temporary() => {
                    refusal.retry_after.map_or_else(|| wait.next(), jittered)
                }
                _ => return Err(failed.into_error()),
            };
            if Instant::now() + pause >= give_up {
                return Err(match failed.into_error() {
                    Error::Timeout { .. } => Error::Timeout { after: allowed, refusal: refused },
                    error => error,
                });
            }
            if let Failed::By(Error::Refused(refusal)) = &failed {
                refused = Some(Box::new(refusal.clone()));
            }
            if !pause.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    // Another call of this client found the new leader.
                    () = self.moved(target, place.as_ref()), if failed.is_another_nodes(&topology) => {}
                }
            }
        }
    }

    /// Where to send now; `None` while it is worth waiting for a leader.
    fn choose(&self, topology: &Topology, target: Target, election: &Election) -> Result<Option<Place>, Error> {
        let any = || topology.any(self.turn.fetch_add(1, Ordering::Relaxed));
        let leader = match target {
            Target::Any => Some(any()),
            Target::Shard(key) => {
                let place = topology.place(key).filter(|place| place.node.is_alive);
                Some(place.ok_or_else(|| Error::lost("the node is gone"))?)
            }
            Target::Partition(partition) => topology.leader(partition)?,
            Target::Meta => topology.meta_leader(),
        };
        let is_hopeless = leader.is_none() && (!topology.has_map || election.is_late(Instant::now()));
        Ok(if is_hopeless { Some(any()) } else { leader })
    }

    /// Whether the target is known to be at another place than this one.
    fn is_elsewhere(&self, target: Target, place: Option<&Place>) -> bool {
        let topology = self.topology();
        let leader = match target {
            Target::Any | Target::Shard(_) => return false,
            Target::Partition(partition) => topology.leader(partition).ok().flatten(),
            Target::Meta => topology.meta_leader(),
        };
        leader.is_some_and(|leader| place.is_none_or(|place| place.node.id != leader.node.id))
    }

    /// Sends a request once. A node that is silent is doubted now and then.
    async fn attempt<B: Body + Sync>(
        &self,
        topology: &Arc<Topology>,
        place: &Place,
        target: Target,
        header: Header,
        (body, held, give_up): (&B, Duration, Instant),
    ) -> Result<Message, Failed> {
        let until = give_up.min(Instant::now() + self.patience.answer + held);
        let suspect = if held.is_zero() { SUSPECT } else { SUSPECT_HELD };
        let used = OnceLock::new();
        let mut exchange = pin!(self.exchange(topology, place, header, body, &used));
        let check = if topology.nodes().len() > 1 { until.min(Instant::now() + suspect) } else { until };
        if let Ok(result) = timeout_at(check, &mut exchange).await {
            return result.map_err(Failed::By);
        }
        if check < until {
            place.node.set_slow(held.is_zero());
            tokio::select! {
                result = timeout_at(until, &mut exchange) => if let Ok(result) = result {
                    place.node.set_slow(false);
                    return result.map_err(Failed::By);
                },
                () = self.moved(target, Some(place)) => return Err(Failed::Moved),
                never = self.doubt(suspect) => match never {},
                never = self.ask_again(place, &used, suspect), if held.is_zero() => match never {},
            }
        }
        // A connection that is silent this long may be half open: whoever else waits on it tries again elsewhere.
        if let Some(connection) = used.get() {
            connection.end("no answer in time");
        }
        Err(Failed::By(Error::timeout(self.patience.answer)))
    }

    async fn exchange<B: Body + Sync>(
        &self,
        topology: &Arc<Topology>,
        place: &Place,
        header: Header,
        body: &B,
        used: &OnceLock<Arc<Connection>>,
    ) -> Result<Message, Error> {
        let connection = self.link(topology, place).await?;
        used.get_or_init(|| Arc::clone(&connection));
        connection.request(header, body).await
    }

    /// The connection of a shard, opened if need be.
    async fn link(&self, topology: &Arc<Topology>, place: &Place) -> Result<Arc<Connection>, Error> {
        let link = place.node.link(place.shard);
        if let Some(connection) = link.live() {
            return Ok(connection);
        }
        let _opening = link.opening.lock().await;
        if let Some(connection) = link.live() {
            return Ok(connection);
        }
        let connection = match self.open(place).await {
            Ok((connection, _)) => Arc::new(connection),
            // The shard's own port may be hidden (a port mapping, a restart): every port of a node takes every request.
            Err(error) => match place.node.live(0) {
                Some(connection) => connection,
                None if topology.nodes().len() == 1 => {
                    let Seed { connection, said } = open_seed(&self.connector, &self.options).await?;
                    self.note(&said);
                    Arc::new(connection)
                }
                None => return Err(error),
            },
        };
        link.set(Arc::clone(&connection));
        Ok(connection)
    }

    /// A new connection to a shard's own port, for requests or for a worker's subscription.
    pub(crate) async fn open(&self, place: &Place) -> Result<(Connection, Pushes), Error> {
        let opened = place.node.open(&self.connector, &self.options, place.shard).await?;
        self.note_hello(opened.0.info());
        Ok(opened)
    }

    /// Takes over what a fresh hello of a server without a map says, if it differs. Links start anew; running calls keep
    /// their old ones.
    fn note_hello(&self, info: &ServerInfo) {
        self.topology.send_if_modified(|topology| {
            let seen = topology.seen();
            if topology.has_map || !topology.differs_from(info, seen) {
                return false;
            }
            tracing::info!(
                shards = info.shard_ports.len(),
                partitions = info.partition_shards.len(),
                "the shard map changed"
            );
            *topology = Arc::new(Topology::of_hello(info, seen));
            true
        });
    }
}

impl Failed {
    /// Whether the server may have carried the request out all the same.
    fn may_have_been_carried_out(&self) -> bool {
        match self {
            Self::Moved => true,
            Self::NoLeader => false,
            Self::By(Error::Lost { .. } | Error::Timeout { .. }) => true,
            // A node that lost the lead over a request passed it on perhaps.
            Self::By(error) => error.code() == Some(Code::NotLeader),
        }
    }

    /// Whether another node may do what this one did not.
    fn is_another_nodes(&self, topology: &Topology) -> bool {
        let has_others = topology.nodes().len() > 1;
        match self {
            Self::Moved | Self::NoLeader => true,
            Self::By(Error::Lost { .. } | Error::Timeout { .. } | Error::Connect { .. }) => topology.has_map,
            // Another program at the address of a node that is gone.
            Self::By(Error::Protocol(_)) => has_others,
            Self::By(Error::Refused(refusal)) => {
                refusal.code == Code::NotLeader || (refusal.code == Code::ShuttingDown && has_others)
            }
            Self::By(_) => false,
        }
    }

    /// What the server asked to wait when it does not lead. A node that shuts down speaks for itself only.
    fn least_wait(&self) -> Duration {
        match self {
            Self::By(Error::Refused(refusal)) if refusal.code == Code::NotLeader => {
                refusal.retry_after.unwrap_or_default()
            }
            _ => Duration::ZERO,
        }
    }

    fn into_error(self) -> Error {
        match self {
            Self::By(error) => error,
            Self::Moved => Error::lost("another node leads the partition"),
            Self::NoLeader => Error::Connect {
                address: "the partition's leader".to_owned(),
                reason: "no node is known to lead it".to_owned(),
            },
        }
    }
}
