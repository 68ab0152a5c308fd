//! Who is there: shard 0's membership, its packets, timers and seeds.
//!
//! Invariants: what is heard goes to every shard of the node; a packet that cannot be sent at once is lost; the clock here only
//! moves forward, whatever the machine's does.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_lite::future::or;
use glommio::timer::Timer;
use taskmaster_engine::ConnId;
use taskmaster_engine::cluster::{Member, Membership, Out};
use taskmaster_net::gossip::Gossip;
use taskmaster_net::resolve::resolve_periodically;
use taskmaster_net::wake::Bell;
use taskmaster_protocol::body::{self, ArchivedClusterAdmin, Empty, Refusal, cluster_verb};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Code, Operation};

use super::{Message, ShardLoop};

/// Shortest and longest sleep between two looks at the timers.
const SLEEP_MIN: Duration = Duration::from_micros(100);
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// What shard 0 needs to find other nodes.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// Name of the cluster.
    pub(crate) cluster_name: String,
    /// This node; its bump is the shard's to fill in.
    pub(crate) own: Member,
    /// Where packets arrive.
    pub(crate) listen: SocketAddr,
    /// Names and ports of nodes to begin with.
    pub(crate) seeds: Vec<(String, u16)>,
    /// How often they are resolved.
    pub(crate) resolve_every: Duration,
}

/// The membership and its socket.
pub(super) struct Gossiper {
    membership: RefCell<Membership>,
    socket: Gossip,
    began: Instant,
    /// Rung when what is due next is not what the timers sleep for.
    changed: Bell,
    sleeping_until_us: Cell<u64>,
    /// Where else an operator told the node to look.
    told: RefCell<Vec<SocketAddr>>,
    seeds: RefCell<Vec<SocketAddr>>,
}

impl Gossiper {
    /// Takes the address of packets.
    pub(super) fn new(setting: &Setting, term: u32, seed: u64) -> anyhow::Result<Self> {
        let socket = Gossip::bind(setting.listen).with_context(|| {
            format!("cannot take UDP packets on {}: stop what does, or choose another cluster.listen", setting.listen)
        })?;
        let own = Member { bump: Member::bump_of_start(term), ..setting.own.clone() };
        Ok(Self {
            membership: RefCell::new(Membership::new(own, &setting.cluster_name, Vec::new(), seed, 0)),
            socket,
            began: Instant::now(),
            changed: Bell::default(),
            sleeping_until_us: Cell::new(0),
            told: RefCell::default(),
            seeds: RefCell::default(),
        })
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The node is of this cluster from now on.
    pub(super) fn set_cluster(&self, cluster: u128) {
        self.membership.borrow_mut().set_cluster(cluster);
        self.changed.ring();
    }

    /// Where to look, from the configuration and from an operator.
    fn look_at(&self, resolved: Option<Vec<SocketAddr>>) {
        if let Some(resolved) = resolved {
            *self.seeds.borrow_mut() = resolved;
        }
        let all = self.seeds.borrow().iter().chain(self.told.borrow().iter()).copied().collect();
        self.membership.borrow_mut().set_seeds(all);
        self.changed.ring();
    }
}

impl ShardLoop {
    /// Starts the tasks of shard 0's gossip.
    pub(super) fn start_gossip(self: &Rc<Self>, setting: Setting) {
        glommio::spawn_local(Rc::clone(self).gossip_timers()).detach();
        glommio::spawn_local(Rc::clone(self).gossip_packets()).detach();
        glommio::spawn_local(Rc::clone(self).gossip_seeds(setting)).detach();
    }

    async fn gossip_timers(self: Rc<Self>) {
        let Some(gossip) = &self.gossip else { return };
        loop {
            let wake_us = gossip.membership.borrow().next_wake_us();
            gossip.sleeping_until_us.set(wake_us);
            let wait = Duration::from_micros(wake_us.saturating_sub(gossip.now_us())).clamp(SLEEP_MIN, SLEEP_MAX);
            or(async { _ = Timer::new(wait).await }, gossip.changed.wait()).await;
            let now_us = gossip.now_us();
            if gossip.membership.borrow().next_wake_us() <= now_us {
                self.hear(|membership, now_us, out| membership.handle_timeout(now_us, out));
            }
        }
    }

