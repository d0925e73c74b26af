//! `relay`: every byte arrives, both ways, by every way that there is.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    thread,
};

use tempfile::tempdir;

use crate::support::{
    relay::{FAMILIES, Family, Relay, Silent, Stream, Target, noise, refusing},
    run::{finish, until},
};

const MODES: [&str; 3] = ["auto", "splice", "copy"];

/// What each side sends, in bytes.
const MUCH: usize = 64 << 20;

/// Sends `bytes` in the background and ends.
fn send(stream: &Stream, bytes: &[u8]) -> thread::JoinHandle<()> {
    let (mut stream, bytes) = (stream.second(), bytes.to_vec());
    thread::spawn(move || {
        stream.write_all(&bytes).expect("sent");
        stream.end();
    })
}

fn pairings() -> impl Iterator<Item = (Family, Family)> {
    FAMILIES
        .into_iter()
        .flat_map(|client| FAMILIES.map(|target| (client, target)))
}

fn total(moved: &serde_json::Value) -> u64 {
    let count = |way: &str| moved[way].as_u64().expect("a count");
    count("spliced") + count("copied")
}

#[test]
fn an_answer_that_comes_after_the_end_of_the_question_arrives_whole() {
    let (question, answer) = (noise(MUCH, 1), noise(MUCH + 1, 2));
    for (client, target) in pairings() {
        for mode in MODES {
            let room = tempdir().expect("a directory");
            let target = Target::new(target, room.path(), "target");
            let relay = Relay::new(client, &["--mode", mode], &[&target.address()]);
            let mut asking = relay.connect();
            let sending = send(&asking, &question);
            let mut answering = target.accept();
            assert!(answering.rest().expect("a question") == question, "{mode}");
            let answered = send(&answering, &answer);
            assert!(asking.rest().expect("an answer") == answer, "{mode}");
            sending.join().expect("asked");
            answered.join().expect("answered");
            let closed = relay.closed();
            assert_eq!(closed["clean"], true, "{closed}");
            assert_eq!(total(&closed["to_target"]), MUCH as u64, "{closed}");
            assert_eq!(total(&closed["to_client"]), MUCH as u64 + 1, "{closed}");
            relay.terminate().success();
        }
    }
}

#[test]
fn both_sides_may_speak_at_once() {
    let (there, back) = (noise(MUCH, 3), noise(MUCH, 4));
    for (client, target) in pairings() {
        let room = tempdir().expect("a directory");
        let target = Target::new(target, room.path(), "target");
        let relay = Relay::new(client, &[], &[&target.address()]);
        let mut near = relay.connect();
        let mut far = target.accept();
        let sending = [send(&near, &there), send(&far, &back)];
        let receiving = thread::spawn(move || far.rest().expect("all of it"));
        assert!(near.rest().expect("all of it") == back);
        assert!(receiving.join().expect("received") == there);
        for sending in sending {
            sending.join().expect("sent");
        }
        relay.terminate().success();
    }
}

#[test]
fn a_short_word_is_not_kept_waiting_for_more() {
    for (client, target) in pairings() {
        for mode in MODES {
            let room = tempdir().expect("a directory");
            let target = Target::new(target, room.path(), "target").echoing();
            let relay = Relay::new(client, &["--mode", mode], &[&target]);
            let mut stream = relay.connect();
            for length in [1, 256, 70_000, 3] {
                stream.echo(&noise(length, 5));
            }
        }
    }
}

#[test]
fn rates_lose_no_byte() {
    let bytes = noise(3 << 20, 6);
    let both = ["--rate", "4M", "--connection-rate", "8M"];
    for rate in [&both[..2], &["--connection-rate", "4M"], &both] {
        for mode in MODES {
            let room = tempdir().expect("a directory");
            let target = Target::new(Family::Tcp, room.path(), "");
            let options = [rate, &["--mode", mode]].concat();
            let relay = Relay::new(Family::Unix, &options, &[&target.address()]);
            let mut near = relay.connect();
            let mut far = target.accept();
            let sending = [send(&near, &bytes), send(&far, &bytes)];
            let receiving = thread::spawn(move || far.rest().expect("all of it"));
            assert!(near.rest().expect("all of it") == bytes, "{rate:?} {mode}");
            assert!(receiving.join().expect("received") == bytes);
            for sending in sending {
                sending.join().expect("sent");
            }
            let closed = relay.closed();
            assert_eq!(total(&closed["to_target"]), bytes.len() as u64);
            assert_eq!(total(&closed["to_client"]), bytes.len() as u64);
        }
    }
}

