//! The relay tells its targets who their client is, by the PROXY protocol: byte by byte, and as haproxy understands it.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use crate::support::{
    blockferry,
    certificates::Flaw,
    realm::Realm,
    relay::{Family, PATIENCE, Relay, patient},
    run,
    run::{run_with_input, until},
    secured::{self, target},
};

const TALKATIVE: [&str; 1] = ["--verbose"];
const V1: [&str; 2] = ["--proxy-protocol", "v1"];
const V2: [&str; 2] = ["--proxy-protocol", "v2"];

/// The first twelve bytes of version 2.
const SIGNATURE: &[u8] = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a";

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A header of version 2: its command and family, its addresses, and the rest of it.
struct Binary {
    kind: [u8; 2],
    addresses: Vec<u8>,
    rest: Vec<u8>,
}

impl Binary {
    fn read(stream: &mut impl Read) -> Self {
        let mut head = [0; 16];
        stream.read_exact(&mut head).expect("a header");
        assert_eq!(&head[..12], SIGNATURE);
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
        stream.read_exact(&mut body).expect("all of it");
        let addresses = match head[13] {
            0x11 => 12,
            0x21 => 36,
            0x31 => 216,
            _ => 0,
        };
        let rest = body.split_off(addresses);
        Self {
            kind: [head[12], head[13]],
            addresses: body,
            rest,
        }
    }

    /// The value of the first TLV of this type.
    fn value(&self, wanted: u8) -> Option<&[u8]> {
        let mut rest = &self.rest[..];
        while let [kind, high, low, more @ ..] = rest {
            let (value, after) = more.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            if *kind == wanted {
                return Some(value);
            }
            rest = after;
        }
        None
    }
}

/// Sends `hello` on `stream`, and is done.
fn send(stream: &mut (impl Write + ?Sized)) {
    stream.write_all(b"hello").expect("room");
}

#[test]
fn a_target_is_told_of_its_client_before_anything_else() {
    let (listener, address) = target();
    let relay = Relay::new(Family::Tcp, &[&TALKATIVE[..], &V1].concat(), &[&address]);
    let mut client = relay.connect_tcp();
    let (source, destination) = (
        client.local_addr().expect("an address").port(),
        relay.port(),
    );
    // Before the client has said a word: a server that speaks first has to know, too.
    let mut server = patient(listener.accept().expect("the relay").0);
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {source} {destination}\r\n");
    let mut line = vec![0; expected.len()];
    server.read_exact(&mut line).expect("a line");
    assert_eq!(String::from_utf8_lossy(&line), expected);
    send(&mut client);
    client.shutdown(Shutdown::Write).expect("open");
    assert_eq!(secured::read_all(&mut server).expect("an end"), b"hello");
    server.write_all(b"welcome").expect("room");
    drop(server);
    assert_eq!(secured::read_all(&mut client).expect("an end"), b"welcome");
    // What is told of the client is not of its bytes.
    let said = relay.terminate().success().stderr;
    assert!(said.contains("(5 bytes to "), "{said}");

    let relay = Relay::new(Family::Tcp, &V2, &[&address]);
    let mut client = relay.connect_tcp();
    let source = client.local_addr().expect("an address").port();
    let mut server = patient(listener.accept().expect("the relay").0);
    let header = Binary::read(&mut server);
    assert_eq!(header.kind, [0x21, 0x11]);
    let ports = [source.to_be_bytes(), relay.port().to_be_bytes()].concat();
    assert_eq!(header.addresses[..8], [127, 0, 0, 1, 127, 0, 0, 1]);
    assert_eq!(header.addresses[8..], ports);
    assert_eq!(header.value(0x03).map(<[u8]>::len), Some(4));
    send(&mut client);
    client.shutdown(Shutdown::Write).expect("open");
    assert_eq!(secured::read_all(&mut server).expect("an end"), b"hello");
}

