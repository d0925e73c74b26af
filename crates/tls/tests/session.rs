//! A session and rustls's own server, joined in memory: every byte arrives, in any portions, whatever TLS has to
//! say in between.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    path::Path,
    sync::Arc,
};

use blockferry_tls::{Certificates, ClientOptions, Error, ErrorKind, Handshake, Received, Session};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

/// A server with a certificate for `localhost`, and a client that trusts it.
struct Pair {
    _room: TempDir,
    client: Session,
    server: ServerConnection,
    /// What has arrived at the server.
    arrived: Vec<u8>,
}

impl Pair {
    fn new(room: TempDir, config: ServerConfig) -> Self {
        let mut server = ServerConnection::new(Arc::new(config)).expect("a server");
        server.set_buffer_limit(None);
        let client = options(room.path()).session().expect("a session");
        Self {
            _room: room,
            client,
            server,
            arrived: Vec::new(),
        }
    }

    /// The same after the handshake.
    fn joined(version: &'static SupportedProtocolVersion) -> Self {
        let room = tempfile::tempdir().expect("a directory");
        let (chain, key) = certificates(room.path());
        let config = ServerConfig::builder_with_protocol_versions(&[version])
            .with_no_client_auth()
            .with_single_cert(chain, key);
        let mut pair = Self::new(room, config.expect("they fit"));
        pair.join().expect("they trust each other");
        pair
    }

    fn join(&mut self) -> Result<(), Error> {
        loop {
            let step = self.client.handshake();
            self.send(usize::MAX);
            if step? == Handshake::Done {
                return Ok(());
            }
            self.receive(usize::MAX);
        }
    }

    /// Carries what the client has to say, `portion` bytes at a time.
    fn send(&mut self, portion: usize) {
        while !self.client.outgoing().is_empty() {
            let outgoing = self.client.outgoing();
            let mut bytes = &outgoing[..outgoing.len().min(portion)];
            let count = self.server.read_tls(&mut bytes).expect("room");
            self.client.sent(count);
            // What is wrong is told to the client.
            let _ = self.server.process_new_packets();
            // Nothing to read, or the end, is no error here.
            let _ = self.server.reader().read_to_end(&mut self.arrived);
        }
    }

    /// Carries what the server has to say, as far as the client has room for it, at most `limit` bytes.
    fn receive(&mut self, limit: usize) -> usize {
        let mut room = Bounded {
            room: self.client.room(),
            limit,
            filled: 0,
        };
        while self.server.wants_write() && room.filled < room.room.len().min(limit) {
            self.server.write_tls(&mut room).expect("room");
        }
        let filled = room.filled;
        self.client.received(filled);
        filled
    }

    /// What has arrived at the server since this was asked last.
    fn server_reads(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.arrived)
    }
}

struct Bounded<'a> {
    room: &'a mut [u8],
    limit: usize,
    filled: usize,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.room.len().min(self.limit);
        let count = (&mut self.room[self.filled..end]).write(bytes)?;
        self.filled += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Chain = Vec<CertificateDer<'static>>;

fn certificates(room: &Path) -> (Chain, PrivateKeyDer<'static>) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = params.self_signed(&key).expect("a certificate");
    fs::write(room.join("ca-cert.pem"), authority.pem()).expect("room");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    (vec![certificate.der().clone()], key)
}

fn options(room: &Path) -> ClientOptions {
    ClientOptions::new("localhost", Certificates::Directory(room.to_owned()))
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 % 251) as u8).collect()
}

/// Reads into slices of these sizes, once.
fn read(client: &mut Session, sizes: [usize; 3]) -> Result<(Vec<u8>, Received), Error> {
    let mut buffers = sizes.map(|size| vec![0; size]);
    let mut slices = buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
    let received = client.read(&mut slices)?;
    let mut all = buffers.concat();
    match received {
        Received::Bytes(count) => all.truncate(count),
        _ => all.clear(),
    }
    Ok((all, received))
}

/// Reads until nothing is left of what has arrived.
fn read_all(client: &mut Session, sizes: [usize; 3]) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match read(client, sizes).expect("the server is honest") {
            (part, Received::Bytes(_)) => all.extend(part),
            _ => return all,
        }
    }
}

#[test]
fn what_the_server_sends_arrives_in_slices_of_any_size() {
    let data = bytes(300_000);
    for version in [&TLS12, &TLS13] {
        for (sizes, limit) in [
            ([100_000, 32, 262_144], usize::MAX),
            ([0, 16, 0], 5000),
            ([1, 2, 3], 100_000),
            ([16_384, 20, 16_384], 17),
        ] {
            let mut pair = Pair::joined(version);
            pair.server.writer().write_all(&data).expect("room");
            let mut arrived = Vec::new();
            while pair.receive(limit) > 0 {
                arrived.extend(read_all(&mut pair.client, sizes));
            }
            assert!(arrived == data, "{sizes:?}, {limit}");
        }
    }
}

