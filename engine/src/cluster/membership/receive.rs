//! A datagram's way in: who may be heard, and what of it foca gets to see.

use super::identity::Identity;
use super::packet::{self, PacketKind, Reader, Stranger};
use super::warnings::Reason;
use super::{MEMBERS_MAX, Membership, Out, is_foreign};
use core::net::{IpAddr, SocketAddr};
use foca::{Header, Message};
use std::collections::BTreeMap;
use taskmaster_protocol::NodeId;

/// A node that moves back to where it was within this time is two nodes, in microseconds.
const TWO_PLACES_US: u64 = 60_000_000;

/// Where a node was last heard from, and where before.
#[derive(Debug)]
struct Place {
    bump: u64,
    peer: SocketAddr,
    before: Option<(SocketAddr, u64)>,
}

/// Where nodes were heard from, to notice that two nodes go by one id: by turns each has the higher bump.
#[derive(Debug, Default)]
pub(super) struct Places(BTreeMap<NodeId, Place>);

impl Places {
    /// Notes a packet; gives the other address if the node is in two places.
    fn note(&mut self, sender: &Identity, now_us: u64) -> Option<SocketAddr> {
        if self.0.len() >= 2 * MEMBERS_MAX && !self.0.contains_key(&sender.id) {
            self.0.clear();
        }
        let place = self.0.entry(sender.id).or_insert(Place { bump: sender.bump, peer: sender.peer, before: None });
        if sender.bump < place.bump {
            return None;
        }
        place.bump = sender.bump;
        if sender.peer == place.peer {
            return None;
        }
        let left = core::mem::replace(&mut place.peer, sender.peer);
        match place.before.replace((left, now_us)) {
            Some((peer, at_us)) if peer == sender.peer && now_us - at_us < TWO_PLACES_US => Some(left),
            _ => None,
        }
    }
}

/// A sender, and what foca gets to see of its packet.
type Heard = (Identity, Vec<u8>);

