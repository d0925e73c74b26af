//! `info` and `map`: what a server offers, for people and for machines.

use serde_json::Value;
use tempfile::tempdir;

use crate::support::{Peer, assert_same, blockferry, run, sparse_image};

fn json(arguments: &[&str]) -> Value {
    let outcome = run(&mut blockferry(arguments)).success();
    serde_json::from_str(outcome.text()).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

#[test]
fn info_says_what_nbdinfo_says() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 10 << 20);
    let peer = Peer::qemu_nbd(dir.path(), "raw", &image, &["-r", "-D", "a disk"]);
    let theirs = run(std::process::Command::new("nbdinfo").args(["--json", &peer.uri()])).success();
    let theirs: Value = serde_json::from_str(theirs.text()).expect("JSON");
    let ours = json(&["info", "--json", &peer.uri()]);
    assert_eq!(ours["protocol"], theirs["protocol"], "{ours}");
    let (ours, theirs) = (&ours["exports"][0], &theirs["exports"][0]);
    for key in [
        "export-name",
        "export-size",
        "description",
        "is_rotational",
        "is_read_only",
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
        "block_size_minimum",
        "block_size_preferred",
        "block_size_maximum",
        "contexts",
    ] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
}

#[test]
fn info_is_readable_and_lists_exports() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 10 << 20);
    let peer = Peer::qemu_nbd(
        dir.path(),
        "raw",
        &image,
        &["-x", "disk one", "-D", "a\x1bdisk"],
    );
    let uri = peer.uri().replace("///", "///disk%20one");
    let outcome = run(&mut blockferry(["info", &uri])).success();
    for word in ["disk one", "10485760", "10M", "base:allocation"] {
        assert!(
            outcome.text().contains(word),
            "{word} is not in: {}",
            outcome.text()
        );
    }
    assert!(!outcome.text().contains('\x1b'));
    let outcome = run(&mut blockferry(["info", "--list", &peer.uri()])).success();
    assert!(outcome.text().contains("disk one"), "{}", outcome.text());
}

#[test]
fn an_oldstyle_server_is_shown_and_read() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 10 << 20);
    let peer = Peer::nbdkit(
        dir.path(),
        &["-o", "file", &format!("file={}", image.display())],
    );
    let info = json(&["info", "--json", &peer.uri()]);
    assert_eq!(info["protocol"], "oldstyle");
    assert_eq!(info["exports"][0]["export-size"], 10 << 20);
    let copy = dir.path().join("copy.raw");
    run(blockferry(["copy", &peer.uri()]).arg(&copy)).success();
    assert_same(&image, &copy);

    // It has no names, and no TLS.
    let named = peer.uri().replace("///", "///disk");
    run(&mut blockferry(["info", &named])).failure(1, &["oldstyle", "export names"]);
    let secure = peer.uri().replace("nbd+", "nbds+");
    run(&mut blockferry(["info", &secure])).failure(1, &["oldstyle", "TLS"]);
}

#[test]
fn info_of_a_local_file_needs_no_server() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 10 << 20);
    let outcome = run(blockferry(["info"]).arg(&image)).success();
    assert!(outcome.text().contains("10485760"), "{}", outcome.text());
}

#[test]
fn map_says_what_nbdinfo_maps() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 10 << 20);
    let peer = Peer::nbdkit(dir.path(), &["file", &format!("file={}", image.display())]);
    let theirs = run(std::process::Command::new("nbdinfo").args(["--map", &peer.uri()])).success();
    let ours = run(&mut blockferry(["map", &peer.uri()])).success();
    assert_eq!(ours.text(), theirs.text());
    let theirs =
        run(std::process::Command::new("nbdinfo").args(["--map", "--totals", &peer.uri()]))
            .success();
    let ours = run(&mut blockferry(["map", "--totals", &peer.uri()])).success();
    assert_eq!(ours.text(), theirs.text());

    let map = json(&["map", "--json", &peer.uri()]);
    let extents = map.as_array().expect("a list");
    let mut end = 0;
    for extent in extents {
        assert_eq!(extent["offset"].as_u64(), Some(end), "{map}");
        end += extent["length"].as_u64().expect("a number");
    }
    assert_eq!(end, 10 << 20);

    // A local file maps as the server that serves it.
    let local = run(blockferry(["map"]).arg(&image)).success();
    let served = run(&mut blockferry(["map", &peer.uri()])).success();
    assert_eq!(local.text(), served.text());
}
