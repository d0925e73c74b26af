//! How long a relay and its connections live, what it says of itself, and what it leaves behind.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read, Write},
    net::TcpListener,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    process::Command,
    thread,
    time::Duration,
};

use tempfile::tempdir;

use crate::support::{
    blockferry,
    relay::{FAMILIES, Family, Relay, Stream, Target, entries, noise},
    run,
    run::until,
};

/// A target that sends back what it gets.
fn echo() -> String {
    Target::new(Family::Tcp, "".as_ref(), "").echoing()
}

fn is_reset(mut stream: Stream) -> bool {
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn a_request_to_end_lets_connections_finish() {
    for (family, name) in FAMILIES.into_iter().zip(["TERM", "INT"]) {
        let relay = Relay::new(family, &[], &[&echo()]);
        let mut stream = relay.connect();
        stream.echo(b"before");
        relay.signal(name);
        until("it to stop listening", || {
            Stream::connect(&relay.address).is_err()
        });
        if let Some(path) = relay.address.strip_prefix("unix:") {
            assert!(!fs::exists(path).expect("a directory"), "{path} is left");
        }
        stream.echo(&noise(1 << 20, 1));
        stream.end();
        assert!(stream.rest().expect("the end").is_empty());
        let log = relay.log_path();
        let kept = fs::File::open(&log).expect("a log");
        let outcome = relay.finish().success();
        assert!(
            outcome.stderr.contains("no more clients"),
            "{}",
            outcome.stderr
        );
        let text = io::read_to_string(kept).expect("text");
        assert!(text.contains("\"event\":\"stopped\""), "{text}");
    }
}

#[test]
fn a_second_request_ends_it_at_once() {
    let relay = Relay::new(Family::Tcp, &[], &[&echo()]);
    let mut stream = relay.connect();
    stream.echo(b"before");
    relay.signal("TERM");
    until("the first request to be heard", || {
        relay.told().contains("waiting for 1 connection")
    });
    relay.signal("INT");
    assert_eq!(relay.finish().code, 130);
    assert!(is_reset(stream), "it must not look whole");
}

#[test]
fn connections_that_do_not_finish_in_time_are_broken_off() {
    let relay = Relay::new(Family::Tcp, &["--drain-timeout", "0.3"], &[&echo()]);
    let mut streams: Vec<_> = (0..3).map(|_| relay.connect()).collect();
    for stream in &mut streams {
        stream.echo(b"before");
    }
    relay.signal("TERM");
    let log = fs::File::open(relay.log_path()).expect("a log");
    let outcome = relay.finish();
    assert_eq!(outcome.code, 143);
    let words = "what had not ended after 0.3 s was broken off: 3 connections";
    assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
    assert!(streams.into_iter().all(is_reset), "none may look whole");
    let text = io::read_to_string(log).expect("text");
    let broken = text.lines().filter(|line| line.contains("broken-off"));
    assert_eq!(broken.count(), 3, "{text}");
}

#[test]
fn a_silent_connection_is_broken_off_and_a_busy_one_is_not() {
    for mode in ["splice", "copy"] {
        let options = ["--idle-timeout", "0.4", "--mode", mode];
        let relay = Relay::new(Family::Tcp, &options, &[&echo()]);
        let mut silent = relay.connect();
        silent.echo(b"hello");
        let mut busy = relay.connect();
        while relay.logged("closed").is_empty() {
            busy.echo(b"still there");
            thread::sleep(Duration::from_millis(20));
        }
        let closed = relay.closed();
        assert_eq!(closed["ending"], "idle", "{closed}");
        assert!(is_reset(silent), "it must not look whole");
        busy.echo(b"still there");
    }
}

#[test]
fn a_side_that_does_not_answer_an_end_is_not_waited_for_for_ever() {
    for mode in ["splice", "copy"] {
        let target = Target::new(Family::Tcp, "".as_ref(), "");
        let options = ["--half-close-timeout", "0.3", "--mode", mode];
        let relay = Relay::new(Family::Tcp, &options, &[&target.address()]);
        let stream = relay.connect();
        let mut far = target.accept();
        stream.end();
        assert_eq!(far.read(&mut [0]).expect("the end"), 0);
        let closed = relay.closed();
        assert_eq!(closed["ending"], "half-closed", "{closed}");
        assert!(is_reset(stream), "it must not look whole");
    }
}

#[test]
fn more_clients_than_allowed_wait_for_their_turn() {
    let options = ["--max-connections", "2", "--metrics", "127.0.0.1:0"];
    let relay = Relay::new(Family::Unix, &options, &[&echo()]);
    let mut first = relay.connect();
    let mut second = relay.connect();
    first.echo(b"first");
    second.echo(b"second");
    let mut third = relay.connect();
    third.write_all(b"third").expect("queued");
    // Were it accepted, it would be so by now.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(relay.count("connections_total"), 2);
    first.end();
    assert!(first.rest().expect("the end").is_empty());
    let mut back = [0; 5];
    third.read_exact(&mut back).expect("its turn");
    assert_eq!(&back, b"third");
    second.echo(b"still there");
    assert_eq!(relay.count("connections_total"), 3);
}

/// Lets a process open no more descriptors than `limit`.
fn limit_descriptors(relay: &Relay, limit: u64) {
    let pid = relay.child().id().to_string();
    run::tool("prlimit", &["--pid", &pid, &format!("--nofile={limit}:")]);
}

#[test]
fn without_descriptors_clients_wait() {
    let relay = Relay::new(Family::Unix, &[], &[&echo()]);
    let mut first = relay.connect();
    first.echo(b"hello");
    // There is no number below it that is free.
    limit_descriptors(&relay, 3);
    let mut second = relay.connect();
    second.write_all(b"hello").expect("queued");
    until("it to be told", || {
        relay
            .told()
            .contains("clients cannot be accepted: Too many open files")
    });
    first.echo(b"still there");
    limit_descriptors(&relay, 200);
    second.read_exact(&mut [0; 5]).expect("its turn");
    let outcome = relay.terminate();
    let told = outcome.stderr.matches("clients cannot be accepted").count();
    assert_eq!(told, 1, "{}", outcome.stderr);
}

#[test]
fn a_log_whose_disk_is_full_has_whole_lines_only() {
    let mut shell = Command::new("/bin/sh");
    // In blocks of 512 bytes.
    let script = "trap '' XFSZ; ulimit -f 2 && exec \"$0\" \"$@\"";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_blockferry"), "relay"]);
    let metrics = ["--metrics", "127.0.0.1:0"];
    let relay = Relay::of(shell, Family::Unix, &metrics, &[&echo()]);
    for _ in 0..10 {
        relay.connect().echo(b"hello");
    }
    until("the log to be full", || relay.count("connections") == 0);
    let text = fs::read_to_string(relay.log_path()).expect("a log");
    assert!((500..=2048).contains(&text.len()), "{} bytes", text.len());
    assert!(text.ends_with('\n'), "{text:?}");
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect("a whole line");
    }
    relay.terminate().success();
}

