//! Stream sockets: vectored receive and send without signals, buffer sizes, timeouts.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, ToSocketAddrs},
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    ioctl::{self, Getter, Opcode},
    net::{
        AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
        sendmsg, sockopt, sockopt::Timeout,
    },
};

/// What Rust puts in front of the resolver's words.
const RESOLVING: &str = "failed to lookup address information: ";

/// Connections that may wait to be accepted; the kernel has a limit of its own.
const BACKLOG: i32 = 4096;

/// The addresses of `host`, which is a name or an address itself, each with `port`.
///
/// # Errors
/// `NotFound`, in the resolver's words, for a name that has none; what the resolver failed with. It blocks.
pub fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = (host, port).to_socket_addrs().map_err(|error| {
        if error.raw_os_error().is_some() {
            return error;
        }
        let text = error.to_string();
        let why = text.strip_prefix(RESOLVING).unwrap_or(&text);
        no_address(&format!(": {why}"))
    })?;
    let addresses: Vec<_> = found.collect();
    match addresses.is_empty() {
        true => Err(no_address("")),
        false => Ok(addresses),
    }
}

fn no_address(why: &str) -> io::Error {
    let message = format!("the host name has no address{why}");
    io::Error::new(io::ErrorKind::NotFound, message)
}

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

/// Whether the peer of `socket` is gone: it broke the connection off, or both directions are closed.
///
/// # Errors
/// As `poll(2)`.
pub fn is_hung_up(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(events(socket, PollFlags::empty())?.intersects(PollFlags::HUP | PollFlags::ERR))
}

/// Whether `socket` has failed, and nobody was told so: its peer broke the connection off, or cannot be reached.
///
/// # Errors
/// As `poll(2)`.
pub fn has_failed(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(events(socket, PollFlags::empty())?.contains(PollFlags::ERR))
}

/// Whether reading `socket` would return at once: with bytes, with its end, or with an error.
///
/// # Errors
/// As `poll(2)`.
pub fn is_readable(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(!events(socket, PollFlags::IN)?.is_empty())
}

/// How many bytes were written to `socket` and not yet acknowledged by its peer's system (`SIOCOUTQ` of tcp(7)).
///
/// # Errors
/// As `ioctl(2)`; `EINVAL` for a socket that listens.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    /// `TIOCOUTQ` of asm-generic/ioctls.h, which is `SIOCOUTQ`.
    const SIOCOUTQ: Opcode = libc::TIOCOUTQ as Opcode;
    // SAFETY: SIOCOUTQ fills one int.
    let getter = unsafe { Getter::<SIOCOUTQ, i32>::new() };
    // SAFETY: as above; where the descriptor is no socket the call only fails.
    let count = unsafe { ioctl::ioctl(socket, getter) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Which of `wanted` are the case now, or an error or a hang-up.
fn events(fd: BorrowedFd<'_>, wanted: PollFlags) -> io::Result<PollFlags> {
    const AT_ONCE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut ends = [PollFd::from_borrowed_fd(fd, wanted)];
    rustix::io::retry_on_intr(|| poll(&mut ends, Some(&AT_ONCE)))?;
    Ok(ends[0].revents())
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

/// The sizes of the buffers that a socket has, in bytes: for what is received, and for what is sent. The kernel counts
/// its own bookkeeping in: it says twice what it was asked for.
///
/// # Errors
/// As `getsockopt(2)`.
pub fn buffer_sizes(socket: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
    let receive = sockopt::socket_recv_buffer_size(socket)?;
    Ok((receive, sockopt::socket_send_buffer_size(socket)?))
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

/// Lets each blocking call wait so long at most, or for ever.
///
/// # Errors
/// As `setsockopt(2)`; `InvalidInput` for no time at all.
pub fn set_timeouts(socket: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
    sockopt::set_socket_timeout(socket, Timeout::Recv, timeout)?;
    sockopt::set_socket_timeout(socket, Timeout::Send, timeout)?;
    Ok(())
}

/// Says whether calls wait or are `WouldBlock`.
///
/// # Errors
/// As `ioctl(2)`.
pub fn set_nonblocking(socket: BorrowedFd<'_>, nonblocking: bool) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(socket, nonblocking)?)
}

/// Listens on a TCP port of every address of this machine, IPv6 and IPv4; IPv4 alone where there is no
/// IPv6. Port 0 takes a free one.
///
/// # Errors
/// As `socket(2)`, `bind(2)` and `listen(2)`.
pub fn listen_everywhere(port: u16) -> io::Result<TcpListener> {
    match listen_on_both(port) {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        }
        other => Ok(other?),
    }
}

/// Lets as many connections wait at a listening socket as those of [`listen_everywhere`] let wait; the
/// standard library's own let 128 of them.
///
/// # Errors
/// As `listen(2)`.
pub fn deepen_backlog(listener: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::listen(listener, BACKLOG)?)
}

fn listen_on_both(port: u16) -> Result<TcpListener, Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET6,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    let address = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
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

// Miri knows nothing of options of IPv6.
#[cfg(all(test, not(miri)))]
#[allow(clippy::print_stderr, reason = "what is skipped is said")]
mod tests {
    use std::{
        net::{SocketAddr, TcpStream},
        os::{fd::AsFd, unix::net::UnixStream},
    };

    use super::*;

    #[test]
    fn a_name_without_an_address_is_told_in_the_resolvers_words() {
        let own = look_up("127.0.0.1", 10809).expect("an address");
        assert_eq!(own, [SocketAddr::from(([127, 0, 0, 1], 10809))]);
        // RFC 6761: no name below it has an address.
        let error = look_up("host.invalid", 1).expect_err("no address");
        let text = error.to_string();
        assert!(text.starts_with("the host name has no address"), "{text}");
        assert!(!text.contains("lookup"), "{text}");
    }

    #[test]
    fn every_address_is_listened_on() {
        let listener = listen_everywhere(0).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let port = address.port();
        let mut clients = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
        if address.is_ipv6() {
            clients.push((Ipv6Addr::LOCALHOST, port).into());
        }
        for client in clients {
            match TcpStream::connect(client) {
                Ok(_) => drop(listener.accept().expect("a client")),
                // A machine may have IPv6, but no address of it.
                Err(error) if client.is_ipv6() => eprintln!("skipped: {client}: {error}"),
                Err(error) => panic!("{client}: {error}"),
            }
        }
        let again = listen_everywhere(port).map(drop).expect_err("in use");
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn buffers_are_as_large_as_was_asked_for_or_the_limits_allow() {
        let (socket, _other) = UnixStream::pair().expect("a pair");
        set_buffer_sizes(socket.as_fd(), 64 << 10).expect("a size");
        let (receive, send) = buffer_sizes(socket.as_fd()).expect("sizes");
        assert!(receive >= 64 << 10 && send >= 64 << 10, "{receive} {send}");
    }
}
