//! The relay with TLS towards its clients, its targets, and both, with other people's TLS at the other ends.

use std::{
    cell::RefCell,
    fs,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use serde_json::Value;

use crate::support::{
    blockferry,
    certificates::{Authority, Flaw},
    images::random_bytes,
    realm::Realm,
    relay::{Family, PATIENCE, Relay, patient},
    run,
    run::{finish, run_with_input, until},
    secured::{self, mirror, target},
};

const TALKATIVE: [&str; 1] = ["--verbose"];

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The directory of a client that trusts the authority of `realm`.
fn trust(realm: &Realm) -> PathBuf {
    realm.authority.directory(realm.room.path(), "trust")
}

/// A relay with TLS towards its clients.
fn terminating(realm: &Realm, arguments: &[&str], target: &str) -> Relay {
    let directory = realm.server(Flaw::None);
    let tls = ["--tls-listen", text(&directory)];
    Relay::new(
        Family::Tcp,
        &[&TALKATIVE, &tls[..], arguments].concat(),
        &[target],
    )
}

/// A relay with TLS towards its targets, which trusts the authority of `realm`.
fn originating(realm: &Realm, arguments: &[&str], target: &str) -> Relay {
    let directory = trust(realm);
    let tls = ["--tls-target", "--tls-certificates", text(&directory)];
    Relay::new(
        Family::Tcp,
        &[&TALKATIVE, &tls[..], arguments].concat(),
        &[target],
    )
}

/// Sends `data` to the first client of `listener`, and ends as plain TCP does.
fn sender(listener: TcpListener, data: Vec<u8>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut stream = patient(listener.accept().expect("a client").0);
        stream.write_all(&data).expect("room");
        stream.shutdown(Shutdown::Write).expect("open");
        // Until the client has ended, too.
        secured::read_all(&mut stream).expect("an end");
    })
}

/// What the first client of `listener` sends, until it ends.
fn receiver(listener: TcpListener) -> thread::JoinHandle<io::Result<Vec<u8>>> {
    thread::spawn(move || {
        let mut stream = patient(listener.accept().expect("a client").0);
        secured::read_all(&mut stream)
    })
}

#[test]
fn openssl_and_socat_talk_to_a_plain_target_through_the_relay() {
    let realm = Realm::new();
    let authority = trust(&realm).join("ca-cert.pem");
    let data = random_bytes(3 << 20, 7);
    for version in ["-tls1_2", "-tls1_3"] {
        let (listener, address) = target();
        let relay = terminating(&realm, &[], &address);
        let sender = sender(listener, data.clone());
        let connect = format!("localhost:{}", relay.port());
        let outcome = run(Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", version])
            .args(["-connect", &connect, "-servername", "localhost"])
            .args(["-verify_hostname", "localhost", "-CAfile", text(&authority)])
            .stdin(Stdio::null()))
        .success();
        assert!(
            outcome.stdout == data,
            "{version}: {}",
            outcome.stdout.len()
        );
        sender.join().expect("no panic");
        relay.terminate().success();
    }

    let (listener, address) = target();
    let relay = terminating(&realm, &[], &address);
    let receiver = receiver(listener);
    let file = realm.path("data");
    fs::write(&file, &data).expect("room");
    let place = format!(
        "OPENSSL:localhost:{},cafile={}",
        relay.port(),
        authority.display()
    );
    run(Command::new("socat")
        .args(["-u", &format!("FILE:{}", file.display())])
        .arg(place))
    .success();
    let received = receiver.join().expect("no panic").expect("an end");
    assert!(received == data);
    relay.terminate().success();
}

