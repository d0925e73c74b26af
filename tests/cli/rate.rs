//! The rate of a copy, and how it is changed while the copy runs.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use tempfile::tempdir;

use crate::support::{
    Outcome, blockferry, run,
    run::{finish, signal},
};

/// A copy of 64 MiB of data that has hardly begun.
fn begin(rate_file: &Path, copy: &Path) -> Child {
    let mut command = blockferry(["copy", "--progress=json", "--rate-file"]);
    command.arg(rate_file).arg("sample:64M,data=100").arg(copy);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary");
    thread::sleep(Duration::from_millis(1500));
    let running = child.try_wait().expect("a child of ours").is_none();
    assert!(running, "it does not keep to the rate");
    assert!(!copy.exists());
    child
}

fn end(child: Child, copy: &Path) -> Outcome {
    let outcome = finish(child).success();
    assert_eq!(copy.metadata().expect("whole").len(), 64 << 20);
    outcome
}

#[test]
fn a_copy_keeps_to_its_rate_until_the_file_says_another() {
    let dir = tempdir().expect("a directory");
    let (rate, copy) = (dir.path().join("rate"), dir.path().join("copy.raw"));
    fs::write(&rate, "1K\n").expect("written");
    let child = begin(&rate, &copy);
    fs::write(&rate, "0\n").expect("written");
    end(child, &copy);
}

#[test]
fn a_hangup_is_the_request_to_look_at_the_file() {
    let dir = tempdir().expect("a directory");
    let (rate, copy) = (dir.path().join("rate"), dir.path().join("copy.raw"));
    fs::write(&rate, "1K").expect("written");
    let child = begin(&rate, &copy);
    signal(&child, "HUP");
    fs::write(&rate, "1G").expect("written");
    signal(&child, "HUP");
    end(child, &copy);
}

#[test]
fn nonsense_in_the_file_is_told_and_the_rate_stays() {
    let dir = tempdir().expect("a directory");
    let (rate, copy) = (dir.path().join("rate"), dir.path().join("copy.raw"));
    fs::write(&rate, "1K").expect("written");
    let mut child = begin(&rate, &copy);
    fs::write(&rate, "fast").expect("written");
    signal(&child, "HUP");
    thread::sleep(Duration::from_millis(2500));
    let running = child.try_wait().expect("a child of ours").is_none();
    assert!(running, "it does not keep to the rate");
    fs::write(&rate, "0").expect("written");
    let outcome = end(child, &copy);
    let told = outcome.stderr.matches("the rate stays").count();
    assert_eq!(told, 1, "{}", outcome.stderr);
}

#[test]
fn a_slow_copy_ends_at_once_when_it_is_asked_to() {
    let mut child = blockferry(["copy", "--rate=1", "sample:64M,data=100", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    // Whatever it may send before it has to wait.
    let mut output = child.stdout.take().expect("a pipe");
    let reader = thread::spawn(move || {
        let mut sent = Vec::new();
        output.read_to_end(&mut sent).expect("read");
        sent.len()
    });
    thread::sleep(Duration::from_millis(500));
    // Without a file it keeps its meaning.
    signal(&child, "HUP");
    finish(child).failure(129, &["the terminal was closed"]);
    assert!(reader.join().expect("the reader") < 64 << 20);
}

#[test]
fn a_rate_that_is_none_is_refused_before_anything_is_opened() {
    let dir = tempdir().expect("a directory");
    let rate = dir.path().join("rate");
    fs::write(&rate, "fast").expect("written");
    let copy = dir.path().join("copy.raw");
    for file in [&rate, &dir.path().join("missing")] {
        run(blockferry(["copy", "--rate-file"])
            .arg(file)
            .arg("sample:1M")
            .arg(&copy))
        .failure(1, &[file.to_str().expect("UTF-8")]);
        assert!(!copy.exists());
    }
    run(&mut blockferry([
        "copy",
        "--rate=fast",
        "sample:1M",
        "null:",
    ]))
    .failure(2, &["--rate"]);
    run(&mut blockferry(["copy", "--rate=0", "sample:1M", "null:"])).success();
    run(&mut blockferry(["copy", "--rate=1G", "sample:1M", "null:"])).success();
}