#[test]
fn what_the_client_sends_arrives_from_slices_of_any_size() {
    let data = bytes(1_000_000);
    for version in [&TLS12, &TLS13] {
        for parts in [
            &[28, 262_144, 28, 100_000, 28, 28][..],
            &[5; 30],
            &[4095, 4096, 4097, 0, 600_000, 1],
        ] {
            let mut pair = Pair::joined(version);
            let mut rest = &data[..];
            let slices: Vec<_> = parts
                .iter()
                .map(|length| IoSlice::new(rest.split_off(..*length).expect("long enough")))
                .collect();
            let size: usize = parts.iter().sum();
            let (mut sent, mut arrived) = (0, Vec::new());
            while sent < size {
                let count = pair.client.write(&slices, sent).expect("it may");
                assert!(count > 0 && sent + count <= size);
                sent += count;
                pair.send(4000);
                arrived.extend(pair.server_reads());
            }
            assert!(arrived == data[..size], "{parts:?}");
        }
    }
}

#[test]
fn who_writes_before_reading_everything_loses_nothing() {
    let mut pair = Pair::joined(&TLS13);
    let data = bytes(100_000);
    pair.server.writer().write_all(&data).expect("room");
    pair.receive(60_000);
    let (mut arrived, _) = read(&mut pair.client, [10, 0, 5]).expect("honest");
    let question = [IoSlice::new(b"a question")];
    pair.client.write(&question, 0).expect("it may");
    pair.send(usize::MAX);
    assert_eq!(pair.server_reads(), b"a question");
    pair.receive(usize::MAX);
    pair.client.write(&question, 0).expect("it may");
    arrived.extend(read_all(&mut pair.client, [7000, 1, 300]));
    assert!(arrived == data);
}

#[test]
fn new_keys_in_the_middle_are_taken_and_answered() {
    let mut pair = Pair::joined(&TLS13);
    for round in 0..3 {
        pair.server.writer().write_all(b"before").expect("room");
        pair.server.refresh_traffic_keys().expect("TLS 1.3");
        pair.server.writer().write_all(b"after").expect("room");
        // A byte at a time: messages of TLS itself are split, too.
        let mut arrived = Vec::new();
        while pair.receive(1) > 0 {
            arrived.extend(read_all(&mut pair.client, [3, 3, 3]));
        }
        assert_eq!(arrived, b"beforeafter", "{round}");
        let answer = [IoSlice::new(b"answer")];
        pair.client.write(&answer, 0).expect("it may");
        pair.send(usize::MAX);
        assert_eq!(pair.server_reads(), b"answer");
    }
}

#[test]
fn an_end_that_was_said_is_told() {
    for version in [&TLS12, &TLS13] {
        let mut pair = Pair::joined(version);
        pair.server
            .writer()
            .write_all(b"the last words")
            .expect("room");
        pair.server.send_close_notify();
        pair.receive(usize::MAX);
        let (words, _) = read(&mut pair.client, [100, 0, 0]).expect("honest");
        assert_eq!(words, b"the last words");
        for _ in 0..2 {
            let (_, end) = read(&mut pair.client, [100, 0, 0]).expect("honest");
            assert_eq!(end, Received::Closed);
        }
        pair.client.close();
        pair.send(usize::MAX);
        let end = pair.server.reader().read(&mut [0]);
        assert_eq!(end.expect("a proper end"), 0);
    }
}