#[test]
fn socat_at_both_ends_sees_every_byte() {
    let room = tempdir().expect("a directory");
    let place = room.path().join("echo");
    let mut server = Command::new("socat")
        .arg(format!("UNIX-LISTEN:{},fork", place.display()))
        .arg("EXEC:cat")
        .spawn()
        .expect("socat (run `cargo xtask test`)");
    until("socat", || place.exists());
    let bytes = noise(16 << 20, 7);
    for (family, mode) in FAMILIES
        .into_iter()
        .flat_map(|it| MODES.map(|mode| (it, mode)))
    {
        let target = format!("unix:{}", place.display());
        let relay = Relay::new(family, &["--mode", mode], &[&target]);
        let (kind, rest) = relay.address.split_once(':').expect("an address");
        let kind = match kind {
            "tcp" => "TCP",
            _ => "UNIX-CONNECT",
        };
        let mut client = Command::new("socat")
            .args(["-t", "60", "-", &format!("{kind}:{rest}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("socat");
        let mut input = client.stdin.take().expect("a pipe");
        let sent = bytes.clone();
        let sending = thread::spawn(move || input.write_all(&sent));
        let outcome = finish(client);
        sending.join().expect("sent").expect("taken");
        assert!(outcome.stdout == bytes, "{mode}: {}", outcome.stderr);
        relay.terminate().success();
    }
    let _ = server.kill();
    let _ = server.wait();
}

#[test]
fn a_connection_that_breaks_off_is_broken_off_on_the_other_side() {
    for mode in MODES {
        let room = tempdir().expect("a directory");
        let target = Target::new(Family::Tcp, room.path(), "");
        let relay = Relay::new(Family::Tcp, &["--mode", mode], &[&target.address()]);
        let is_reset = |mut stream: Stream| {
            let mut buffer = [0; 16];
            let end = loop {
                match stream.read(&mut buffer) {
                    Ok(1..) => {}
                    end => break end,
                }
            };
            let error = end.expect_err("it must not look whole");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        };
        let greeted = || {
            let mut near = relay.connect();
            let mut far = target.accept();
            near.write_all(b"hello").expect("sent");
            far.write_all(b"hello").expect("sent");
            (near, far)
        };
        let (near, far) = greeted();
        near.reset();
        is_reset(far);
        let (near, far) = greeted();
        far.reset();
        is_reset(near);
        until("both to be logged", || relay.logged("closed").len() == 2);
        // Each has its worker, so the second may be logged first.
        let mut logged = relay.logged("closed");
        logged.sort_by_key(|closed| closed["connection"].as_u64());
        for (closed, fault) in logged.iter().zip(["client", "target"]) {
            assert_eq!(closed["ending"], "reset", "{closed}");
            assert_eq!(closed["fault"], fault, "{closed}");
            assert_eq!(closed["clean"], false, "{closed}");
        }
        relay.terminate().success();
    }
}

#[test]
fn what_a_client_says_that_does_not_wait_for_an_answer_arrives_whole() {
    let bytes = noise(8 << 20, 11);
    for (client, target) in pairings() {
        let room = tempdir().expect("a directory");
        let target = Target::new(target, room.path(), "target");
        let relay = Relay::new(client, &[], &[&target.address()]);
        let (mut near, sent) = (relay.connect(), bytes.clone());
        let sending = thread::spawn(move || near.write_all(&sent).expect("sent"));
        let mut far = target.accept();
        let heard = far.rest().expect("the end, and not that it broke off");
        sending.join().expect("sent");
        assert!(heard == bytes, "{client:?}");
        // An answer that nobody hears.
        while far.write_all(&[0; 4096]).is_ok() {}
        relay.closed();
        relay.terminate().success();
    }
}

#[test]
fn the_first_target_that_answers_is_taken() {
    let room = tempdir().expect("a directory");
    let (refusing, silent) = (refusing(), Silent::new());
    let missing = format!("unix:{}", room.path().join("missing").display());
    let target = Target::new(Family::Unix, room.path(), "target").echoing();
    let targets = [&refusing, &silent.address(), &missing, &target];
    let options = ["--connect-timeout", "0.5", "--metrics", "127.0.0.1:0"];
    let relay = Relay::new(Family::Tcp, &options, &targets.map(String::as_str));
    let mut stream = relay.connect();
    stream.echo(b"hello");
    stream.end();
    assert!(stream.rest().expect("the end").is_empty());
    let closed = relay.closed();
    assert_eq!(closed["target"], *target, "{closed}");
    let failed = relay.logged("connect-failed");
    let failed: Vec<_> = failed
        .iter()
        .map(|entry| (entry["target"].as_str(), entry["error"].as_str()))
        .collect();
    let expected = [
        (refusing.as_str(), "Connection refused"),
        (&silent.address(), "it did not answer in time"),
        (&missing, "No such file or directory"),
    ];
    let expected = expected.map(|(target, error)| (Some(target), Some(error)));
    assert_eq!(failed, expected);
    for (target, count) in [(&refusing, 1), (&missing, 1), (&target, 0)] {
        let name = format!("connect_failures_total{{target=\"{target}\"}}");
        assert_eq!(relay.count(&name), count);
    }
    assert!(
        relay.told().contains("Connection refused"),
        "{}",
        relay.told()
    );
}

#[test]
fn a_client_without_a_target_is_turned_away() {
    let (refusing, silent) = (refusing(), Silent::new());
    let targets = [refusing.as_str(), &silent.address()];
    for family in FAMILIES {
        let relay = Relay::new(family, &["--connect-timeout", "0.3"], &targets);
        let mut stream = relay.connect();
        let end = stream.read(&mut [0]);
        match family {
            Family::Tcp => {
                let error = end.expect_err("broken off");
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            }
            Family::Unix => assert_eq!(end.expect("an end"), 0),
        }
        let closed = relay.closed();
        assert_eq!(closed["ending"], "unreachable", "{closed}");
        assert!(closed["target"].is_null(), "{closed}");
        // It goes on.
        drop(relay.connect());
        relay.terminate().success();
    }
}

#[test]
fn a_name_with_several_addresses_is_tried_at_each_of_them() {
    // 'localhost' is ::1 and 127.0.0.1 on most machines; the target has the latter alone.
    let room = tempdir().expect("a directory");
    let target = Target::new(Family::Tcp, room.path(), "").echoing();
    let port = target.rsplit(':').next().expect("a port");
    let relay = Relay::new(Family::Unix, &[], &[&format!("tcp:localhost:{port}")]);
    relay.connect().echo(b"hello");
}
