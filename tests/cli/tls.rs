//! TLS with real servers, and with servers that should not be trusted.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
};

use crate::support::{
    Outcome, Peer, Proxy, assert_same, blockferry,
    certificates::{Authority, Flaw},
    hostile::{Export, Hostile, negotiate_options},
    random_image,
    realm::{Realm, SIZE, secure},
    run,
};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

fn copy(options: &[&str], source: impl AsRef<Path>, destination: impl AsRef<Path>) -> Outcome {
    let mut command = blockferry(["copy"].iter().chain(options));
    run(command.arg(source.as_ref()).arg(destination.as_ref()))
}

/// Neither asks nor copies: each says `words`, with this exit code, and no file is left.
#[track_caller]
fn refused(realm: &Realm, uri: &str, code: i32, words: &[&str]) {
    run(&mut blockferry(["info", uri])).failure(code, words);
    let file = realm.path("copy.raw");
    copy(&[], uri, &file).failure(code, words);
    assert!(!file.exists(), "an unfinished file is left behind");
}

#[test]
fn images_come_and_go_through_tls_over_unix_sockets() {
    let realm = Realm::new();
    let image = realm.image();
    let source = realm.nbdkit(Flaw::None, &["file", image.to_str().expect("UTF-8")]);
    let disk = realm.path("disk.raw");
    fs::File::create(&disk)
        .and_then(|file| file.set_len(SIZE))
        .expect("room");
    let destination = realm.qemu_nbd(&disk, "no");
    let (from, to) = (
        secure(&source.uri(), &realm.trust()),
        secure(&destination.uri(), &realm.trust()),
    );
    for connections in ["1", "4"] {
        let file = realm.path("copy.raw");
        copy(&["-C", connections], &from, &file).success();
        assert_same(&image, &file);
        copy(&["-C", connections], &image, &to).success();
        assert_same(&image, &disk);
        fs::File::create(&disk)
            .and_then(|file| file.set_len(SIZE))
            .expect("room");
        copy(&["-C", connections], &from, &to).success();
        assert_same(&image, &disk);
    }
    let info = run(&mut blockferry(["info", "--json", &from])).success();
    assert!(info.text().contains("\"TLS\": true"), "{}", info.text());
    let map = run(&mut blockferry(["map", &from])).success();
    let local = run(blockferry(["map"]).arg(&image)).success();
    assert_eq!(map.text(), local.text());
}

#[test]
fn images_come_through_tls_over_tcp_by_name_and_by_address() {
    let realm = Realm::new();
    let image = realm.image();
    let certificates = format!("--tls-certificates={}", realm.server(Flaw::None).display());
    let peer = Peer::nbdkit_on_tcp(&[
        "--tls=require",
        &certificates,
        "file",
        image.to_str().expect("UTF-8"),
    ]);
    for host in ["localhost", "127.0.0.1"] {
        let uri = peer
            .uri()
            .replace("nbd://localhost", &format!("nbds://{host}"));
        let uri = format!("{uri}?{}", realm.trust());
        let file = realm.path("copy.raw");
        copy(&[], &uri, &file).success();
        assert_same(&image, &file);
    }
}

#[test]
fn a_server_that_wants_a_certificate_gets_it_or_says_so() {
    let realm = Realm::new();
    let image = realm.image();
    let file = realm.path("copy.raw");
    let nbdkit = realm.nbdkit(
        Flaw::None,
        &["--tls-verify-peer", "file", image.to_str().expect("UTF-8")],
    );
    let qemu = realm.qemu_nbd(&image, "yes");
    for peer in [&nbdkit, &qemu] {
        copy(&[], secure(&peer.uri(), &realm.member()), &file).success();
        assert_same(&image, &file);
        fs::remove_file(&file).expect("it is there");
        let uri = secure(&peer.uri(), &realm.trust());
        refused(&realm, &uri, 1, &[&uri, "client certificate"]);
    }
    // One of another authority is worth nothing.
    let stranger = Authority::new().client(realm.room.path(), "stranger");
    let trusted = fs::read(realm.path("trust/ca-cert.pem")).expect("it is there");
    fs::write(stranger.join("ca-cert.pem"), trusted).expect("room");
    for peer in [&nbdkit, &qemu] {
        let parameter = format!("tls-certificates={}", stranger.display());
        let outcome = run(&mut blockferry(["info", &secure(&peer.uri(), &parameter)]));
        assert_ne!(outcome.code, 0, "{}", outcome.text());
        let why = "this client's certificate";
        assert!(outcome.stderr.contains(why), "{}", outcome.stderr);
    }
}

