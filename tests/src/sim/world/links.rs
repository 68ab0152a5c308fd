//! Connections of producers, workers and readers, and calls of these actors.

use std::collections::{BTreeMap, BTreeSet};

use taskmaster_engine::{ConnId, Input};
use taskmaster_protocol::FrameBuffer;

use super::nodes::Death;
use super::{Event, Phase, What, World};
use crate::sim::actor::{Actor, Cx, Target};
use crate::sim::faults::FaultSet;
use crate::sim::network::{Link, take_frames};

/// Longest pause between two wakes of an actor.
const WAKE_US_MAX: u64 = 1_000_000;

impl World {
    fn latency_us(&mut self) -> u64 {
        if !self.has(FaultSet::CLIENTS) || self.dice.chance(95) {
            self.dice.range(20, 400)
        } else {
            self.dice.range(400, 60_000)
        }
    }

    /// How long until clients reach a place again.
    fn client_cut_us(&self, place: u16) -> u64 {
        self.client_cuts.get(&place).map_or(0, |until_us| until_us.saturating_sub(self.now_us))
    }

    pub(super) fn send_to_peer(&mut self, number: u64, bytes: Vec<u8>) {
        let latency_us = self.latency_us();
        let Some(place) = self.links.get(&number).filter(|link| link.node_open).map(|link| link.target.place) else {
            return;
        };
        let latency_us = latency_us + self.client_cut_us(place);
        let now_us = self.now_us;
        let link = self.links.get_mut(&number).expect("just seen");
        link.to_peer_us = link.to_peer_us.max(now_us + latency_us);
        let at_us = link.to_peer_us;
        for bytes in self.split(bytes) {
            self.at(at_us, Event::ToPeer { link: number, bytes });
        }
    }

    fn send_to_node(&mut self, number: u64, bytes: Vec<u8>) {
        let latency_us = self.latency_us();
        let Some(target) = self.links.get(&number).map(|link| link.target) else { return };
        let latency_us = latency_us + self.client_cut_us(target.place);
        let now_us = self.now_us;
        let link = self.links.get_mut(&number).expect("just seen");
        link.to_node_us = link.to_node_us.max(now_us + latency_us);
        let (at_us, life) = (link.to_node_us, link.life);
        for bytes in self.split(bytes) {
            self.at(at_us, Event::In { place: target.place, life, what: What::Bytes { link: number, bytes } });
        }
    }

    /// Bytes arrive in pieces of any size.
    fn split(&mut self, mut bytes: Vec<u8>) -> Vec<Vec<u8>> {
        if self.dice.chance(5) {
            let rest = bytes.split_off(self.dice.index(bytes.len()));
            return vec![bytes, rest];
        }
        vec![bytes]
    }

    pub(super) fn arrive_at_node(&mut self, place: u16, number: u64, bytes: &[u8]) -> Result<(), String> {
        let Some(link) = self.links.get_mut(&number).filter(|link| link.node_open && !link.cut) else { return Ok(()) };
        let (shard, life) = (link.target.shard, link.life);
        link.at_node.extend_from_slice(bytes);
        let mut buffer = std::mem::take(&mut link.at_node);
        let clock_us = self.clock_us(place);
        take_frames(&mut buffer, |header, body| {
            if let Some(own) =
                self.places[usize::from(place)].running().and_then(|node| node.loops.get_mut(usize::from(shard)))
            {
                let time_us = own.time_us(clock_us);
                self.oracle.clock(time_us);
                self.oracle.received(number, life, &header, body, time_us);
                let conn = ConnId(number);
                let known = match self.options.memo {
                    true => self.remembered.known(&own.shard, &header, body, &mut self.dice),
                    false => Vec::new(),
                };
                match &known[..] {
                    [] => own.input(Input::Frame { conn, header, body }, clock_us),
                    known => own.input(Input::Known { conn, header, body, known }, clock_us),
                }
            }
        })?;
        if let Some(link) = self.links.get_mut(&number) {
            link.at_node = buffer;
        }
        self.note(1, number ^ (bytes.len() as u64) << 16);
        self.turn_soon(place, shard);
        Ok(())
    }

    pub(super) fn arrive_at_peer(&mut self, number: u64, bytes: &[u8]) -> Result<(), String> {
        let Some(link) = self.links.get_mut(&number).filter(|link| link.peer_open && !link.cut) else { return Ok(()) };
        link.at_peer.extend_from_slice(bytes);
        let (actor, target, mut frames) = (link.actor, link.target, Vec::new());
        take_frames(&mut link.at_peer, |header, body| {
            let mut copy = FrameBuffer::with_capacity(body.len());
            copy.extend_from_slice(body);
            frames.push((header, copy));
        })?;
        for (header, body) in frames {
            self.call(actor, |actor, cx| actor.frame(target, header, &body, cx));
        }
        Ok(())
    }

    pub(super) fn node_hears_loss(&mut self, place: u16, number: u64) {
        let clock_us = self.clock_us(place);
        let Some(link) = self.links.get_mut(&number).filter(|link| link.node_open) else { return };
        link.node_open = false;
        let shard = link.target.shard;
        let Some(own) = self.shard(place, shard) else { return };
        let time_us = own.time_us(clock_us);
        self.oracle.lost(number, time_us);
        self.input(place, shard, Input::Disconnected { conn: ConnId(number) });
        self.forget_link(number);
    }