    async fn gossip_packets(self: Rc<Self>) {
        let Some(gossip) = &self.gossip else { return };
        let packet = |from, packet: &[u8]| {
            self.hear(|membership, now_us, out| membership.handle_packet(from, packet, now_us, out));
        };
        gossip.socket.receive(packet).await;
    }

    async fn gossip_seeds(self: Rc<Self>, setting: Setting) {
        let Some(gossip) = &self.gossip else { return };
        resolve_periodically(&setting.seeds, setting.resolve_every, |found| gossip.look_at(Some(found))).await;
    }

    /// Says goodbye to the other nodes.
    pub(super) fn leave_gossip(&self) {
        self.hear(Membership::leave);
    }

    /// One call of the membership, and what it asks for.
    fn hear(&self, call: impl FnOnce(&mut Membership, u64, &mut Out)) {
        let Some(gossip) = &self.gossip else { return };
        let mut out = Out::default();
        call(&mut gossip.membership.borrow_mut(), gossip.now_us(), &mut out);
        for (to, packet) in &out.packets {
            // A packet may be lost anywhere.
            let _ = gossip.socket.send_to(*to, packet);
        }
        let is_warned = !out.warnings.is_empty();
        for warning in out.warnings {
            self.shard.borrow_mut().give_notice(warning, false);
        }
        // Later, too: an answered probe needs no following up, and a wake-up costs more than another timer.
        if gossip.membership.borrow().next_wake_us() != gossip.sleeping_until_us.get() {
            gossip.changed.ring();
        }
        if is_warned || !out.changes.is_empty() {
            self.tell(out.changes);
        }
    }

    /// Every shard of the node hears of members that came, went or changed.
    fn tell(&self, members: Vec<Member>) {
        for member in members {
            let (name, node, peer) = (&member.name, member.id, member.peer);
            if member.is_alive {
                tracing::info!(%node, %peer, "node {name} is there");
            } else {
                tracing::warn!(%node, %peer, "node {name} is not heard from any more");
            }
            let member = Arc::new(member);
            for shard in self.mesh.peers() {
                self.mesh.push(shard, Message::Member(Arc::clone(&member)));
            }
            self.member(&member);
        }
        self.turn.ring();
    }

    /// Takes an operator's request to look for the cluster elsewhere; true if it was one. Only for a node that belongs to none:
    /// the engine refuses all others.
    pub(super) fn looks_elsewhere(&self, conn: ConnId, header: &Header, body: &[u8]) -> bool {
        let Some(gossip) = self.gossip.as_ref().filter(|gossip| gossip.membership.borrow().own().cluster == 0) else {
            return false;
        };
        let Some(text) = addresses_to_join(header, body) else { return false };
        let found: Result<Vec<SocketAddr>, _> = text.split(',').map(|address| address.trim().parse()).collect();
        let mut effects = self.effects.borrow_mut();
        let out = effects.buffer(conn);
        match found {
            Ok(found) => {
                *gossip.told.borrow_mut() = found;
                gossip.look_at(None);
                frame::encode(out, header.response(Code::Ok), &Empty::default());
            }
            Err(_) => {
                let sentence =
                    format!("\"{text}\" has to be peer addresses such as 10.0.0.1:7800, separated by commas");
                frame::encode(out, header.response(Code::Invalid), &Refusal::new(&sentence, None, 0));
            }
        }
        true
    }
}

/// The text of a request to look for the cluster; anything else is the engine's to understand.
fn addresses_to_join<'a>(header: &Header, body: &'a [u8]) -> Option<&'a str> {
    if header.operation != Operation::ClusterAdmin.number() {
        return None;
    }
    let request = body::access::<ArchivedClusterAdmin>(body).ok()?;
    if request.verb.to_native() != cluster_verb::JOIN {
        return None;
    }
    body::text(&request.bytes, request.text).ok()
}
