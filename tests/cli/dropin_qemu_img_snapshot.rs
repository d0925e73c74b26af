//! `qemu-img snapshot -c`, `-a` and `-d`, theirs and ours: each uses what the other made.

use std::{fs, path::Path, process::Stdio};

use tempfile::tempdir;

use crate::{
    dropin_qemu_img::Twins,
    support::{
        Outcome, Peer, assert_same, blockferry,
        dropin::{BOTH, Who, words},
        images::random_bytes,
        qemu::{assert_identical, check, convert, info, qemu_img, qemu_io, text},
        run::{finish, run, signal, until},
        sparse_image,
    },
};

/// An image `name` of 6 MiB with something in it.
fn image(dir: &Path, name: &str, options: &str) {
    let path = dir.join(name);
    let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=off"];
    if !options.is_empty() {
        arguments.extend(["-o", options]);
    }
    arguments.extend([text(&path), "6M"]);
    qemu_img(&arguments);
    let writes = ["write -q -P 1 0 700k", "write -q -P 2 3M 1M"];
    qemu_io(&path, "qcow2", &writes);
}

/// The snapshots that both images have, but for their dates.
#[track_caller]
fn assert_listed_alike(twins: &Twins, name: &str) {
    let [theirs, ours] = BOTH.map(|who| {
        let mut snapshots = info(&twins.path(who, name))["snapshots"].take();
        for snapshot in snapshots.as_array_mut().into_iter().flatten() {
            let snapshot = snapshot.as_object_mut().expect("an object");
            snapshot.remove("date-sec");
            snapshot.remove("date-nsec");
        }
        snapshots
    });
    assert_eq!(ours, theirs);
}

#[test]
fn snapshots_are_made_applied_and_deleted_alike() {
    const FEW: &[&str] = &["-c one a", "-c two a", "-a one a", "-d one a", "-a two a"];
    const MANY: &[&str] = &[
        "-c one a",
        "-c one a",
        "-q -c 2 a",
        "-f qcow2 -c four --image-opts a",
        "-c four --image-opts driver=qcow2,file.filename=a",
        "-d one a",
        "-a 2 a",
        "-d 1 a",
        "-d four a",
        "-c x a",
        "-a x a",
        "-a 3 a",
        "-a nothing a",
        "-d nothing a",
        "-d 2 a",
        "-d x a",
        "-d one a",
        "-d one a",
        "-c again a",
    ];
    for (options, requests) in [
        ("", MANY),
        ("compat=0.10", FEW),
        ("cluster_size=4k,refcount_bits=64", FEW),
    ] {
        let twins = Twins::new(|dir| image(dir, "a", options));
        let paths = BOTH.map(|who| twins.path(who, "a"));
        for (step, arguments) in requests.iter().enumerate() {
            twins.same(&format!("snapshot {arguments}"));
            check(&paths[1]);
            assert_listed_alike(&twins, "a");
            let [one, other] = &paths;
            assert_identical((other, "qcow2"), (one, "qcow2"));
            for path in &paths {
                let write = format!("write -q -P {} {}k 300k", step + 3, step * 251);
                qemu_io(path, "qcow2", &[&write]);
            }
        }
    }
}

#[test]
fn what_cannot_be_done_fails_alike_and_changes_nothing() {
    let twins = Twins::new(|dir| {
        image(dir, "a", "");
        image(dir, "narrow", "refcount_bits=1");
        image(dir, "marked", "");
        let marked = dir.join("marked");
        qemu_img(&["snapshot", "-c", "one", text(&marked)]);
        qemu_img(&["bitmap", "--add", text(&marked), "monday"]);
        let data = format!("data_file={}", text(&dir.join("data")));
        image(dir, "outside", &data);
        image(dir, "damaged", "");
        let mut bytes = fs::read(dir.join("damaged")).expect("read");
        bytes[79] = 2;
        fs::write(dir.join("damaged"), bytes).expect("written");
    });
    for arguments in [
        "-a nothing a",
        "-d nothing a",
        "-c x missing",
        "-a x missing",
        "-d x missing",
        "-U -c x a",
        "-c x",
        "-c",
        "-c x a a",
        "-c x -d x a",
        "-a x -l a",
    ] {
        twins.same(&format!("snapshot {arguments}"));
    }
    for (arguments, part) in [
        ("-c x narrow", "Could not create snapshot 'x': "),
        ("-c x outside", "Could not create snapshot 'x': "),
        ("-a one marked", "Could not apply snapshot 'one': "),
        ("-c x damaged", "Could not open 'damaged'"),
        ("-f raw -c x disk", "Could not create snapshot 'x': "),
        ("-f raw -a x disk", "Could not apply snapshot 'x': "),
        ("-f vmdk -c x a", "Could not "),
    ] {
        let name = arguments.rsplit(' ').next().expect("a name");
        let before = fs::read(twins.path(Who::Ours, name)).expect("read");
        for outcome in twins.alike(&format!("snapshot {arguments}")) {
            outcome.failure(1, &[part]);
        }
        let after = fs::read(twins.path(Who::Ours, name)).expect("read");
        assert!(before == after, "{arguments}");
    }
    for arguments in ["-c two marked", "-d one marked"] {
        twins.same(&format!("snapshot {arguments}"));
        check(&twins.path(Who::Ours, "marked"));
    }
    assert_listed_alike(&twins, "marked");
}

