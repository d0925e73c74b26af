//! What the kernel can do, found out by doing it.

use std::{
    fs::File,
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
};

use blockferry_sys as sys;

use super::finding::{Finding, Group, State};

/// Enough to be moved in whole pages.
const BYTES: usize = 16 << 10;

pub(super) fn findings() -> Group {
    let mut findings = vec![proc_file_system(), unix_sockets(), tcp(), ipv6()];
    findings.push(temporary_files());
    findings.push(Finding::tried(
        "splice",
        &splice(),
        "payload that nobody looks at goes through kernel pipes, also in 'relay'",
        "payload goes through memory: copies between servers, and 'relay', take more CPU time",
    ));
    findings.extend(with_a_file());
    findings.push(Finding::tried(
        "openat2",
        &sys::try_open_beneath(),
        "symbolic links in 'dir:PATH' may be followed as far as they stay in it",
        "symbolic links in 'dir:PATH' are not followed",
    ));
    findings.push(Finding::tried(
        "process descriptors",
        &sys::try_process_descriptor(),
        "scripts of 'sh:' and 'eval:' are waited for without a thread each",
        "scripts of 'sh:' and 'eval:' cannot be waited for",
    ));
    findings.push(Finding::tried(
        "vsock",
        &sys::vsock::listen(u32::MAX).map(drop),
        "'serve --vsock' can listen for virtual machines, where a module connects them",
        "no 'serve --vsock'",
    ));
    findings.push(io_uring());
    Group(findings)
}

fn needed(name: &str, tried: &io::Result<()>, without: &str) -> Finding {
    match tried {
        Ok(()) => Finding::new(name, State::Yes),
        Err(error) => Finding::new(name, State::Missing)
            .meaning(format!("{without} ({})", crate::system::words(error))),
    }
}

fn proc_file_system() -> Finding {
    let tried = std::fs::read_link("/proc/self/fd/0")
        .or_else(|_| std::fs::read_link("/proc/self/exe"))
        .map(drop);
    let without =
        "mount it: '[ CMD ]' cannot be reached without it, and new files have a name too early";
    needed("/proc", &tried, without)
}

fn unix_sockets() -> Finding {
    let tried = UnixStream::pair().map(drop);
    needed(
        "unix sockets",
        &tried,
        "neither '[ CMD ]' nor 'serve --unix' can work",
    )
}

fn tcp() -> Finding {
    let tried = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop);
    let without = "nothing can be served on 127.0.0.1";
    Finding::tried("TCP", &tried, "", without)
}

fn ipv6() -> Finding {
    let tried = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).map(drop);
    let without = "'serve --listen :PORT' listens on IPv4 alone";
    Finding::tried("IPv6", &tried, "", without)
}

/// Sockets and unpacked images are made there.
fn temporary_files() -> Finding {
    let directory = std::env::temp_dir();
    let tried = tempfile::tempdir().and_then(|directory| {
        UnixListener::bind(directory.path().join("socket"))?;
        directory.close()
    });
    let shown = crate::block::printable(directory.as_os_str());
    let without = format!(
        "{shown} takes no sockets: '[ CMD ]' and 'serve --run' need them; set TMPDIR to a directory that can be written"
    );
    needed("temporary files", &tried, &without).value(shown.clone(), shown)
}

/// From a socket through a pipe into another socket.
fn splice() -> io::Result<()> {
    let (mut giver, source) = UnixStream::pair()?;
    let (target, _taker) = UnixStream::pair()?;
    source.set_nonblocking(true)?;
    giver.write_all(&[1; 512])?;
    let mut pipe = sys::Pipe::new(BYTES)?;
    pipe.fill_once(&source, 512)?;
    pipe.drain_all_to(&target)
}

/// What needs a file to be tried with.
fn with_a_file() -> Vec<Finding> {
    const SENDFILE: &str = "sendfile";
    const CACHESTAT: &str = "cachestat";
    const CACHED_READS: &str = "RWF_NOWAIT";
    let file = match small_file() {
        Ok(file) => file,
        Err(error) => {
            let unknown = |name: &str| {
                let why = crate::system::words(&error);
                let why = format!("there is no file to try it with: {why}");
                Finding::new(name, State::Unknown).meaning(why)
            };
            return [SENDFILE, CACHESTAT, CACHED_READS].map(unknown).into();
        }
    };
    let cached = sys::is_cached(file.as_fd(), 0, BYTES as u64).map(drop);
    let read = sys::read_cached_at(&file, &mut [0; 512], 0).map(drop);
    vec![
        Finding::tried(
            SENDFILE,
            &send_file(&file),
            "'serve' sends pages of files without copying them",
            "'serve' copies what it sends of files",
        ),
        Finding::tried(
            CACHESTAT,
            &cached,
            "'serve' knows what is in memory, and sends that without waiting for a disk",
            "'serve' does not know what is in memory, and sends nothing without copying it",
        ),
        Finding::tried(
            CACHED_READS,
            &read,
            "files are read at once where they are in memory",
            "each read of a file goes to another thread",
        ),
    ]
}

fn small_file() -> io::Result<File> {
    let file = tempfile::tempfile().or_else(|_| tempfile::tempfile_in(Path::new("/dev/shm")))?;
    sys::write_all_at(&file, &[1; BYTES], 0)?;
    Ok(file)
}

fn send_file(file: &File) -> io::Result<()> {
    let (socket, _peer) = UnixStream::pair()?;
    sys::socket::send_file(socket.as_fd(), file.as_fd(), 0, 512).map(drop)
}

fn io_uring() -> Finding {
    let found = match sys::try_io_uring() {
        Ok(()) => Finding::new("io_uring", State::Yes),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::new("io_uring", State::No).shown("blocked")
        }
        Err(_) => Finding::new("io_uring", State::No),
    };
    found.meaning("not used: nothing is lost without it")
}
