//! Standard input and output as an end of a relay.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, Stdio},
    thread,
};

use tempfile::tempdir;

use crate::support::{
    blockferry,
    relay::{FAMILIES, Family, Stream, Target, entries, noise, refusing},
    run,
    run::{finish, run_with_input, signal, until, wait},
};

const MODES: [&str; 3] = ["auto", "splice", "copy"];

const MUCH: usize = 16 << 20;

fn echo(family: Family, room: &std::path::Path) -> String {
    Target::new(family, room, "echo").echoing()
}

/// A relay of standard input and output to `target`.
fn relay(mode: &str, target: &str) -> Command {
    blockferry(["relay", "--mode", mode, "-", target])
}

#[test]
fn a_pipe_goes_through_and_comes_back() {
    let bytes = noise(MUCH, 1);
    for family in FAMILIES {
        for mode in MODES {
            let room = tempdir().expect("a directory");
            let target = echo(family, room.path());
            let outcome = run_with_input(&mut relay(mode, &target), &bytes).success();
            assert!(outcome.stdout == bytes, "{family:?} {mode}");
            assert_eq!(outcome.stderr, "");
        }
    }
}

#[test]
fn a_file_goes_through_and_comes_back() {
    let room = tempdir().expect("a directory");
    let (input, output) = (room.path().join("input"), room.path().join("output"));
    let bytes = noise(MUCH, 2);
    fs::write(&input, &bytes).expect("written");
    for family in FAMILIES {
        for mode in MODES {
            let room = tempdir().expect("a directory");
            let target = echo(family, room.path());
            // Where others have begun to read and write.
            let mut source = File::open(&input).expect("there");
            source.seek(io::SeekFrom::Start(1000)).expect("there");
            let mut sink = File::create(&output).expect("a file");
            sink.write_all(b"head").expect("written");
            let mut child = relay(mode, &target)
                .stdin(source)
                .stdout(sink)
                .spawn()
                .expect("the binary");
            assert_eq!(wait(&mut child), 0);
            let written = fs::read(&output).expect("written");
            let (head, rest) = written.split_at(4);
            assert!(
                head == b"head" && rest == &bytes[1000..],
                "{family:?} {mode}"
            );
        }
    }
}

#[test]
fn a_file_that_is_appended_to_keeps_what_it_had() {
    let room = tempdir().expect("a directory");
    let output = room.path().join("output");
    fs::write(&output, b"head").expect("written");
    let target = echo(Family::Unix, room.path());
    let sink = File::options().append(true).open(&output).expect("there");
    let mut command = relay("splice", &target);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(sink)
        .spawn()
        .expect("the binary");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(&noise(100_000, 3)).expect("taken");
    drop(input);
    assert_eq!(wait(&mut child), 0);
    let written = fs::read(&output).expect("written");
    assert!(written.starts_with(b"head") && written[4..] == noise(100_000, 3));
}

#[test]
fn a_socket_goes_through_and_comes_back() {
    let room = tempdir().expect("a directory");
    let bytes = noise(MUCH, 4);
    for mode in MODES {
        let target = echo(Family::Tcp, room.path());
        let (near, far) = UnixStream::pair().expect("a pair");
        let output = OwnedFd::from(far.try_clone().expect("a descriptor"));
        let mut child = relay(mode, &target)
            .stdin(OwnedFd::from(far))
            .stdout(output)
            .spawn()
            .expect("the binary");
        let mut near = Stream::Unix(near);
        let (mut sending, sent) = (near.second(), bytes.clone());
        let sending = thread::spawn(move || {
            sending.write_all(&sent).expect("sent");
            sending.end();
        });
        assert!(near.rest().expect("all of it") == bytes, "{mode}");
        sending.join().expect("sent");
        assert_eq!(wait(&mut child), 0);
    }
}

#[test]
fn an_answer_may_come_after_the_end_of_the_input_and_input_after_the_answer() {
    for mode in MODES {
        let room = tempdir().expect("a directory");
        let target = Target::new(Family::Tcp, room.path(), "");
        let mut child = relay(mode, &target.address())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary");
        let mut input = child.stdin.take().expect("a pipe");
        let mut output = child.stdout.take().expect("a pipe");
        let mut far = target.accept();
        // The target ends first: standard output is closed, and input still goes through.
        far.write_all(b"answer").expect("sent");
        far.end();
        let mut answer = String::new();
        output.read_to_string(&mut answer).expect("closed");
        assert_eq!(answer, "answer");
        input.write_all(b"question").expect("taken");
        drop(input);
        assert_eq!(far.rest().expect("the end"), b"question");
        assert_eq!(wait(&mut child), 0);
    }
}

#[test]
fn a_pipe_that_others_read_from_stays_as_it_was() {
    let room = tempdir().expect("a directory");
    let target = echo(Family::Tcp, room.path());
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let ours = reader.try_clone().expect("a descriptor");
    let mut child = relay("splice", &target)
        .stdin(reader)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary");
    writer.write_all(b"hello").expect("taken");
    let mut output = child.stdout.take().expect("a pipe");
    let mut back = [0; 5];
    output.read_exact(&mut back).expect("sent back");
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", ours.as_raw_fd()));
    let info = info.expect("its flags");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = u32::from_str_radix(flags.expect("flags").trim(), 8).expect("octal");
    assert_eq!(flags & 0o4000, 0, "O_NONBLOCK in {info}");
    drop(writer);
    assert_eq!(wait(&mut child), 0);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for mode in MODES {
        let room = tempdir().expect("a directory");
        let target = Target::new(Family::Tcp, room.path(), "");
        let mut command = relay(mode, &target.address());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        let input = child.stdin.take();
        let mut output = child.stdout.take().expect("a pipe");
        let mut far = target.accept();
        far.write_all(b"hello").expect("sent");
        output.read_exact(&mut [0; 5]).expect("the first line");
        drop(output);
        while far.write_all(&[0; 4096]).is_ok() {}
        let outcome = finish(child).success();
        assert_eq!(outcome.stderr, "");
        drop(input);
    }
}