#[test]
fn certificates_that_prove_nothing_are_refused_by_what_is_wrong_with_them() {
    for (flaw, words) in [
        (Flaw::Expired, "expired 3 days ago"),
        (Flaw::NotYetValid, "not valid yet"),
        (Flaw::SelfSigned, "self-signed"),
        (Flaw::Authority, "is that of an authority"),
        (
            Flaw::OtherHost,
            "is for elsewhere.example, 192.0.2.1, not for \"localhost\"",
        ),
    ] {
        let realm = Realm::new();
        let image = realm.image();
        let peer = realm.nbdkit(flaw, &["file", image.to_str().expect("UTF-8")]);
        let uri = secure(&peer.uri(), &realm.trust());
        refused(&realm, &uri, 1, &[&uri, words]);
        // Nor is anything written to such a server.
        copy(&[], &image, &uri).failure(1, &[words]);
        // Who does not want to know is let through.
        let file = realm.path("copy.raw");
        copy(&[], format!("{uri}&tls-verify-peer=false"), &file).success();
        assert_same(&image, &file);
    }
}

#[test]
fn the_name_in_the_certificate_can_be_told() {
    let realm = Realm::new();
    let image = realm.image();
    let peer = realm.nbdkit(Flaw::OtherHost, &["file", image.to_str().expect("UTF-8")]);
    for name in ["elsewhere.example", "192.0.2.1"] {
        let parameters = format!("{}&tls-hostname={name}", realm.trust());
        run(&mut blockferry(["info", &secure(&peer.uri(), &parameters)])).success();
    }
}