#[test]
fn no_more_clients_are_taken_than_there_are_descriptors_for() {
    let mut shell = Command::new("/bin/sh");
    let script = "ulimit -n 64 && exec \"$0\" \"$@\"";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_blockferry"), "relay"]);
    let options = ["--max-connections", "1000"];
    let relay = Relay::of(shell, Family::Unix, &options, &[&echo()]);
    assert!(relay.told().contains("ulimit -n"), "{}", relay.told());
    let mut streams: Vec<_> = (0..100).map(|_| relay.connect()).collect();
    for stream in &mut streams {
        stream.write_all(b"hello").expect("queued");
    }
    // Each gets its turn when others have gone.
    for mut stream in streams {
        stream.read_exact(&mut [0; 5]).expect("its turn");
    }
    let outcome = relay.terminate().success();
    assert!(
        !outcome.stderr.contains("Too many open files"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn connections_that_are_killed_leave_no_descriptor_behind() {
    for mode in ["auto", "splice"] {
        let target = echo();
        let options = ["--mode", mode, "--metrics", "127.0.0.1:0"];
        let relay = Relay::new(Family::Tcp, &options, &[&target]);
        let count = || {
            let fds = fs::read_dir(format!("/proc/{}/fd", relay.child().id()));
            fds.expect("its descriptors").count()
        };
        let log = relay.log_path();
        let before = count();
        let chance = noise(4 * 500, 8);
        let clients: Vec<_> = chance.chunks(4).map(<[u8]>::to_vec).collect();
        thread::scope(|scope| {
            for clients in clients.chunks(50) {
                let relay = &relay;
                scope.spawn(move || {
                    for client in clients {
                        let mut stream = relay.connect();
                        let bytes = noise(usize::from(client[0]) << 10, 9);
                        let mut other = stream.second();
                        let reading = thread::spawn(move || drop(other.read(&mut [0; 70_000])));
                        let _ = stream.write_all(&bytes[..bytes.len() / 2]);
                        match client[1] % 3 {
                            // Cut at once, both ways.
                            0 => {}
                            1 => {
                                stream.end();
                                let _ = stream.rest();
                            }
                            _ => drop(stream.write_all(&bytes)),
                        }
                        if let Stream::Tcp(stream) = &stream {
                            let _ = stream.shutdown(std::net::Shutdown::Both);
                        }
                        let _ = reading.join();
                    }
                });
            }
        });
        until("the end of them all", || {
            entries(&log, "closed").len() == 500
        });
        assert_eq!(relay.count("pipes{state=\"lent\"}"), 0);
        let spare = relay.count("pipes{state=\"spare\"}");
        let spare = usize::try_from(spare).expect("a few");
        until("the descriptors to be closed", || {
            count() == before + 2 * spare
        });
        relay.terminate().success();
    }
}

#[test]
fn what_is_over_and_what_goes_on_is_counted() {
    let options = ["--metrics", "127.0.0.1:0", "--mode", "copy"];
    let relay = Relay::new(Family::Tcp, &options, &[&echo()]);
    let mut first = relay.connect();
    first.echo(&[1; 1000]);
    first.end();
    assert!(first.rest().expect("the end").is_empty());
    let mut second = relay.connect();
    second.echo(&[2; 500]);
    let bytes = |direction: &str, way: &str| {
        relay.count(&format!(
            "bytes_total{{direction=\"{direction}\",way=\"{way}\"}}"
        ))
    };
    for direction in ["to_target", "to_client"] {
        until("both to be counted", || bytes(direction, "copied") == 1500);
        assert_eq!(bytes(direction, "spliced"), 0);
    }
    until("the first to be over", || relay.count("connections") == 1);
    assert_eq!(relay.count("connections_total"), 2);
    assert_eq!(relay.count("ended_total{how=\"ended\"}"), 1);
    assert_eq!(relay.count("ended_total{how=\"reset\"}"), 0);
    assert_eq!(relay.count("pipes{state=\"lent\"}"), 0);
}

#[test]
fn spliced_bytes_are_counted_as_such() {
    let options = ["--metrics", "127.0.0.1:0", "--mode", "splice"];
    let relay = Relay::new(Family::Unix, &options, &[&echo()]);
    let mut stream = relay.connect();
    stream.echo(&noise(100_000, 10));
    let spliced = r#"bytes_total{direction="to_target",way="spliced"}"#;
    until("them to be counted", || relay.count(spliced) == 100_000);
    drop(stream);
    let closed = relay.closed();
    assert_eq!(closed["to_target"]["spliced"], 100_000, "{closed}");
    assert_eq!(closed["to_target"]["copied"], 0, "{closed}");
}

#[test]
fn a_log_goes_on_in_a_new_file_after_a_hangup() {
    let relay = Relay::new(Family::Tcp, &[], &[&echo()]);
    let once = || {
        let mut stream = relay.connect();
        stream.echo(b"hello");
        stream.end();
        assert!(stream.rest().expect("the end").is_empty());
    };
    once();
    let log = relay.log_path();
    let old = log.with_extension("old");
    until("the first one to be logged", || {
        entries(&log, "closed").len() == 1
    });
    fs::rename(&log, &old).expect("renamed");
    relay.signal("HUP");
    until("a new log", || log.exists());
    once();
    until("the second one to be logged", || {
        entries(&log, "closed").len() == 1
    });
    let [first, second] = [&old, &log].map(|log| entries(log, "closed").remove(0));
    assert_eq!(
        (&first["connection"], &second["connection"]),
        (&1.into(), &2.into())
    );
    assert!(
        second["client"]
            .as_str()
            .is_some_and(|it| it.starts_with("127.0.0.1:"))
    );
    assert!(second["seconds"].as_f64().is_some() && second["time"].is_string());
    relay.terminate().success();
}

#[test]
fn who_wants_to_know_is_told_of_each_connection() {
    let relay = Relay::new(Family::Unix, &["-v"], &[&echo()]);
    relay.connect().echo(b"hello");
    until("it to be told", || {
        relay.told().contains("client 1: connected")
    });
    until("its end", || relay.told().contains("5 bytes to tcp:"));
    let quiet = Relay::new(Family::Tcp, &[], &[&echo()]);
    quiet.connect().echo(b"hello");
    let outcome = quiet.terminate().success();
    assert!(!outcome.stderr.contains("client 1"), "{}", outcome.stderr);
}

#[test]
fn wrong_words_are_refused_with_what_to_write() {
    let refused = |words: &[&str], hints: &[&str]| {
        run(blockferry(["relay"]).args(words)).failure(2, hints);
    };
    refused(&["tcp::0"], &["TARGET"]);
    refused(
        &["TCP-LISTEN:80,fork", "tcp:a:1"],
        &["another program", "tcp::80"],
    );
    refused(
        &["tcp::0", "localhost:80"],
        &["hint: write tcp:localhost:80"],
    );
    refused(
        &["/run/x.sock", "tcp:a:1"],
        &["hint: for a Unix socket, write unix:/run/x.sock"],
    );
    refused(&["tcp:::1:80", "tcp:a:1"], &["tcp:[::1]:80"]);
    refused(&["-", "-"], &["both ends"]);
    refused(&["systemd:", "tcp:a:1"], &["socket activation"]);
}

#[test]
fn a_place_that_is_taken_is_left_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = format!("tcp:{}", listener.local_addr().expect("an address"));
    let words = ["relay", &taken, "unix:/nowhere"];
    run(&mut blockferry(words)).failure(1, &["another server listens there"]);
    let room = tempdir().expect("a directory");
    let path = room.path().join("s");
    let place = format!("unix:{}", path.display());
    let listener = UnixListener::bind(&path).expect("bound");
    run(&mut blockferry(["relay", &place, "unix:/nowhere"]))
        .failure(1, &["another server listens there"]);
    UnixStream::connect(&path).expect("it is still there");
    // One that nobody listens on any more is replaced, and removed at the end.
    drop(listener);
    // A child of another test that is about to begin may have it for a moment.
    until("it to be gone", || UnixStream::connect(&path).is_err());
    let target = echo();
    let mut child = blockferry(["relay", "-q", &place, &target])
        .spawn()
        .expect("the binary");
    until("the relay", || UnixStream::connect(&path).is_ok());
    Stream::connect(&place).expect("connected").echo(b"hello");
    run::signal(&child, "INT");
    assert_eq!(run::wait(&mut child), 0);
    assert!(!path.exists());
    fs::write(&path, "precious").expect("written");
    run(&mut blockferry(["relay", &place, "unix:/nowhere"])).failure(1, &["not a socket"]);
    assert_eq!(fs::read(&path).expect("still there"), b"precious");
}

#[test]
fn every_address_of_the_machine_is_a_place_to_listen() {
    let target = echo();
    let room = tempdir().expect("a directory");
    let log = room.path().join("log");
    let mut child = blockferry(["relay", "-q", "--log"])
        .arg(&log)
        .args(["tcp::0", &target])
        .spawn()
        .expect("the binary");
    until("the relay", || !entries(&log, "listening").is_empty());
    let listening = entries(&log, "listening").remove(0);
    let address = listening["addresses"][0].as_str().expect("an address");
    let port = address.strip_prefix("tcp:*:").expect("every address");
    Stream::connect(&format!("tcp:127.0.0.1:{port}"))
        .expect("connected")
        .echo(b"hello");
    run::signal(&child, "TERM");
    assert_eq!(run::wait(&mut child), 0);
}

#[test]
fn sockets_of_socket_activation_are_relayed() {
    let room = tempdir().expect("a directory");
    let path = room.path().join("s");
    let listener = UnixListener::bind(&path).expect("bound");
    let target = echo();
    let arguments = ["relay", "-q", "systemd:", &target].map(OsString::from);
    let output = fs::File::create(room.path().join("output")).expect("a file");
    let mut child = blockferry_sys::spawn_activated(
        OsStr::new(env!("CARGO_BIN_EXE_blockferry")),
        &arguments,
        listener.as_fd(),
        output.into(),
    )
    .expect("started");
    let mut stream = Stream::Unix(UnixStream::connect(&path).expect("connected"));
    stream.echo(b"hello");
    drop(stream);
    run::signal(&child, "TERM");
    assert_eq!(run::wait(&mut child), 0);
}