#[test]
fn the_exit_code_says_how_it_ended() {
    let refused = run_with_input(&mut relay("auto", &refusing()), b"hello");
    refused.failure(1, &["Connection refused"]);
    let room = tempdir().expect("a directory");
    let target = Target::new(Family::Tcp, room.path(), "");
    let broken = |mode: &str| {
        let mut command = relay(mode, &target.address());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        // It stays open: what ends it is the other side.
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(b"hello").expect("taken");
        target.accept().reset();
        finish(child).failure(75, &[&target.address(), "Connection reset"]);
    };
    MODES.into_iter().for_each(broken);
}

#[test]
fn a_request_to_end_ends_it_while_nothing_comes() {
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let room = tempdir().expect("a directory");
        let target = Target::new(Family::Tcp, room.path(), "");
        let mut child = relay("auto", &target.address())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary");
        let mut far = target.accept();
        // The kernel has accepted for a while before the relay itself knows of it.
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(b"hello").expect("taken");
        far.read_exact(&mut [0; 5]).expect("it is relayed");
        signal(&child, name);
        assert_eq!(wait(&mut child), code);
        let error = far.read(&mut [0]).expect_err("it must not look whole");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn silence_ends_it_too() {
    for option in ["--idle-timeout", "--half-close-timeout"] {
        let room = tempdir().expect("a directory");
        let target = Target::new(Family::Tcp, room.path(), "");
        let mut command = blockferry(["relay", option, "0.2", "-", &target.address()]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        let input = child.stdin.take();
        let far = target.accept();
        if option == "--half-close-timeout" {
            far.end();
        }
        let outcome = finish(child).failure(75, &["0.2 s"]);
        assert!(outcome.stdout.is_empty());
        drop(input);
    }
}

#[test]
fn a_client_gets_standard_input_and_output_and_others_are_refused() {
    for mode in MODES {
        let room = tempdir().expect("a directory");
        let (place, log) = (room.path().join("s"), room.path().join("log"));
        let listen = format!("unix:{}", place.display());
        let mut child = blockferry(["relay", "-q", "--mode", mode, "--log"])
            .arg(&log)
            .args([&listen, "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary");
        let mut input = child.stdin.take().expect("a pipe");
        let mut output = child.stdout.take().expect("a pipe");
        until("the relay", || place.exists());
        let mut client = loop {
            // It is there before somebody listens at it.
            if let Ok(client) = UnixStream::connect(&place) {
                break Stream::Unix(client);
            }
        };
        client.write_all(b"question").expect("sent");
        client.end();
        let mut question = String::new();
        output.read_to_string(&mut question).expect("the end");
        assert_eq!(question, "question");
        UnixStream::connect(&place).expect_err("nobody else");
        input.write_all(b"answer").expect("taken");
        drop(input);
        assert_eq!(client.rest().expect("the end"), b"answer");
        assert_eq!(wait(&mut child), 0);
        let closed = entries(&log, "closed").remove(0);
        let bytes = |way: &str| {
            let moved = &closed[way];
            moved["spliced"].as_u64().zip(moved["copied"].as_u64())
        };
        assert_eq!(bytes("to_target").map(|(a, b)| a + b), Some(8), "{closed}");
        assert_eq!(bytes("to_client").map(|(a, b)| a + b), Some(6), "{closed}");
        assert_eq!(
            (&closed["target"], &closed["clean"]),
            (&"-".into(), &true.into())
        );
    }
}

#[test]
fn without_a_client_a_request_to_end_is_no_failure() {
    let room = tempdir().expect("a directory");
    let place = room.path().join("s");
    let child = blockferry(["relay", &format!("unix:{}", place.display()), "-"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    until("the relay", || place.exists());
    signal(&child, "TERM");
    finish(child).success();
    assert!(!place.exists());
}

#[test]
fn socats_standard_input_and_output_work_alike() {
    let room = tempdir().expect("a directory");
    let place = room.path().join("s");
    let mut server = Command::new("socat")
        .arg(format!("UNIX-LISTEN:{}", place.display()))
        .arg("SYSTEM:cat; echo end")
        .spawn()
        .expect("socat (run `cargo xtask test`)");
    until("socat", || place.exists());
    let mut command = relay("auto", &format!("unix:{}", place.display()));
    let outcome = run_with_input(&mut command, b"line\n").success();
    assert_eq!(outcome.text(), "line\nend\n");
    wait(&mut server);
}

#[test]
fn a_device_is_read_and_written_as_well() {
    let room = tempdir().expect("a directory");
    let target = echo(Family::Unix, room.path());
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .expect("a device");
    let mut command = relay("splice", &target);
    let child = command
        .stdin(Stdio::null())
        .stdout(null)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    finish(child).success();
    run(&mut blockferry(["relay", "-", "-"])).failure(2, &["both ends"]);
}

#[test]
fn a_full_disk_behind_standard_output_is_named() {
    let room = tempdir().expect("a directory");
    let target = echo(Family::Tcp, room.path());
    for mode in MODES {
        let full = File::options().write(true).open("/dev/full");
        let child = relay(mode, &target)
            .stdin(File::open("/dev/zero").expect("zeroes"))
            .stdout(full.expect("a device"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        finish(child).failure(1, &["standard output: ", "No space left on device"]);
    }
}