#[test]
fn a_plain_client_talks_to_openssl_through_the_relay() {
    let realm = Realm::new();
    let directory = realm.server(Flaw::None);
    let data = random_bytes(3 << 20, 8);
    for version in ["-tls1_2", "-tls1_3"] {
        let (listener, address) = target();
        let port = address.rsplit(':').next().expect("a port").to_owned();
        drop(listener);
        let mut server = Command::new("openssl")
            .args(["s_server", "-quiet", "-naccept", "1", version])
            .args(["-accept", &format!("127.0.0.1:{port}")])
            .args(["-cert", text(&directory.join("server-cert.pem"))])
            .args(["-key", text(&directory.join("server-key.pem"))])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl");
        // It takes one client only: that it listens is to be seen without being one.
        let listening = format!(
            ":{:04X} 00000000:0000 0A",
            port.parse::<u16>().expect("a port")
        );
        until("openssl to listen", || {
            let sockets = fs::read_to_string("/proc/net/tcp").expect("a list");
            sockets.contains(&listening)
        });
        let relay = originating(&realm, &[], &address);
        let mut client = relay.connect_tcp();
        client.write_all(&data).expect("room");
        let mut stdout = server.stdout.take().expect("a pipe");
        let mut received = vec![0; data.len()];
        stdout.read_exact(&mut received).expect("all of it");
        assert!(received == data, "{version}");
        let mut stdin = server.stdin.take().expect("a pipe");
        stdin.write_all(b"the answer").expect("a pipe");
        let mut answer = [0; 10];
        client.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"the answer");
        client.shutdown(Shutdown::Write).expect("open");
        assert!(secured::read_all(&mut client).expect("an end").is_empty());
        assert!(server.wait().expect("an end").success());
        let said = relay.terminate().success().stderr;
        assert!(said.contains(": ended ("), "{said}");
    }
}

#[test]
fn a_chain_of_two_relays_carries_everything_both_ways_at_once() {
    const SIZE: usize = 64 << 20;
    let realm = Realm::new();
    let (listener, address) = target();
    let inner = terminating(&realm, &[], &address);
    let outer = originating(&realm, &[], &format!("tcp:localhost:{}", inner.port()));
    let (up, down) = (random_bytes(SIZE, 1), random_bytes(SIZE, 2));
    let talk = |stream: TcpStream, data: &[u8], expected: &[u8]| {
        let mut reader = stream.try_clone().expect("a descriptor");
        thread::scope(|scope| {
            scope.spawn(|| {
                let received = secured::read_all(&mut reader).expect("an end");
                assert!(received == expected, "{} bytes", received.len());
            });
            (&stream).write_all(data).expect("room");
            stream.shutdown(Shutdown::Write).expect("open");
        });
    };
    thread::scope(|scope| {
        scope.spawn(|| talk(patient(listener.accept().expect("a client").0), &down, &up));
        talk(outer.connect_tcp(), &up, &down);
    });
    for relay in [outer, inner] {
        let said = relay.terminate().success().stderr;
        assert!(said.contains(&format!("({SIZE} bytes to ")), "{said}");
        assert!(said.contains(&format!(", {SIZE} bytes back,")), "{said}");
    }
}

#[test]
fn either_side_may_end_first_and_still_gets_the_answer() {
    let realm = Realm::new();
    // TLS in: the client ends, and hears the target.
    let (listener, address) = target();
    let relay = terminating(&realm, &[], &address);
    let server = mirror(listener, 1);
    let mut client = secured::client(relay.connect_tcp(), &trust(&realm)).expect("a handshake");
    client.write_all(b"the question").expect("room");
    secured::close_client(&mut client);
    assert_eq!(
        secured::read_all(&mut client).expect("an end"),
        b"the question"
    );
    server.join().expect("no panic");
    drop(client);
    assert!(relay.terminate().success().stderr.contains(": ended ("));

    // TLS out: the client ends, the target hears that in TLS's own words, and answers.
    let (listener, address) = target();
    let directory = realm.server(Flaw::None);
    let server = thread::spawn(move || {
        let stream = patient(listener.accept().expect("a client").0);
        let mut stream = secured::server(stream, &directory).expect("a handshake");
        let question = secured::read_all(&mut stream).expect("an end that was said");
        stream.write_all(&question).expect("room");
        secured::close_server(&mut stream);
        secured::read_all(&mut stream.sock).expect("an end");
    });
    let relay = originating(&realm, &[], &address);
    let mut client = relay.connect_tcp();
    client.write_all(b"the question").expect("room");
    client.shutdown(Shutdown::Write).expect("open");
    assert_eq!(
        secured::read_all(&mut client).expect("an end"),
        b"the question"
    );
    server.join().expect("no panic");
    assert!(relay.terminate().success().stderr.contains(": ended ("));
}

