//! Servers that stop answering and stay connected: `--timeout` ends the wait.

use std::io::{self, Write};

use tempfile::tempdir;

use crate::support::{
    blockferry,
    hostile::{Export, Hostile, simple_reply},
    random_image, run,
};

#[test]
fn a_source_that_stops_answering_in_the_middle_ends_the_copy() {
    let dir = tempdir().expect("a directory");
    let copy = dir.path().join("copy.raw");
    let export = Export {
        size: 16 << 20,
        ..Export::default()
    };
    let server = Hostile::serving(dir.path(), export, |stream, request| {
        if request.offset >= 8 << 20 {
            return Ok(());
        }
        let payload = vec![7; request.length as usize];
        stream.write_all(&simple_reply(request.cookie, 0, &payload))
    });
    let mut command = blockferry(["copy", "--timeout", "1", &server.uri()]);
    run(command.arg(&copy)).failure(75, &[&server.uri(), "has not answered for 1 s"]);
    assert!(!copy.exists(), "an unfinished file is left behind");
}

#[test]
fn a_destination_that_never_ends_its_flush_ends_the_copy_where_asked() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 1 << 20);
    let server = Hostile::serving(dir.path(), Export::default(), |stream, request| {
        const FLUSH: u16 = 3;
        if request.command == FLUSH {
            return Ok(());
        }
        stream.write_all(&simple_reply(request.cookie, 0, &[]))
    });
    let mut command = blockferry(["copy", "--timeout=1"]);
    run(command.arg(&image).arg(server.uri())).failure(75, &["flush", "has not answered for 1 s"]);
}

#[test]
fn a_server_that_never_greets_is_given_up() {
    let dir = tempdir().expect("a directory");
    let server = Hostile::raw(dir.path(), |stream| {
        // Until the client has gone.
        let _ = io::copy(stream, &mut io::sink());
        Ok(())
    });
    for command in ["info", "map"] {
        run(&mut blockferry([command, "--timeout=1", &server.uri()]))
            .failure(75, &[&server.uri(), "did not answer in time"]);
    }
}