#[test]
fn a_record_that_was_tampered_with_ends_the_session() {
    let mut pair = Pair::joined(&TLS13);
    pair.server.writer().write_all(&bytes(1000)).expect("room");
    let count = pair.receive(usize::MAX);
    assert!(count > 1000);
    // The room begins behind what has arrived: nothing was read yet.
    let mut forged = vec![0x17, 3, 3, 0, 40];
    forged.extend([0x5a; 40]);
    pair.client.room()[..forged.len()].copy_from_slice(&forged);
    pair.client.received(forged.len());
    let error = loop {
        match read(&mut pair.client, [4096, 0, 0]) {
            Ok((_, Received::Bytes(_))) => {}
            Ok(other) => panic!("the forged record was taken: {other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(!pair.client.outgoing().is_empty(), "the server is told");
}

#[test]
fn what_came_before_a_forged_record_is_read_before_the_error_is_told() {
    let data = bytes(1000);
    for size in [4096, 10] {
        let mut pair = Pair::joined(&TLS13);
        pair.server.writer().write_all(&data).expect("room");
        pair.receive(usize::MAX);
        let mut forged = vec![0x17, 3, 3, 0, 40];
        forged.extend([0x5a; 40]);
        pair.client.room()[..forged.len()].copy_from_slice(&forged);
        pair.client.received(forged.len());
        let mut arrived = Vec::new();
        let error = loop {
            match read(&mut pair.client, [size, 0, 0]) {
                Ok((part, _)) => arrived.extend(part),
                Err(error) => break error,
            }
        };
        assert!(arrived == data, "{size}: {} bytes", arrived.len());
        assert_eq!(error.kind(), ErrorKind::Protocol);
        let again = read(&mut pair.client, [size, 0, 0]).expect_err("it has ended");
        assert_eq!(again.to_string(), error.to_string());
    }
}

#[test]
fn who_waits_has_no_memory_for_what_has_passed() {
    let mut pair = Pair::joined(&TLS13);
    let data = bytes(1_000_000);
    for _ in 0..2 {
        pair.server.writer().write_all(&data).expect("room");
        let mut arrived = Vec::new();
        while pair.receive(usize::MAX) > 0 {
            arrived.extend(read_all(&mut pair.client, [100, 100_000, 100]));
        }
        assert!(arrived == data);
        let mut sent = 0;
        let slices = [&data[..3000], &data[3000..]].map(IoSlice::new);
        while sent < data.len() {
            sent += pair.client.write(&slices, sent).expect("it may");
            assert!(pair.client.memory() > 256 << 10);
            pair.send(usize::MAX);
        }
        assert!(pair.server_reads() == data);
        pair.client.rest();
        assert!(pair.client.memory() <= 1024, "{}", pair.client.memory());
    }
    // Half of a record is kept.
    pair.server.writer().write_all(b"a question").expect("room");
    pair.receive(10);
    assert_eq!(read_all(&mut pair.client, [100, 0, 0]), b"");
    pair.client.rest();
    pair.receive(usize::MAX);
    assert_eq!(read_all(&mut pair.client, [100, 0, 0]), b"a question");
}

#[test]
fn floods_of_nonsense_end_in_an_error_and_not_in_memory() {
    // Handshake records without end, of a message that never becomes whole; then records of nothing.
    let endless: Vec<u8> = {
        let mut record = vec![0x16, 3, 3, 0x40, 0, 2, 0xff, 0xff, 0xff];
        record.resize(5 + 0x4000, 0);
        record
    };
    for record in [endless, vec![0x17, 3, 3, 0, 0], vec![0x14, 3, 3, 0, 1, 1]] {
        let room = tempfile::tempdir().expect("a directory");
        certificates(room.path());
        let mut client = options(room.path()).session().expect("a session");
        let mut rounds = 0;
        let ended = loop {
            match client.handshake() {
                Ok(Handshake::Done) => panic!("nobody has proved anything"),
                Ok(Handshake::SendAndReceive) => {}
                Err(error) => break Some(error),
            }
            let space = client.room();
            if space.is_empty() || rounds > 1000 {
                break None;
            }
            let count = record.len().min(space.len());
            space[..count].copy_from_slice(&record[..count]);
            client.received(count);
            rounds += 1;
        };
        assert!(rounds <= 1000, "it went on for ever");
        if let Some(error) = ended {
            assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        }
    }
}

#[test]
fn a_revoked_certificate_is_refused() {
    let room = tempfile::tempdir().expect("a directory");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("a key");
    let authority = params.self_signed(&key).expect("a certificate");
    fs::write(room.path().join("ca-cert.pem"), authority.pem()).expect("room");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.serial_number = Some(SerialNumber::from(77));
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    let now = OffsetDateTime::now_utc();
    let list = CertificateRevocationListParams {
        this_update: now - Duration::days(1),
        next_update: now + Duration::days(1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(77),
            revocation_time: now - Duration::hours(1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).expect("a list");
    fs::write(room.path().join("ca-crl.pem"), list.pem().expect("PEM")).expect("room");

    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .expect("they fit");
    let mut pair = Pair::new(room, config);
    let error = pair.join().expect_err("it was revoked");
    assert_eq!(error.kind(), ErrorKind::Untrusted);
    assert!(error.to_string().contains("was revoked"), "{error}");
}

#[test]
fn a_server_that_wants_a_certificate_is_remembered() {
    let room = tempfile::tempdir().expect("a directory");
    let (chain, key) = certificates(room.path());
    let authorities = fs::read(room.path().join("ca-cert.pem")).expect("it is there");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&authorities).expect("PEM"))
        .expect("an authority");
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots));
    let config = ServerConfig::builder()
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(chain, key)
        .expect("they fit");
    let mut pair = Pair::new(room, config);
    pair.join().expect("the client's part is done");
    assert!(pair.client.owes_certificate());
    pair.receive(usize::MAX);
    let error = read(&mut pair.client, [100, 0, 0]).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("client-cert.pem"), "{error}");
    assert!(!Pair::joined(&TLS13).client.owes_certificate());
}
