//! Links to the shards of other nodes: one connection for each ordered pair of shards, made by the side that sends.
//!
//! Data flows one way over a connection; the other way go the answer to the hello and pongs. What a turn has for a peer's
//! shard is one batch: one frame, one write.
//!
//! Invariants:
//! - [`Peers::send`] never waits. What does not fit the bound of a link, or cannot be sent because the peer is not connected,
//!   is dropped and counted, and the caller is told.
//! - A batch reaches the handler whole, checked and in order, or not at all. After a connection ended, batches may be
//!   missing between those before and those after it.
//! - Batches are exchanged only by nodes that fit each other (`peers/greeting.rs`); whoever does not fit is told why.
//! - [`PeerHandler::lost`] is called once for each time that a node was connected and a connection with it ended.
//! - The handler is called from this module's tasks only, never from within a call of [`Peers`], except for
//!   [`Peers::set_cluster`] and [`Peers::forget`], which call nothing at all.
//!
//! Which nodes there are, where they are, and what batches contain is not known here.

mod accept;
mod dial;
mod greeting;
mod link;
mod refusals;
mod tls;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glommio::timer::sleep;
use taskmaster_protocol::peer::{
    Kind, NAME_BYTES_MAX, PEER_BODY_BYTES_MAX, PEER_VERSION_MAX, PEER_VERSION_MIN, PeerHello, PeerRefusal,
};
use taskmaster_protocol::{FrameBuffer, NodeId};

use crate::listener::Listener;

use accept::Incoming;
use dial::Outgoing;
pub use link::UNSENT_BYTES_MAX;
use link::{Link, Taken};
use refusals::Refusals;
pub use refusals::Refused;
pub use tls::{Tls, TlsError, TlsFiles};

/// How often silent links are looked at.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Who this shard is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of the cluster, at most [`NAME_BYTES_MAX`] bytes.
    pub cluster_name: String,
    /// The cluster it is in; 0: in none yet.
    pub cluster: u128,
    /// The node.
    pub node: NodeId,
    /// Name of the node, at most [`NAME_BYTES_MAX`] bytes.
    pub node_name: String,
    /// The shard.
    pub shard: u16,
    /// Format version of the software.
    pub version: u32,
}

/// What the owner of a shard does with what peers send. After one or more calls of the other methods, `turn_ended` is called.
pub trait PeerHandler {
    /// What a shard of a peer sent in one turn. The bytes start at a multiple of 16 in memory.
    fn batch(&self, from: NodeId, shard: u16, bytes: &[u8]);

    /// All that had arrived was handed over.
    fn turn_ended(&self);

    /// A connection with the node was made, and none was since the node was last lost.
    fn connected(&self, node: NodeId);

    /// A connection with the node ended, or a connected node could not be dialed.
    fn lost(&self, node: NodeId);
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// It was sent, or waits for the socket or the connection.
    Queued,
    /// It is gone: no address is known, the last dial failed just now, or the peer reads too slowly.
    Dropped,
}

/// Counted since the start of the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// Batches that were taken for sending, and their bytes.
    pub batches_sent: u64,
    /// Bytes of those.
    pub bytes_sent: u64,
    /// Batches that were dropped, and their bytes.
    pub batches_dropped: u64,
    /// Bytes of those.
    pub bytes_dropped: u64,
    /// Batches that arrived, and their bytes.
    pub batches_received: u64,
    /// Bytes of those.
    pub bytes_received: u64,
    /// Connections that were made, in either direction.
    pub connections: u64,
    /// Times that a node was lost.
    pub losses: u64,
    /// Connections that were refused, by either side.
    pub refusals: u64,
}

/// How the connection to a shard of a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLink {
    /// The peer.
    pub node: NodeId,
    /// Its shard.
    pub shard: u16,
    /// Where it is dialed.
    pub address: SocketAddr,
    /// The connection stands.
    pub is_connected: bool,
    /// Bytes that wait.
    pub unsent_bytes: usize,
    /// Why the last dial failed or the last connection ended, while it is not connected.
    pub trouble: Option<String>,
}

/// The links of one shard.
pub struct Peers {
    identity: Identity,
    tls: Option<Tls>,
    cluster: Cell<u128>,
    handler: RefCell<Option<Rc<dyn PeerHandler>>>,
    outgoing: RefCell<BTreeMap<(NodeId, u16), Rc<Outgoing>>>,
    incoming: RefCell<BTreeMap<(NodeId, u16), Rc<Incoming>>>,
    listeners: RefCell<Vec<Rc<Listener>>>,
    /// Nodes that were connected: whether they are, as far as the handler was told.
    present: RefCell<HashMap<NodeId, bool>>,
    /// Accepted connections, and those among them that were not greeted.
    accepted: Cell<usize>,
    ungreeted: Cell<usize>,
    refusals: RefCell<Refusals>,
    stats: Cell<PeerStats>,
    stopped: Cell<bool>,
    random: Cell<u64>,
}

