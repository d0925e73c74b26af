//! `doctor`: what it tells of this machine, also where little is allowed.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Outcome, blockferry, run, run::tool};

fn doctor(arguments: &[&str]) -> Command {
    let mut command = blockferry(["doctor"]);
    command.args(arguments);
    command
}

fn json(outcome: &Outcome) -> Value {
    serde_json::from_slice(&outcome.stdout).expect("JSON")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a list");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn a_line_tells_what_whether_and_what_follows() {
    let outcome = run(&mut doctor(&[])).success();
    let text = outcome.text();
    for word in [
        "splice",
        "descriptors",
        "processors",
        "reflink",
        "qemu-img",
        "trusted authorities",
    ] {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(word));
        let line = line.unwrap_or_else(|| panic!("no {word}: {text}"));
        assert!(
            line.split_whitespace().count() > word.split(' ').count(),
            "{line}"
        );
    }
    assert!(text.starts_with("blockferry "), "{text}");
    assert!(
        !text.contains('\u{1b}'),
        "colours without a terminal: {text}"
    );
    assert!(outcome.stderr.is_empty(), "{}", outcome.stderr);
}

#[test]
fn json_has_the_keys_that_programs_rely_on() {
    let place = TempDir::new().expect("a directory");
    let path = place.path().to_str().expect("UTF-8");
    let report = json(&run(&mut doctor(&["--json", path])).success());
    let keys: Vec<_> = report.as_object().expect("an object").keys().collect();
    let mut expected = [
        "version",
        "kernel",
        "ok",
        "missing",
        "system",
        "limits",
        "processor",
        "tls",
        "places",
        "peers",
        "drop-ins",
    ];
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert_eq!(report["ok"], true);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    assert_eq!(report["kernel"]["release"], release.trim());
    for (group, key) in [
        ("system", "proc"),
        ("system", "splice"),
        ("system", "sendfile"),
        ("system", "cachestat"),
        ("system", "io-uring"),
        ("limits", "descriptors"),
        ("limits", "pipe-size"),
        ("limits", "socket-buffers"),
        ("limits", "memory-limit"),
        ("processor", "processors"),
        ("tls", "trusted-authorities"),
        ("peers", "nbdkit"),
        ("drop-ins", "qemu-img"),
    ] {
        let finding = &report[group][key];
        let state = finding["state"].as_str();
        let known = ["yes", "no", "limited", "missing", "unknown"];
        assert!(
            state.is_some_and(|state| known.contains(&state)),
            "{group}.{key}: {finding}"
        );
        for field in ["value", "shown", "meaning"] {
            assert!(
                finding.get(field).is_some(),
                "{group}.{key}.{field}: {finding}"
            );
        }
    }
    let place = &report["places"][0];
    assert_eq!(
        (&place["path"], &place["kind"]),
        (&path.into(), &"directory".into())
    );
    for key in [
        "file-system",
        "free-space",
        "writable",
        "reflink",
        "holes",
        "o-tmpfile",
    ] {
        assert!(place["findings"].get(key).is_some(), "{key}: {place}");
    }
}

#[test]
fn the_file_system_is_the_one_that_is_mounted_there_and_nothing_is_left() {
    let place = TempDir::new().expect("a directory");
    let path = place.path().to_str().expect("UTF-8");
    let known = tool("stat", &["-f", "-c", "%T", path]);
    let report = json(&run(&mut doctor(&["--json", path])).success());
    let told = report["places"][0]["findings"]["file-system"]["value"].clone();
    // stat has one name for three file systems.
    let same = match known.trim() {
        "ext2/ext3" => ["ext2", "ext3", "ext4"].contains(&told.as_str().expect("a name")),
        known => told == known || told == "overlay",
    };
    assert!(same, "{told} instead of {known}");
    assert!(names(place.path()).is_empty());
}

#[test]
fn a_file_is_looked_at_and_not_changed() {
    let place = TempDir::new().expect("a directory");
    let file = place.path().join("disk.raw");
    fs::write(&file, [7; 5000]).expect("written");
    let before = fs::metadata(&file)
        .expect("there")
        .modified()
        .expect("a time");
    let path = file.to_str().expect("UTF-8");
    let report = json(&run(&mut doctor(&["--json", path])).success());
    let found = &report["places"][0];
    assert_eq!(found["kind"], "file");
    assert_eq!(found["findings"]["size"]["value"], 5000);
    assert_eq!(found["findings"]["in-use"]["state"], "no");
    assert_eq!(fs::read(&file).expect("read"), [7; 5000]);
    assert_eq!(
        fs::metadata(&file)
            .expect("there")
            .modified()
            .expect("a time"),
        before
    );
    assert_eq!(names(place.path()), ["disk.raw"]);
    let new = place.path().join("new.raw");
    let report = json(&run(&mut doctor(&["--json", new.to_str().expect("UTF-8")])).success());
    assert_eq!(report["places"][0]["kind"], "not-there");
    assert!(!new.exists());
}

#[test]
fn a_block_device_is_looked_at_and_not_opened_for_writing() {
    let devices = fs::read_dir("/sys/class/block").map(|entries| {
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        let paths = names.map(|name| Path::new("/dev").join(name));
        paths
            .filter(|path| fs::File::open(path).is_ok())
            .collect::<Vec<_>>()
    });
    let Some(device) = devices.ok().and_then(|devices| devices.into_iter().next()) else {
        println!("skipped: no block device that can be read");
        return;
    };
    let report = json(&run(doctor(&["--json"]).arg(&device)).success());
    let found = &report["places"][0];
    assert_eq!(found["kind"], "block-device");
    for key in ["readable", "writable", "size", "sectors", "rotational"] {
        assert!(found["findings"].get(key).is_some(), "{key}: {found}");
    }
}

