//! The one place where a raw descriptor is borrowed: sending without waiting on a socket that glommio owns.
#![expect(unsafe_code, reason = "glommio's streams give their descriptor only as a raw number")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use glommio::net::TcpStream;
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