impl Peers {
    /// Links of this shard, under TLS if it is given. Nothing happens before [`Self::start`].
    ///
    /// # Panics
    /// If a name is longer than [`NAME_BYTES_MAX`] or the node id is zero.
    #[must_use]
    pub fn new(identity: Identity, tls: Option<Tls>) -> Rc<Self> {
        assert!(identity.cluster_name.len() <= NAME_BYTES_MAX, "the configuration bounds names");
        assert!(identity.node_name.len() <= NAME_BYTES_MAX, "the configuration bounds names");
        assert!(identity.node.0 != 0, "a node has an id");
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.subsec_nanos());
        Rc::new(Self {
            cluster: Cell::new(identity.cluster),
            random: Cell::new(identity.node.0 ^ (u64::from(clock) << 16) ^ u64::from(identity.shard) | 1),
            identity,
            tls,
            handler: RefCell::default(),
            outgoing: RefCell::default(),
            incoming: RefCell::default(),
            listeners: RefCell::default(),
            present: RefCell::default(),
            accepted: Cell::new(0),
            ungreeted: Cell::new(0),
            refusals: RefCell::new(Refusals::new()),
            stats: Cell::default(),
            stopped: Cell::new(false),
        })
    }

    /// Begins: `handler` hears of everything from now on. Call it on the shard's executor, before the other methods.
    pub fn start(self: &Rc<Self>, handler: Rc<dyn PeerHandler>) {
        *self.handler.borrow_mut() = Some(handler);
        glommio::spawn_local(Rc::clone(self).watch()).detach();
    }

    /// Ends listening and all connections, and lets go of the handler, which hears nothing more. The tasks end soon after.
    pub fn stop(&self) {
        self.stopped.set(true);
        self.handler.borrow_mut().take();
        for listener in core::mem::take(&mut *self.listeners.borrow_mut()) {
            listener.close();
        }
        for outgoing in core::mem::take(&mut *self.outgoing.borrow_mut()).into_values() {
            outgoing.forget();
        }
        for incoming in core::mem::take(&mut *self.incoming.borrow_mut()).into_values() {
            incoming.link.close("this node stops");
        }
    }

    /// The node is in this cluster from now on. Connections with nodes of another one, or that may be of another one, end;
    /// those that fit are made again.
    pub fn set_cluster(&self, cluster: u128) {
        if self.cluster.replace(cluster) == cluster {
            return;
        }
        for outgoing in self.outgoing.borrow().values() {
            outgoing.close_unless(|theirs| theirs.cluster == cluster, "this node joined a cluster");
        }
        for incoming in self.incoming.borrow().values() {
            if incoming.hello.cluster != cluster {
                incoming.link.close("this node joined a cluster");
            }
        }
    }

    /// A shard of a peer was found to listen at `address`. A standing connection stays; the next one is made there, without
    /// further pause if one was tried in vain.
    pub fn locate(self: &Rc<Self>, node: NodeId, shard: u16, address: SocketAddr) {
        if node == self.identity.node {
            return;
        }
        let mut outgoing = self.outgoing.borrow_mut();
        let peer = outgoing.entry((node, shard)).or_insert_with(|| Rc::new(Outgoing::new(node, shard, address)));
        peer.found(address);
    }

    /// Ends all connections with this node and forgets where it is, without calling it lost.
    pub fn forget(&self, node: NodeId) {
        self.present.borrow_mut().remove(&node);
        let shards = (node, 0)..=(node, u16::MAX);
        self.outgoing.borrow_mut().extract_if(shards.clone(), |_, _| true).for_each(|(_, peer)| peer.forget());
        let incoming = self.incoming.borrow_mut().extract_if(shards, |_, _| true).collect::<Vec<_>>();
        incoming.iter().for_each(|(_, incoming)| incoming.link.close("the peer is no member any more"));
    }

    /// Sends one turn's messages to a shard of a peer; dials it first if it has to. Leaves `bytes` empty. At most
    /// [`PEER_BODY_BYTES_MAX`] bytes.
    pub fn send(self: &Rc<Self>, node: NodeId, shard: u16, bytes: &mut FrameBuffer) -> Sent {
        let length = bytes.len() as u64;
        let peer = self.outgoing.borrow().get(&(node, shard)).cloned();
        let sent = match peer {
            Some(_) if bytes.len() > PEER_BODY_BYTES_MAX => {
                tracing::error!(%node, shard, length, "a batch for a peer is longer than {PEER_BODY_BYTES_MAX} bytes");
                Sent::Dropped
            }
            Some(peer) => self.offer(&peer, bytes),
            None => Sent::Dropped,
        };
        self.count(|stats| match sent {
            Sent::Queued => {
                stats.batches_sent += 1;
                stats.bytes_sent += length;
            }
            Sent::Dropped => {
                stats.batches_dropped += 1;
                stats.bytes_dropped += length;
            }
        });
        bytes.clear();
        sent
    }

    /// Bytes that wait for the shards of this node.
    #[must_use]
    pub fn unsent_bytes(&self, node: NodeId) -> usize {
        self.outgoing.borrow().range((node, 0)..=(node, u16::MAX)).map(|(_, peer)| peer.unsent_bytes()).sum()
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> PeerStats {
        self.stats.get()
    }

    /// How the connections to peers are.
    #[must_use]
    pub fn links(&self) -> Vec<PeerLink> {
        self.outgoing.borrow().values().map(|peer| peer.status()).collect()
    }

    /// Connections that were refused lately, by this node or by the other, the newest last.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refused> {
        self.refusals.borrow().list()
    }

    async fn watch(self: Rc<Self>) {
        while !self.stopped.get() {
            sleep(until_watch()).await;
            for outgoing in self.outgoing.borrow().values() {
                outgoing.tick();
            }
            for incoming in self.incoming.borrow().values() {
                incoming.link.tick(false);
            }
        }
    }

    /// What this side says of itself to a peer.
    fn hello(&self, to_node: NodeId, to_shard: u16) -> PeerHello {
        PeerHello {
            peer_version_min: PEER_VERSION_MIN,
            peer_version_max: PEER_VERSION_MAX,
            version: self.identity.version,
            cluster: self.cluster.get(),
            node: self.identity.node,
            to_node,
            shard: self.identity.shard,
            to_shard,
            cluster_name: self.identity.cluster_name.clone(),
            node_name: self.identity.node_name.clone(),
        }
    }

    fn handler(&self) -> Option<Rc<dyn PeerHandler>> {
        self.handler.borrow().clone()
    }

    /// A connection with the node was made.
    fn established(&self, node: NodeId) {
        self.count(|stats| stats.connections += 1);
        self.refusals.borrow_mut().settled(node);
        if self.present.borrow_mut().insert(node, true) != Some(true)
            && let Some(handler) = self.handler()
        {
            handler.connected(node);
            handler.turn_ended();
        }
    }

    /// A connection with the node ended, or it could not be dialed.
    fn ended(&self, node: NodeId) {
        let was_present = self.present.borrow_mut().get_mut(&node).is_some_and(core::mem::take);
        if was_present && let Some(handler) = self.handler() {
            self.count(|stats| stats.losses += 1);
            handler.lost(node);
            handler.turn_ended();
        }
    }

    fn note(&self, refused: Refused) {
        self.count(|stats| stats.refusals += 1);
        self.refusals.borrow_mut().note(refused);
    }

    /// The other side's view of a refusal.
    fn note_refused(&self, link: &Link, node: Option<NodeId>, by_us: bool, refusal: PeerRefusal) {
        self.note(Refused::new(link.address(), node, refusal.reason, by_us, refusal.sentence));
    }

    fn count(&self, change: impl FnOnce(&mut PeerStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    /// A number below `bound`: for jitter, nothing depends on it being unpredictable.
    fn random_below(&self, bound: u64) -> u64 {
        let mut random = self.random.get();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        self.random.set(random);
        random % bound
    }
}

fn taken(link: &Link, bytes: &[u8]) -> Sent {
    match link.send(Kind::Batch, bytes) {
        Taken::Yes => Sent::Queued,
        Taken::No => Sent::Dropped,
    }
}

/// Until the clock's next multiple of [`WATCH_EVERY`]: as the beats of groups are, so that a node at rest is woken once for both.
fn until_watch() -> Duration {
    let every_ns = WATCH_EVERY.as_nanos();
    let into_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() % every_ns);
    Duration::from_nanos(u64::try_from(every_ns - into_ns).expect("a second has few nanoseconds"))
}
