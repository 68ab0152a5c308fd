//! Listeners: the port shared by all shards, and each shard's own.

use std::io;
use std::net::{SocketAddr, TcpListener as Probe};
use std::os::fd::OwnedFd;

use glommio::net::{TcpListener, TcpStream};

use rustix::net::Shutdown;

use crate::socket::listen;

/// Checks that nobody listens on `address`, and gives a free port for port 0. Shards share ports by `SO_REUSEPORT`, with
/// which the kernel would let a second node of the same user in unnoticed.
///
/// # Errors
/// When the address is in use or not of this host.
pub fn reserve(address: SocketAddr) -> io::Result<SocketAddr> {
    Probe::bind(address)?.local_addr()
}

/// A listening socket of one shard.
pub struct Listener {
    socket: TcpListener,
    /// The same socket, to end it.
    second: OwnedFd,
}

impl Listener {
    /// Listens on `address` beside the other shards.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let (socket, second) = listen(address)?;
        Ok(Self { socket, second })
    }

    /// Ends listening: whoever waits for a connection gets an error.
    pub fn close(&self) {
        // It does not fail on a socket that listens.
        let _ = rustix::net::shutdown(&self.second, Shutdown::Both);
    }

    /// The next connection.
    ///
    /// # Errors
    /// What `accept` failed with; descriptors running out is the usual cause, so wait before the next call.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        self.socket.accept().await.map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream as Client;

    use glommio::{LocalExecutorBuilder, Placement};

    use super::*;

    #[test]
    fn an_address_is_free_again_at_once_although_the_node_closed_its_connections_first() {
        let node = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20).spawn(|| async {
            let address = reserve(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            let listener = Listener::bind(address).unwrap();
            let mut client = Client::connect(address).unwrap();
            let accepted = listener.accept().await.unwrap();
            assert!(reserve(address).is_err(), "somebody listens");
            drop(accepted);
            assert_eq!(client.read(&mut [0u8; 1]).unwrap(), 0, "the node closed first");
            drop(client);
            drop(listener);
            reserve(address).unwrap();
        });
        node.unwrap().join().unwrap();
    }
}
