//! Under the name nbddump the program speaks its command line: each option beside the real tool, on the same
//! servers, compared byte for byte.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::tempdir;

use crate::support::{
    Outcome, Peer,
    dropin::{BOTH, Who, words},
    images::random_bytes,
    run,
    run::wait,
};

fn run_as(who: Who, arguments: &[&str]) -> Outcome {
    run(&mut who.tool("nbddump", arguments))
}

/// Runs both, which must agree: in what they print, in the exit code, and in whether they complain.
#[track_caller]
fn same(arguments: &[&str]) -> Outcome {
    let [theirs, ours] = BOTH.map(|who| run_as(who, arguments));
    assert!(
        ours.stdout == theirs.stdout,
        "{arguments:?}: {:.2000}\ninstead of {:.2000}\n{}",
        ours.text(),
        theirs.text(),
        ours.stderr
    );
    assert_eq!(ours.code, theirs.code, "{arguments:?}: {}", ours.stderr);
    if ours.code == 1 {
        assert!(ours.stderr.contains("nbddump: "), "{}", ours.stderr);
    }
    ours
}

/// Bytes of which many rows repeat, from the same `seed` the same.
fn image(seed: u64) -> Vec<u8> {
    const LENGTHS: [usize; 12] = [1, 3, 15, 16, 17, 32, 48, 100, 4096, 5000, 32768, 70000];
    let mut bytes = Vec::new();
    for choice in random_bytes(60, seed + 1).chunks(3) {
        let length = LENGTHS[usize::from(choice[0]) % LENGTHS.len()];
        match choice[1] % 4 {
            0 => bytes.resize(bytes.len() + length, 0),
            1 => bytes.resize(bytes.len() + length, choice[2]),
            2 => bytes.extend(random_bytes(length, u64::from(choice[2]) + 1)),
            _ => bytes.extend((0..length).map(|index| (index % 2) as u8 * choice[2])),
        }
    }
    bytes
}

/// Writes it with holes where its pages are zero.
fn sparse_file(path: &Path, bytes: &[u8]) {
    let file = fs::File::create(path).expect("a file");
    file.set_len(bytes.len() as u64).expect("room");
    for (index, page) in bytes.chunks(4096).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            let offset = index as u64 * 4096;
            file.write_all_at(page, offset).expect("written");
        }
    }
}

#[test]
fn every_dump_is_theirs() {
    for seed in 0..6 {
        let dir = tempdir().expect("a directory");
        let path = dir.path().join("image.raw");
        sparse_file(&path, &image(seed));
        let file = format!("file={}", path.display());
        let peer = Peer::nbdkit(dir.path(), &["file", &file]);
        for options in [
            "",
            "--color",
            "--colour --no-colour",
            "-n 0",
            "-n 1",
            "-n 16",
            "-n17",
            "--length 40",
            "--length=300",
            "--limit=4097",
            "--limit 100000 --color",
            "-n 99999999999",
        ] {
            let uri = peer.uri();
            same(&[words(options), vec![&uri]].concat()).success();
        }
        let other = tempdir().expect("a directory");
        let peer = Peer::qemu_nbd(other.path(), "raw", &path, &["-r"]);
        same(&[&peer.uri()]).success();
    }
}

#[test]
fn every_byte_is_shown_as_theirs_shows_it() {
    let dir = tempdir().expect("a directory");
    let path = dir.path().join("image.raw");
    fs::write(&path, (0..=255).collect::<Vec<u8>>()).expect("written");
    let path = path.to_str().expect("UTF-8");
    for options in ["", "--color"] {
        let command = ["--", "[", "nbdkit", "file", path, "]"];
        same(&[words(options), command.to_vec()].concat()).success();
    }
}

#[test]
fn servers_of_every_kind_are_dumped() {
    for server in [
        "null 0",
        "null 1",
        "null 31",
        "null 33",
        "null 48",
        "memory 5G",
        "-o pattern 100000",
        "--no-sr pattern 3M",
        "--mask-handshake=0 pattern 100",
        "--filter=offset pattern 100 offset=5",
        "--filter=blocksize-policy pattern 1M blocksize-maximum=64K blocksize-preferred=4096 \
         blocksize-minimum=1 blocksize-error-policy=allow",
    ] {
        let command = [words("-- [ nbdkit"), words(server), vec!["]"]].concat();
        same(&command).success();
        same(&[words("-n 40"), command].concat()).success();
    }
}

