//! Progress and reports for programs.

use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
    thread,
};

use serde_json::Value;
use tempfile::tempdir;

use crate::support::{
    Outcome, Peer, SmallDisk, blockferry, random_image, run,
    run::{finish, signal},
};

/// The JSON lines of standard error, which must make sense together.
fn lines(outcome: &Outcome) -> Vec<Value> {
    let lines: Vec<Value> = outcome
        .stderr
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    for pair in lines.windows(2) {
        for number in ["bytes", "data", "zero", "elapsed"] {
            let value = |line: &Value| line[number].as_f64().expect("a number");
            assert!(
                value(&pair[0]) <= value(&pair[1]),
                "{number} falls: {pair:?}"
            );
        }
    }
    for line in &lines {
        let number = |name: &str| line[name].as_u64().expect("a number");
        assert_eq!(number("data") + number("zero"), number("bytes"));
        assert!(line["rate"].is_u64(), "{line}");
        assert!(line["eta"].is_null() || line["eta"].is_u64(), "{line}");
    }
    assert!(!lines.is_empty(), "{}", outcome.stderr);
    lines
}

fn phases(lines: &[Value]) -> Vec<&str> {
    let mut phases: Vec<_> = lines
        .iter()
        .map(|line| line["phase"].as_str().expect("a word"))
        .collect();
    phases.dedup();
    phases
}

#[test]
fn json_progress_goes_through_the_phases_to_the_whole() {
    let dir = tempdir().expect("a directory");
    let copy = dir.path().join("copy.raw");
    for flags in [&[][..], &["-q"]] {
        let outcome = run(
            blockferry(["copy", "--progress=json", "sample:64M,data=50"])
                .args(flags)
                .arg(&copy),
        )
        .success();
        let lines = lines(&outcome);
        assert_eq!(phases(&lines), ["copying", "flushing", "done"]);
        let last = lines.last().expect("a line");
        assert_eq!(
            (&last["bytes"], &last["total"]),
            (&(64 << 20).into(), &(64 << 20).into())
        );
        assert!(last["data"].as_u64().expect("a number") > 0);
        assert_eq!(lines[0]["bytes"], 0);
        let others = outcome.stderr.lines().filter(|line| !line.starts_with('{'));
        assert_eq!(others.count(), if flags.is_empty() { 1 } else { 0 });
    }
}

#[test]
fn the_total_of_a_stream_is_not_known() {
    let mut child = blockferry(["copy", "-q", "-p=json", "-", "null:"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    let mut input = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut input, &[7; 100_000]).expect("read");
    drop(input);
    let outcome = finish(child).success();
    let lines = lines(&outcome);
    assert!(lines.iter().all(|line| line["total"].is_null()));
    assert_eq!(lines.last().expect("a line")["bytes"], 100_000);
}

#[test]
fn a_copy_that_stands_still_is_heard_of_each_second() {
    let mut child = blockferry(["copy", "-q", "--progress=json", "-", "null:"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    // Nothing comes from this pipe.
    let input = child.stdin.take();
    let mut told = BufReader::new(child.stderr.take().expect("a pipe"));
    for _ in 0..3 {
        let mut line = String::new();
        told.read_line(&mut line).expect("a line");
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(
            (&line["phase"], &line["bytes"]),
            (&"copying".into(), &0.into())
        );
    }
    signal(&child, "TERM");
    let rest = thread::spawn(move || {
        let mut rest = String::new();
        told.read_to_string(&mut rest).expect("text");
        rest
    });
    finish(child).failure(143, &[]);
    drop(input);
    let rest = rest.join().expect("the reader");
    let last = rest.lines().rfind(|line| line.starts_with('{'));
    let last: Value = serde_json::from_str(last.expect("a line")).expect("JSON");
    assert_eq!(last["phase"], "interrupted");
    assert_eq!(last["error"]["kind"], "interrupted");
}

#[test]
fn a_failure_is_told_in_the_last_line_and_in_the_report() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 16 << 20);
    let file = format!("file={}", image.display());
    let peer = Peer::nbdkit(
        dir.path(),
        &[
            "--filter=error",
            "file",
            &file,
            "error-pread=EIO",
            "error-pread-rate=100%",
        ],
    );
    let uri = peer.uri();
    let outcome = run(&mut blockferry([
        "copy",
        "--progress=json",
        "--json",
        &uri,
        "null:",
    ]))
    .failure(1, &[&uri, "EIO"]);
    let lines = lines(&outcome);
    let last = lines.last().expect("a line");
    assert_eq!(last["phase"], "failed");
    let report: Value = serde_json::from_str(outcome.text()).expect("JSON");
    for error in [&last["error"], &report["error"]] {
        assert_eq!(error["kind"], "io");
        assert_eq!(error["operation"], "read");
        assert_eq!(error["endpoint"], uri.as_str());
        assert_eq!(error["transient"], false);
        assert!(
            error["offset"].is_u64() && error["length"].is_u64(),
            "{error}"
        );
    }
}

#[test]
fn what_could_not_even_begin_is_told_to_programs_too() {
    let refused = "nbd+unix:///?socket=/nonexistent/socket";
    for (source, kind) in [("/nonexistent.raw", "not-found"), (refused, "not-found")] {
        let flags = ["copy", "-q", "--progress=json", "--json"];
        let outcome = run(blockferry(flags).args([source, "null:"])).failure(1, &[source]);
        let lines = lines(&outcome);
        assert_eq!(phases(&lines), ["failed"]);
        assert_eq!(lines[0]["error"]["kind"], kind);
        let report: Value = serde_json::from_str(outcome.text()).expect("JSON");
        assert_eq!(report["error"]["kind"], kind);
    }
}

#[test]
fn the_report_has_the_warnings() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let copy = disk.path().join("copy.raw");
    let dir = tempdir().expect("a directory");
    let peer = Peer::nbdkit(dir.path(), &["--filter=noextents", "memory", "8M"]);
    let outcome = run(blockferry(["copy", "--json", &peer.uri()]).arg(&copy)).success();
    let report: Value = serde_json::from_str(outcome.text()).expect("JSON");
    let warnings = report["warnings"].as_array().expect("a list");
    assert_eq!(warnings.len(), 1);
    let warning = warnings[0].as_str().expect("text");
    assert!(warning.contains("may need up to 8.0 MiB"), "{warning}");
    assert_eq!(report["size"], 8 << 20);
}
