//! Filters in front of what is served and copied: how they are written, their order, and what is told of them.
//! What each does is in `filters_*`.

use std::{fs, process::Command};

use crate::support::{
    images::{assert_same, sparse_image},
    peers::Peer,
    run::{blockferry, run, signal, tool, until, wait},
};

fn room() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn filters_are_listed_for_people_and_for_programs() {
    let text = run(&mut blockferry(["filters"])).success();
    let json = run(&mut blockferry(["filters", "--json"])).success();
    let rows: serde_json::Value = serde_json::from_str(json.text()).expect("JSON");
    let rows = rows.as_array().expect("rows");
    for row in rows {
        let syntax = row["syntax"].as_str().expect("a syntax");
        assert!(text.text().lines().any(|line| line == syntax), "{syntax}");
        for effect in ["extents", "mapping", "flush", "concurrency"] {
            assert!(row["effects"][effect].is_string(), "{row}");
        }
    }
    let named = |name| rows.iter().find(|row| row["name"] == name).expect("a row");
    assert_eq!(named("nozero")["parameters"][0]["default"], "none");
    assert_eq!(named("readonly")["parameters"], serde_json::json!([]));
}

#[test]
fn a_filter_that_is_not_there_or_not_understood_is_refused_before_anything_is_touched() {
    let room = room();
    let image = room.path().join("disk.raw");
    let image = image.to_str().expect("text");
    for (filter, words) in [
        (
            "nonsense",
            &["no filter \"nonsense\"", "blockferry filters"][..],
        ),
        ("", &["no filter \"\""]),
        ("readonly:yes", &["readonly", "no parameter"]),
        (
            "nozero:mode=some",
            &["nozero:mode=some", "none, nohole, nofast"],
        ),
        (
            "multi-conn:perhaps",
            &["mode=\"perhaps\"", "neither on nor off"],
        ),
    ] {
        let copy = ["copy", "--filter", filter, "memory:1M", image];
        run(&mut blockferry(copy)).failure(2, words);
        let serve = ["serve", "--filter", filter, "memory:1M", "-U", image];
        run(&mut blockferry(serve)).failure(2, words);
    }
    assert!(!fs::exists(image).expect("known"));
    let stream = ["copy", "--filter", "noextents", "-", image];
    run(&mut blockferry(stream)).failure(1, &["-: open: a filter needs", "a stream"]);
}

#[test]
fn a_copy_sees_its_source_through_the_filters() {
    let room = room();
    let (source, copy) = (room.path().join("s.raw"), room.path().join("c.raw"));
    sparse_image(&source, 8 << 20);
    let (source_text, copy_text) = (source.to_str().expect("text"), copy.to_str().expect("text"));
    let server = Peer::nbdkit(room.path(), &["file", source_text]);
    for endpoint in [source_text, &*server.uri()] {
        let words = [
            "copy",
            "--json",
            "--filter",
            "noextents",
            "-S0",
            endpoint,
            copy_text,
        ];
        let report = run(&mut blockferry(words)).success();
        let report: serde_json::Value = serde_json::from_str(report.text()).expect("JSON");
        assert_eq!(report["data"], 8 << 20, "nothing is known to be zero");
        assert_same(&source, &copy);
        fs::remove_file(&copy).expect("removed");
    }
    let all = run(&mut blockferry(["map", "--totals", source_text])).success();
    let none = ["map", "--totals", "--filter", "noextents", source_text];
    let none = run(&mut blockferry(none)).success();
    assert!(all.text().contains("hole") && !none.text().contains("hole"));
    let sums = [
        "checksum",
        "--filter",
        "readonly",
        "--filter",
        "noextents",
        source_text,
    ];
    let filtered = run(&mut blockferry(sums)).success();
    let plain = run(&mut blockferry(["checksum", source_text])).success();
    assert_eq!(filtered.text(), plain.text());
}

