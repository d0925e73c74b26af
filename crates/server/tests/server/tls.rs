//! TLS: who gets it, what goes through it, and what must not.

use std::{
    fs::File,
    io::{Read, Write},
    net::Shutdown,
    sync::{Arc, Mutex},
    time::Duration,
};

use blockferry_block::{
    Access, BoxFuture, ClientFacts, ExportEntry, FileDevice, OpenExport, Result,
};
use blockferry_proto::{ClientConfig, Command, CommandFlags, Errno, Goal, OptionCode, wire};
use blockferry_server::{Exports, SingleExport, TlsPolicy};
use blockferry_tls::Verification;

use crate::{
    peer::{Host, wait_until},
    probe::{pattern, probe},
    secure::{Realm, SecureSocket, session},
};

const SIZE: usize = 4 << 20;

/// A server of a pattern with TLS.
fn host(realm: &Realm, policy: TlsPolicy, clients: Verification) -> Host {
    Host::with(probe(SIZE), realm.server(policy, clients, |_| {}))
}

/// Says hello and that TLS is to begin, up to the server's consent.
fn start_tls(host: &Host, behind: &[u8]) -> SecureSocket {
    let mut socket = host.raw();
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).expect("a greeting");
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(option(OptionCode::StartTls));
    bytes.extend(behind);
    socket.write_all(&bytes).expect("sent");
    let mut consent = [0; 20];
    socket.read_exact(&mut consent).expect("an answer");
    assert_eq!(consent[12..16], 1_u32.to_be_bytes(), "NBD_REP_ACK");
    SecureSocket::plain(socket)
}

/// An option without a payload.
fn option(code: OptionCode) -> Vec<u8> {
    let mut bytes = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(code.to_wire().to_be_bytes());
    bytes.extend(0_u32.to_be_bytes());
    bytes
}

/// The server hangs up.
fn expect_end(mut socket: SecureSocket) {
    // A server that leaves bytes unread resets the connection.
    let mut rest = Vec::new();
    let _ = socket.socket.read_to_end(&mut rest);
}

#[test]
fn what_is_read_and_written_through_tls_is_what_is_there() {
    let realm = Realm::new();
    for (structured, extended) in [(false, false), (true, false), (true, true)] {
        let host = host(&realm, TlsPolicy::Require, Verification::Off);
        let mut config = ClientConfig::default();
        config.structured = structured;
        config.extended = extended;
        let mut peer = realm.connect_as(&host, "trust", config);
        assert!(peer.negotiated().tls);
        let mut expected = pattern(SIZE);
        assert!(peer.read(0, SIZE as u64).ok() == expected);
        for (offset, length) in [(0, 1), (777, 70_000), (1 << 20, 3 << 20)] {
            let data = vec![7; length];
            peer.write(offset as u64, &data).ok();
            expected[offset..offset + length].copy_from_slice(&data);
        }
        peer.flush().ok();
        assert!(peer.read(0, SIZE as u64).ok() == expected);
        peer.disconnect();
        host.wait_for_event("Disconnected");
    }
}

#[test]
fn more_replies_than_the_socket_takes_at_once_all_arrive() {
    let realm = Realm::new();
    let options = realm.server(TlsPolicy::Require, Verification::Off, |options| {
        options.max_in_flight_bytes = 64 << 20;
    });
    let host = Host::with(probe(SIZE), options);
    let mut peer = realm.connect(&host);
    let length = 256 << 10;
    // 16 MiB, of which nothing is read before all is asked for.
    let reads: Vec<_> = (0..64)
        .map(|index| {
            let range = (index % 16 * length, length);
            let cookie = peer.submit(Command::Read, CommandFlags::empty(), range, &[]);
            (cookie, range.0 as usize)
        })
        .collect();
    let expected = pattern(SIZE);
    for (cookie, offset) in reads {
        let data = peer.wait(cookie).ok();
        assert!(data == expected[offset..offset + length as usize]);
    }
    peer.disconnect();
}