#[test]
fn what_was_cut_off_looks_cut_off_on_the_other_side() {
    let realm = Realm::new();
    // A client of TLS that is gone without a word: its target is not told of an end.
    let (listener, address) = target();
    let relay = terminating(&realm, &[], &address);
    let mut client = secured::client(relay.connect_tcp(), &trust(&realm)).expect("a handshake");
    client.write_all(b"half a message").expect("room");
    let mut server = patient(listener.accept().expect("the relay").0);
    let mut half = [0; 14];
    server.read_exact(&mut half).expect("half a message");
    client.sock.shutdown(Shutdown::Write).expect("open");
    let error = server.read(&mut [0; 1]).expect_err("no end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    relay.until_it_tells("the connection was cut");

    // A target of TLS, the same.
    let (listener, address) = target();
    let directory = realm.server(Flaw::None);
    let relay = originating(&realm, &[], &address);
    let mut client = relay.connect_tcp();
    let stream = patient(listener.accept().expect("the relay").0);
    let mut server = secured::server(stream, &directory).expect("a handshake");
    server.write_all(b"half a message").expect("room");
    client.read_exact(&mut half).expect("half a message");
    server.sock.shutdown(Shutdown::Write).expect("open");
    let error = client.read(&mut [0; 1]).expect_err("no end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    relay.until_it_tells("the connection was cut");

    // A plain client that breaks off: its target is not told of an end in TLS.
    let (listener, address) = target();
    let relay = originating(&realm, &[], &address);
    let mut client = relay.connect_tcp();
    let stream = patient(listener.accept().expect("the relay").0);
    let mut server = secured::server(stream, &directory).expect("a handshake");
    server.write_all(b"nobody reads this").expect("room");
    client.write_all(b"half a message").expect("room");
    server.read_exact(&mut half).expect("half a message");
    until("what nobody reads", || {
        client.peek(&mut [0; 17]).is_ok_and(|count| count == 17)
    });
    // Closed with something unread, a socket of TCP resets its connection.
    drop(client);
    let error = server.read(&mut [0; 1]).expect_err("no end");
    let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof];
    assert!(kinds.contains(&error.kind()), "{error}");
}

#[test]
fn a_client_that_has_ended_and_is_gone_is_missed_below_tls() {
    let realm = Realm::new();
    let (listener, address) = target();
    let relay = terminating(&realm, &[], &address);
    let mut client = secured::client(relay.connect_tcp(), &trust(&realm)).expect("a handshake");
    client.write_all(b"a question").expect("room");
    secured::close_client(&mut client);
    let mut server = patient(listener.accept().expect("the relay").0);
    let question = secured::read_all(&mut server).expect("an end");
    assert_eq!(question, b"a question");
    server.write_all(b"half an answer").expect("room");
    until("what nobody reads", || {
        client.sock.peek(&mut [0; 1]).is_ok_and(|count| count == 1)
    });
    // Closed with something unread, a socket of TCP resets its connection.
    drop(client);
    assert_eq!(relay.closed()["ending"], "gone");
}

/// What a client gets from `data` behind a server with a `flaw`, and what the relay said.
fn through(realm: &Realm, flaw: Flaw, arguments: &[&str]) -> (io::Result<Vec<u8>>, String) {
    let (listener, address) = target();
    let directory = realm.server(flaw);
    let server = thread::spawn(move || {
        let stream = patient(listener.accept().expect("the relay").0);
        // It may be refused.
        if let Ok(mut stream) = secured::server(stream, &directory) {
            let _ = stream.write_all(b"welcome");
            stream.conn.send_close_notify();
            let _ = stream.flush();
            let _ = secured::read_all(&mut stream);
        }
    });
    let options = [&TALKATIVE, &["--tls-target"], arguments].concat();
    let relay = Relay::new(Family::Tcp, &options, &[&address]);
    let mut client = relay.connect_tcp();
    client.shutdown(Shutdown::Write).expect("open");
    let received = secured::read_all(&mut client);
    server.join().expect("no panic");
    (received, relay.terminate().success().stderr)
}

#[test]
fn targets_that_are_not_who_they_should_be_are_refused() {
    let realm = Realm::new();
    let trust = trust(&realm);
    let certificates = ["--tls-certificates", text(&trust)];
    for (flaw, words) in [
        (Flaw::Expired, "the server's certificate expired"),
        (Flaw::NotYetValid, "is not valid yet"),
        (Flaw::SelfSigned, "self-signed"),
        (Flaw::OtherHost, "is for elsewhere.example"),
    ] {
        let (received, said) = through(&realm, flaw, &certificates);
        assert!(received.is_err(), "{flaw:?}: {received:?}");
        assert!(said.contains(words), "{flaw:?}: {said}");
        assert!(said.contains("no target answered"), "{flaw:?}: {said}");
        // Unless nobody cares.
        let (received, said) = through(&realm, flaw, &["--no-tls-verify-target"]);
        assert_eq!(received.expect(&said), b"welcome", "{flaw:?}");
    }
    let named = [&certificates[..], &["--tls-hostname", "elsewhere.example"]].concat();
    let (received, said) = through(&realm, Flaw::OtherHost, &named);
    assert_eq!(received.expect(&said), b"welcome");
    let (received, said) = through(&realm, Flaw::None, &named);
    assert!(received.is_err(), "{received:?}");
    assert!(said.contains("not for \"elsewhere.example\""), "{said}");
}

#[test]
fn the_system_says_who_is_trusted_when_nobody_else_does() {
    let realm = Realm::new();
    let directory = realm.server(Flaw::None);
    let stranger = Authority::new().directory(realm.room.path(), "stranger");
    for (authority, trusted) in [(&directory, true), (&stranger, false)] {
        let (listener, address) = target();
        let certificates = directory.clone();
        let server = thread::spawn(move || {
            let stream = patient(listener.accept().expect("the relay").0);
            let Ok(mut stream) = secured::server(stream, &certificates) else {
                return;
            };
            secured::close_server(&mut stream);
            let _ = secured::read_all(&mut stream);
        });
        let outcome = run(blockferry(["relay", "--tls-target", "-", &address])
            .env("SSL_CERT_FILE", authority.join("ca-cert.pem"))
            .env_remove("SSL_CERT_DIR"));
        match trusted {
            true => drop(outcome.success()),
            false => drop(outcome.failure(1, &["not in this system's list of trusted ones"])),
        }
        server.join().expect("no panic");
    }
}

#[test]
fn the_next_target_is_tried_when_one_has_no_good_tls() {
    let realm = Realm::new();
    let directory = realm.server(Flaw::None);
    let (plain, wrong) = target();
    let (listener, right) = target();
    let first = thread::spawn(move || {
        let mut stream = patient(plain.accept().expect("the relay").0);
        stream.write_all(b"220 no TLS here\r\n").expect("room");
        let _ = secured::read_all(&mut stream);
    });
    let second = thread::spawn(move || {
        let stream = patient(listener.accept().expect("the relay").0);
        let mut stream = secured::server(stream, &directory).expect("a handshake");
        stream.write_all(b"welcome").expect("room");
        secured::close_server(&mut stream);
        secured::read_all(&mut stream).expect("an end");
    });
    let trust = trust(&realm);
    let tls = ["--tls-target", "--tls-certificates", text(&trust)];
    let options = [&TALKATIVE, &tls[..]].concat();
    let relay = Relay::new(Family::Tcp, &options, &[&wrong, &right]);
    let mut client = relay.connect_tcp();
    client.shutdown(Shutdown::Write).expect("open");
    assert_eq!(secured::read_all(&mut client).expect("an end"), b"welcome");
    first.join().expect("no panic");
    second.join().expect("no panic");
    let said = relay.terminate().success().stderr;
    assert!(said.contains("the server does not answer in TLS"), "{said}");
}

#[test]
fn clients_prove_who_they_are_where_they_have_to() {
    let realm = Realm::new();
    let member = realm.authority.client(realm.room.path(), "member");
    let stranger = Authority::new().client(realm.room.path(), "stranger");
    fs::copy(
        trust(&realm).join("ca-cert.pem"),
        stranger.join("ca-cert.pem"),
    )
    .expect("room");
    let (listener, address) = target();
    listener.set_nonblocking(true).expect("an option");
    let relay = terminating(&realm, &["--tls-verify-peer"], &address);
    for (directory, words) in [
        (trust(&realm), "the client has no certificate to show"),
        (
            stranger,
            "the client's certificate is self-signed, or signed by",
        ),
    ] {
        // Under TLS 1.3 a client hears of it after its handshake.
        let refused = secured::client(relay.connect_tcp(), &directory)
            .and_then(|mut client| secured::read_all(&mut client));
        refused.expect_err("it is not let in");
        relay.until_it_tells(words);
    }
    // Nobody of them got as far as the target.
    let error = listener.accept().expect_err("no connection");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    listener.set_nonblocking(false).expect("an option");
    let server = mirror(listener, 2);
    let mut client = secured::client(relay.connect_tcp(), &member).expect("a handshake");
    client.write_all(b"hello").expect("room");
    secured::close_client(&mut client);
    assert_eq!(secured::read_all(&mut client).expect("an end"), b"hello");

    // Another relay shows what is in its directory.
    let tls = ["--tls-target", "--tls-certificates", text(&member)];
    let address = format!("tcp:localhost:{}", relay.port());
    let outer = Relay::new(Family::Tcp, &tls, &[&address]);
    let mut client = outer.connect_tcp();
    client.write_all(b"hello again").expect("room");
    client.shutdown(Shutdown::Write).expect("open");
    assert_eq!(
        secured::read_all(&mut client).expect("an end"),
        b"hello again"
    );
    server.join().expect("no panic");
}

#[test]
fn clients_that_never_begin_their_handshake_hold_nobody_up() {
    let realm = Realm::new();
    let (listener, address) = target();
    let relay = terminating(&realm, &["--connect-timeout", "4"], &address);
    let server = mirror(listener, 1);
    let silent: Vec<_> = (0..20).map(|_| relay.connect_tcp()).collect();
    let mut slow = relay.connect_tcp();
    slow.write_all(&[0x16, 3, 1, 1, 0]).expect("room");
    let mut client = secured::client(relay.connect_tcp(), &trust(&realm)).expect("a handshake");
    client.write_all(b"hello").expect("room");
    secured::close_client(&mut client);
    assert_eq!(secured::read_all(&mut client).expect("an end"), b"hello");
    server.join().expect("no panic");
    for mut client in silent {
        // Closed, and told so or not.
        let _ = secured::read_all(&mut client);
    }
    relay.until_it_tells("the client did not begin its TLS handshake in 4 s");
    relay.until_it_tells("the client did not finish its TLS handshake in 4 s");
}

#[test]
fn what_clients_do_wrong_is_told() {
    let realm = Realm::new();
    let (_listener, address) = target();
    let relay = terminating(&realm, &[], &address);
    let mut plain = relay.connect_tcp();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("room");
    relay.until_it_tells("the client sent plaintext where TLS was to begin");
    drop(relay.connect_tcp());
    relay.until_it_tells("the client hung up without a TLS handshake");
    let distrust = Authority::new().directory(realm.room.path(), "distrust");
    secured::client(relay.connect_tcp(), &distrust).expect_err("it does not trust the relay");
    relay.until_it_tells("the client does not trust this server's certificate");
    let closed = relay.logged("closed");
    for words in ["plaintext", "hung up", "does not trust"] {
        let told = |entry: &Value| entry["how"].as_str().is_some_and(|how| how.contains(words));
        let entry = closed.iter().find(|entry| told(entry));
        let entry = entry.unwrap_or_else(|| panic!("{words}: {closed:?}"));
        assert_eq!(entry["ending"], "no-tls");
    }
    relay.terminate().success();
}

#[test]
fn standard_input_and_output_reach_a_target_of_tls() {
    let realm = Realm::new();
    let directory = realm.server(Flaw::None);
    let (listener, address) = target();
    let data = random_bytes(2 << 20, 5);
    let server = thread::spawn(move || {
        let stream = patient(listener.accept().expect("the relay").0);
        let mut stream = secured::server(stream, &directory).expect("a handshake");
        let all = secured::read_all(&mut stream).expect("an end that was said");
        stream.write_all(&all).expect("room");
        secured::close_server(&mut stream);
        secured::read_all(&mut stream.sock).expect("an end");
    });
    let trust = trust(&realm);
    let mut command = blockferry(["relay", "--tls-target", "--tls-certificates"]);
    let outcome = run_with_input(command.arg(&trust).args(["-", &address]), &data).success();
    assert!(outcome.stdout == data, "{} bytes", outcome.stdout.len());
    server.join().expect("no panic");
}

#[test]
fn a_client_of_tls_reaches_standard_input_and_output() {
    let realm = Realm::new();
    let directory = realm.server(Flaw::None);
    let socket = realm.path("relay.sock");
    let address = format!("unix:{}", socket.display());
    let mut child = blockferry(["relay", "--tls-listen", text(&directory), &address, "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"from standard input").expect("a pipe");
    drop(stdin);
    // The socket has a name a moment before somebody listens at it; one connection is all there is.
    let stream = RefCell::new(None);
    until("the relay to listen", || {
        *stream.borrow_mut() = UnixStream::connect(&socket).ok();
        stream.borrow().is_some()
    });
    let stream = stream.into_inner().expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("an option");
    let mut client = secured::client(stream, &trust(&realm)).expect("a handshake");
    client.write_all(b"to standard output").expect("room");
    secured::close_client(&mut client);
    assert_eq!(
        secured::read_all(&mut client).expect("an end"),
        b"from standard input"
    );
    assert_eq!(finish(child).success().stdout, b"to standard output");
}

#[test]
fn directories_without_certificates_are_refused_at_the_start() {
    let realm = Realm::new();
    let empty = realm.path("empty");
    fs::create_dir(&empty).expect("room");
    let expired = realm.server(Flaw::Expired);
    for (arguments, words) in [
        (
            &["--tls-listen", text(&empty)][..],
            "hint: the directory needs server-cert.pem",
        ),
        (
            &["--tls-listen", text(&expired)],
            "the certificate expired 3 days ago",
        ),
        (
            &["--tls-target", "--tls-certificates", text(&empty)],
            "ca-cert.pem",
        ),
        (
            &["--tls-target", "--tls-hostname", "a b"],
            "is not a host name",
        ),
    ] {
        let mut command = blockferry(["relay"]);
        let addresses = ["tcp:127.0.0.1:0", "tcp:localhost:1"];
        run(command.args(arguments).args(addresses)).failure(1, &[words]);
    }
}
