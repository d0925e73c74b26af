//! What is found out before the first byte moves: no room, too small, not writable.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use tempfile::tempdir;

use crate::support::{
    Outcome, Peer, SmallDisk, assert_same, blockferry, random_image, run, sparse_image,
};

/// Runs `copy` with these arguments where no file may have more than 1 MiB.
fn copy_limited(source: &str, destination: &Path, flags: &str) -> Outcome {
    let script =
        format!("ulimit -f $((1024 * 1024 / 512)); exec \"$0\" copy {flags} \"$1\" \"$2\"");
    run(Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_blockferry"), source])
        .arg(destination))
}

#[test]
fn an_image_beyond_the_limit_of_the_process_is_refused_and_nothing_changes() {
    let dir = tempdir().expect("a directory");
    let new = dir.path().join("new.raw");
    copy_limited("sample:64M", &new, "").failure(1, &["new.raw", "64.0 MiB", "ulimit"]);
    assert!(!new.exists());

    let existing = dir.path().join("existing.raw");
    fs::write(&existing, "precious").expect("a writable directory");
    copy_limited("sample:64M", &existing, "").failure(1, &["existing.raw", "ulimit"]);
    assert_eq!(fs::read(&existing).expect("there"), b"precious");
    copy_limited("sample:512K", &existing, "").success();
}

#[test]
fn a_stream_that_grows_beyond_the_limit_is_an_error_and_not_the_end() {
    let dir = tempdir().expect("a directory");
    let new = dir.path().join("new.raw");
    let script = "ulimit -f $((1024 * 1024 / 512)); head -c 4000000 /dev/zero | tr '\\0' x | \"$0\" copy - \"$1\"";
    run(Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_blockferry")])
        .arg(&new))
    .failure(1, &["new.raw", "too large", "ulimit"]);
    assert!(!new.exists());
}

#[test]
fn an_image_that_has_no_room_is_refused_before_anything_changes() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let existing = disk.path().join("existing.raw");
    fs::write(&existing, "precious").expect("a writable directory");
    let place = disk.path().to_str().expect("UTF-8");
    let refused = |flags: &[&str], source: &str, words: &[&str]| {
        for name in ["new.raw", "existing.raw"] {
            let words = [&[name, place, "free"], words].concat();
            run(blockferry(["copy", source])
                .args(flags)
                .arg(disk.path().join(name)))
            .failure(1, &words);
        }
        assert_eq!(fs::read(&existing).expect("there"), b"precious");
        assert!(!disk.path().join("new.raw").exists());
    };
    refused(&[], "sample:64M,data=100", &["needs 64.0 MiB of space"]);
    refused(&["--allocated"], "sample:64M,data=1", &["needs 64.0 MiB"]);
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 8 << 20);
    refused(&[], image.to_str().expect("UTF-8"), &["needs 8.0 MiB"]);

    // What is there makes room for what replaces it, and holes need none.
    let whole = disk.path().join("whole.raw");
    random_image(&whole, 3 << 20);
    run(blockferry(["copy", "sample:3M,data=100"]).arg(&whole)).success();
    sparse_image(&image, 64 << 20);
    fs::remove_file(&whole).expect("removed");
    run(blockferry(["copy"]).arg(&image).arg(&existing)).success();
    assert_same(&image, &existing);
}

#[test]
fn where_nobody_knows_the_holes_there_is_a_warning_only() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    // All of it is allocated, and most of it zero.
    fs::write(&image, vec![0; 8 << 20]).expect("a writable directory");
    let peer = Peer::nbdkit(
        dir.path(),
        &[
            "--filter=noextents",
            "file",
            &format!("file={}", image.display()),
        ],
    );
    let copy = disk.path().join("copy.raw");
    for flags in [&[][..], &["--no-extents"]] {
        let outcome = run(blockferry(["copy", &peer.uri()]).args(flags).arg(&copy)).success();
        let warned = outcome.stderr.contains("may need up to 8.0 MiB");
        assert!(warned, "{}", outcome.stderr);
        assert_same(&image, &copy);
        fs::remove_file(&copy).expect("removed");
    }
}

#[test]
fn a_directory_is_refused_with_what_to_name_instead() {
    let dir = tempdir().expect("a directory");
    run(blockferry(["copy", "sample:1M"]).arg(dir.path()))
        .failure(1, &["it is a directory", "name a file in it"]);
}

#[test]
fn a_server_that_allows_no_writes_is_told_so_before_the_copy() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    File::create(&image)
        .and_then(|file| file.set_len(1 << 20))
        .expect("a writable directory");
    let peer = Peer::qemu_nbd(dir.path(), "raw", &image, &["--read-only"]);
    let outcome = run(&mut blockferry(["copy", "sample:1M", &peer.uri()]));
    let outcome = outcome.failure(1, &["read-only", "hint:"]);
    assert!(!outcome.stderr.contains("incomplete"), "{}", outcome.stderr);
}