/// An address as a number, for remembering what was said of it.
fn source_of(from: SocketAddr) -> u128 {
    match from.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

impl Membership {
    pub(super) fn receive(&mut self, from: SocketAddr, packet: &[u8], out: &mut Out) {
        let heard = match packet::open(packet, self.name_hash) {
            Ok((PacketKind::Gossip, body)) => self.admit_gossip(body, out),
            Ok((PacketKind::Hello, body)) => self.admit_hello(body, out),
            Err(stranger) => return self.warn_of_stranger(stranger, from, out),
        };
        let is_sound = match heard {
            Ok(Some((sender, body))) => {
                let is_sound = self.foca.handle_data(&body, &mut self.asked).is_ok();
                if is_sound {
                    self.bury_others_at(sender.id, sender.peer, out);
                }
                is_sound
            }
            Ok(None) => true,
            Err(_) => false,
        };
        if !is_sound {
            self.warn_of_stranger(Stranger::Damaged, from, out);
        }
    }

    /// A hello becomes an announcement to this very node.
    fn admit_hello(&mut self, body: &[u8], out: &mut Out) -> Result<Option<Heard>, packet::BodyError> {
        let mut reader = Reader(body);
        let sender = reader.identity()?;
        if !reader.0.is_empty() {
            return Err(packet::BodyError::Malformed);
        }
        if !self.may_be_heard(&sender, out) {
            return Ok(None);
        }
        let mut body = Vec::new();
        let dst = self.foca.identity().clone();
        let (src, message) = (sender.clone(), Message::Announce);
        packet::put_header(&mut body, &Header { src, src_incarnation: 0, dst, message });
        Ok(Some((sender, body)))
    }

    /// Gossip without those members that are no business of this node.
    fn admit_gossip(&mut self, body: &[u8], out: &mut Out) -> Result<Option<Heard>, packet::BodyError> {
        let mut reader = Reader(body);
        let header = reader.header()?;
        let mut members = reader.members()?;
        if !self.may_be_heard(&header.src, out) {
            return Ok(None);
        }
        if matches!(header.message, Message::Ack(_)) {
            self.timers.answered(header.src.id);
        }
        let count = members.len();
        members.retain(|member| self.may_be_known(member.id()));
        if members.len() == count {
            return Ok(Some((header.src, body.to_vec())));
        }
        let mut body = Vec::new();
        packet::put_header(&mut body, &header);
        if !members.is_empty() {
            let count = u16::try_from(members.len()).expect("a packet holds few members");
            body.extend_from_slice(&count.to_be_bytes());
            members.iter().for_each(|member| packet::put_member(&mut body, member));
        }
        Ok(Some((header.src, body)))
    }

    /// Whether foca may learn of a node that somebody else told of.
    fn may_be_known(&mut self, node: &Identity) -> bool {
        if node.id == self.own.id {
            self.own_bump_seen = self.own_bump_seen.max(node.bump);
            return node == self.foca.identity();
        }
        !is_foreign(self.own.cluster, node.cluster)
            && node.version.abs_diff(self.own.version) <= 1
            && (self.foca.iter_membership_state().len() < MEMBERS_MAX || self.is_known(node.id))
    }

    fn is_known(&self, id: NodeId) -> bool {
        self.foca.iter_membership_state().any(|member| member.id().id == id)
    }

    /// Whether a sender's packet counts; if not, there is a sentence about it.
    fn may_be_heard(&mut self, sender: &Identity, out: &mut Out) -> bool {
        let now_us = self.now_us;
        let source = u128::from(sender.id.0);
        let Identity { id, peer, name, cluster, version, .. } = sender;
        if *id == self.own.id {
            self.hear_own_id(sender, out);
            return false;
        }
        let own = &self.own;
        let (reason, sentence) = if is_foreign(own.cluster, *cluster) {
            let sentence = format!(
                "node \"{name}\" ({id}) at {peer} belongs to cluster {cluster:032x}, this node to cluster {:032x}: it is \
                 ignored; give one of them other seeds or another cluster name",
                own.cluster
            );
            (Reason::OtherCluster, sentence)
        } else if version.abs_diff(own.version) > 1 {
            let sentence = format!(
                "node \"{name}\" ({id}) at {peer} has format version {version}, this node {}: it is ignored; upgrade one \
                 version at a time",
                own.version
            );
            (Reason::OtherVersion, sentence)
        } else if !self.may_be_known(sender) {
            let sentence = format!(
                "node \"{name}\" ({id}) at {peer} is ignored: {MEMBERS_MAX} nodes are known already, those included that \
                 went within the last hour"
            );
            (Reason::TooManyMembers, sentence)
        } else {
            if let Some(other) = self.places.note(sender, now_us) {
                self.warn_of_two_places(*id, other, *peer, out);
            }
            return true;
        };
        let peer = *peer;
        if self.warnings.say(reason, source, now_us, &mut out.warnings, || sentence) {
            // It finds the same reason in this node's hello, and tells its own operator.
            out.packets.push((peer, self.hello()));
        }
        false
    }

    /// A packet in this node's name: its own seed address, something late from before a restart, or a copy of it.
    fn hear_own_id(&mut self, sender: &Identity, out: &mut Out) {
        self.own_bump_seen = self.own_bump_seen.max(sender.bump);
        let is_of_earlier_start = sender.bump >> 32 < self.own.bump >> 32;
        if sender.peer != self.own.peer && !is_of_earlier_start {
            self.warn_of_two_places(self.own.id, self.own.peer, sender.peer, out);
        }
    }

    fn warn_of_two_places(&mut self, id: NodeId, one: SocketAddr, other: SocketAddr, out: &mut Out) {
        let say = || {
            format!(
                "two nodes go by the id {id}, at {one} and at {other}: was a data directory copied? Stop one of them and give \
                 it an empty data directory"
            )
        };
        let _ = self.warnings.say(Reason::TwoPlaces, u128::from(id.0), self.now_us, &mut out.warnings, say);
    }

    fn warn_of_stranger(&mut self, stranger: Stranger, from: SocketAddr, out: &mut Out) {
        let say = || match stranger {
            Stranger::Garbage => format!("a packet from {from} to the gossip port is not of Taskmaster: it is ignored"),
            Stranger::Damaged => format!("a gossip packet from {from} is damaged: it is ignored"),
            Stranger::Format(format) => format!(
                "a gossip packet from {from} has format {format}, this build speaks {}: it is ignored; upgrade one version \
                 at a time",
                packet::GOSSIP_FORMAT
            ),
            Stranger::OtherName => {
                format!("a node at {from} gossips for a cluster with another name: it is ignored; check its seeds")
            }
        };
        let is_said =
            self.warnings.say(Reason::Stranger(stranger), source_of(from), self.now_us, &mut out.warnings, say);
        if is_said && stranger == Stranger::OtherName {
            out.packets.push((from, self.hello()));
        }
    }
}