#[test]
fn each_export_is_served_through_the_filters() {
    let script = "nbdinfo --json \"${uri%/*}/$0\"";
    let abilities = |filters: &[&str], export: &str| -> serde_json::Value {
        let command = script.replace("$0", export);
        let mut words = vec!["serve"];
        words.extend(filters.iter().flat_map(|filter| ["--filter", filter]));
        words.extend([
            "-e",
            "a=memory:1M",
            "-e",
            "b=memory:2M",
            "--listen",
            "127.0.0.1:0",
        ]);
        words.extend(["--run", &command]);
        let shown = run(&mut blockferry(words)).success();
        let shown: serde_json::Value = serde_json::from_str(shown.text()).expect("JSON");
        shown["exports"][0].clone()
    };
    for (export, size) in [("a", 1 << 20), ("b", 2 << 20)] {
        let plain = abilities(&[], export);
        assert_eq!(plain["export-size"], size);
        assert_eq!(
            (&plain["is_read_only"], &plain["can_trim"]),
            (&false.into(), &true.into())
        );
        let filtered = abilities(&["notrim", "multi-conn:off"], export);
        assert_eq!(filtered["can_trim"], false);
        assert_eq!(filtered["can_zero"], true);
        assert_eq!(filtered["can_multi_conn"], false);
        // The first one is nearest to the client.
        assert_eq!(
            abilities(&["multi-conn:on", "multi-conn:off"], export)["can_multi_conn"],
            true
        );
        assert_eq!(
            abilities(&["multi-conn:off", "multi-conn:on"], export)["can_multi_conn"],
            false
        );
        assert_eq!(abilities(&["readonly"], export)["is_read_only"], true);
    }
}

#[test]
fn what_cannot_be_written_can_be_served_behind_a_filter_that_does_not_write() {
    let room = room();
    let image = room.path().join("disk.raw");
    sparse_image(&image, 1 << 20);
    let image = image.to_str().expect("text");
    // Permissions do not hold for root, a file system that is mounted read-only does; a descriptor holds for all.
    let mut shell = Command::new("sh");
    let served =
        "exec \"$0\" serve --filter readonly fd:7 --run 'nbdinfo --size \"$uri\"' 7<\"$1\"";
    let binary = env!("CARGO_BIN_EXE_blockferry");
    let size = run(shell.args(["-c", served, binary, image])).success();
    assert_eq!(size.text().trim(), "1048576");
}

#[test]
fn a_checkpoint_is_of_the_image_as_the_filters_show_it() {
    let room = room();
    let (source, copy) = (room.path().join("s.raw"), room.path().join("c.raw"));
    sparse_image(&source, 64 << 20);
    let (source, copy) = (source.to_str().expect("text"), copy.to_str().expect("text"));
    let note = room.path().join("note");
    let note_text = note.to_str().expect("text");
    let begin = |filter: &str| {
        let words = [
            "copy",
            "--checkpoint",
            note_text,
            "--filter",
            filter,
            source,
            copy,
        ];
        blockferry(words)
    };
    let mut child = begin("readonly")
        .args(["--rate", "8M"])
        .spawn()
        .expect("started");
    until("something is done", || {
        let noted = fs::read_to_string(&note).unwrap_or_default();
        noted.contains("\"done\":[[")
    });
    signal(&child, "INT");
    assert_eq!(wait(&mut child), 130);
    run(&mut begin("noextents")).failure(1, &["through other filters"]);
    let plain = ["copy", "--checkpoint", note_text, source, copy];
    run(&mut blockferry(plain)).failure(1, &["through other filters"]);
    run(&mut begin("readonly")).success();
    assert_eq!(tool("cmp", &[source, copy]), "");
    assert!(!note.exists());
}

#[test]
fn what_was_counted_is_told_after_a_failure_too_and_a_refusal_names_its_source() {
    let room = room();
    let stats = room.path().join("stats");
    let filter = format!("stats:{}", stats.display());
    let words = [
        "copy",
        "--filter",
        &*filter,
        "--filter",
        "error:EIO,on=read",
        "pattern:1M",
        "null:",
    ];
    run(&mut blockferry(words)).failure(1, &["read of"]);
    assert!(
        fs::read_to_string(&stats)
            .expect("statistics")
            .contains("read")
    );
    let words = [
        "serve",
        "-e",
        "a=memory:1M",
        "-e",
        "b=pattern:2M",
        "--filter",
        "partition:1",
    ];
    let refused = run(blockferry(words).args(["--run", "true"]));
    refused.failure(1, &["no partition table", "memory:1M"]);
}