#[test]
fn the_last_replies_leave_before_the_connection_ends() {
    let realm = Realm::new();
    let host = host(&realm, TlsPolicy::Require, Verification::Off);
    let mut peer = realm.connect(&host);
    let reads: Vec<_> = (0..3)
        .map(|_| {
            let range = (0, SIZE as u64);
            peer.submit(Command::Read, CommandFlags::empty(), range, &[])
        })
        .collect();
    // Half closed: it sends no more, but takes what it asked for.
    peer.socket.close();
    peer.socket
        .socket
        .shutdown(Shutdown::Write)
        .expect("closed");
    for read in reads {
        assert!(peer.wait(read).ok() == pattern(SIZE));
    }
    assert_eq!(peer.socket.read(&mut [0]).expect("the end"), 0);
    assert!(
        peer.socket.closed,
        "the server said that nothing more comes"
    );
}

#[test]
fn files_are_not_sent_in_the_clear() {
    let realm = Realm::new();
    let path = realm.directory("image");
    let image = pattern(SIZE);
    File::create(&path)
        .and_then(|mut file| file.write_all(&image))
        .expect("room");
    let device = FileDevice::open(&path, Access::ReadOnly).expect("a device");
    let options = realm.server(TlsPolicy::Require, Verification::Off, |_| {});
    let host = Host::with(Arc::new(device), options);
    let mut peer = realm.connect(&host);
    for _ in 0..3 {
        assert!(peer.read(0, SIZE as u64).ok() == image);
    }
    peer.disconnect();
}

