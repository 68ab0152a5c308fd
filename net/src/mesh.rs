//! The mesh: one single-producer ring per ordered pair of shards, carrying batches of messages.
//!
//! Messages gather during a turn and cross in one batch at its end. When a peer's ring is full they wait here, in order,
//! bounded by what the shards admit.

use std::cell::RefCell;
use std::collections::VecDeque;

use glommio::channels::shared_channel::{
    ConnectedReceiver, ConnectedSender, SharedReceiver, SharedSender, new_bounded,
};
use glommio::{GlommioError, ResourceType};

/// Batches that fit a ring.
const RING_BATCHES: usize = 1_024;

/// One shard's ends of the mesh, to be moved to its thread and connected there.
pub struct Ends<M: Send> {
    senders: Vec<Option<SharedSender<Vec<M>>>>,
    receivers: Vec<(usize, SharedReceiver<Vec<M>>)>,
}

/// Makes the rings between `shards` shards: the ends of each, by shard number.
#[must_use]
pub fn rings<M: Send>(shards: usize) -> Vec<Ends<M>> {
    let mut ends: Vec<Ends<M>> =
        (0..shards).map(|_| Ends { senders: (0..shards).map(|_| None).collect(), receivers: Vec::new() }).collect();
    for from in 0..shards {
        for to in (0..shards).filter(|&to| to != from) {
            let (sender, receiver) = new_bounded(RING_BATCHES);
            ends[from].senders[to] = Some(sender);
            ends[to].receivers.push((from, receiver));
        }
    }
    ends
}

/// The connected sending side.
pub struct Mesh<M: Send + 'static> {
    peers: Vec<Option<Peer<M>>>,
}

struct Peer<M: Send + 'static> {
    ring: ConnectedSender<Vec<M>>,
    gathering: RefCell<Vec<M>>,
    /// Batches that found the ring full.
    waiting: RefCell<VecDeque<Vec<M>>>,
}

impl<M: Send + 'static> Ends<M> {
    /// Connects this shard's ends. All shards do so at the same time; returns when all have.
    pub async fn connect(self) -> (Mesh<M>, Vec<(usize, ConnectedReceiver<Vec<M>>)>) {
        let receivers: Vec<_> = self
            .receivers
            .into_iter()
            .map(|(from, receiver)| glommio::spawn_local(async move { (from, receiver.connect().await) }))
            .collect();
        let mut peers = Vec::new();
        for sender in self.senders {
            peers.push(match sender {
                Some(sender) => Some(Peer {
                    ring: sender.connect().await,
                    gathering: RefCell::default(),
                    waiting: RefCell::default(),
                }),
                None => None,
            });
        }
        let mut connected = Vec::new();
        for receiver in receivers {
            connected.push(receiver.await);
        }
        (Mesh { peers }, connected)
    }
}

impl<M: Send + 'static> Mesh<M> {
    /// Adds a message for a shard; [`Self::flush`] sends it.
    pub fn push(&self, to: usize, message: M) {
        if let Some(Some(peer)) = self.peers.get(to) {
            peer.gathering.borrow_mut().push(message);
        }
    }

    /// Sends what gathered. `false` when some of it has to wait for room: call again soon.
    pub fn flush(&self) -> bool {
        let mut done = true;
        for peer in self.peers.iter().flatten() {
            let mut waiting = peer.waiting.borrow_mut();
            let gathered = core::mem::take(&mut *peer.gathering.borrow_mut());
            if !gathered.is_empty() {
                waiting.push_back(gathered);
            }
            while let Some(batch) = waiting.pop_front() {
                match peer.ring.try_send(batch) {
                    Ok(()) => {}
                    Err(GlommioError::WouldBlock(ResourceType::Channel(batch))) => {
                        waiting.push_front(batch);
                        done = false;
                        break;
                    }
                    // The peer has ended; the node is stopping.
                    Err(_) => waiting.clear(),
                }
            }
        }
        done
    }

    /// Other shards.
    pub fn peers(&self) -> impl Iterator<Item = usize> + '_ {
        self.peers.iter().enumerate().filter_map(|(shard, peer)| peer.as_ref().map(|_| shard))
    }
}
