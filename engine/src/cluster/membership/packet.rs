//! Bytes of gossip: a prefix that keeps strangers out, and the codec of what foca says. `docs/formats/cluster.md` is
//! their page.
//!
//! Nothing behind the prefix is looked at unless checksum, version and cluster name are right. No reading step allocates
//! by a length that a peer wrote, except a name of at most 63 bytes.

use super::identity::Identity;
use crate::cluster::{NODE_NAME_BYTES_MAX, SHARDS_MAX, map::node::check_text};
use bytes::{Buf, BufMut};
use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use foca::{Header, Member, Message, State};
use taskmaster_protocol::NodeId;

/// Version of the packets' layout.
pub const GOSSIP_FORMAT: u16 = 1;
/// Largest packet, prefix included, in bytes.
pub(super) const PACKET_BYTES_MAX: usize = 1400;
/// Bytes of the prefix.
pub(super) const PREFIX_BYTES: usize = 24;
/// First bytes of every packet.
const MAGIC: [u8; 4] = *b"TMGS";
/// Bytes of an identity without its name.
const IDENTITY_BYTES_MIN: usize = 57;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PacketKind {
    /// A message of foca.
    Gossip,
    /// "Who is there?", to an address of which nothing else is known: the sender's identity.
    Hello,
}

impl PacketKind {
    const fn number(self) -> u16 {
        match self {
            Self::Gossip => 1,
            Self::Hello => 2,
        }
    }
}

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stranger {
    /// It is not one of ours at all.
    Garbage,
    /// One of ours, damaged on its way or badly made.
    Damaged,
    /// Of a version that this build does not read.
    Format(u16),
    /// Of a cluster with another name.
    OtherName,
}

/// The number by which packets of a cluster's name are known: FNV-1a, 64 bits.
pub(super) fn hash_of_name(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// The checksum of a packet: of all but its own four bytes.
fn checksum(packet: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&packet[..8]), &packet[12..])
}

/// Puts the prefix before a body.
pub(super) fn seal(kind: PacketKind, name_hash: u64, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(PREFIX_BYTES + body.len());
    packet.extend_from_slice(&MAGIC);
    packet.extend_from_slice(&GOSSIP_FORMAT.to_le_bytes());
    packet.extend_from_slice(&kind.number().to_le_bytes());
    packet.extend_from_slice(&[0; 8]);
    packet.extend_from_slice(&name_hash.to_le_bytes());
    packet.extend_from_slice(body);
    let crc = checksum(&packet);
    packet[8..12].copy_from_slice(&crc.to_le_bytes());
    packet
}

/// Checks the prefix and gives the body.
pub(super) fn open(packet: &[u8], name_hash: u64) -> Result<(PacketKind, &[u8]), Stranger> {
    let prefix = packet.first_chunk::<PREFIX_BYTES>().ok_or(Stranger::Garbage)?;
    let [m0, m1, m2, m3, f0, f1, k0, k1, c0, c1, c2, c3, _, _, _, _, name @ ..] = *prefix;
    if [m0, m1, m2, m3] != MAGIC || packet.len() > PACKET_BYTES_MAX {
        return Err(Stranger::Garbage);
    }
    let format = u16::from_le_bytes([f0, f1]);
    if format != GOSSIP_FORMAT {
        return Err(Stranger::Format(format));
    }
    if u32::from_le_bytes([c0, c1, c2, c3]) != checksum(packet) {
        return Err(Stranger::Damaged);
    }
    if u64::from_le_bytes(name) != name_hash {
        return Err(Stranger::OtherName);
    }
    let kind = match u16::from_le_bytes([k0, k1]) {
        1 => PacketKind::Gossip,
        2 => PacketKind::Hello,
        _ => return Err(Stranger::Damaged),
    };
    Ok((kind, &packet[PREFIX_BYTES..]))
}

/// A body that does not read, or does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    /// The bytes are not what they should be.
    #[error("malformed")]
    Malformed,
    /// The packet is full.
    #[error("full")]
    Full,
}

