//! `log`, `stats` and `exitlast` in front of a server, and of a copy's source.

use std::{fs, process::Command};

use serde_json::Value;

use crate::support::{
    images::{assert_same, sparse_image},
    run::{blockferry, run, until, wait},
};

#[test]
fn exports_and_connections_are_told_apart_by_the_log() {
    let room = tempfile::tempdir().expect("a directory");
    let log = room.path().join("log");
    let stats = room.path().join("stats");
    let read = |name: &str| format!("nbdcopy --connections=1 \"${{uri%/*}}/{name}\" - | wc -c");
    let command = [read("one"), read("two"), read("one")].join("; ");
    let filters = [
        format!("log:{}", log.display()),
        format!("stats:{},format=json", stats.display()),
    ];
    let mut server = blockferry([
        "serve",
        "--quiet",
        "--filter",
        &filters[0],
        "--filter",
        &filters[1],
    ]);
    server.args([
        "-e",
        "one=pattern:1M",
        "-e",
        "two=pattern:2M",
        "--listen",
        "127.0.0.1:0",
    ]);
    server.args(["--run", &command]);
    run(&mut server).success();
    let lines = |path| -> Vec<Value> {
        let text = fs::read_to_string(path).expect("a file");
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    };
    let log = lines(&log);
    let sum = |export: &str| -> u64 {
        let opened = log.iter().filter(|line| line["export"] == export);
        let handles: Vec<_> = opened.map(|line| &line["handle"]).collect();
        let reads = log.iter().filter(|line| line["command"] == "read");
        let reads = reads.filter(|line| handles.contains(&&line["handle"]));
        reads.flat_map(|line| line["length"].as_u64()).sum()
    };
    assert_eq!((sum("one"), sum("two")), (2 << 20, 2 << 20));
    let stats = lines(&stats);
    let names: Vec<_> = stats.iter().map(|line| line["export"].clone()).collect();
    assert_eq!(names, ["one", "two"]);
    for line in &stats {
        assert_eq!(line["commands"]["read"]["bytes"], 2 << 20);
    }
}

#[test]
fn a_server_ends_with_its_last_client() {
    let room = tempfile::tempdir().expect("a directory");
    let socket = room.path().join("socket");
    let mut server = blockferry([
        "serve",
        "--quiet",
        "--filter=exitlast",
        "memory:1M",
        "--unix",
    ]);
    let mut server = server.arg(&socket).spawn().expect("a server");
    until("a socket", || socket.exists());
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    run(Command::new("nbdinfo").args(["--size", &uri])).success();
    assert_eq!(wait(&mut server), 0);
}

#[test]
fn a_copy_of_what_is_watched_is_the_same_and_the_log_is_whole() {
    let room = tempfile::tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    sparse_image(&path("image"), 8 << 20);
    let log = format!("log:{}", path("log").display());
    let filters = ["exitlast", "delay:extents=1ms", "error:rate=0", &log];
    let mut copy = blockferry(["copy", "--quiet"]);
    for filter in filters {
        copy.args(["--filter", filter]);
    }
    run(copy.arg(path("image")).arg(path("copy"))).success();
    assert_same(&path("image"), &path("copy"));
    let text = fs::read_to_string(path("log")).expect("a log");
    let last: Value = serde_json::from_str(text.lines().last().expect("lines")).expect("JSON");
    assert_eq!(last["event"], "closed", "{text}");
    // A source that fails fails the copy.
    let mut copy = blockferry(["copy", "--quiet", "--filter=error:ENOSPC,on=read,every=3"]);
    let outcome = run(copy.arg(path("image")).arg(path("other")));
    assert_ne!(outcome.code, 0);
    assert!(outcome.stderr.contains("'error'"), "{}", outcome.stderr);
}
