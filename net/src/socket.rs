//! The one place where raw descriptors are handled: what glommio's sockets do not offer.
#![expect(unsafe_code, reason = "glommio's streams give their descriptor only as a raw number")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};

use glommio::net::{TcpListener, TcpStream};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, send, socket_with, sockopt};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1_024;

/// Sends what the socket takes at once; 0 when it takes nothing now.
pub(crate) fn send_now(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, which outlives this call.
    let fd = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    match send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(sent) => Ok(sent),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

/// Ends both directions, which wakes whoever waits for the socket.
pub(crate) fn shutdown(stream: &TcpStream) {
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, which outlives this call.
    let fd = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    // A peer that is gone already is what was wanted.
    let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
}

/// A socket that listens on `address` beside others of this user, which may bind it again while connections accepted here
/// linger in TIME_WAIT: a minute after a node was killed that had any. (They inherit the option from the listener.)
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    // SAFETY: the descriptor was given up by its only owner in this expression.
    Ok(unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) })
}
