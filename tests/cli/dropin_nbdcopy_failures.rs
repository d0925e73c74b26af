//! nbdcopy's faults, which ours has not, and how ours fails where it must: with exit code 1 and one message.

use std::{
    fs,
    fs::File,
    io::{Read, Write},
    process::{Command, Stdio},
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome, Peer, assert_same,
    dropin::{Who, words},
    hostile::{Export, Hostile, simple_reply},
    images::random_bytes,
    random_image, run,
    run::{finish, run_with_input, signal, until_it_writes, wait},
};

fn ours(arguments: &str) -> Outcome {
    run(&mut Who::Ours.nbdcopy(words(arguments)))
}

/// Fails unless ours failed as nbdcopy does, with `words` in the message.
#[track_caller]
fn failed(outcome: Outcome, words: &[&str]) {
    let outcome = outcome.failure(1, words);
    let other = |line: &&str| !line.starts_with("nbdcopy: ");
    let strange: Vec<_> = outcome.stderr.lines().filter(other).collect();
    assert!(strange.is_empty(), "{strange:?} in: {}", outcome.stderr);
    assert!(!outcome.stderr.is_empty());
}

fn text(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_source_that_does_not_know_its_extents_is_read() {
    let dir = tempdir().expect("a directory");
    let (expected, copy) = (text(&dir, "expected"), text(&dir, "copy"));
    let arguments = "-- [ nbdkit --filter=error pattern 5M error-extents-rate=1 ] OUT";
    let outcome = ours(&arguments.replace("OUT", &copy)).success();
    // All may be read before the first answer comes: then there is nothing to tell.
    let warnings: Vec<_> = outcome.stderr.lines().collect();
    let own = |line: &&str| line.starts_with("nbdcopy: warning: ");
    assert!(
        warnings.len() <= 1 && warnings.iter().all(own),
        "{warnings:?}"
    );
    ours(&format!("-- [ nbdkit pattern 5M ] {expected}")).success();
    assert_same(expected.as_ref(), copy.as_ref());
}

#[test]
fn a_pipe_goes_into_a_regular_file() {
    let dir = tempdir().expect("a directory");
    let copy = text(&dir, "copy");
    for bytes in [&b"x"[..], &random_bytes(3_000_001, 5), b""] {
        let outcome = run_with_input(&mut Who::Ours.nbdcopy(["-", &*copy]), bytes);
        assert_eq!(outcome.success().stderr, "");
        assert!(fs::read(&copy).expect("there") == bytes);
    }
}

#[test]
fn limits_of_the_destination_are_kept() {
    let dir = tempdir().expect("a directory");
    let (image, back) = (text(&dir, "image"), text(&dir, "back"));
    for (length, policy) in [
        (5 << 20, "blocksize-maximum=64K"),
        (300_001, "blocksize-minimum=4096 blocksize-maximum=1M"),
        (300_001, "blocksize-minimum=4096 blocksize-maximum=4096"),
    ] {
        random_image(image.as_ref(), length);
        let policy = format!("blocksize-preferred=4096 {policy} blocksize-error-policy=error");
        let arguments = format!("-f --filter=blocksize-policy memory 8M {policy}");
        let peer = Peer::nbdkit(dir.path(), &words(&arguments)[1..]);
        let outcome = run(&mut Who::Ours.nbdcopy([&image, &peer.uri()])).success();
        assert_eq!(outcome.stderr, "", "{policy}");
        run(&mut Who::Ours.nbdcopy([&peer.uri(), &back])).success();
        let (sent, got) = (fs::read(&image), fs::read(&back).expect("there"));
        assert!(got[..length] == sent.expect("there"), "{policy}");
        assert!(got[length..].iter().all(|byte| *byte == 0), "{policy}");
        drop(peer);
        fs::remove_file(dir.path().join("nbdkit.sock")).expect("there");
    }
}

#[test]
fn a_server_that_ends_at_once_fails_the_copy_and_leaves_nothing_behind() {
    for arguments in [
        "-- [ false ] null:",
        "-- [ nbdkit no-such-plugin ] null:",
        "-- [ no-such-program ] null:",
        "/dev/null -- [ sh -c exit ]",
    ] {
        let dir = tempdir().expect("a directory");
        let mut command = Who::Ours.nbdcopy(words(arguments));
        let outcome = run(command.env("TMPDIR", dir.path()));
        let own = |line: &&str| line.starts_with("nbdcopy: ");
        assert!(
            outcome.stderr.lines().any(|line| own(&line)),
            "{}",
            outcome.stderr
        );
        outcome.failure(1, &["nbdcopy: "]);
        assert_eq!(
            fs::read_dir(dir.path()).expect("there").count(),
            0,
            "{arguments}"
        );
    }
}

#[test]
fn sizes_take_units() {
    let dir = tempdir().expect("a directory");
    let (image, copy) = (text(&dir, "image"), text(&dir, "copy"));
    random_image(image.as_ref(), 3_000_000);
    for options in [
        "--request-size=4M",
        "--request-size 64k --queue-size=1M",
        "-S 64k",
        "--sparse=0k",
        "-S 64M",
    ] {
        ours(&format!("{options} {image} {copy}")).success();
        assert_same(image.as_ref(), copy.as_ref());
    }
}

#[test]
fn what_is_not_there_or_has_no_room_is_named() {
    let dir = tempdir().expect("a directory");
    let existing = text(&dir, "existing");
    fs::write(&existing, "precious").expect("room");
    failed(
        ours(&format!("/nonexistent {existing}")),
        &["/nonexistent: ", "No such file"],
    );
    assert_eq!(fs::read(&existing).expect("there"), b"precious");
    failed(
        ours(&format!("nbd://127.0.0.1:1 {existing}")),
        &["nbd://127.0.0.1:1", "refused"],
    );
    assert_eq!(fs::read(&existing).expect("there"), b"precious");
    let socket = text(&dir, "no.sock");
    failed(
        ours(&format!("nbd+unix:///?socket={socket} null:")),
        &[&socket],
    );
    failed(
        ours("/dev/null /nonexistent/directory/file"),
        &["/nonexistent/directory"],
    );
    failed(
        ours("-- [ nbdkit pattern 1M ] /dev/full"),
        &["/dev/full", "No space left"],
    );
    failed(
        ours("-- [ nbdkit pattern 2M ] [ nbdkit memory 1M ]"),
        &["too small", "2097152"],
    );
    failed(
        ours("-- [ nbdkit pattern 2M ] [ nbdkit -r memory 2M ]"),
        &["read-only"],
    );
    failed(ours("null: null:"), &["null:"]);
}

#[test]
fn a_request_that_fails_in_the_middle_fails_the_copy() {
    for (arguments, succeeds) in [
        (
            "[ nbdkit --filter=error pattern 5M error-pread-rate=1 ] [ nbdkit null 5M ]",
            false,
        ),
        (
            "[ nbdkit --filter=error null 5M error-pread-rate=1 ] [ nbdkit null 5M ]",
            true,
        ),
        (
            "[ nbdkit pattern 5M ] [ nbdkit --filter=error memory 5M error-pwrite-rate=1 ]",
            false,
        ),
        (
            "[ nbdkit null 5M ] [ nbdkit --filter=error memory 5M error-pwrite-rate=1 ]",
            true,
        ),
        (
            "[ nbdkit null 5M ] [ nbdkit --filter=error memory 5M error-zero-rate=1 ]",
            false,
        ),
        (
            "[ nbdkit null 5M ] [ nbdkit --filter=nozero memory 5M ]",
            true,
        ),
    ] {
        for who in [Who::Theirs, Who::Ours] {
            let outcome = run(&mut who.nbdcopy(["--"].into_iter().chain(words(arguments))));
            assert_eq!(
                outcome.code,
                i32::from(!succeeds),
                "{who:?} {arguments}: {}",
                outcome.stderr
            );
        }
    }
    let dir = tempdir().expect("a directory");
    let export = Export {
        size: 32 << 20,
        ..Export::default()
    };
    let server = Hostile::serving(dir.path(), export, |stream, request| {
        let bad =
            request.offset <= 20 << 20 && 20 << 20 < request.offset + u64::from(request.length);
        let data = if bad {
            Vec::new()
        } else {
            vec![7; request.length as usize]
        };
        stream.write_all(&simple_reply(
            request.cookie,
            if bad { 5 } else { 0 },
            &data,
        ))
    });
    let copy = text(&dir, "copy");
    failed(
        ours(&format!("{} {copy}", server.uri())),
        &["read of", "EIO"],
    );
    assert!(!dir.path().join("copy").exists());
}

#[test]
fn a_peer_that_dies_ends_the_copy_with_1_and_without_advice() {
    let dir = tempdir().expect("a directory");
    let export = Export {
        size: 32 << 20,
        ..Export::default()
    };
    let server = Hostile::serving(dir.path(), export, |stream, request| {
        if request.offset > 8 << 20 {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        stream.write_all(&simple_reply(
            request.cookie,
            0,
            &vec![7; request.length as usize],
        ))
    });
    failed(ours(&format!("{} null:", server.uri())), &[&server.uri()]);
}

#[test]
fn a_reader_that_has_seen_enough_ends_both_alike_and_in_silence() {
    for who in [Who::Theirs, Who::Ours] {
        let mut command = who.nbdcopy(words("-- [ nbdkit pattern 64M ] -"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let program = command.get_program().to_owned();
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let mut shell = Command::new("bash");
        let name = if who == Who::Ours {
            "exec -a nbdcopy"
        } else {
            "exec"
        };
        shell
            .args(["-c", &format!("{name} \"$0\" \"$@\"")])
            .arg(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = shell.spawn().expect("bash");
        let mut output = child.stdout.take().expect("a pipe");
        output.read_exact(&mut [0; 1000]).expect("a beginning");
        drop(output);
        let outcome = finish(child);
        assert_eq!(outcome.code, 141, "{who:?}: {}", outcome.stderr);
        let said = outcome
            .stderr
            .lines()
            .any(|line| line.starts_with("nbdcopy"));
        assert!(!said, "{who:?}: {}", outcome.stderr);
    }
}

#[test]
fn who_is_interrupted_ends_as_one_who_was() {
    let dir = tempdir().expect("a directory");
    let copy = text(&dir, "copy");
    let slow = "-- [ nbdkit --filter=delay pattern 1G rdelay=50ms ]";
    let mut command = Who::Ours.nbdcopy(words(slow).into_iter().chain([&*copy]));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("it runs");
    until_it_writes(&child, dir.path());
    signal(&child, "INT");
    assert_eq!(wait(&mut child), 130);
    assert!(!dir.path().join("copy").exists());
}

#[test]
fn no_image_goes_to_a_terminal() {
    let dir = tempdir().expect("a directory");
    let image = text(&dir, "image");
    File::create(&image)
        .and_then(|file| file.set_len(4096))
        .expect("a file");
    for who in [Who::Theirs, Who::Ours] {
        let program = who.path("nbdcopy", dir.path());
        let line = format!("{} {image} - || echo code $?", program.display());
        let outcome = run(Command::new("script").args(["-qec", &line, "/dev/null"]));
        let said = outcome.text();
        assert!(
            said.contains("nbdcopy: ") && said.contains("code 1"),
            "{who:?}: {said}"
        );
    }
}