#[test]
fn a_long_name_is_cut_as_theirs_is() {
    let twins = Twins::new(|dir| image(dir, "a", ""));
    twins.same(&format!("snapshot -c {} a", "n".repeat(300)));
    twins.alike(&format!("snapshot -c {} a", "n".repeat(255)));
    assert_listed_alike(&twins, "a");
    let long = format!("snapshot -d {} a", "n".repeat(255));
    twins.same(&long);
    assert_listed_alike(&twins, "a");
}

#[test]
fn a_disk_goes_back_to_the_size_that_it_had() {
    let twins = Twins::new(|dir| image(dir, "a", ""));
    for arguments in [
        "snapshot -c small a",
        "resize -q a 9G",
        "snapshot -c large a",
        "snapshot -a small a",
        "snapshot -a large a",
        "snapshot -a 1 a",
    ] {
        twins.same(arguments);
        let ours = twins.path(Who::Ours, "a");
        check(&ours);
        let sizes = BOTH.map(|who| info(&twins.path(who, "a"))["virtual-size"].clone());
        assert_eq!(sizes[0], sizes[1], "{arguments}");
    }
}

/// Our `qemu-img snapshot` with `arguments`, in `dir`.
fn snapshot(dir: &Path, arguments: &str) -> Outcome {
    let arguments = format!("snapshot {arguments}");
    run(Who::Ours
        .tool("qemu-img", words(&arguments))
        .current_dir(dir))
}

#[test]
fn what_is_written_afterwards_is_not_in_the_snapshot() {
    let dir = tempdir().expect("a directory");
    let dir = dir.path();
    image(dir, "a", "");
    let (path, before, other) = (dir.join("a"), dir.join("before"), dir.join("other"));
    convert(&["-O", "raw", text(&path), text(&before)]).success();
    snapshot(dir, "-c one a").success();
    let kept = || {
        check(&path);
        let now = dir.join("now");
        convert(&["-O", "raw", "-l", "one", text(&path), text(&now)]).success();
        assert_same(&before, &now);
    };
    // All of it, by a copy into it.
    fs::write(&other, random_bytes(6 << 20, 5)).expect("written");
    convert(&["-n", "-O", "qcow2", text(&other), text(&path)]).success();
    kept();
    assert_identical((&other, "raw"), (&path, "qcow2"));
    snapshot(dir, "-a one a").success();
    assert_identical((&before, "raw"), (&path, "qcow2"));
    // Some of it, by clients of a server.
    let write = r#"qemu-io -f raw -c 'write -q -P 7 100k 900k' -c 'write -q -z 3500k 200k' "$uri""#;
    let words = ["serve", "--unix", "-", "--run", write, text(&path)];
    run(&mut blockferry(words)).success();
    kept();
    snapshot(dir, "-d one a").success();
    check(&path);
}

#[test]
fn files_behind_the_image_are_not_needed() {
    let dir = tempdir().expect("a directory");
    let dir = dir.path();
    sparse_image(&dir.join("base"), 4 << 20);
    let top = dir.join("top");
    let base = text(&dir.join("base")).to_owned();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        &base,
        text(&top),
    ]);
    qemu_io(&top, "qcow2", &["write -q -P 3 1M 64k"]);
    let copy = dir.join("copy");
    qemu_img(&["convert", "-O", "raw", text(&top), text(&copy)]);
    fs::rename(dir.join("base"), dir.join("away")).expect("renamed");
    for arguments in ["-c one top", "-c two top", "-a one top", "-d two top"] {
        snapshot(dir, arguments).success();
    }
    fs::rename(dir.join("away"), dir.join("base")).expect("renamed");
    check(&top);
    assert_identical((&copy, "raw"), (&top, "qcow2"));
}

#[test]
fn an_image_in_use_is_left_alone() {
    let dir = tempdir().expect("a directory");
    let dir = dir.path();
    image(dir, "a", "");
    let server = Peer::blockferry(dir, &dir.join("a"));
    for arguments in ["-c one a", "-a one a", "-d one a"] {
        snapshot(dir, arguments).failure(1, &["Could not open 'a'", "another program uses it"]);
    }
    drop(server);
    snapshot(dir, "-c one a").success();
}

#[test]
fn an_interrupted_change_leaves_the_image_as_it_was() {
    let dir = tempdir().expect("a directory");
    let path = dir.path().join("a");
    // So many tables that it takes longer than a signal.
    let options = "cluster_size=512,preallocation=metadata";
    let words = ["create", "-f", "qcow2", "-o", options, text(&path), "128M"];
    run(&mut blockferry(words)).success();
    let before = fs::metadata(&path).expect("there").len();
    let mut command = Who::Ours.tool("qemu-img", ["snapshot", "-c", "one", "a"]);
    let command = command.current_dir(dir.path()).stdout(Stdio::piped());
    let child = command.stderr(Stdio::piped()).spawn().expect("the binary");
    let length = || fs::metadata(&path).expect("there").len();
    until("something to be written", || length() > before);
    signal(&child, "INT");
    finish(child).failure(130, &["a is as it was"]);
    assert_eq!(length(), before);
    assert_eq!(info(&path)["snapshots"].as_array().map_or(0, Vec::len), 0);
    check(&path);
}
