//! Requests that fail on one of several connections: the error names what failed, where, and on what.

use std::io::Write;

use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome, Peer, blockferry,
    hostile::{Export, Hostile, simple_reply},
    run,
};

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const WRITE_ZEROES: u16 = 6;

/// Flush, write zeroes, several connections.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 6 | 1 << 8;

const SIZE: u64 = 48 << 20;

/// Where the bad sector is: in the last quarter of the image, so that all connections are at work.
const BAD: u64 = (37 << 20) + 5 * 512;

fn room() -> TempDir {
    tempdir().expect("a directory")
}

/// An export whose requests of this kind fail where they touch the bad sector, if they have a place.
fn server(dir: &TempDir, bad: u16) -> Hostile {
    let export = Export {
        size: SIZE,
        flags: FLAGS,
        ..Export::default()
    };
    Hostile::serving(dir.path(), export, move |stream, request| {
        let (start, end) = (request.offset, request.offset + u64::from(request.length));
        let touched = start <= BAD && BAD < end || bad == FLUSH;
        let failed = request.command == bad && touched;
        let data = match request.command {
            READ if !failed => vec![0xa5; request.length as usize],
            _ => Vec::new(),
        };
        let error = if failed { 5 } else { 0 };
        stream.write_all(&simple_reply(request.cookie, error, &data))
    })
}

/// Fails unless the error is about a request that touched the bad sector.
#[track_caller]
fn check_place(outcome: &Outcome, operation: &str) {
    let (_, place) = outcome
        .stderr
        .split_once(&format!("{operation} of "))
        .unwrap_or_else(|| panic!("no {operation} in: {}", outcome.stderr));
    let numbers: Vec<u64> = place
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    let (length, offset) = (numbers[0], numbers[1]);
    assert!(
        (offset..offset + length).contains(&BAD),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_read_error_on_one_of_four_connections_names_its_place() {
    for options in [&[][..], &["--in-order"], &["-S0"], &["-C1"]] {
        let dir = room();
        let copy = dir.path().join("copy.raw");
        let server = server(&dir, READ);
        let outcome = run(blockferry(["copy"])
            .args(options)
            .arg(server.uri())
            .arg(&copy));
        let outcome = outcome.failure(1, &[&server.uri(), "EIO"]);
        check_place(&outcome, "read");
        assert!(!copy.exists(), "an unfinished file is left behind");
    }
}

#[test]
fn a_write_error_on_one_of_four_connections_names_its_place() {
    for options in [&[][..], &["--in-order"], &["-S0"], &["-C1"]] {
        let dir = room();
        let server = server(&dir, WRITE);
        let outcome = run(blockferry(["copy"])
            .args(options)
            .arg("sample:48M,data=100")
            .arg(server.uri()));
        let outcome = outcome.failure(1, &[&server.uri(), "EIO"]);
        check_place(&outcome, "write");
    }
}

#[test]
fn a_zero_that_fails_names_its_place() {
    for options in [&[][..], &["--in-order"], &["--allocated"]] {
        let dir = room();
        let server = server(&dir, WRITE_ZEROES);
        let outcome = run(blockferry(["copy"])
            .args(options)
            .arg("sample:48M,data=0")
            .arg(server.uri()));
        let outcome = outcome.failure(1, &[&server.uri(), "EIO"]);
        check_place(&outcome, "zero");
    }
}

#[test]
fn a_flush_that_fails_is_no_success() {
    let dir = room();
    let server = server(&dir, FLUSH);
    let uri = server.uri();
    let copy = |options: &[&str]| {
        run(blockferry(["copy"])
            .args(options)
            .args(["sample:48M,data=100", &uri]))
    };
    copy(&[]).failure(1, &[&uri, "flush", "EIO"]);
    copy(&["--json"]).failure(1, &[&uri, "flush", "EIO"]);
    copy(&["--no-flush"]).success();
}

#[test]
fn a_real_server_that_fails_every_write_or_zero_is_named() {
    for (parameters, source, words) in [
        (
            ["error-pwrite=ENOSPC", "error-pwrite-rate=100%"],
            "sample:48M,data=100",
            ["write of", "ENOSPC"],
        ),
        (
            ["error-zero=EIO", "error-zero-rate=100%"],
            "sample:48M,data=0",
            ["zero of", "EIO"],
        ),
    ] {
        let dir = room();
        let arguments = [&["--filter=error", "memory", "48M"], &parameters[..]].concat();
        let peer = Peer::nbdkit(dir.path(), &arguments);
        let outcome = run(&mut blockferry(["copy", source, &peer.uri()]));
        outcome.failure(1, &[&peer.uri(), "offset", words[0], words[1]]);
    }
}