/// Reads fields off the front of a body.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BodyError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(BodyError::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, BodyError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, BodyError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn identity(&mut self) -> Result<Identity, BodyError> {
        let id = NodeId(u64::from_le_bytes(self.array()?));
        let bump = u64::from_le_bytes(self.array()?);
        let cluster = u128::from_le_bytes(self.array()?);
        let ip = Ipv6Addr::from(self.array::<16>()?);
        let (port, shards) = (self.u16()?, self.u16()?);
        let version = u32::from_le_bytes(self.array()?);
        let name_len = usize::from(self.u8()?);
        let (name, rest) = self.0.split_at_checked(name_len).ok_or(BodyError::Malformed)?;
        let name = core::str::from_utf8(name).map_err(|_| BodyError::Malformed)?;
        self.0 = rest;
        check_text("name", name, 1, NODE_NAME_BYTES_MAX).map_err(|_| BodyError::Malformed)?;
        if id.0 == 0 || port == 0 || !(1..=SHARDS_MAX).contains(&usize::from(shards)) {
            return Err(BodyError::Malformed);
        }
        let peer = SocketAddr::new(IpAddr::V6(ip).to_canonical(), port);
        Ok(Identity { id, bump, cluster, peer, shards, version, name: name.to_owned() })
    }

    pub(super) fn header(&mut self) -> Result<Header<Identity>, BodyError> {
        let src = self.identity()?;
        let src_incarnation = self.u16()?;
        let dst = self.identity()?;
        let (kind, probe_number) = (self.u8()?, self.u8()?);
        let message = match kind {
            1 => Message::Ping(probe_number),
            2 => Message::Ack(probe_number),
            3 => Message::PingReq { target: self.identity()?, probe_number },
            4 => Message::IndirectPing { origin: self.identity()?, probe_number },
            5 => Message::IndirectAck { target: self.identity()?, probe_number },
            6 => Message::ForwardedAck { origin: self.identity()?, probe_number },
            7 => Message::Announce,
            8 => Message::Feed,
            9 => Message::Gossip,
            10 => Message::TurnUndead,
            _ => return Err(BodyError::Malformed),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }

    pub(super) fn member(&mut self) -> Result<Member<Identity>, BodyError> {
        let identity = self.identity()?;
        let incarnation = self.u16()?;
        let state = match self.u8()? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(BodyError::Malformed),
        };
        Ok(Member::new(identity, incarnation, state))
    }

    /// The members behind a header. Their count is big-endian: foca writes it.
    pub(super) fn members(&mut self) -> Result<Vec<Member<Identity>>, BodyError> {
        let mut members = Vec::new();
        if !self.0.is_empty() {
            for _ in 0..u16::from_be_bytes(self.array()?) {
                members.push(self.member()?);
            }
        }
        if self.0.is_empty() { Ok(members) } else { Err(BodyError::Malformed) }
    }
}

pub(super) fn put_identity(out: &mut Vec<u8>, identity: &Identity) {
    out.extend_from_slice(&identity.id.0.to_le_bytes());
    out.extend_from_slice(&identity.bump.to_le_bytes());
    out.extend_from_slice(&identity.cluster.to_le_bytes());
    let ip = match identity.peer.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend_from_slice(&ip.octets());
    out.extend_from_slice(&identity.peer.port().to_le_bytes());
    out.extend_from_slice(&identity.shards.to_le_bytes());
    out.extend_from_slice(&identity.version.to_le_bytes());
    out.push(u8::try_from(identity.name.len()).expect("names are bounded"));
    out.extend_from_slice(identity.name.as_bytes());
}

pub(super) fn put_header(out: &mut Vec<u8>, header: &Header<Identity>) {
    put_identity(out, &header.src);
    out.extend_from_slice(&header.src_incarnation.to_le_bytes());
    put_identity(out, &header.dst);
    let (kind, probe_number, other) = match &header.message {
        Message::Ping(number) => (1, *number, None),
        Message::Ack(number) => (2, *number, None),
        Message::PingReq { target, probe_number } => (3, *probe_number, Some(target)),
        Message::IndirectPing { origin, probe_number } => (4, *probe_number, Some(origin)),
        Message::IndirectAck { target, probe_number } => (5, *probe_number, Some(target)),
        Message::ForwardedAck { origin, probe_number } => (6, *probe_number, Some(origin)),
        Message::Announce => (7, 0, None),
        Message::Feed => (8, 0, None),
        Message::Gossip | Message::Broadcast => (9, 0, None),
        Message::TurnUndead => (10, 0, None),
    };
    out.extend_from_slice(&[kind, probe_number]);
    if let Some(identity) = other {
        put_identity(out, identity);
    }
}

pub(super) fn put_member(out: &mut Vec<u8>, member: &Member<Identity>) {
    put_identity(out, member.id());
    out.extend_from_slice(&member.incarnation().to_le_bytes());
    out.push(match member.state() {
        State::Alive => 0,
        State::Suspect => 1,
        State::Down => 2,
    });
}

/// The layout above, as foca asks for it.
#[derive(Debug, Default)]
pub(super) struct Codec {
    scratch: Vec<u8>,
}

impl Codec {
    fn flush(&mut self, mut buf: impl BufMut) -> Result<(), BodyError> {
        if buf.remaining_mut() < self.scratch.len() {
            return Err(BodyError::Full);
        }
        buf.put_slice(&self.scratch);
        Ok(())
    }
}

fn read<T>(mut buf: impl Buf, item: impl FnOnce(&mut Reader<'_>) -> Result<T, BodyError>) -> Result<T, BodyError> {
    let mut reader = Reader(buf.chunk());
    let value = item(&mut reader)?;
    let used = buf.chunk().len() - reader.0.len();
    buf.advance(used);
    Ok(value)
}

impl foca::Codec<Identity> for Codec {
    type Error = BodyError;

    fn encode_header(&mut self, header: &Header<Identity>, buf: impl BufMut) -> Result<(), BodyError> {
        self.scratch.clear();
        put_header(&mut self.scratch, header);
        self.flush(buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>, BodyError> {
        read(buf, |reader| reader.header())
    }

    fn encode_member(&mut self, member: &Member<Identity>, buf: impl BufMut) -> Result<(), BodyError> {
        self.scratch.clear();
        put_member(&mut self.scratch, member);
        self.flush(buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Identity>, BodyError> {
        read(buf, |reader| reader.member())
    }
}

const _: () = assert!(
    PREFIX_BYTES + 4 * (IDENTITY_BYTES_MIN + NODE_NAME_BYTES_MAX + 3) + 4 < PACKET_BYTES_MAX,
    "the longest header leaves room for a member"
);