#[test]
fn a_refused_write_is_read_to_its_end_and_the_connection_lives_on() {
    let realm = Realm::new();
    let options = realm.server(TlsPolicy::Require, Verification::Off, |options| {
        options.read_only = true;
    });
    let host = Host::with(probe(SIZE), options);
    let mut peer = realm.connect(&host);
    // The client's own side would not send it: a write behind the export's end, to a read-only one.
    let cookie = 0x1234_u64;
    let length = 1 << 20;
    let mut bytes = wire::EXTENDED_REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(CommandFlags::PAYLOAD_LEN.bits().to_be_bytes());
    bytes.extend(1_u16.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(4096_u64.to_be_bytes());
    bytes.extend((length as u64).to_be_bytes());
    bytes.extend(vec![0x25; length]);
    peer.socket.write_all(&bytes).expect("sent");
    // An extended error chunk: 32 bytes of header, then the error number.
    let mut header = [0; 32];
    peer.socket.read_exact(&mut header).expect("a reply");
    assert_eq!(header[8..16], cookie.to_be_bytes());
    let payload = u64::from_be_bytes(header[24..].try_into().expect("8 bytes"));
    let mut body = vec![0; payload as usize];
    peer.socket.read_exact(&mut body).expect("a reply");
    assert_eq!(body[..4], Errno::EPERM.0.to_be_bytes());
    assert!(peer.read(0, SIZE as u64).ok() == pattern(SIZE));
    peer.disconnect();
    host.wait_for_event("Disconnected");
}

#[test]
fn a_server_that_requires_tls_says_nothing_without_it() {
    let realm = Realm::new();
    let host = host(&realm, TlsPolicy::Require, Verification::Off);
    for goal in [Goal::Transmit, Goal::List] {
        let mut config = ClientConfig::default();
        config.goal = goal;
        let refusal = host.handshake(config).expect_err("no TLS");
        assert!(refusal.contains("TLS"), "{refusal}");
    }
    realm.connect(&host).disconnect();
}

#[test]
fn a_server_that_offers_tls_takes_clients_with_it_and_without() {
    let realm = Realm::new();
    let host = host(&realm, TlsPolicy::Offer, Verification::Off);
    let (mut plain, mut secure) = (host.connect(), realm.connect(&host));
    assert!(!plain.negotiated().tls && secure.negotiated().tls);
    assert!(plain.read(0, SIZE as u64).ok() == pattern(SIZE));
    assert!(secure.read(0, SIZE as u64).ok() == pattern(SIZE));
    plain.disconnect();
    secure.disconnect();
}

#[test]
fn a_server_without_tls_says_so() {
    let realm = Realm::new();
    let host = Host::of(probe(SIZE));
    let refusal = realm.handshake(&host, "trust", ClientConfig::default());
    let refusal = refusal.map(|_| ()).expect_err("no TLS");
    assert!(refusal.contains("TLS"), "{refusal}");
}

#[test]
fn clients_are_verified_where_that_is_asked_for() {
    let realm = Realm::new();
    let host = host(&realm, TlsPolicy::Require, Verification::On);
    realm
        .connect_as(&host, "member", ClientConfig::default())
        .disconnect();
    let refusal = realm.handshake(&host, "trust", ClientConfig::default());
    refusal.map(|_| ()).expect_err("it has no certificate");
    host.wait_for_event("Tls(NoCertificate)");
    // One of another authority; the server's own is trusted.
    let stranger = Realm::new();
    let copied = stranger.directory("member").join("ca-cert.pem");
    std::fs::copy(realm.directory("trust").join("ca-cert.pem"), copied).expect("room");
    let refusal = stranger.handshake(&host, "member", ClientConfig::default());
    refusal.map(|_| ()).expect_err("it is a stranger");
    host.wait_for_event("Tls(Certificate(");
    // Those who come later are served.
    realm
        .connect_as(&host, "member", ClientConfig::default())
        .disconnect();
}

#[test]
fn a_client_that_does_not_trust_the_server_is_told_of() {
    let (realm, stranger) = (Realm::new(), Realm::new());
    let host = host(&realm, TlsPolicy::Require, Verification::Off);
    let refusal = stranger.handshake(&host, "trust", ClientConfig::default());
    refusal.map(|_| ()).expect_err("the server is a stranger");
    host.wait_for_event("Tls(");
    realm.connect(&host).disconnect();
}

#[test]
fn what_was_slipped_in_before_tls_is_never_taken_for_what_came_through_it() {
    let realm = Realm::new();
    let host = host(&realm, TlsPolicy::Offer, Verification::Off);
    // A wish to hear of the exports, in the clear, together with the one for TLS.
    let mut socket = start_tls(&host, &option(OptionCode::List));
    let _ = socket.secure(session(&realm.directory("trust")));
    expect_end(socket);
    host.wait_for_event("Tls(Plaintext)");
    realm.connect(&host).disconnect();
}

#[test]
fn what_was_agreed_on_before_tls_does_not_count() {
    let realm = Realm::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let exports = Watched {
        inner: SingleExport::new(probe(SIZE)),
        seen: Arc::clone(&seen),
    };
    let options = realm.server(TlsPolicy::Offer, Verification::Off, |_| {});
    let host = Host::of_exports(Arc::new(exports), options);
    let mut socket = host.raw();
    socket.read_exact(&mut [0; 18]).expect("a greeting");
    // NBD_OPT_INFO of the default export, before TLS.
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(wire::OPTION_MAGIC.to_be_bytes());
    bytes.extend(OptionCode::Info.to_wire().to_be_bytes());
    bytes.extend(6_u32.to_be_bytes());
    bytes.extend([0; 6]);
    socket.write_all(&bytes).expect("sent");
    wait_until(|| !seen.lock().expect("not poisoned").is_empty());
    drop(socket);
    realm.connect(&host).disconnect();
    let seen = seen.lock().expect("not poisoned").clone();
    assert_eq!(seen.first(), Some(&false));
    assert_eq!(seen.last(), Some(&true));
}

#[test]
fn garbage_instead_of_tls_ends_the_connection() {
    let realm = Realm::new();
    let host = host(&realm, TlsPolicy::Require, Verification::Off);
    let garbage: [&[u8]; 4] = [
        &[0xff; 4096],
        b"GET / HTTP/1.1\r\n\r\n",
        // A handshake record that promises a message of 16 MiB, then nothing that makes sense.
        &[
            0x16, 3, 1, 0, 8, 1, 0xff, 0xff, 0xff, 0, 0, 0, 0, 9, 9, 9, 9, 9,
        ],
        // An alert.
        &[0x15, 3, 3, 0, 2, 2, 40],
    ];
    for bytes in garbage {
        let mut socket = start_tls(&host, &[]);
        socket.socket.write_all(bytes).expect("sent");
        expect_end(socket);
    }
    wait_until(|| {
        let events = host.events();
        events.iter().filter(|event| event.contains("Tls(")).count() == garbage.len()
    });
    realm.connect(&host).disconnect();
}

#[test]
fn a_client_that_stalls_or_hangs_up_in_the_handshake_of_tls_is_dropped() {
    let realm = Realm::new();
    let options = realm.server(TlsPolicy::Require, Verification::Off, |options| {
        options.handshake_timeout = Duration::from_millis(300);
    });
    let host = Host::with(probe(SIZE), options);
    // Nothing at all, or the beginning of a record.
    for part in [&[][..], &[0x16, 3, 1]] {
        let mut socket = start_tls(&host, &[]);
        socket.socket.write_all(part).expect("sent");
        expect_end(socket);
    }
    let count = |text: &str| {
        let events = host.events();
        events.iter().filter(|event| event.contains(text)).count()
    };
    wait_until(|| count("HandshakeTimedOut") == 2);
    drop(start_tls(&host, &[]));
    host.wait_for_event("Vanished");
    // It has seen the server's certificate, and does not like it.
    let mut socket = start_tls(&host, &[]);
    let mut client = session(&realm.directory("trust"));
    let _ = client.handshake().expect("a beginning");
    socket.socket.write_all(client.outgoing()).expect("sent");
    socket.socket.read_exact(&mut [0; 100]).expect("an answer");
    socket.socket.shutdown(Shutdown::Write).expect("closed");
    expect_end(socket);
    host.wait_for_event("Tls(HungUp)");
}

#[test]
fn a_connection_that_is_cut_within_a_record_is_over() {
    let realm = Realm::new();
    let host = host(&realm, TlsPolicy::Require, Verification::Off);
    let mut peer = realm.connect(&host);
    assert_eq!(peer.read(0, 512).ok(), pattern(512));
    peer.socket
        .socket
        .write_all(&[0x17, 3, 3, 0x40, 0, 1, 2])
        .expect("sent");
    drop(peer);
    host.wait_for_event("Vanished");
}

#[test]
fn a_forged_record_ends_the_connection() {
    let realm = Realm::new();
    let host = host(&realm, TlsPolicy::Require, Verification::Off);
    let mut peer = realm.connect(&host);
    let mut forged = vec![0x17, 3, 3, 0, 60];
    forged.extend([9; 60]);
    peer.socket.socket.write_all(&forged).expect("sent");
    // The server says what is wrong.
    peer.socket.read(&mut [0]).expect_err("an alert");
    host.wait_for_event("Tls(Protocol");
}

#[test]
fn a_shutdown_finishes_what_is_in_flight_through_tls() {
    let realm = Realm::new();
    let device = probe(SIZE);
    let options = realm.server(TlsPolicy::Require, Verification::Off, |_| {});
    let host = Host::with(device.clone(), options);
    let mut peer = realm.connect(&host);
    device.hold_from(4096);
    let read = peer.submit(Command::Read, CommandFlags::empty(), (4096, 512), &[]);
    wait_until(|| !device.calls().is_empty());
    host.server.shutdown();
    device.hold_from(u64::MAX);
    assert_eq!(peer.wait(read).ok(), pattern(SIZE)[4096..4608]);
    assert_eq!(peer.socket.read(&mut [0]).expect("the end"), 0);
    assert!(peer.socket.closed);
    host.join();
}

#[test]
fn certificates_that_cannot_be_read_any_more_are_named() {
    let realm = Realm::new();
    let host = host(&realm, TlsPolicy::Require, Verification::Off);
    realm.connect(&host).disconnect();
    let key = realm.directory("server").join("server-key.pem");
    let saved = std::fs::read(&key).expect("it is there");
    std::fs::remove_file(&key).expect("it is there");
    let failure = realm.handshake(&host, "trust", ClientConfig::default());
    failure.map(|_| ()).expect_err("no key");
    host.wait_for_event("server-key.pem");
    std::fs::write(&key, saved).expect("room");
    realm.connect(&host).disconnect();
}

/// Takes note of what is known of clients that open an export.
struct Watched {
    inner: SingleExport,
    seen: Arc<Mutex<Vec<bool>>>,
}

impl Exports for Watched {
    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        self.inner.list(client)
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        self.seen.lock().expect("not poisoned").push(client.tls);
        self.inner.open(name, client)
    }
}