#[test]
fn clients_of_ipv6_and_of_unix_sockets_have_addresses_of_their_own() {
    let (listener, address) = target();
    let accepted = || patient(listener.accept().expect("the relay").0);
    let relay = Relay::at("tcp:[::1]:0", &V1, &[&address]);
    let client = TcpStream::connect(("::1", relay.port())).expect("it listens");
    let (source, destination) = (
        client.local_addr().expect("an address").port(),
        relay.port(),
    );
    client.shutdown(Shutdown::Write).expect("open");
    let line = secured::read_all(&mut accepted()).expect("an end");
    let expected = format!("PROXY TCP6 ::1 ::1 {source} {destination}\r\n");
    assert_eq!(String::from_utf8_lossy(&line), expected);

    // IPv4 at a socket that takes both.
    let relay = Relay::at("tcp::0", &V1, &[&address]);
    let client = TcpStream::connect(("127.0.0.1", relay.port())).expect("it listens");
    let source = client.local_addr().expect("an address").port();
    let destination = relay.port();
    client.shutdown(Shutdown::Write).expect("open");
    let line = secured::read_all(&mut accepted()).expect("an end");
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {source} {destination}\r\n");
    assert_eq!(String::from_utf8_lossy(&line), expected);

    let room = tempfile::tempdir().expect("a directory");
    let path = room.path().join("relay.sock");
    let place = format!("unix:{}", path.display());
    for (version, kind) in [(V1, None), (V2, Some([0x21, 0x31]))] {
        let relay = Relay::at(&place, &version, &[&address]);
        let client = UnixStream::connect(&path).expect("it listens");
        client.shutdown(Shutdown::Write).expect("open");
        let mut server = accepted();
        match kind {
            None => {
                let line = secured::read_all(&mut server).expect("an end");
                assert_eq!(line, b"PROXY UNKNOWN\r\n");
            }
            Some(kind) => {
                let header = Binary::read(&mut server);
                assert_eq!(header.kind, kind);
                let (source, destination) = header.addresses.split_at(108);
                assert_eq!(source, [0; 108]);
                assert!(destination.starts_with(text(&path).as_bytes()));
                assert_eq!(secured::read_all(&mut server).expect("an end"), b"");
            }
        }
        drop((client, server));
        relay.terminate().success();
    }
}

#[test]
fn standard_input_is_a_client_without_an_address() {
    for (version, expected) in [
        (V1, &b"PROXY UNKNOWN\r\n"[..]),
        (V2, &[SIGNATURE, b"\x20\x00\x00\x00"].concat()),
    ] {
        let (listener, address) = target();
        let server = thread::spawn(move || {
            let mut stream = patient(listener.accept().expect("the relay").0);
            secured::read_all(&mut stream).expect("an end")
        });
        run(blockferry(["relay", "-", &address]).args(version)).success();
        assert_eq!(server.join().expect("no panic"), expected);
    }
}

#[test]
fn a_target_behind_tls_is_told_in_plain_and_then_spoken_to_in_tls() {
    let realm = Realm::new();
    let directory = realm.server(Flaw::None);
    let (listener, address) = target();
    let server = thread::spawn(move || {
        let mut stream = patient(listener.accept().expect("the relay").0);
        let header = Binary::read(&mut stream);
        let mut stream = secured::server(stream, &directory).expect("a handshake");
        let all = secured::read_all(&mut stream).expect("an end that was said");
        secured::close_server(&mut stream);
        (header.kind, all)
    });
    let trust = realm.authority.directory(realm.room.path(), "trust");
    let tls = ["--tls-target", "--tls-certificates", text(&trust)];
    let relay = Relay::new(Family::Tcp, &[&V2[..], &tls].concat(), &[&address]);
    let mut client = relay.connect_tcp();
    send(&mut client);
    client.shutdown(Shutdown::Write).expect("open");
    assert_eq!(secured::read_all(&mut client).expect("an end"), b"");
    let (kind, all) = server.join().expect("no panic");
    assert_eq!((kind, &all[..]), ([0x21, 0x11], &b"hello"[..]));
}

#[test]
fn a_target_is_told_what_tls_knows_of_the_client() {
    let realm = Realm::new();
    let directory = realm.server(Flaw::None);
    let member = realm.authority.client(realm.room.path(), "member");
    let trust = realm.authority.directory(realm.room.path(), "trust");
    let (listener, address) = target();
    for (shown, verifies, flags, verified) in [
        (&trust, &[][..], 0x01, [0, 0, 0, 1]),
        // The name of the certificates that tests sign for clients is `client`.
        (&member, &["--tls-verify-peer"], 0x07, [0; 4]),
    ] {
        let tls = ["--tls-listen", text(&directory)];
        let options = [&V2[..], &tls, verifies].concat();
        let relay = Relay::new(Family::Tcp, &options, &[&address]);
        let client = secured::client(relay.connect_tcp(), shown).expect("a handshake");
        let mut server = patient(listener.accept().expect("the relay").0);
        let header = Binary::read(&mut server);
        assert_eq!(header.kind, [0x21, 0x11]);
        assert_eq!(header.value(0x02), Some(&b"localhost"[..]));
        let tls = header.value(0x20).expect("TLS");
        assert_eq!((tls[0], &tls[1..5]), (flags, &verified[..]));
        let inner = Binary {
            kind: header.kind,
            addresses: Vec::new(),
            rest: tls[5..].to_vec(),
        };
        assert_eq!(inner.value(0x21), Some(&b"TLSv1.3"[..]));
        assert!(inner.value(0x23).is_some_and(|it| it.starts_with(b"TLS_")));
        let name = (flags == 0x07).then_some(&b"client"[..]);
        assert_eq!(inner.value(0x22), name);
        drop(client);
    }
}

