//! Copies in order, and data that is moved without being looked at: through pipes, and inside the kernel.

use std::{fs, os::unix::fs::FileExt, path::Path, process::Command};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome, Peer, allocated, assert_same, blockferry, images::random_bytes, random_image, run,
    run::tool, sparse_image,
};

fn room() -> TempDir {
    tempdir().expect("a directory")
}

fn nbdkit(directory: &Path, image: &Path) -> Peer {
    let file = format!("file={}", image.display());
    Peer::nbdkit(directory, &["file", &file])
}

#[track_caller]
fn copy(options: &[&str], source: impl AsRef<Path>, destination: impl AsRef<Path>) -> Outcome {
    let arguments = ["copy"].iter().chain(options);
    run(blockferry(arguments)
        .arg(source.as_ref())
        .arg(destination.as_ref()))
    .success()
}

/// A command line for a shell in which `$0` is the program and `$1`, `$2` are the arguments.
#[track_caller]
fn shell(script: &str, arguments: [&str; 2]) -> Outcome {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script, env!("CARGO_BIN_EXE_blockferry")])
        .args(arguments);
    run(&mut shell)
}

#[test]
fn a_large_image_arrives_in_order_in_a_pipe() {
    let dir = room();
    for (name, size) in [("random", 64 << 20), ("sparse", 90_000_001)] {
        let image = dir.path().join(name);
        match name {
            "random" => random_image(&image, size),
            _ => sparse_image(&image, size as u64),
        }
        let server = room();
        let peer = nbdkit(server.path(), &image);
        let image = image.to_str().expect("UTF-8");
        for options in ["", "-S0", "--no-extents", "-C7 -R3 --queue-size=2M"] {
            let script = format!("\"$0\" copy {options} \"$1\" - | cmp - \"$2\"");
            shell(&script, [&peer.uri(), image]).success();
        }
    }
}

#[test]
fn a_file_that_is_written_in_order_is_the_same_file() {
    let dir = room();
    let (image, destination) = (dir.path().join("image.raw"), dir.path().join("copy.raw"));
    sparse_image(&image, 64_000_003);
    let peer = nbdkit(dir.path(), &image);
    for options in [
        &["--in-order"][..],
        &["--in-order", "-S0"],
        &["--in-order", "--allocated"],
        &["-W", "--in-order"],
        &["--in-order", "-W"],
    ] {
        copy(options, peer.uri(), &destination);
        assert_same(&image, &destination);
        copy(options, &image, &destination);
        assert_same(&image, &destination);
    }
}

type Start = fn(&Path, &Path) -> Peer;

/// Servers in pairs: the one that is read, and the one that is written.
fn pairs() -> [(Start, Start); 6] {
    let qemu: Start = |directory, image| Peer::qemu_nbd(directory, "raw", image, &[]);
    let ours: Start = Peer::blockferry;
    [
        (nbdkit, nbdkit),
        (qemu, nbdkit),
        (nbdkit, qemu),
        (ours, nbdkit),
        (nbdkit, ours),
        (ours, ours),
    ]
}

#[test]
fn data_that_nobody_looks_at_passes_between_servers_unchanged() {
    let dir = room();
    let (sparse, random) = (dir.path().join("sparse.raw"), dir.path().join("random.raw"));
    // Whole sectors, for qemu-nbd rounds other sizes, and no whole pages.
    let size = 20_000_256;
    sparse_image(&sparse, size);
    random_image(&random, size as usize);
    let disk = dir.path().join("disk.raw");
    for image in [&sparse, &random] {
        for (from, to) in pairs() {
            fs::write(&disk, vec![0x55; size as usize]).expect("room");
            let (one, other) = (room(), room());
            let (source, destination) = (from(one.path(), image), to(other.path(), &disk));
            copy(&["-S", "0"], source.uri(), destination.uri());
            drop(destination);
            assert_same(image, &disk);
        }
    }
}

#[test]
fn data_that_nobody_looks_at_passes_through_odd_sizes_and_pipes() {
    let dir = room();
    let copied = dir.path().join("copied.raw");
    for size in [1, 65_535, 262_145, 10_000_001] {
        let image = dir.path().join("image.raw");
        random_image(&image, size);
        for start in [nbdkit as Start, Peer::blockferry] {
            let server = room();
            let peer = start(server.path(), &image);
            copy(&["-S0"], peer.uri(), &copied);
            assert_same(&image, &copied);

            let path = image.to_str().expect("UTF-8");
            shell(
                "\"$0\" copy -S0 \"$1\" - | cat | cmp - \"$2\"",
                [&peer.uri(), path],
            )
            .success();

            let disk = dir.path().join("disk.raw");
            fs::write(&disk, vec![0x55; size]).expect("room");
            let other = room();
            let destination = start(other.path(), &disk);
            copy(&["-S0"], peer.uri(), destination.uri());
            drop(destination);
            assert_same(&image, &disk);
        }
    }
}

