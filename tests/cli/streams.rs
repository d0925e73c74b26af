//! Pipes: standard input and standard output, in order.

use std::{
    fs,
    io::Read,
    process::{Command, Stdio},
};

use tempfile::tempdir;

use crate::support::{
    Peer, assert_same, blockferry,
    images::random_bytes,
    random_image, run,
    run::{finish, run_with_input},
    sparse_image,
};

#[test]
fn an_image_streams_in_order_to_standard_output() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 20_000_000);
    let peer = Peer::nbdkit(
        dir.path(),
        // Replies come late and in any order.
        &[
            "--filter=delay",
            "file",
            &format!("file={}", image.display()),
            "delay-read=3ms",
        ],
    );
    let outcome = run(&mut blockferry(["copy", &peer.uri(), "-"])).success();
    assert!(
        outcome.stdout == fs::read(&image).expect("readable"),
        "the bytes differ"
    );
}

#[test]
fn standard_input_fills_a_server_and_a_file() {
    let dir = tempdir().expect("a directory");
    for length in [0, 1, 4095, 262_144, 1_000_003] {
        let bytes = random_bytes(length, 3);
        let file = dir.path().join(length.to_string());
        let file = file.to_str().expect("UTF-8");
        run_with_input(&mut blockferry(["copy", "-", file]), &bytes).success();
        assert!(
            fs::read(file).expect("readable") == bytes,
            "{length} bytes differ"
        );
    }
    let peer = Peer::nbdkit(dir.path(), &["memory", "2M"]);
    let bytes = random_bytes(1_000_003, 4);
    run_with_input(&mut blockferry(["copy", "-", &peer.uri()]), &bytes).success();
    let back = run(&mut blockferry(["copy", &peer.uri(), "-"])).success();
    assert!(back.stdout[..bytes.len()] == bytes, "the bytes differ");
    assert!(back.stdout[bytes.len()..].iter().all(|&byte| byte == 0));
}

#[test]
fn zeroes_at_the_end_of_the_input_count() {
    let dir = tempdir().expect("a directory");
    let copy = dir.path().join("copy.raw");
    let mut bytes = random_bytes(10_000, 5);
    bytes.resize(3_000_000, 0);
    run_with_input(
        &mut blockferry(["copy", "-", copy.to_str().expect("UTF-8")]),
        &bytes,
    )
    .success();
    assert!(fs::read(&copy).expect("readable") == bytes);
}

#[test]
fn an_input_that_is_larger_than_the_destination_is_an_error() {
    let dir = tempdir().expect("a directory");
    let peer = Peer::nbdkit(dir.path(), &["memory", "1M"]);
    let bytes = random_bytes(3 << 20, 6);
    run_with_input(&mut blockferry(["copy", "-", &peer.uri()]), &bytes)
        .failure(1, &["too small", "1048576"]);
}

#[test]
fn a_reader_that_goes_away_ends_the_copy() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 20 << 20);
    let mut child = blockferry(["copy", image.to_str().expect("UTF-8"), "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    let mut start = [0; 1000];
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut start).expect("the first bytes");
    drop(stdout);
    finish(child).failure(1, &["standard output"]);
}

#[test]
fn streams_join_processes() {
    let dir = tempdir().expect("a directory");
    let (image, copy) = (dir.path().join("image.raw"), dir.path().join("copy.raw"));
    sparse_image(&image, 8 << 20);
    let pipeline = "\"$0\" copy \"$1\" - | cat | \"$0\" copy - \"$2\"";
    let mut shell = Command::new("sh");
    shell
        .args(["-c", pipeline, env!("CARGO_BIN_EXE_blockferry")])
        .arg(&image)
        .arg(&copy);
    run(&mut shell).success();
    assert_same(&image, &copy);
}