#[test]
fn the_systems_authorities_are_trusted_where_no_directory_is_named() {
    let realm = Realm::new();
    let image = realm.image();
    let peer = realm.nbdkit(Flaw::None, &["file", image.to_str().expect("UTF-8")]);
    let uri = peer.uri().replace("nbd+unix:", "nbds+unix:");
    let system = realm.authority.directory(realm.room.path(), "system");
    let with = |file: &Path| {
        let mut command = blockferry(["info", &uri]);
        run(command
            .env("SSL_CERT_FILE", file)
            .env("HOME", realm.room.path()))
    };
    with(&system.join("ca-cert.pem")).success();
    let other = Authority::new().directory(realm.room.path(), "other");
    with(&other.join("ca-cert.pem")).failure(1, &["self-signed", "this system"]);
    let mut command = blockferry(["info", &uri]);
    let nothing = realm.path("nothing");
    fs::create_dir(&nothing).expect("a directory");
    run(command
        .env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", nothing))
    .failure(1, &["no trusted certificate authorities"]);
}

#[test]
fn files_that_are_missing_or_wrong_are_named_before_anybody_is_connected_to() {
    let realm = Realm::new();
    let uri = |directory: &Path| {
        let directory = directory.display();
        format!("nbds+unix:///?socket=/nowhere.sock&tls-certificates={directory}")
    };
    let missing = realm.path("missing");
    refused(
        &realm,
        &uri(&missing),
        1,
        &["missing/ca-cert.pem", "No such file"],
    );

    let half = realm.authority.client(realm.room.path(), "half");
    fs::remove_file(half.join("client-key.pem")).expect("it was there");
    refused(
        &realm,
        &uri(&half),
        1,
        &["half/client-cert.pem", "half/client-key.pem", "needs both"],
    );

    let garbage = realm.authority.directory(realm.room.path(), "garbage");
    fs::write(garbage.join("ca-cert.pem"), "no certificate").expect("room");
    refused(
        &realm,
        &uri(&garbage),
        1,
        &["garbage/ca-cert.pem", "no certificate"],
    );

    let damaged = realm.authority.client(realm.room.path(), "damaged");
    let key = "-----BEGIN PRIVATE KEY-----\nsecret!\n-----END PRIVATE KEY-----\n";
    fs::write(damaged.join("client-key.pem"), key).expect("room");
    refused(
        &realm,
        &uri(&damaged),
        1,
        &["damaged/client-key.pem", "damaged"],
    );

    let mixed = realm.authority.client(realm.room.path(), "mixed");
    let other = realm.authority.client(realm.room.path(), "another");
    fs::copy(other.join("client-key.pem"), mixed.join("client-key.pem")).expect("room");
    refused(
        &realm,
        &uri(&mixed),
        1,
        &["mixed/client-cert.pem", "does not belong"],
    );

    let keys = format!("{}&tls-psk-file=/keys.psk", uri(&mixed));
    refused(&realm, &keys, 1, &["tls-psk-file", "certificates"]);
}

#[test]
fn a_server_without_tls_is_not_talked_to_in_the_clear() {
    let realm = Realm::new();
    let image = realm.image();
    let peer = Peer::nbdkit(realm.room.path(), &["file", image.to_str().expect("UTF-8")]);
    let uri = secure(&peer.uri(), &realm.trust());
    refused(&realm, &uri, 1, &[&uri, "TLS"]);
}

#[test]
fn a_server_that_requires_tls_says_which_scheme_to_write() {
    let realm = Realm::new();
    let image = realm.image();
    let peer = realm.nbdkit(Flaw::None, &["file", image.to_str().expect("UTF-8")]);
    refused(&realm, &peer.uri(), 1, &[&peer.uri(), "TLS", "nbds"]);
}

/// Agrees to TLS and goes on with `then`.
fn agreeing(
    realm: &Realm,
    then: impl Fn(&mut UnixStream) -> io::Result<()> + Send + Sync + 'static,
) -> Hostile {
    Hostile::raw(realm.room.path(), move |stream| {
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        // The client's flags and its first option.
        let mut head = [0; 20];
        stream.read_exact(&mut head)?;
        assert_eq!(head[12..16], [0, 0, 0, 5], "STARTTLS comes before all else");
        stream.write_all(&option_reply(5, 1))?;
        then(stream)
    })
}

/// A reply of `kind` to `option`, without data.
fn option_reply(option: u32, kind: u32) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0; 4]);
    bytes
}

#[test]
fn a_server_that_agrees_to_tls_and_goes_on_in_the_clear_is_not_believed() {
    // Extended headers are what a client asks for next.
    let plain: &[u8] = &option_reply(11, 0x8000_0001);
    for answer in [plain, &[0x16, 3, 3, 0, 4, 99, 0, 0, 0], &[0xff; 4096]] {
        let realm = Realm::new();
        let answer = answer.to_vec();
        let server = agreeing(&realm, move |stream| {
            stream.write_all(&answer)?;
            io::copy(stream, &mut io::sink()).map(drop)
        });
        let uri = secure(&server.uri(), &realm.trust());
        refused(&realm, &uri, 1, &[&uri, "TLS"]);
    }
}

#[test]
fn a_server_that_falls_silent_within_the_tls_handshake_is_given_up() {
    let realm = Realm::new();
    // The beginning of a record, and no more of it.
    let server = agreeing(&realm, |stream| {
        stream.write_all(&[0x16, 3, 3, 0x10])?;
        io::copy(stream, &mut io::sink()).map(drop)
    });
    let uri = secure(&server.uri(), &realm.trust());
    run(&mut blockferry(["info", "--timeout=1", &uri])).failure(75, &["did not answer in time"]);
}

