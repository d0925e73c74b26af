//! Stream sockets: vectored receive and send without signals, buffer sizes.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::BorrowedFd,
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg, sockopt};

/// Receives into `slices`, in order, as much as is there. 0 means that the peer closed its side.
///
/// # Errors
/// As `readv(2)`; `WouldBlock` when nothing is there and the socket does not block. An interrupted
/// call is repeated.
pub fn receive(socket: BorrowedFd<'_>, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| {
        rustix::io::readv(socket, slices)
    })?)
}

/// Sends `slices`, in order, as much as there is room for. A closed peer is `BrokenPipe`, never a
/// signal.
///
/// # Errors
/// As `sendmsg(2)`; `WouldBlock` when there is no room and the socket does not block. An interrupted
/// call is repeated.
pub fn send(socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| {
        sendmsg(
            socket,
            slices,
            &mut SendAncillaryBuffer::default(),
            SendFlags::NOSIGNAL,
        )
    })?)
}

/// Sends up to `length` bytes of `file` from `offset` on, without a copy: the pages of the page cache
/// themselves go into the socket. 0 means that the file has ended.
///
/// A closed peer is `BrokenPipe`, and a signal unless the process ignores SIGPIPE, as Rust programs do.
///
/// # Errors
/// As `sendfile(2)`; `WouldBlock` when there is no room and the socket does not block. An interrupted
/// call is repeated.
pub fn send_file(
    socket: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    offset: u64,
    length: usize,
) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| {
        rustix::fs::sendfile(socket, file, Some(&mut { offset }), length)
    })?)
}

/// Asks for socket buffers of `bytes` each way. The kernel grants what its limits allow.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_buffer_sizes(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    sockopt::set_socket_recv_buffer_size(socket, bytes)?;
    sockopt::set_socket_send_buffer_size(socket, bytes)?;
    Ok(())
}

/// Lets the kernel ask a TCP peer that is silent for `interval` (whole seconds), and then every
/// `interval`, whether it still lives, and break the connection when it does not answer.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_keepalive(socket: BorrowedFd<'_>, interval: Duration) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, interval)?;
    sockopt::set_tcp_keepintvl(socket, interval)?;
    Ok(())
}
