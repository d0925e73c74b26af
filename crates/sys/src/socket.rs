//! Stream sockets: vectored receive and send without signals, buffer sizes.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sendmsg, sockopt, sockopt::Timeout,
};

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

/// When the kernel asks a silent TCP peer whether it still lives. Times are whole seconds.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// How long the peer is silent before it is asked first.
    pub idle: Duration,
    /// How long an answer may take until it is asked again.
    pub interval: Duration,
    /// How many questions in a row may stay without an answer: then the connection is broken.
    pub probes: u32,
}

/// Lets the kernel notice that a TCP peer is gone.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_keepalive(socket: BorrowedFd<'_>, keepalive: &Keepalive) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, keepalive.idle)?;
    sockopt::set_tcp_keepintvl(socket, keepalive.interval)?;
    sockopt::set_tcp_keepcnt(socket, keepalive.probes)?;
    Ok(())
}

/// Connects to the unix socket at `path`. A server that does not accept connections as fast as they come is
/// waited for `timeout` at most (`WouldBlock`); without a limit of its own, the system waits for ever.
///
/// # Errors
/// As `socket(2)` and `connect(2)`; `InvalidInput` for a path that is too long for a socket.
pub fn connect_unix(path: &Path, timeout: Duration) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket)
}