/// The server's end of TLS, as rustls does it.
fn secured(
    certificates: &Path,
    stream: &mut UnixStream,
) -> io::Result<StreamOwned<ServerConnection, UnixStream>> {
    let file = |name: &str| fs::read(certificates.join(name)).expect("it is there");
    let certificate = CertificateDer::from_pem_slice(&file("server-cert.pem"));
    let key = PrivateKeyDer::from_pem_slice(&file("server-key.pem"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.expect("a certificate")],
            key.expect("a key"),
        );
    let session = ServerConnection::new(Arc::new(config.expect("they fit")));
    let session = session.map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, stream.try_clone()?);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

#[test]
fn what_was_slipped_in_before_tls_is_not_taken_for_what_came_through_it() {
    let realm = Realm::new();
    let certificates = realm.server(Flaw::None);
    let server = agreeing(&realm, move |stream| {
        // Somebody in the middle adds answers to what the client will ask; then the honest server goes on.
        stream.write_all(&option_reply(11, 1))?;
        secured(&certificates, stream).map(drop)
    });
    let uri = secure(&server.uri(), &realm.trust());
    refused(&realm, &uri, 1, &[&uri, "TLS"]);
}

#[test]
fn a_stream_that_is_cut_within_a_record_is_a_lost_connection() {
    let realm = Realm::new();
    let certificates = realm.server(Flaw::None);
    let server = agreeing(&realm, move |stream| {
        let mut tls = secured(&certificates, stream)?;
        let mut option = [0; 16];
        tls.read_exact(&mut option)?;
        // The answer to it, but for its last bytes.
        tls.conn
            .writer()
            .write_all(&option_reply(11, 0x8000_0001))?;
        let mut record = Vec::new();
        while tls.conn.wants_write() {
            tls.conn.write_tls(&mut record)?;
        }
        stream.write_all(&record[..record.len() - 3])
    });
    let uri = secure(&server.uri(), &realm.trust());
    run(&mut blockferry(["info", &uri])).failure(75, &[&uri, "the connection was cut"]);
}

#[test]
fn a_server_that_stops_answering_within_tls_is_given_up() {
    let realm = Realm::new();
    let certificates = realm.server(Flaw::None);
    let server = agreeing(&realm, move |stream| {
        let mut tls = secured(&certificates, stream)?;
        negotiate_options(&mut tls, &Export::default())?;
        // Requests come, and nothing of them is ever answered.
        io::copy(&mut tls, &mut io::sink()).map(drop)
    });
    let uri = secure(&server.uri(), &realm.trust());
    let file = realm.path("copy.raw");
    copy(&["--timeout=1"], &uri, &file).failure(75, &["has not answered for 1 s"]);
    assert!(!file.exists(), "an unfinished file is left behind");
}

#[test]
fn a_server_that_ends_tls_properly_has_closed_the_connection() {
    let realm = Realm::new();
    let certificates = realm.server(Flaw::None);
    let server = agreeing(&realm, move |stream| {
        let mut tls = secured(&certificates, stream)?;
        let mut option = [0; 16];
        tls.read_exact(&mut option)?;
        tls.conn.send_close_notify();
        tls.flush()
    });
    let uri = secure(&server.uri(), &realm.trust());
    run(&mut blockferry(["info", &uri])).failure(75, &[&uri, "was closed during the handshake"]);
}

#[test]
fn one_of_four_connections_is_cut_within_its_records_and_the_copy_is_whole() {
    let realm = Realm::new();
    let image = realm.path("image.raw");
    random_image(&image, SIZE as usize);
    let server = realm.qemu_nbd(&image, "no");
    let proxy = Proxy::cutting(realm.room.path(), server.socket(), 4, |number| {
        (number == 2).then_some(1_000_003)
    });
    let file = realm.path("copy.raw");
    let uri = secure(&proxy.uri(), &realm.trust());
    copy(&["-C", "4"], &uri, &file).success();
    assert_same(&image, &file);
    assert_eq!(proxy.cut(), 1);
}