#[test]
fn a_place_that_is_not_there_is_an_error_with_its_name() {
    let outcome = run(&mut doctor(&["/no/such/directory/disk.raw"]));
    outcome.failure(
        1,
        &["/no/such/directory/disk.raw: No such file or directory"],
    );
    let outcome = run(&mut doctor(&["nbd://localhost/disk"]));
    outcome.failure(2, &["nbd://localhost/disk", "hint: 'blockferry info URI'"]);
}

#[test]
fn few_descriptors_are_enough_and_are_told() {
    let program = env!("CARGO_BIN_EXE_blockferry");
    let script = format!("ulimit -n 20 && exec '{program}' doctor --json");
    let outcome = run(Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::null()))
    .success();
    let report = json(&outcome);
    let descriptors = &report["limits"]["descriptors"];
    assert_eq!(
        (&descriptors["state"], &descriptors["value"]),
        (&"limited".into(), &20.into())
    );
    assert!(descriptors["meaning"].is_string());
    assert_eq!(report["system"]["splice"]["state"], "yes");
}

#[test]
fn a_directory_that_cannot_be_written_is_told_and_no_failure() {
    // Not even root can make a file there.
    let report = json(&run(&mut doctor(&["--json", "/proc/self"])).success());
    let found = &report["places"][0]["findings"];
    assert_eq!(found["writable"]["state"], "no");
    assert!(found.get("reflink").is_none());
    if tool("id", &["-u"]).trim() != "0" {
        let place = TempDir::new().expect("a directory");
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o555)).expect("set");
        let report = json(&run(doctor(&["--json"]).arg(place.path())).success());
        assert_eq!(report["places"][0]["findings"]["writable"]["state"], "no");
    }
}

#[test]
fn without_a_place_for_temporary_files_it_fails_and_tells_the_rest() {
    let mut command = doctor(&["--json", "/"]);
    let outcome = run(command.env("TMPDIR", "/proc/self"));
    let report = json(&outcome);
    assert_eq!(report["ok"], false);
    assert_eq!(report["missing"], serde_json::json!(["temporary files"]));
    assert_eq!(report["system"]["temporary-files"]["state"], "missing");
    outcome.failure(1, &["this machine lacks what is needed: temporary files"]);
}

#[test]
fn programs_are_found_in_path_and_ours_under_their_names() {
    let nothing = TempDir::new().expect("a directory");
    let mut command = doctor(&["--json"]);
    let report = json(&run(command.env("PATH", nothing.path())).success());
    for (_, peer) in report["peers"].as_object().expect("an object") {
        assert_eq!(peer["state"], "no", "{peer}");
        assert!(peer["meaning"].is_string(), "{peer}");
    }
    let link = nothing.path().join("nbdcopy");
    symlink(env!("CARGO_BIN_EXE_blockferry"), &link).expect("linked");
    let mut command = doctor(&["--json"]);
    let report = json(&run(command.env("PATH", nothing.path())).success());
    assert_eq!(report["drop-ins"]["nbdcopy"]["state"], "yes");
    assert_eq!(
        report["drop-ins"]["nbdcopy"]["value"],
        link.to_str().expect("UTF-8")
    );
    assert_eq!(report["drop-ins"]["qemu-img"]["state"], "no");
    // What is found under its name is ours, not theirs.
    assert_eq!(report["peers"]["nbdcopy"]["state"], "no");
    let report = json(&run(&mut doctor(&["--json"])).success());
    let version = report["peers"]["nbdkit"]["value"]
        .as_str()
        .expect("a version");
    assert!(
        tool("nbdkit", &["--version"]).contains(version),
        "{version}"
    );
}

#[test]
fn a_program_that_never_tells_its_version_holds_nobody_up() {
    let place = TempDir::new().expect("a directory");
    let stuck = place.path().join("nbdkit");
    fs::write(&stuck, "#!/bin/sh\n/bin/sleep 1000\n").expect("written");
    fs::set_permissions(&stuck, fs::Permissions::from_mode(0o755)).expect("executable");
    let mut command = doctor(&["--json"]);
    let report = json(&run(command.env("PATH", place.path())).success());
    assert_eq!(report["peers"]["nbdkit"]["state"], "unknown");
}

#[test]
fn nobody_who_reads_it_is_no_failure() {
    let mut child = doctor(&[]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("started");
    drop(child.stdout.take());
    let outcome = crate::support::run::finish(child);
    assert_eq!((outcome.code, &*outcome.stderr), (0, ""));
}

#[test]
fn colours_are_for_terminals_whose_user_wants_them() {
    let program = env!("CARGO_BIN_EXE_blockferry");
    let on_a_terminal = |no_colour: &str| {
        let mut command = Command::new("script");
        command.args(["-qec", &format!("'{program}' doctor /"), "/dev/null"]);
        command.env("NO_COLOR", no_colour).stdin(Stdio::null());
        run(&mut command).success()
    };
    assert!(on_a_terminal("").text().contains("\u{1b}["));
    assert!(!on_a_terminal("1").text().contains("\u{1b}["));
}
