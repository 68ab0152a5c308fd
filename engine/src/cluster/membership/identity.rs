//! What foca knows a node by, and the source of its choices.

use super::Member;
use core::convert::Infallible;
use core::net::SocketAddr;
use rand_core::TryRng;
use taskmaster_protocol::NodeId;

/// A node as it describes itself in every packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: NodeId,
    pub(super) bump: u64,
    pub(super) cluster: u128,
    pub(super) peer: SocketAddr,
    pub(super) shards: u16,
    pub(super) version: u32,
    pub(super) name: String,
}

impl Identity {
    pub(super) fn of(member: &Member) -> Self {
        Self {
            id: member.id,
            bump: member.bump,
            cluster: member.cluster,
            peer: SocketAddr::new(member.peer.ip().to_canonical(), member.peer.port()),
            shards: member.shards,
            version: member.version,
            name: member.name.clone(),
        }
    }

    pub(super) fn to_member(&self, is_alive: bool) -> Member {
        Member {
            id: self.id,
            cluster: self.cluster,
            bump: self.bump,
            peer: self.peer,
            shards: self.shards,
            version: self.version,
            name: self.name.clone(),
            is_alive,
        }
    }
}

impl foca::Identity for Identity {
    /// A node is its data directory, wherever it is reached.
    type Addr = NodeId;

    /// Coming back is [`super::Membership`]'s decision: two nodes with one id would renew as fast as packets travel.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> NodeId {
        self.id
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.bump, self.peer) > (adversary.bump, adversary.peer)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): which member to ask next needs no better one.
#[derive(Clone, Debug)]
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl TryRng for SplitMix {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::try_from(self.next() >> 32).expect("32 bits"))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.next())
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(())
    }
}
