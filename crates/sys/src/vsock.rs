//! Sockets between a virtual machine and its host (AF_VSOCK).

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::retry_on_intr,
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
};

/// Connections that may wait to be accepted; the kernel has a limit of its own.
const BACKLOG: i32 = 4096;

/// The context identifier of this machine, for its own processes.
pub const LOCAL: u32 = libc::VMADDR_CID_LOCAL;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The context identifier: which machine. 2 is the host.
    pub cid: u32,
    /// The port.
    pub port: u32,
}

/// Listens on a port of this machine, whatever its context identifier is.
///
/// # Errors
/// As `socket(2)` and `bind(2)`: `EAFNOSUPPORT` where the kernel has no such sockets.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = new_socket(SocketFlags::CLOEXEC)?;
    let cid = libc::VMADDR_CID_ANY;
    let address = raw(Address { cid, port });
    let length = length_of(&address);
    // SAFETY: the address is as long as is said, and lives through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Accepts a connection, which does not block, and says who it is.
///
/// # Errors
/// As `accept4(2)`; `WouldBlock` when nobody has connected and the listener does not block.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Address)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = retry_on_intr(|| rustix::net::accept_with(listener, flags))?;
    let address = peer_address(socket.as_fd())?;
    Ok((socket, address))
}

/// Connects to `address` within `timeout`. The socket blocks.
///
/// # Errors
/// As `socket(2)` and `connect(2)`; `TimedOut` when nobody has answered.
pub fn connect(address: Address, timeout: Duration) -> io::Result<OwnedFd> {
    let socket = new_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let address = raw(address);
    let length = length_of(&address);
    // SAFETY: the address is as long as is said, and lives through the call.
    let result =
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) });
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            wait(&socket, timeout)?;
            sockopt::socket_error(&socket)?.map_err(io::Error::from)?;
        }
        other => other?,
    }
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(socket)
}

/// Waits until a connection is there or has failed.
fn wait(socket: &OwnedFd, timeout: Duration) -> io::Result<()> {
    // What is beyond the clock is for ever.
    let timeout = Timespec::try_from(timeout).ok();
    // A signal starts the time anew, which comes to an end all the same.
    let ready =
        retry_on_intr(|| poll(&mut [PollFd::new(socket, PollFlags::OUT)], timeout.as_ref()))?;
    match ready {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// The address of a socket's own end.
///
/// # Errors
/// `InvalidInput` when it is not a socket of this kind; as `getsockname(2)`.
pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<Address> {
    address(|address, length| {
        // SAFETY: there is room for as many bytes as `length` says.
        unsafe { libc::getsockname(socket.as_raw_fd(), address, length) }
    })
}

/// The address of a connection's other end.
///
/// # Errors
/// `InvalidInput` when it is not a socket of this kind; as `getpeername(2)`.
pub fn peer_address(socket: BorrowedFd<'_>) -> io::Result<Address> {
    address(|address, length| {
        // SAFETY: there is room for as many bytes as `length` says.
        unsafe { libc::getpeername(socket.as_raw_fd(), address, length) }
    })
}

/// What `ask` puts there, which gets an address and the number of bytes in it.
fn address(
    ask: impl FnOnce(*mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int,
) -> io::Result<Address> {
    let mut address = raw(Address { cid: 0, port: 0 });
    let mut length = length_of(&address);
    check(ask((&raw mut address).cast(), &raw mut length))?;
    if length < length_of(&address) || i32::from(address.svm_family) != libc::AF_VSOCK {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(Address {
        cid: address.svm_cid,
        port: address.svm_port,
    })
}

fn new_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::VSOCK, SocketType::STREAM);
    Ok(rustix::net::socket_with(family, kind, flags, None)?)
}

fn raw(address: Address) -> libc::sockaddr_vm {
    // SAFETY: a sockaddr_vm is made of integers, which may all be 0.
    let mut raw: libc::sockaddr_vm = unsafe { mem::zeroed() };
    raw.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    raw.svm_cid = address.cid;
    raw.svm_port = address.port;
    raw
}

fn length_of(address: &libc::sockaddr_vm) -> libc::socklen_t {
    // 16 bytes.
    mem::size_of_val(address) as libc::socklen_t
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

// Miri knows nothing of AF_VSOCK.
#[cfg(all(test, not(miri)))]
#[allow(clippy::print_stderr, reason = "what is skipped is said")]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
        thread,
    };

    use super::*;

    /// A listener on a free port; `None`, with a message, where the kernel has no such sockets.
    fn listener() -> Option<(OwnedFd, Address)> {
        let listener = match listen(libc::VMADDR_PORT_ANY) {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("skipped: no AF_VSOCK here: {error}");
                return None;
            }
        };
        let address = local_address(listener.as_fd()).expect("an address");
        Some((listener, address))
    }

    #[test]
    fn a_listener_has_an_address() {
        let Some((_listener, address)) = listener() else {
            return;
        };
        assert_eq!(address.cid, libc::VMADDR_CID_ANY);
        assert_ne!(address.port, libc::VMADDR_PORT_ANY);
        let second = listen(address.port).map(drop).expect_err("it is in use");
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn other_sockets_have_no_such_address() {
        let (socket, _other) = UnixStream::pair().expect("a pair");
        let error = local_address(socket.as_fd()).expect_err("a unix socket");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = peer_address(socket.as_fd()).expect_err("a unix socket");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn bytes_go_to_this_machine_and_back() {
        let Some((listener, address)) = listener() else {
            return;
        };
        let server = thread::spawn(move || {
            let (socket, peer) = accept(listener.as_fd())?;
            rustix::io::ioctl_fionbio(&socket, false)?;
            // Reading and writing do not care which family a socket is of.
            let mut stream = UnixStream::from(socket);
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes)?;
            stream.write_all(&bytes)?;
            io::Result::Ok(peer)
        });
        let cid = LOCAL;
        let port = address.port;
        let client = match connect(Address { cid, port }, Duration::from_millis(500)) {
            Ok(client) => client,
            Err(error) => {
                eprintln!("skipped: this kernel has no loopback for AF_VSOCK: {error}");
                return;
            }
        };
        let peer = peer_address(client.as_fd()).expect("an address");
        assert_eq!(peer, Address { cid, port });
        let mut stream = UnixStream::from(client);
        stream.write_all(b"ping").expect("sent");
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).expect("an answer");
        assert_eq!(&bytes, b"ping");
        let told = server.join().expect("no panic").expect("a client");
        assert_eq!(told.cid, LOCAL);
    }
}
