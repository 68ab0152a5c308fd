//! The one place where raw descriptors are handled: what glommio's sockets do not offer.
#![expect(unsafe_code, reason = "glommio's streams give their descriptor only as a raw number")]

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use glommio::net::{TcpListener, TcpStream, UdpSocket};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, bind, connect, send, sendmsg, sendto,
    socket_with, sockopt,
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1_024;

/// Sends what the socket takes at once; 0 when it takes nothing now.
pub(crate) fn send_now(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, which outlives this call.
    let fd = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    taken(send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
}

/// Sends what the socket takes at once of these pieces; 0 when it takes nothing now.
pub(crate) fn send_pieces_now(stream: &TcpStream, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, which outlives this call.
    let fd = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    taken(sendmsg(fd, pieces, &mut SendAncillaryBuffer::default(), flags))
}

/// Sends a packet if the socket takes it at once; 0 when it does not.
pub(crate) fn send_packet_now(socket: &UdpSocket, packet: &[u8], to: SocketAddr) -> io::Result<usize> {
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, which outlives this call.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    taken(sendto(fd, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL, &to))
}

fn taken(outcome: rustix::io::Result<usize>) -> io::Result<usize> {
    match outcome {
        Ok(sent) => Ok(sent),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
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
/// With it a second descriptor of the socket, since glommio keeps its own to itself.
pub(crate) fn listen(address: SocketAddr) -> io::Result<(TcpListener, OwnedFd)> {
    let socket = socket_with(family(address), SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // What is accepted inherits it.
    resend_soon(&socket);
    sockopt::set_socket_reuseport(&socket, true)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    let second = socket.try_clone()?;
    // SAFETY: the descriptor was given up by its only owner in this expression.
    let listener = unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) };
    Ok((listener, second))
}

/// Longest pause before the kernel sends again what was not acknowledged, in milliseconds: the least that it allows.
const RESEND_MS_MAX: i32 = 1_000;
/// The socket option for it, since Linux 6.15; not yet named by the crates.
const TCP_RTO_MAX_MS: i32 = 44;

/// Once the network between two nodes is whole again, the connection is to go on soon. By default the kernel waits after a cut
/// for up to as long as the cut was. Older kernels do so.
fn resend_soon(socket: &OwnedFd) {
    let length = libc::socklen_t::try_from(size_of::<i32>()).expect("a small number");
    // SAFETY: the descriptor is open, and the option's value is an int that lives as long as the call.
    let _ = unsafe {
        let value = std::ptr::from_ref(&RESEND_MS_MAX).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, TCP_RTO_MAX_MS, value, length)
    };
}

/// Begins to connect. The first write waits until the connection is made, or fails as it did.
pub(crate) fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family(address), SocketType::STREAM, flags, None)?;
    resend_soon(&socket);
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    // SAFETY: the descriptor was given up by its only owner in this expression.
    Ok(unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) })
}

/// A UDP socket at this address, which nobody else may have.
pub(crate) fn packets(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket_with(family(address), SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &address)?;
    // SAFETY: the descriptor was given up by its only owner in this expression.
    Ok(unsafe { UdpSocket::from_raw_fd(socket.into_raw_fd()) })
}

fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET }
}
