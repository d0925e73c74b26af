//! Opening, closing, shutting down.

use std::{
    io::Read,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use blockferry_block::{BoxFuture, ClientFacts, ExportEntry, OpenExport, Result, Wish};
use blockferry_proto::{ClientConfig, Command, CommandFlags, Errno, Goal};
use blockferry_server::{Exports, Listener, Server, ServerOptions, SingleExport};

use crate::{
    peer::{Host, options, wait_until},
    probe::{Probe, pattern, probe},
};

const SIZE: usize = 1 << 20;

#[test]
fn a_disconnect_waits_for_what_is_in_flight() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    let mut peer = host.connect();
    device.hold_from(0);
    let read = peer.submit(Command::Read, CommandFlags::empty(), (0, 512), &[]);
    peer.say_goodbye();
    wait_until(|| !device.calls().is_empty());
    device.hold_from(u64::MAX);
    assert_eq!(peer.wait(read).ok(), pattern(512));
    peer.expect_end();
    host.wait_for_event("Disconnected");
}

#[test]
fn a_half_closed_connection_still_gets_its_replies() {
    let host = Host::of(probe(SIZE));
    let mut peer = host.connect();
    let read = peer.submit(Command::Read, CommandFlags::empty(), (0, 512), &[]);
    peer.socket
        .shutdown(std::net::Shutdown::Write)
        .expect("closed");
    assert_eq!(peer.wait(read).ok(), pattern(512));
    peer.expect_end();
}

#[test]
fn shutting_down_finishes_requests_and_flushes_what_was_written() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    let (mut writer, mut reader) = (host.connect(), host.connect());
    writer.write(0, b"data").ok();
    device.hold_from(4096);
    let read = reader.submit(Command::Read, CommandFlags::empty(), (4096, 512), &[]);
    wait_until(|| device.calls().len() == 3);
    host.server.shutdown();
    writer.expect_end();
    device.hold_from(u64::MAX);
    assert_eq!(reader.wait(read).ok(), pattern(SIZE)[4096..4608]);
    reader.expect_end();
    host.join();
    let flushes = device
        .calls()
        .iter()
        .filter(|call| *call == "flush")
        .count();
    assert_eq!(flushes, 1);
}

#[test]
fn what_a_gone_client_wrote_is_flushed_at_the_end() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    let mut peer = host.connect();
    peer.write(0, b"data").ok();
    peer.disconnect();
    host.wait_for_event("Disconnected");
    assert!(!device.calls().contains(&"flush".to_owned()));
    host.server.shutdown();
    host.join();
    assert_eq!(device.calls().last().map(String::as_str), Some("flush"));
}

#[test]
fn requests_during_the_shutdown_are_told_so() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    let mut peer = host.connect();
    device.hold_from(0);
    let before = peer.submit(Command::Read, CommandFlags::empty(), (0, 512), &[]);
    wait_until(|| !device.calls().is_empty());
    host.server.shutdown();
    // Until the server has noticed, requests may still be taken.
    let refused = loop {
        let late = peer.submit(
            Command::Write,
            CommandFlags::empty(),
            (512, 1000),
            &[7; 1000],
        );
        thread::sleep(Duration::from_millis(20));
        if device.calls().len() == 1 {
            break late;
        }
    };
    assert_eq!(peer.wait(refused).errno(), Some(Errno::ESHUTDOWN));
    device.hold_from(u64::MAX);
    assert_eq!(peer.wait(before).ok(), pattern(512));
    peer.expect_end();
    host.join();
}

#[test]
fn clients_that_neither_read_nor_hang_up_do_not_hold_the_shutdown() {
    let options = options(|options| options.shutdown_grace = Duration::from_millis(100));
    let host = Host::with(probe(SIZE), options);
    let idle = host.connect();
    let unfinished = host.raw();
    let mut deaf = host.connect();
    for _ in 0..40 {
        deaf.submit(Command::Read, CommandFlags::empty(), (0, SIZE as u64), &[]);
    }
    let mut stuck = host.connect();
    stuck.submit_partly(Command::Write, (0, 1000), &[1; 10]);
    host.server.shutdown();
    host.join();
    drop((idle, unfinished, deaf, stuck));
}

#[test]
fn what_a_device_never_finishes_holds_neither_a_place_nor_the_shutdown() {
    let options = options(|options| {
        options.max_connections = 1;
        options.shutdown_grace = Duration::from_millis(100);
        options.device_patience = Duration::from_millis(100);
    });
    let device = probe(SIZE);
    let host = Host::with(device.clone(), options);
    device.hold_from(0);
    // One that goes while the device works for it.
    let mut gone = host.connect();
    gone.submit(Command::Read, CommandFlags::empty(), (0, 512), &[]);
    wait_until(|| device.calls().len() == 1);
    drop(gone);
    // There is one place only.
    let mut next = host.connect();
    next.submit(Command::Write, CommandFlags::empty(), (0, 512), &[1; 512]);
    wait_until(|| device.calls().len() == 2);
    host.server.shutdown();
    // The flush of what may have been written is held as well, so let it go.
    next.expect_end();
    device.hold_from(u64::MAX);
    host.join();
}