    pub(super) fn peer_hears_loss(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number).filter(|link| link.peer_open) else { return };
        link.peer_open = false;
        let (actor, target) = (link.actor, link.target);
        self.link_of[actor].remove(&target);
        self.open_of[actor].remove(&target);
        self.forget_link(number);
        self.call(actor, |actor, cx| actor.lost(target, cx));
    }

    fn forget_link(&mut self, number: u64) {
        if self.links.get(&number).is_some_and(|link| !link.node_open && !link.peer_open) {
            self.links.remove(&number);
        }
    }

    /// Cuts a connection from the actor's side: the node hears of it later, and may take what was under way before.
    pub(super) fn close_from_peer(&mut self, number: u64) {
        let is_cut = self.dice.chance(40);
        let Some(link) = self.links.get_mut(&number) else { return };
        link.cut |= is_cut;
        let (place, life, to_node_us) = (link.target.place, link.life, link.to_node_us);
        let at_us = to_node_us.max(self.now_us) + self.dice.range(100, 900_000);
        self.at(at_us, Event::In { place, life, what: What::LinkLost { link: number } });
        self.peer_hears_loss(number);
    }

    /// Cuts a connection from the node's side.
    pub(super) fn close_from_node(&mut self, number: u64) {
        let Some(place) = self.links.get(&number).map(|link| link.target.place) else { return };
        if self.node(place).is_some() {
            self.node_hears_loss(place, number);
            let delay_us = self.dice.range(100, 400_000);
            self.after(delay_us, Event::PeerHearsLoss { link: number });
        }
    }

    /// A process is gone, and its actors hear of it.
    pub(super) fn drop_links(&mut self, place: u16, life: u64, death: Death) {
        let is_of = |link: &&mut Link| link.target.place == place && link.life == life && link.node_open;
        let mut told = Vec::new();
        for link in self.links.values_mut().filter(is_of) {
            link.node_open = false;
            link.cut |= death == Death::Power;
        }
        for (number, link) in &self.links {
            if link.target.place == place && link.life == life && link.peer_open {
                told.push((*number, link.to_peer_us));
            }
        }
        for (number, to_peer_us) in told {
            let pause_us =
                if death == Death::Power { self.dice.range(50, 300_000) } else { self.dice.range(50, 5_000) };
            self.at(to_peer_us.max(self.now_us) + pause_us, Event::PeerHearsLoss { link: number });
        }
        self.links.retain(|_, link| link.node_open || link.peer_open);
    }

    /// Connections that actors have.
    pub(super) fn open_links(&self) -> Vec<u64> {
        self.link_of.iter().flat_map(BTreeMap::values).copied().collect()
    }

    // ---- actors ----

    pub(super) fn wake_actor_at(&mut self, actor: usize, at_us: u64) {
        let at_us = at_us.max(self.now_us + 1);
        if at_us < self.wake_of[actor] {
            self.wake_of[actor] = at_us;
            self.at(at_us, Event::Wake { actor, at_us });
        }
    }

    pub(super) fn call(&mut self, index: usize, act: impl FnOnce(&mut dyn Actor, &mut Cx<'_>)) {
        let calm = self.is_calm();
        let unruly = self.has(FaultSet::CLIENTS);
        let mut cx = Cx {
            now_us: self.now_us,
            calm,
            unruly,
            saves: self.options.saves,
            produced: !matches!(self.phase, Phase::Faults | Phase::Calm),
            dice: &mut self.dice,
            oracle: &mut self.oracle,
            open: &self.open_of[index],
            outgoing: BTreeMap::new(),
            opens: BTreeSet::new(),
            closes: BTreeSet::new(),
        };
        act(self.actors[index].as_mut(), &mut cx);
        let (outgoing, opens, closes) = (cx.outgoing, cx.opens, cx.closes);
        for (target, bytes) in outgoing {
            if let Some(link) = self.link_of[index].get(&target).copied() {
                self.send_to_node(link, bytes.to_vec());
            }
        }
        for target in opens {
            self.connect(index, target);
        }
        let next_us = self.actors[index].next_wake_us().min(self.now_us + WAKE_US_MAX);
        self.wake_actor_at(index, next_us);
        for target in closes {
            if let Some(link) = self.link_of[index].get(&target).copied() {
                self.close_from_peer(link);
            }
        }
    }

    fn connect(&mut self, actor: usize, target: Target) {
        if self.open_of[actor].contains(&target) {
            return;
        }
        let latency_us = self.latency_us();
        let is_there = self
            .places
            .get(usize::from(target.place))
            .is_some_and(|place| place.node.is_some() && !place.is_paused && target.shard < place.site.shards);
        if is_there && self.client_cut_us(target.place) == 0 {
            self.after(latency_us, Event::Opened { actor, target });
        } else {
            let refused_us = if self.client_cut_us(target.place) > 0 { 200_000 } else { 300 };
            self.after(latency_us + refused_us, Event::OpenFailed { actor, target });
        }
    }

    pub(super) fn opened(&mut self, actor: usize, target: Target) {
        let life = self.places[usize::from(target.place)].life();
        let Some(life) = life.filter(|_| !self.link_of[actor].contains_key(&target)) else {
            if !self.link_of[actor].contains_key(&target) {
                self.call(actor, |actor, cx| actor.lost(target, cx));
            }
            return;
        };
        self.last_link += 1;
        let link = Link {
            actor,
            target,
            life,
            node_open: true,
            peer_open: true,
            to_node_us: 0,
            to_peer_us: 0,
            cut: false,
            at_node: FrameBuffer::new(),
            at_peer: FrameBuffer::new(),
        };
        self.links.insert(self.last_link, link);
        self.link_of[actor].insert(target, self.last_link);
        self.open_of[actor].insert(target);
        self.call(actor, |actor, cx| actor.opened(target, cx));
    }
}
