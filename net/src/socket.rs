//! The one place where a raw descriptor is borrowed: what glommio's sockets do not offer.
#![expect(unsafe_code, reason = "glommio's streams give their descriptor only as a raw number")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use glommio::net::{TcpListener, TcpStream};
use rustix::net::{SendFlags, send};

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

/// Lets the listener's address be bound again while connections accepted from it linger in TIME_WAIT, which is a minute
/// after a node that had connections was killed. (They inherit the option, so it must be set before any is accepted.)
pub(crate) fn allow_rebind(listener: &TcpListener) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `listener` is borrowed, which outlives this call.
    let fd = unsafe { BorrowedFd::borrow_raw(listener.as_raw_fd()) };
    rustix::net::sockopt::set_socket_reuseaddr(fd, true).map_err(io::Error::from)
}
