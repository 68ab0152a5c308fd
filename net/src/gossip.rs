//! Packets of the membership protocol: UDP, never waited for.
//!
//! A packet that the socket does not take at once is lost, as any packet may be; the protocol above repeats itself. What
//! packets contain is not known here.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use glommio::net::UdpSocket;
use glommio::timer::sleep;

use crate::socket::{packets, send_packet_now};

/// Longest packet that is received, in bytes; longer ones are cut, and the protocol above refuses them.
pub const PACKET_BYTES_MAX: usize = 64 << 10;
/// Packets that are handed over before other tasks of the shard have their turn.
const TURN_PACKETS_MAX: u32 = 64;
/// How long the others' turn is, and the pause after a failure.
const BREATH: Duration = Duration::from_micros(20);
const FAILED_PAUSE: Duration = Duration::from_millis(100);

/// A socket for packets.
pub struct Gossip {
    socket: UdpSocket,
    lost: Cell<u64>,
}

impl Gossip {
    /// Takes `address` for itself. Port 0 takes a free one.
    ///
    /// # Errors
    /// When the address is in use or not of this host.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: packets(address)?, lost: Cell::new(0) })
    }

    /// The address it has.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr().map_err(io::Error::from)
    }

    /// Sends a packet, or loses it when the socket takes nothing now. `false`: lost.
    pub fn send_to(&self, to: SocketAddr, packet: &[u8]) -> bool {
        let sent = matches!(send_packet_now(&self.socket, packet, to), Ok(count) if count == packet.len());
        if !sent {
            self.lost.set(self.lost.get() + 1);
        }
        sent
    }

    /// Packets that the socket did not take.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// Hands every packet that arrives to `packet`, for as long as it is polled.
    pub async fn receive(&self, mut packet: impl FnMut(SocketAddr, &[u8])) {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let mut turn = 0;
        loop {
            match self.socket.recv_from(&mut buffer).await {
                Ok((count, from)) => packet(from, &buffer[..count]),
                Err(error) => {
                    tracing::debug!(%error, "a membership packet could not be received");
                    sleep(FAILED_PAUSE).await;
                }
            }
            turn += 1;
            if turn == TURN_PACKETS_MAX {
                turn = 0;
                sleep(BREATH).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as Other;

    use glommio::{LocalExecutorBuilder, Placement};

    use super::*;
    use crate::wake::Bell;
    use std::rc::Rc;

    #[test]
    fn packets_arrive_whole_with_their_sender_and_are_never_waited_for() {
        let shard = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20).spawn(|| async {
            let gossip = Rc::new(Gossip::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap());
            let address = gossip.address().unwrap();
            assert!(Gossip::bind(address).is_err(), "the address is taken");
            let other = Other::bind("127.0.0.1:0").unwrap();
            let (seen, all) = (Rc::new(Cell::new(0u32)), Rc::new(Bell::default()));
            let (receiving, count, from, bell) =
                (Rc::clone(&gossip), Rc::clone(&seen), other.local_addr().unwrap(), Rc::clone(&all));
            glommio::spawn_local(async move {
                receiving
                    .receive(|sender, packet| {
                        assert_eq!((sender, packet), (from, &count.get().to_le_bytes()[..]));
                        count.set(count.get() + 1);
                        bell.ring();
                    })
                    .await;
            })
            .detach();
            for number in 0..200u32 {
                other.send_to(&number.to_le_bytes(), address).unwrap();
            }
            while seen.get() < 200 {
                all.wait().await;
            }
            assert!(gossip.send_to(other.local_addr().unwrap(), b"hello"));
            let mut buffer = [0; 16];
            assert_eq!(other.recv_from(&mut buffer).unwrap(), (5, address));
            assert!(!gossip.send_to(other.local_addr().unwrap(), &vec![0; 70_000]), "no packet is so long");
            assert_eq!(gossip.lost(), 1);
        });
        shard.unwrap().join().unwrap();
    }
}
