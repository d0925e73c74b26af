//! `blockferry snapshot`: snapshots made, gone back to and deleted, with qemu as the judge.

use tempfile::tempdir;

use crate::support::{
    Outcome, blockferry,
    qemu::{check, qemu_img, qemu_io, text},
    run::run,
};

fn snapshot(words: &[&str], image: &str) -> Outcome {
    run(blockferry(["snapshot"]).args(words).arg(image))
}

#[test]
fn a_disk_goes_back_to_what_it_was() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("disk.qcow2");
    let disk = text(&image);
    qemu_img(&["create", "-q", "-f", "qcow2", disk, "4M"]);
    qemu_io(&image, "qcow2", &["write -q -P 1 0 1M"]);
    let change = |words: &[&str]| snapshot(words, disk);
    let made = change(&["--create", "before"]).success();
    assert!(
        made.stderr.contains("made snapshot 1, \"before\""),
        "{}",
        made.stderr
    );
    qemu_io(&image, "qcow2", &["write -q -P 2 0 2M"]);
    change(&["-q", "-c", "after"]).success();
    let listed = || String::from_utf8(change(&[]).success().stdout).expect("text");
    for line in ["1 \"before\"", "2 \"after\""] {
        assert!(listed().contains(line), "{}", listed());
    }

    change(&["--apply", "snapshot.name=before"]).success();
    qemu_io(
        &image,
        "qcow2",
        &["read -q -P 1 0 1M", "read -q -P 0 1M 3M"],
    );
    change(&["--apply", "2"]).success();
    qemu_io(&image, "qcow2", &["read -q -P 2 0 2M"]);
    let deleted = change(&["--delete", "after"]).success();
    assert!(
        deleted.stderr.contains("deleted snapshot 2"),
        "{}",
        deleted.stderr
    );
    check(&image);
    assert!(!listed().contains("after"));
}

#[test]
fn what_cannot_be_done_to_a_snapshot_is_told_and_changes_nothing() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("disk.qcow2");
    let disk = text(&image);
    qemu_img(&["create", "-q", "-f", "qcow2", disk, "4M"]);
    let before = std::fs::read(&image).expect("read");
    let change = |words: &[&str]| snapshot(words, disk);
    change(&["--apply", "missing"]).failure(1, &["disk.qcow2", "\"missing\"", "hint: "]);
    change(&["--delete", "missing"]).failure(1, &["disk.qcow2", "\"missing\""]);
    change(&["--create", ""]).failure(2, &["--create"]);
    change(&["--create", "a", "--delete", "b"]).failure(2, &["--delete"]);
    change(&["--create", "a", "--json"]).failure(2, &["--json"]);
    assert!(std::fs::read(&image).expect("read") == before);
    let raw = dir.path().join("disk.raw");
    std::fs::write(&raw, [1; 4096]).expect("written");
    snapshot(&["-c", "a"], text(&raw)).failure(1, &["raw have no snapshots"]);
}