#[test]
fn a_part_begins_where_it_was_told_to() {
    // From the release notes and tests of libnbd 1.22, which knows these options.
    let expected = "\
000000000f: 08 00 00 00 00 00 00 00  10 00 00 00 00 00 00 00 |................|
000000001f: 18 00 00 00 00 00 00 00  20 00 00 00 00 00 00 00 |........ .......|
000000002f: 28                                               |(               |
";
    for options in [
        "--offset=15 --length=33",
        "--skip 15 --limit 33",
        "-o15 -n33",
    ] {
        let command = words("[ nbdkit pattern 100 ]");
        let outcome = run_as(Who::Ours, &[words(options), command].concat()).success();
        assert_eq!(outcome.text(), expected);
    }
    let outcome = run_as(Who::Ours, &words("-o 100 [ nbdkit pattern 100 ]")).success();
    assert_eq!(outcome.text(), "");
    run_as(Who::Ours, &words("-o 101 [ nbdkit pattern 100 ]")).failure(1, &["101", "100"]);
}

#[test]
fn block_sizes_are_kept() {
    // Theirs asks for what such a server refuses.
    let policy = "--filter=blocksize-policy pattern 1M blocksize-minimum=512 blocksize-preferred=4096 \
                  blocksize-maximum=65536 blocksize-error-policy=error";
    let command = [words("[ nbdkit"), words(policy), vec!["]"]].concat();
    let plain = run_as(Who::Theirs, &words("-- [ nbdkit pattern 1M ]")).success();
    let ours = run_as(Who::Ours, &command).success();
    assert!(ours.stdout == plain.stdout);
    let part = run_as(Who::Ours, &[words("-o 600 -n 8"), command].concat()).success();
    assert!(
        part.text()
            .starts_with("0000000258: 00 00 00 00 00 00 02 58  ")
    );
}

#[test]
fn a_server_that_cannot_tell_its_holes_is_read() {
    // Theirs gives up.
    let dir = tempdir().expect("a directory");
    let peer = Peer::nbdkit(
        dir.path(),
        &[
            "eval",
            "get_size=echo 100000",
            "pread=dd if=/dev/zero count=$3 iflag=count_bytes",
            "can_extents=exit 0",
            "extents=echo EIO fail >&2; exit 1",
        ],
    );
    let outcome = run_as(Who::Ours, &[&peer.uri()]).success();
    assert_eq!(outcome.text().lines().count(), 3);
}

#[test]
fn what_was_read_before_a_failure_is_printed() {
    let dir = tempdir().expect("a directory");
    let peer = Peer::nbdkit(
        dir.path(),
        &[
            "eval",
            "get_size=echo 4194304",
            "pread=test $4 -lt 2097152 || { echo EIO fail >&2; exit 1; }; \
             dd if=/dev/zero count=$3 iflag=count_bytes",
        ],
    );
    let outcome = run_as(Who::Ours, &[&peer.uri()]);
    assert!(outcome.text().starts_with("0000000000: 00 "));
    outcome.failure(1, &["nbddump: ", "EIO"]);
}

#[test]
fn servers_that_fail_are_failures() {
    for arguments in [
        "nbd+unix:///?socket=/nonexistent/socket",
        "nbd://127.0.0.1:1/",
        "-- [ false ]",
        "-- [ no-such-server-anywhere ]",
        "-- [ nbdkit file dir=/tmp ]",
    ] {
        let outcome = same(&words(arguments));
        assert_eq!((outcome.code, outcome.text()), (1, ""), "{arguments}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for mistake in [
        "--bogus nbd://x",
        "-Z nbd://x",
        "",
        "nbd://x nbd://y",
        "[ nbdkit",
        "[ ]",
        "--co=x nbd://x",
        "-n",
        "--length",
        "--length= nbd://x",
        "-n abc nbd://x",
        "disk.raw",
        "-",
        "http://localhost/",
    ] {
        let outcome = same(&words(mistake));
        assert_eq!((outcome.code, outcome.text()), (1, ""), "{mistake}");
    }
    // Theirs takes these for 1, 0 and everything.
    for number in ["1K", "0x20", "-1"] {
        let outcome = run_as(Who::Ours, &["-n", number, "[", "nbdkit", "null", "1M", "]"]);
        outcome.failure(1, &["nbddump: --length", number]);
    }
}

#[test]
fn the_command_line_describes_itself() {
    for option in ["--version", "-V"] {
        for who in BOTH {
            let outcome = run_as(who, &[option]).success();
            let lines: Vec<_> = outcome.text().lines().collect();
            assert!(lines.len() == 2 && lines[0].starts_with("nbddump 1."));
            assert_eq!(lines[1], lines[0].replace("nbddump", "libnbd"));
        }
    }
    for list in ["--long-options", "--short-options"] {
        let [theirs, ours] = BOTH.map(|who| run_as(who, &[list]).success());
        let mut rest = ours.text().lines();
        for option in theirs.text().lines() {
            assert!(rest.any(|own| own == option), "{option} in {}", ours.text());
        }
    }
    let help = run_as(Who::Ours, &["--help"]).success();
    for option in ["--length", "--limit", "--offset", "--skip", "--no-color"] {
        assert!(help.text().contains(option), "{option}");
    }
}

#[test]
fn a_reader_that_leaves_ends_it_as_it_ends_theirs() {
    for who in BOTH {
        let mut command = who.tool("nbddump", words("-- [ nbdkit pattern 100M ]"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("run");
        drop(child.stdout.take());
        assert_eq!(wait(&mut child), 141, "{who:?}");
    }
    let full = fs::File::options().write(true).open("/dev/full");
    let mut command = Who::Ours.tool("nbddump", words("-- [ nbdkit pattern 1M ]"));
    command.stdout(full.expect("a device that is full"));
    command.stderr(Stdio::null());
    assert_eq!(command.status().expect("run").code(), Some(1));
}

#[test]
fn a_link_of_that_name_is_enough() {
    let dir = tempdir().expect("a directory");
    let link = Who::Ours.path("nbddump", dir.path());
    let outcome = run(Command::new(link).args(words("[ nbdkit null 1 ]"))).success();
    assert!(outcome.text().starts_with("0000000000: 00 "));
}