/// haproxy with one listener that takes the PROXY protocol, and answers HTTP with what it knows of its client.
struct Haproxy {
    child: Child,
    port: u16,
}

impl Haproxy {
    fn start(room: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = port.expect("a free port").port();
        let configuration = room.join("haproxy.cfg");
        let answer = "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_authority]";
        let lines = [
            "defaults",
            "  mode http",
            "  timeout client 60s",
            "  timeout server 60s",
            "  timeout connect 60s",
            "frontend answers",
            &format!("  bind 127.0.0.1:{port} accept-proxy"),
            &format!(
                "  http-request return status 200 content-type text/plain lf-string \"{answer}\""
            ),
        ];
        fs::write(&configuration, lines.join("\n") + "\n").expect("room");
        let child = Command::new("haproxy")
            .args(["-q", "-db", "-f"])
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("haproxy (run `cargo xtask test`)");
        let haproxy = Self { child, port };
        until("haproxy", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        haproxy
    }

    fn address(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.port)
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// What a server of HTTP answers on `stream`, without its headers.
fn asked(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(REQUEST).expect("room");
    let answer = secured::read_all(stream).expect("an end");
    body(str::from_utf8(&answer).expect("text")).to_owned()
}

fn body(answer: &str) -> &str {
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer.split_once("\r\n\r\n").expect("a body").1.trim()
}

#[test]
fn haproxy_understands_who_the_client_is() {
    let realm = Realm::new();
    let haproxy = Haproxy::start(realm.room.path());
    for version in [V1, V2] {
        for (listen, host) in [("tcp:127.0.0.1:0", "127.0.0.1"), ("tcp:[::1]:0", "::1")] {
            let relay = Relay::at(listen, &version, &[&haproxy.address()]);
            let mut client = patient(TcpStream::connect((host, relay.port())).expect("it listens"));
            let source = client.local_addr().expect("an address").port();
            let expected = format!("{host} {source} {host} {}", relay.port());
            assert_eq!(asked(&mut client), expected, "{version:?}");
        }
    }

    // A longer header, whose checksum has to be right all the same.
    let directory = realm.server(Flaw::None);
    let member = realm.authority.client(realm.room.path(), "member");
    let tls = ["--tls-verify-peer", "--tls-listen", text(&directory)];
    let options = [&V2[..], &tls].concat();
    let relay = Relay::new(Family::Tcp, &options, &[&haproxy.address()]);
    let client = relay.connect_tcp();
    let source = client.local_addr().expect("an address").port();
    let mut client = secured::client(client, &member).expect("a handshake");
    let answer = asked(&mut client);
    let expected = format!("127.0.0.1 {source} 127.0.0.1 {} localhost", relay.port());
    assert_eq!(answer, expected);
    drop(client);

    // A client without an address of the internet: haproxy takes the relay's. Version 2 has addresses of unix sockets,
    // which this haproxy does not take.
    let path = realm.path("relay.sock");
    let place = format!("unix:{}", path.display());
    let relay = Relay::at(&place, &V1, &[&haproxy.address()]);
    let mut client = UnixStream::connect(&path).expect("it listens");
    client.set_read_timeout(Some(PATIENCE)).expect("an option");
    let answer = asked(&mut client);
    assert!(answer.ends_with(&haproxy.port.to_string()), "{answer}");
    drop(client);
    relay.terminate().success();
    for version in [V1, V2] {
        let mut command = blockferry(["relay", "-", &haproxy.address()]);
        let outcome = run_with_input(command.args(version), REQUEST).success();
        let answer = body(outcome.text());
        assert!(answer.ends_with(&haproxy.port.to_string()), "{answer}");
    }
}

#[test]
fn a_target_on_a_unix_socket_is_told_as_well() {
    let room = tempfile::tempdir().expect("a directory");
    let path = room.path().join("target.sock");
    let listener = UnixListener::bind(&path).expect("room");
    let address = format!("unix:{}", path.display());
    let relay = Relay::new(Family::Tcp, &V2, &[&address]);
    let client = relay.connect_tcp();
    client.shutdown(Shutdown::Write).expect("open");
    let mut server = listener.accept().expect("the relay").0;
    server.set_read_timeout(Some(PATIENCE)).expect("an option");
    assert_eq!(Binary::read(&mut server).kind, [0x21, 0x11]);
    assert_eq!(secured::read_all(&mut server).expect("an end"), b"");
}
