//! The examples that the README shows.

use std::{fs, path::PathBuf, process::Command};

use tempfile::tempdir;

use crate::support::{Peer, run, sparse_image};

/// A built example: beside the binary, where cargo puts it for a test run.
fn example(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_blockferry"));
    path.parent()
        .expect("a directory")
        .join("examples")
        .join(name)
}

#[test]
fn simple_copy_writes_an_image_to_standard_output() {
    writes_an_image("simple_copy");
}

#[test]
fn aio_copy_writes_an_image_to_standard_output() {
    writes_an_image("aio_copy");
}

fn writes_an_image(program: &str) {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 9_000_000);
    let peer = Peer::nbdkit(dir.path(), &["file", &format!("file={}", image.display())]);
    let outcome = run(Command::new(example(program)).arg(peer.uri())).success();
    assert!(
        outcome.stdout == fs::read(&image).expect("readable"),
        "the bytes differ"
    );

    let missing = run(&mut Command::new(example(program)));
    assert_ne!(missing.code, 0);
    assert!(missing.stderr.contains("usage"), "{}", missing.stderr);
}
