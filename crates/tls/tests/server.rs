//! A server's session and a client's, joined in memory, with certificates that come and go.

mod support;

use std::{
    fs,
    io::{IoSlice, IoSliceMut},
    path::Path,
    sync::Arc,
};

use blockferry_tls::{
    Error, ErrorKind, Handshake, Received, Role, ServerTls, Session, Verification,
};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, KeyIdMethod,
    RevokedCertParams, SerialNumber,
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, version::TLS12};
use time::{Duration, OffsetDateTime};

use support::Realm;

impl Realm {
    /// Revokes the certificates of these numbers.
    fn revoke(&self, serials: &[u64]) {
        let now = OffsetDateTime::now_utc();
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now - Duration::hours(1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: now - Duration::days(1),
            next_update: now + Duration::days(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("a list");
        fs::write(self.path("ca-crl.pem"), list.pem().expect("PEM")).expect("room");
    }

    /// What is wrong with the directory, as a server of it says.
    fn problem(&self, clients: Verification) -> String {
        let error = self
            .server(clients)
            .check()
            .expect_err("something is wrong");
        assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
        error.to_string()
    }
}

/// Carries what `from` has to say to `to`.
fn carry(from: &mut Session, to: &mut Session) {
    while !from.outgoing().is_empty() {
        let room = to.room();
        let count = room.len().min(from.outgoing().len());
        room[..count].copy_from_slice(&from.outgoing()[..count]);
        to.received(count);
        from.sent(count);
    }
}

/// Does the handshake, and says what the client and the server make of it.
fn join(client: &mut Session, server: &mut Session) -> [Result<(), Error>; 2] {
    let mut ends = [None, None];
    while ends.iter().any(Option::is_none) {
        go_on(client, &mut ends[0]);
        carry(client, server);
        go_on(server, &mut ends[1]);
        carry(server, client);
    }
    ends.map(|end| end.expect("an end"))
}

fn go_on(session: &mut Session, end: &mut Option<Result<(), Error>>) {
    if end.is_none() {
        *end = match session.handshake() {
            Ok(Handshake::SendAndReceive) => None,
            Ok(Handshake::Done) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        };
    }
}

/// A word goes from one to the other.
#[track_caller]
fn say(from: &mut Session, to: &mut Session) {
    let sent = from.write(&[IoSlice::new(b"a word")], 0).expect("sent");
    assert_eq!(sent, 6);
    carry(from, to);
    let mut bytes = [0; 100];
    let received = to.read(&mut [IoSliceMut::new(&mut bytes)]).expect("honest");
    assert_eq!(received, Received::Bytes(6));
    assert_eq!(&bytes[..6], b"a word");
}

/// The two trust each other, and a word goes each way.
#[track_caller]
fn agree(client: &mut Session, server: &mut Session) {
    let [ours, theirs] = join(client, server);
    ours.expect("the client is content");
    theirs.expect("the server is content");
    say(client, server);
    say(server, client);
}

/// What a server says of its client.
#[track_caller]
fn refusal(tls: &ServerTls, client: &mut Session) -> Error {
    let mut server = tls.session().expect("good certificates");
    let [_, theirs] = join(client, &mut server);
    theirs.expect_err("the client is refused")
}

#[test]
fn a_client_that_trusts_the_authority_gets_through() {
    let realm = Realm::new("authority");
    let tls = realm.server(Verification::Off);
    tls.check().expect("good certificates");
    for _ in 0..3 {
        let mut server = tls.session().expect("good certificates");
        agree(&mut realm.client(), &mut server);
    }
}

#[test]
fn the_end_is_said_by_a_server_too() {
    let realm = Realm::new("authority");
    let mut client = realm.client();
    let mut server = realm.server(Verification::Off).session().expect("good");
    agree(&mut client, &mut server);
    server.close();
    carry(&mut server, &mut client);
    let mut bytes = [0; 10];
    let end = client.read(&mut [IoSliceMut::new(&mut bytes)]);
    assert_eq!(end.expect("a proper end"), Received::Closed);
    // The other direction is still open.
    client.write(&[IoSlice::new(b"bye")], 0).expect("sent");
    carry(&mut client, &mut server);
    let last = server.read(&mut [IoSliceMut::new(&mut bytes)]);
    assert_eq!(last.expect("honest"), Received::Bytes(3));
}

#[test]
fn a_client_without_a_good_certificate_is_refused_where_that_is_asked_for() {
    let realm = Realm::new("authority");
    let tls = realm.server(Verification::On);
    tls.check().expect("good certificates");
    let error = refusal(&tls, &mut realm.client());
    assert!(matches!(error, Error::NoCertificate), "{error}");
    assert_eq!(error.kind(), ErrorKind::Untrusted);

    // Signed by somebody else.
    let other = Realm::new("another authority");
    other.sign("client", |_| {});
    fs::copy(realm.path("ca-cert.pem"), other.path("ca-cert.pem")).expect("room");
    let error = refusal(&tls, &mut other.client());
    let text = error.to_string();
    assert!(
        text.contains("the client's certificate") && text.contains("not in /"),
        "{text}"
    );

    // Expired, or for servers.
    let now = OffsetDateTime::now_utc();
    realm.sign("client", |params| {
        params.not_before = now - Duration::days(9);
        params.not_after = now - Duration::days(2);
    });
    let text = refusal(&tls, &mut realm.client()).to_string();
    assert_eq!(text, "the client's certificate expired 2 days ago");
    realm.sign("client", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let text = refusal(&tls, &mut realm.client()).to_string();
    assert_eq!(text, "the client's certificate is not one for clients");

    realm.sign("client", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let mut server = tls.session().expect("good certificates");
    agree(&mut realm.client(), &mut server);
}

#[test]
fn who_is_revoked_is_refused_from_then_on() {
    let realm = Realm::new("authority");
    realm.sign("client", |params| {
        params.serial_number = Some(SerialNumber::from(77));
    });
    let tls = realm.server(Verification::On);
    for revoked in [&[][..], &[5, 6]] {
        realm.revoke(revoked);
        let mut server = tls.session().expect("good certificates");
        agree(&mut realm.client(), &mut server);
    }
    realm.revoke(&[5, 77]);
    // The client reads the same list, which does not name its server.
    let error = refusal(&tls, &mut realm.client());
    assert_eq!(error.to_string(), "the client's certificate was revoked");
}

#[test]
fn what_a_client_says_of_the_certificate_is_told() {
    let (realm, stranger) = (Realm::new("authority"), Realm::new("another authority"));
    let tls = realm.server(Verification::Off);
    let error = refusal(&tls, &mut stranger.client());
    assert!(
        matches!(
            error,
            Error::Alert {
                from: Role::Client,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::Rejected);
    let text = error.to_string();
    assert!(text.contains("the client does not trust"), "{text}");
    // It ends while the server runs.
    let now = OffsetDateTime::now_utc();
    realm.sign("server", |params| {
        params.not_before = now - Duration::days(9);
        params.not_after = now - Duration::days(2);
    });
    let text = refusal(&tls, &mut realm.client()).to_string();
    assert!(text.contains("certificate has expired"), "{text}");
}

#[test]
fn renewed_certificates_are_shown_to_those_who_come_next() {
    let (realm, renewed) = (Realm::new("authority"), Realm::new("another authority"));
    let tls = realm.server(Verification::Off);
    agree(&mut realm.client(), &mut tls.session().expect("good"));
    for name in ["server-cert.pem", "server-key.pem"] {
        fs::copy(renewed.path(name), realm.path(name)).expect("room");
    }
    agree(&mut renewed.client(), &mut tls.session().expect("good"));
    // Half a renewal is none, and is called by its name.
    realm.sign("server", |_| {});
    fs::copy(renewed.path("server-key.pem"), realm.path("server-key.pem")).expect("room");
    let error = tls.session().expect_err("they do not belong together");
    let text = error.to_string();
    assert!(
        text.contains("server-cert.pem") && text.contains("server-key.pem"),
        "{text}"
    );
    realm.sign("server", |_| {});
    agree(&mut realm.client(), &mut tls.session().expect("good"));
}

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    let garbage = "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n";
    for (file, clients) in [
        ("server-cert.pem", Verification::Off),
        ("server-key.pem", Verification::Off),
        ("ca-cert.pem", Verification::On),
    ] {
        let realm = Realm::new("authority");
        for contents in [Some(""), Some("nonsense"), Some(garbage), None] {
            match contents {
                Some(text) => fs::write(realm.path(file), text).expect("room"),
                None => fs::remove_file(realm.path(file)).expect("it is there"),
            }
            let text = realm.problem(clients);
            assert!(text.contains(file), "{file}, {contents:?}: {text}");
        }
    }
    // Nobody needs to know whose clients are not verified.
    let realm = Realm::new("authority");
    fs::remove_file(realm.path("ca-cert.pem")).expect("it is there");
    let tls = realm.server(Verification::Off);
    tls.check().expect("good certificates");
    fs::write(realm.path("ca-crl.pem"), "nonsense").expect("room");
    tls.check().expect("good certificates");
    let realm = Realm::new("authority");
    fs::write(realm.path("ca-crl.pem"), "nonsense").expect("room");
    let text = realm.problem(Verification::On);
    assert!(text.contains("ca-crl.pem"), "{text}");
    // A directory that is not there.
    let tls = ServerTls::new("/nonexistent", Verification::Off);
    let text = tls.check().expect_err("nothing there").to_string();
    assert!(text.contains("/nonexistent/server-cert.pem"), "{text}");
}

#[test]
fn certificates_that_no_client_would_take_are_found_at_the_start() {
    let now = OffsetDateTime::now_utc();
    let realm = Realm::new("authority");
    let expired = |params: &mut CertificateParams| {
        params.not_before = now - Duration::days(9);
        params.not_after = now - Duration::days(2);
    };
    let early = |params: &mut CertificateParams| params.not_before = now + Duration::days(3);
    let for_clients = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let changes: [&dyn Fn(&mut CertificateParams); 3] = [&expired, &early, &for_clients];
    let problems = [
        "expired 2 days ago",
        "is not valid yet",
        "is not one for servers",
    ];
    for (change, problem) in changes.into_iter().zip(problems) {
        realm.sign("server", change);
        let text = realm.problem(Verification::Off);
        assert!(
            text.contains("server-cert.pem") && text.contains(problem),
            "{text}"
        );
    }
    realm.sign("server", |_| {});
    realm.server(Verification::Off).check().expect("good");
}

#[test]
fn what_is_no_beginning_of_tls_is_called_plaintext() {
    let realm = Realm::new("authority");
    let tls = realm.server(Verification::Off);
    for bytes in [
        &b"IHAVEOPT\0\0\0\x03\0\0\0\0"[..],
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut server = tls.session().expect("good certificates");
        server.room()[..bytes.len()].copy_from_slice(bytes);
        server.received(bytes.len());
        let error = server.handshake().expect_err("not TLS");
        assert!(matches!(error, Error::Plaintext), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Protocol);
        // There is nothing more to say than that.
        server.close();
    }
}

#[test]
fn clients_of_tls_1_2_are_served() {
    let realm = Realm::new("authority");
    let mut server = realm.server(Verification::Off).session().expect("good");
    let config = ClientConfig::builder_with_protocol_versions(&[&TLS12])
        .with_root_certificates(authorities(&realm.path("ca-cert.pem")))
        .with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    while client.is_handshaking() {
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).expect("room");
        }
        server.room()[..sent.len()].copy_from_slice(&sent);
        server.received(sent.len());
        let _ = server.handshake().expect("honest");
        let mut answer = server.outgoing();
        while !answer.is_empty() {
            client.read_tls(&mut answer).expect("room");
            client.process_new_packets().expect("a good certificate");
        }
        server.sent(server.outgoing().len());
    }
    assert_eq!(
        client.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_2)
    );
    assert_eq!(server.handshake().expect("it is over"), Handshake::Done);
}

fn authorities(path: &Path) -> RootCertStore {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(path).expect("PEM");
    roots.add(certificate).expect("an authority");
    roots
}
