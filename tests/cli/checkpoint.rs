//! `copy --checkpoint`: what was done before a kill, an interrupt or a failure is not done again.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Peer, allocated, assert_same, blockferry,
    images::random_bytes,
    random_image,
    run::{finish, run},
};

const SIZE: usize = 48 << 20;

struct Room {
    dir: TempDir,
    image: PathBuf,
    checkpoint: PathBuf,
}

impl Room {
    fn new() -> Self {
        let dir = tempdir().expect("a directory");
        let image = dir.path().join("image.raw");
        random_image(&image, SIZE);
        // A hole, and zeroes that are not one.
        let file = fs::File::options().write(true).open(&image);
        let file = file.expect("it is there");
        file.write_all_at(&vec![0; 3 << 20], 20 << 20)
            .expect("room");
        file.set_len(64 << 20).expect("room");
        let checkpoint = dir.path().join("checkpoint");
        Self {
            dir,
            image,
            checkpoint,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The copy of `source`, slow enough to be killed on the way.
    fn copy(&self, source: impl AsRef<Path>, destination: impl AsRef<Path>) -> Command {
        let mut command = blockferry(["copy", "--rate=48M", "--checkpoint"]);
        command
            .arg(&self.checkpoint)
            .arg(source.as_ref())
            .arg(destination.as_ref());
        command
    }

    /// How many bytes the checkpoint says are done.
    fn done(&self) -> u64 {
        let text = fs::read_to_string(&self.checkpoint).expect("a checkpoint");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        value["data"].as_u64().expect("a number") + value["zero"].as_u64().expect("a number")
    }
}

fn start(command: &mut Command) -> Child {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("started")
}

fn wait_for(what: impl Fn() -> bool) {
    for _ in 0..3000 {
        if what() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came");
}

/// Kills the copy again and again, until `kills` have come to it; each time it comes to its end, `check` looks at
/// the result, and it begins anew.
fn kill_at_random(room: &Room, kills: usize, copy: impl Fn() -> Command, check: impl Fn()) {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let (mut killed, mut resumed, mut ended) = (0, 0, 0);
    while killed < kills || ended == 0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let pause = Duration::from_millis(state % 400);
        if room.checkpoint.exists() {
            resumed += 1;
        }
        let mut child = start(&mut copy());
        thread::sleep(pause);
        child.kill().expect("it is ours");
        let status = child.wait().expect("it ends");
        if status.success() {
            ended += 1;
            check();
        } else {
            assert_eq!(status.code(), None, "killed, or it failed by itself");
            killed += 1;
        }
    }
    assert!(resumed > kills / 2, "{resumed}");
}

#[test]
fn a_copy_to_a_file_survives_a_hundred_kills() {
    let room = Room::new();
    let destination = room.path("copy.raw");
    let copy = || room.copy(&room.image, &destination);
    kill_at_random(&room, 70, copy, || {
        assert_same(&room.image, &destination);
        assert!(!room.checkpoint.exists());
        assert!(!room.path("copy.raw.partial").exists());
        fs::remove_file(&destination).expect("it is there");
    });
}

#[test]
fn a_copy_between_servers_survives_kills() {
    let room = Room::new();
    let disk = room.path("disk.raw");
    fs::write(&disk, vec![0x55; 64 << 20]).expect("room");
    let (from, to) = (tempdir().expect("room"), tempdir().expect("room"));
    let from = Peer::blockferry(from.path(), &room.image);
    let to = Peer::blockferry(to.path(), &disk);
    let copy = || room.copy(from.uri(), to.uri());
    kill_at_random(&room, 30, copy, || {
        assert_same(&room.image, &disk);
        let file = fs::File::options().write(true).open(&disk).expect("there");
        file.write_all_at(&random_bytes(64 << 20, 9), 0)
            .expect("room");
    });
}

#[test]
fn what_was_done_is_not_done_again() {
    let room = Room::new();
    let destination = room.path("copy.raw");
    let mut child = start(&mut room.copy(&room.image, &destination));
    wait_for(|| room.checkpoint.exists() && room.done() > 8 << 20);
    child.kill().expect("it is ours");
    child.wait().expect("it ends");
    assert!(!destination.exists());
    let (done, partial) = (room.done(), room.path("copy.raw.partial"));
    // What is done is not even looked at any more: this shows in the result.
    let file = fs::File::options().write(true).open(&partial);
    file.and_then(|file| file.write_all_at(b"not looked at", 4096))
        .expect("it is there");
    let outcome = run(&mut room.copy(&room.image, &destination)).success();
    assert!(
        outcome.stderr.contains("were done before"),
        "{}",
        outcome.stderr
    );
    let (mut expected, found) = (fs::read(&room.image), fs::read(&destination));
    if let Ok(expected) = &mut expected {
        expected[4096..4109].copy_from_slice(b"not looked at");
    }
    assert!(expected.expect("read") == found.expect("read"));
    assert!(done > 8 << 20 && !room.checkpoint.exists() && !partial.exists());
    assert!(allocated(&destination) < 46 << 20, "the holes are holes");
}

#[test]
fn an_interrupted_copy_says_how_to_go_on() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let room = Room::new();
        let destination = room.path("copy.raw");
        let mut command = room.copy(&room.image, &destination);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = child.spawn().expect("started");
        wait_for(|| room.checkpoint.exists() && room.done() > 1 << 20);
        let pid = child.id().to_string();
        let kill = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(kill.expect("kill runs").success());
        let outcome = finish(child);
        let checkpoint = room.checkpoint.to_str().expect("UTF-8");
        outcome.failure(code, &["the same command goes on from", checkpoint]);
        run(&mut room.copy(&room.image, &destination)).success();
        assert_same(&room.image, &destination);
    }
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused_and_nothing_is_touched() {
    let room = Room::new();
    let destination = room.path("copy.raw");
    let mut child = start(&mut room.copy(&room.image, &destination));
    wait_for(|| room.checkpoint.exists() && room.done() > 1 << 20);
    child.kill().expect("it is ours");
    child.wait().expect("it ends");
    let noted = fs::read(&room.checkpoint).expect("there");
    let partial = fs::read(room.path("copy.raw.partial")).expect("there");

    let other = room.path("other.raw");
    fs::copy(&room.image, &other).expect("room");
    run(&mut room.copy(&other, &destination))
        .failure(1, &["another source", "remove the checkpoint"]);
    run(&mut room.copy(&room.image, room.path("elsewhere.raw")))
        .failure(1, &["another destination", "elsewhere.raw"]);
    // The source is changed.
    let file = fs::File::options().write(true).open(&room.image);
    file.and_then(|file| file.write_all_at(b"changed", 0))
        .expect("it is there");
    run(&mut room.copy(&room.image, &destination)).failure(1, &["was changed since"]);
    assert!(fs::read(&room.checkpoint).expect("there") == noted);
    assert!(fs::read(room.path("copy.raw.partial")).expect("there") == partial);
    assert!(!destination.exists() && !room.path("elsewhere.raw").exists());
    assert!(!room.path("elsewhere.raw.partial").exists());

    // The partial file is gone.
    fs::remove_file(room.path("copy.raw.partial")).expect("there");
    run(&mut room.copy(&room.image, &destination)).failure(1, &["another"]);
    fs::write(&room.checkpoint, "{\"not\": \"one\"}").expect("room");
    run(&mut room.copy(&room.image, &destination)).failure(1, &["not a checkpoint"]);
    fs::remove_file(&room.checkpoint).expect("there");
    run(&mut room.copy(&room.image, &destination)).success();
    assert_same(&room.image, &destination);
}

#[test]
fn a_checkpoint_needs_ends_that_keep_what_they_hold_and_a_place_to_be() {
    let room = Room::new();
    for destination in ["-", "null:"] {
        run(&mut room.copy(&room.image, destination)).failure(2, &["--checkpoint"]);
    }
    let mut command = blockferry(["copy", "--checkpoint", "/nonexistent/checkpoint"]);
    let destination = room.path("copy.raw");
    run(command.arg(&room.image).arg(&destination)).failure(1, &["/nonexistent/checkpoint"]);
    assert!(!destination.exists() && !room.path("copy.raw.partial").exists());
}

#[test]
fn a_partial_file_that_somebody_removes_is_not_said_to_be_kept() {
    for interrupted in [false, true] {
        let room = Room::new();
        let destination = room.path("copy.raw");
        let mut command = room.copy(&room.image, &destination);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = child.spawn().expect("started");
        wait_for(|| room.checkpoint.exists() && room.done() > 1 << 20);
        fs::remove_file(room.path("copy.raw.partial")).expect("there");
        if interrupted {
            let pid = child.id().to_string();
            let kill = Command::new("kill").args(["-s", "INT", &pid]).status();
            assert!(kill.expect("kill runs").success());
        }
        let outcome = match (interrupted, finish(child)) {
            (false, ended) => ended.failure(1, &["somebody removed", "copy.raw.partial"]),
            (true, ended) => ended.failure(130, &["incomplete and not kept"]),
        };
        assert!(!outcome.stderr.contains("goes on from"));
        // Nothing is in the way of the next attempt.
        assert!(!room.checkpoint.exists());
        run(&mut room.copy(&room.image, &destination)).success();
        assert_same(&room.image, &destination);
    }
}

#[test]
fn a_checkpoint_that_would_be_an_image_of_the_copy_is_refused_before_anything_is_opened() {
    let room = Room::new();
    let (image, copy) = (room.image.as_path(), room.path("copy.raw"));
    for checkpoint in [image, &copy, &room.path("copy.raw.partial")] {
        let mut command = blockferry(["copy", "--checkpoint"]);
        command.arg(checkpoint).arg(image).arg(&copy);
        run(&mut command).failure(2, &["a file of its own"]);
    }
    assert_eq!(fs::metadata(image).expect("there").len(), 64 << 20);
    assert!(!copy.exists() && !room.path("copy.raw.partial").exists());
}

#[test]
fn a_copy_out_of_an_image_in_a_format_goes_on_and_knows_the_format() {
    let room = Room::new();
    let packed = room.path("packed.qcow2");
    let words = ["convert", "-c", "-O", "qcow2"];
    run(blockferry(words).arg(&room.image).arg(&packed)).success();
    let destination = room.path("copy.raw");
    let mut child = start(&mut room.copy(&packed, &destination));
    wait_for(|| room.checkpoint.exists() && room.done() > 1 << 20);
    child.kill().expect("it is ours");
    child.wait().expect("it ends");
    let mut raw = room.copy(&packed, &destination);
    run(raw.args(["-f", "raw"])).failure(1, &["packed.qcow2", "another format"]);
    let done = run(&mut room.copy(&packed, &destination)).success();
    assert!(done.stderr.contains("going on from"), "{}", done.stderr);
    assert_same(&room.image, &destination);
    assert!(!room.checkpoint.exists());
}
