//! `copy --verify`: destinations that keep what they are given, and one that does not.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Stdio,
};

use tempfile::tempdir;

use crate::support::{
    Peer, assert_same, blockferry,
    hostile::{Export, Hostile, simple_reply},
    images::random_bytes,
    run,
    run::finish,
    sparse_image,
};

/// A server of 40 MiB that acknowledges everything and keeps nothing.
fn forgetful(directory: &Path) -> Hostile {
    let export = Export {
        size: 40 << 20,
        ..Export::default()
    };
    Hostile::serving(directory, export, |stream, request| {
        let payload = match request.command {
            0 => vec![0; request.length as usize],
            _ => Vec::new(),
        };
        stream.write_all(&simple_reply(request.cookie, 0, &payload))
    })
}

#[test]
fn a_server_that_forgets_what_it_was_given_is_found_out() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    let server = forgetful(dir.path());
    let mut bytes = vec![0; 35 << 20];
    bytes[20 << 20..21 << 20].copy_from_slice(&random_bytes(1 << 20, 5));
    fs::write(&image, bytes).expect("written");
    // It believes everything.
    run(blockferry(["copy"]).arg(&image).arg(server.uri())).success();
    let outcome = run(blockferry(["copy", "--verify"])
        .arg(&image)
        .arg(server.uri()));
    let words = ["differs from what was written", "16777216", &server.uri()];
    outcome.failure(1, &words);

    // And what is zero anyway needs no memory.
    run(blockferry(["copy", "--verify", "sample:30M,data=0"]).arg(server.uri())).success();
}

#[test]
fn good_destinations_of_every_kind_are_found_good() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, (20 << 20) + 512);
    let file = dir.path().join("copy.raw");
    let copied = run(blockferry(["copy", "--verify"]).args([&image, &file])).success();
    assert!(copied.stderr.contains("verified"), "{}", copied.stderr);
    assert_same(&image, &file);

    // Over what was there, and with a report.
    let copied =
        run(blockferry(["copy", "--verify", "--json", "--no-flush"]).args([&image, &file]));
    let report = copied.success();
    let report: serde_json::Value = serde_json::from_str(report.text()).expect("JSON");
    assert_eq!(report["verified"], true);

    // A larger one: what is behind the image is not looked at.
    let kit = Peer::nbdkit(dir.path(), &["memory", "25M"]);
    run(blockferry(["copy", "--verify"]).arg(&image).arg(kit.uri())).success();

    // A format, from a pipe.
    let qcow2 = dir.path().join("image.qcow2");
    let size = (20 << 20) + 512;
    crate::support::run::tool(
        "qemu-img",
        &[
            "create",
            "-f",
            "qcow2",
            qcow2.to_str().expect("a name"),
            &size.to_string(),
        ],
    );
    let qemu = Peer::qemu_nbd(dir.path(), "qcow2", &qcow2, &[]);
    let bytes = fs::read(&image).expect("readable");
    let mut command = blockferry(["copy", "--verify", "-", &qemu.uri()]);
    crate::support::run::run_with_input(&mut command, &bytes).success();
    run(blockferry(["compare"]).arg(&image).arg(qemu.uri())).success();
}

#[test]
fn what_cannot_be_read_back_is_refused_and_nothing_is_written() {
    let outcome = run(&mut blockferry([
        "copy",
        "--verify",
        "sample:1M,data=100",
        "-",
    ]));
    let outcome = outcome.failure(1, &["read back"]);
    assert!(outcome.stdout.is_empty());
    let words = ["copy", "--verify", "-O", "vmdk", "sample:1M,data=100", "-"];
    let outcome = run(&mut blockferry(words)).failure(1, &["read back"]);
    assert!(outcome.stdout.is_empty());
    let dir = tempdir().expect("a directory");
    let path = dir.path().join("copy");
    for format in ["raw", "vmdk"] {
        let words = ["copy", "--verify", "-O", format, "sample:1M,data=100", "-"];
        let written = File::create(&path).expect("a file");
        let copying = blockferry(words)
            .stdout(written)
            .stderr(Stdio::piped())
            .spawn();
        finish(copying.expect("the binary")).failure(1, &["read back", "name the file"]);
        assert_eq!(fs::metadata(&path).expect("it is there").len(), 0);
    }
    run(&mut blockferry(["copy", "--verify", "sample:1M", "null:"])).failure(1, &["verified"]);
}

#[test]
fn reading_back_is_a_phase_of_its_own() {
    let dir = tempdir().expect("a directory");
    let copy = dir.path().join("copy.raw");
    let outcome = run(blockferry(["copy", "--verify", "--progress=json", "sample:5M"]).arg(&copy));
    let lines = outcome.success().stderr;
    let phases: Vec<_> = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .map(|line| line["phase"].as_str().expect("a word").to_owned())
        .collect();
    let verifying = phases.iter().position(|phase| phase == "verifying");
    let flushing = phases.iter().position(|phase| phase == "flushing");
    assert!(flushing.is_some() && flushing < verifying, "{phases:?}");
    assert_eq!(phases.last().map(String::as_str), Some("done"));
}
