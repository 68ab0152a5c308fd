//! Listeners: the port shared by all shards, and each shard's own.

use std::io;
use std::net::{SocketAddr, TcpListener as Probe};

use glommio::net::{TcpListener, TcpStream};

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
}

impl Listener {
    /// Listens on `address` beside the other shards.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).map_err(io::Error::from)? })
    }

    /// The next connection.
    ///
    /// # Errors
    /// What `accept` failed with; descriptors running out is the usual cause, so wait before the next call.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        self.socket.accept().await.map_err(io::Error::from)
    }
}
