//! The sockets that commands listen on: where they are, and what is left of them.

use std::{
    fs, io,
    net::TcpListener,
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use blockferry_sys::{self as sys, socket};

use crate::{endpoint::printable, server::Listener};

use super::super::{
    failure::Failure,
    hints::{LONG_SOCKET, for_listening},
};

/// The longest path of a socket, in bytes: an address has 108 with the NUL at its end (unix(7)).
const LONGEST_SOCKET: usize = 107;

/// The file of a Unix socket that was made here; removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another server may have put its own there since.
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode)) {
            // A file that cannot be removed is replaced by the next server.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`. A socket file that nobody listens on is replaced; anything else there is kept.
pub(crate) async fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), Failure> {
    let name = printable(path.as_os_str());
    if path.as_os_str().len() > LONGEST_SOCKET {
        let failure = Failure::failed(format!("{name}: the path is too long for a socket"));
        return Err(failure.hint(LONG_SOCKET));
    }
    let failed = |error: io::Error| Failure::system(&name, &error);
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path).await?;
            UnixListener::bind(path)
        }
        other => other,
    };
    let listener = listener.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => Some("the directory of the socket is not there: make it"),
            io::ErrorKind::PermissionDenied => {
                Some("a socket needs a directory that this user may write to")
            }
            _ => None,
        };
        match hint {
            Some(hint) => failed(error).hint(hint),
            None => failed(error),
        }
    })?;
    let file = SocketFile::new(path).map_err(failed)?;
    Ok((listener, file))
}

async fn remove_stale(path: &Path) -> Result<(), Failure> {
    let name = printable(path.as_os_str());
    let failed = |error: io::Error| Failure::system(&name, &error);
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.file_type().is_socket() {
        let failure = Failure::failed(format!("{name}: it exists and is not a socket"));
        return Err(failure.hint("sockets replace no other files: take another path"));
    }
    match tokio::net::UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        // Connected, or a queue that is full: somebody is there.
        Ok(_) => Err(in_use(&name)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(in_use(&name)),
        Err(error) => Err(failed(error)),
    }
}

fn in_use(name: &str) -> Failure {
    let failure = Failure::failed(format!("{name}: another server listens there"));
    failure.hint("end that one, or take another path; 'ss -lxp' shows who it is")
}

/// Listens at `ADDR:PORT`; without an address at every one of this machine, IPv6 and IPv4.
pub(crate) fn bind_tcp(address: &str) -> Result<TcpListener, Failure> {
    let listener = match address.strip_prefix(':') {
        Some(port) => port
            .parse()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "no port number"))
            .and_then(socket::listen_everywhere),
        None => bind(address).and_then(|listener| {
            socket::deepen_backlog(listener.as_fd())?;
            Ok(listener)
        }),
    };
    listener.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => {
            Failure::usage(format!("--listen {address}: {error}")).hint("write ADDR:PORT")
        }
        _ => not_listening(address, &error),
    })
}

/// Why nobody can listen at `address`, whose last part is the port, and what to do about it.
pub(super) fn not_listening(address: &str, error: &io::Error) -> Failure {
    let failure = match error.kind() {
        io::ErrorKind::AddrInUse => {
            Failure::failed(format!("{address}: another server listens there"))
        }
        _ => Failure::system(address, error),
    };
    let port = address
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok());
    match for_listening(error, port) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Binds to `HOST:PORT`. The host may name its interface, as in `[fe80::1%eth0]:80`, which only the system's resolver
/// understands, and without the brackets.
fn bind(address: &str) -> io::Result<TcpListener> {
    let zoned = address
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("]:"));
    match zoned {
        Some((host, port)) if host.contains('%') => {
            let port = port.parse::<u16>();
            let port =
                port.map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "no port number"))?;
            TcpListener::bind((host, port))
        }
        _ => TcpListener::bind(address),
    }
}

/// The sockets that this process was handed by systemd socket activation: none where it was not.
pub(crate) fn activated() -> Result<Vec<Listener>, Failure> {
    let failed = |error: io::Error| Failure::system("socket activation", &error);
    let sockets = sys::take_activated_sockets().map_err(failed)?;
    sockets
        .into_iter()
        .map(|socket| Listener::from_activation(socket).map_err(failed))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(path: &Path) -> String {
        let failure = bind_unix(path).await.expect_err("refused");
        assert_eq!(failure.code(), 1);
        failure.to_string()
    }

    #[tokio::test]
    async fn a_socket_goes_with_its_server() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let (listener, file) = bind_unix(&path).await.expect("bound");
        assert!(path.exists());
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn an_address_may_name_its_interface() {
        let listener = bind_tcp("[::1%1]:0").expect("the loopback interface is the first");
        assert!(listener.local_addr().expect("bound").ip().is_loopback());
        let failure = bind_tcp("[::1%1]:x").expect_err("no port");
        assert_eq!(failure.code(), 2, "{failure}");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());
        bind_unix(&path).await.expect("replaced");
    }

    #[tokio::test]
    async fn a_socket_in_use_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let _listener = UnixListener::bind(&path).expect("bound");
        assert!(
            refusal(&path)
                .await
                .contains("another server listens there")
        );
        assert!(path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("precious");
        fs::write(&path, "data").expect("written");
        assert!(refusal(&path).await.contains("is not a socket"));
        assert_eq!(fs::read(&path).expect("still there"), b"data");
    }

    #[tokio::test]
    async fn the_socket_of_a_later_server_is_not_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let (_, file) = bind_unix(&path).await.expect("bound");
        let other = directory.path().join("other");
        let _later = UnixListener::bind(&other).expect("bound");
        fs::rename(&other, &path).expect("renamed");
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn an_address_without_a_port_is_wrong_usage() {
        for address in ["localhost", ":", ":http", ":65536"] {
            assert_eq!(
                bind_tcp(address).expect_err("no port").code(),
                2,
                "{address}"
            );
        }
    }
}