#[test]
fn a_server_that_is_aborted_waits_for_nobody() {
    let hour = Duration::from_secs(3600);
    let options = options(|options| {
        options.shutdown_grace = hour;
        options.device_patience = hour;
    });
    let device = probe(SIZE);
    let host = Host::with(device.clone(), options);
    device.hold_from(0);
    let mut peer = host.connect();
    peer.submit(Command::Read, CommandFlags::empty(), (0, 512), &[]);
    wait_until(|| !device.calls().is_empty());
    let unfinished = host.raw();
    host.server.shutdown();
    host.server.abort();
    // A shutdown that is asked for later does not make it wait again.
    host.server.shutdown();
    peer.expect_end();
    host.join();
    drop(unfinished);
}

#[test]
fn a_server_that_was_shut_down_serves_no_more() {
    let device = probe(SIZE);
    let server = Server::new(
        Arc::new(SingleExport::new(device)),
        ServerOptions::default(),
    );
    server.shutdown();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a listener");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(server.serve(vec![listener.into()]))
        .expect("an end");
    assert!(std::os::unix::net::UnixStream::connect(&path).is_err());
}

/// Counts how often a device is opened.
struct Counted(AtomicUsize);

impl Exports for Counted {
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn open<'a>(&'a self, _: &'a str, _: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(OpenExport::new(probe(4096))) })
    }
}

#[test]
fn a_device_is_opened_when_it_is_asked_for_and_once_for_a_connection() {
    let exports = Arc::new(Counted(AtomicUsize::new(0)));
    let host = Host::of_exports(exports.clone(), ServerOptions::default());
    let goal = |goal| {
        let mut options = ClientConfig::default();
        options.goal = goal;
        options
    };
    let silent = host.raw();
    assert!(host.handshake(goal(Goal::List)).is_ok());
    assert_eq!(exports.0.load(Ordering::Relaxed), 0);
    // Contexts are selected before the export is gone for.
    let mut peer = host.connect();
    assert_eq!(peer.read(0, 10).ok(), pattern(10));
    assert_eq!(exports.0.load(Ordering::Relaxed), 1);
    drop(silent);
}

/// Wants the server to end once every device that it gave out is gone.
struct WithoutClients(Mutex<Vec<Weak<Probe>>>);

impl Exports for WithoutClients {
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn open<'a>(&'a self, _: &'a str, _: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        let device = probe(4096);
        let mut given = self.0.lock().expect("no panic");
        given.push(Arc::downgrade(&device));
        Box::pin(async { Ok(OpenExport::new(device)) })
    }

    fn wish(&self) -> Option<Wish> {
        let given = self.0.lock().expect("no panic");
        let all_gone = given.iter().all(|device| device.strong_count() == 0);
        (!given.is_empty() && all_gone).then_some(Wish::ShutDown)
    }
}

#[test]
fn exports_are_asked_what_they_wish_for_after_each_connection() {
    let exports = WithoutClients(Mutex::default());
    let host = Host::of_exports(Arc::new(exports), ServerOptions::default());
    let (mut one, mut other) = (host.connect(), host.connect());
    one.write(0, b"not flushed").ok();
    one.disconnect();
    wait_until(|| host.events().iter().any(|event| event.contains("Closed")));
    assert_eq!(other.read(0, 10).ok(), pattern(10));
    let mut third = host.connect();
    other.disconnect();
    assert_eq!(third.read(0, 10).ok(), pattern(10));
    // Also of a client that only goes.
    drop(third);
    host.join();
}

#[test]
fn tcp_and_unix_listeners_are_served_together() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let unix = std::os::unix::net::UnixListener::bind(&path).expect("a listener");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = tcp.local_addr().expect("an address");
    // As socket activation hands them over.
    let listeners = vec![
        Listener::from_activation(OwnedFd::from(unix)).expect("a unix socket"),
        Listener::from_activation(OwnedFd::from(tcp)).expect("a TCP socket"),
    ];
    assert!(matches!(
        listeners[..],
        [Listener::Unix(_), Listener::Tcp(_)]
    ));
    let server = Server::new(
        Arc::new(SingleExport::new(probe(SIZE))),
        ServerOptions::default(),
    );
    let handle = server.clone();
    let thread = thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(handle.serve(listeners))
    });
    let mut greeting = [0; 8];
    let mut socket = std::net::TcpStream::connect(address).expect("a connection");
    socket.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"NBDMAGIC");
    let mut socket = std::os::unix::net::UnixStream::connect(&path).expect("a connection");
    socket.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"NBDMAGIC");
    server.shutdown();
    thread.join().expect("no panic").expect("an end");
}

#[test]
fn a_file_is_no_listener() {
    let file = tempfile::tempfile().expect("a file");
    assert!(Listener::from_activation(OwnedFd::from(file)).is_err());
}