#[test]
fn a_named_pipe_carries_an_image_out_and_in() {
    let dir = room();
    let (image, copied) = (dir.path().join("image.raw"), dir.path().join("copied.raw"));
    let fifo = dir.path().join("fifo");
    tool("mkfifo", &[fifo.to_str().expect("UTF-8")]);
    sparse_image(&image, 33_000_001);
    let peer = nbdkit(dir.path(), &image);
    let fifo = fifo.to_str().expect("UTF-8");
    for options in ["", "-S0"] {
        // Both ends at a time, then one of them another's.
        let both = format!(
            "\"$0\" copy {options} {} \"$1\" & \"$0\" copy \"$1\" \"$2\" && wait $!",
            quoted(&peer.uri())
        );
        shell(&both, [fifo, copied.to_str().expect("UTF-8")]).success();
        assert_same(&image, &copied);
        let out = format!(
            "cmp \"$1\" \"$2\" & \"$0\" copy {options} {} \"$1\" && wait $!",
            quoted(&peer.uri())
        );
        shell(&out, [fifo, image.to_str().expect("UTF-8")]).success();
    }
}

fn quoted(word: &str) -> String {
    format!("'{word}'")
}

#[test]
fn a_large_sparse_image_is_streamed_with_few_questions() {
    let dir = room();
    let image = dir.path().join("image.raw");
    let file = fs::File::create(&image).expect("a writable directory");
    file.set_len(640 << 20)
        .and_then(|()| file.write_all_at(&random_bytes(1 << 20, 4), 500_000_000))
        .expect("room for holes");
    let log = dir.path().join("nbdkit.log");
    let parameters = [
        format!("file={}", image.display()),
        format!("logfile={}", log.display()),
    ];
    let peer = Peer::nbdkit(
        dir.path(),
        &["--filter=log", "file", &parameters[0], &parameters[1]],
    );
    let image = image.to_str().expect("UTF-8");
    shell("\"$0\" copy \"$1\" - | cmp - \"$2\"", [&peer.uri(), image]).success();
    drop(peer);
    let log = fs::read_to_string(&log).expect("nbdkit's log");
    let questions = log.matches(" Extents id=").count();
    assert!(
        (1..=16).contains(&questions),
        "{questions} questions: {log}"
    );
    let reads = log.matches(" Read id=").count();
    assert!(reads < 2000, "the holes were read, in {reads} requests");
}

#[test]
fn a_file_becomes_the_same_file_on_this_and_on_another_file_system() {
    let here = room();
    let memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let image = here.path().join("image.raw");
    // Data, holes, and zeroes that are written out.
    sparse_image(&image, 40_000_003);
    let file = fs::File::options().write(true).open(&image).expect("ours");
    file.write_all_at(&vec![0; 4 << 20], 10 << 20)
        .expect("room");
    for (from, to) in [
        (&here, &here),
        (&here, &memory),
        (&memory, &here),
        (&memory, &memory),
    ] {
        let source = from.path().join("image.raw");
        let destination = to.path().join("copy.raw");
        if !source.exists() {
            fs::copy(&image, &source).expect("room");
        }
        copy(&[], &source, &destination);
        assert_same(&image, &destination);
        let thin = allocated(&destination);
        assert!(thin <= 4 << 20, "{thin} bytes on disk");

        copy(&["-S", "0"], &source, &destination);
        assert_same(&image, &destination);
        let kept = allocated(&destination);
        assert!(
            kept <= allocated(&source) + (1 << 20),
            "{kept} bytes on disk"
        );

        copy(&["--allocated"], &source, &destination);
        assert_same(&image, &destination);
        let full = allocated(&destination);
        assert!(full >= 40_000_003, "{full} bytes on disk");
    }
}

#[test]
fn orders_and_connections_out_of_range_are_wrong_usage() {
    for (options, word) in [
        (&["-C", "0"][..], "--connections"),
        (&["-C", "65"], "--connections"),
        (&["--connections=-1"], "--connections"),
        (&["--connections=many"], "--connections"),
        (&["--request-size=1M", "--queue-size=512K"], "--queue-size"),
        (&["--queue-size=8G"], "--queue-size"),
    ] {
        let arguments = ["copy", "sample:1M", "null:"].iter().chain(options);
        run(&mut blockferry(arguments)).failure(2, &[word]);
    }
}
