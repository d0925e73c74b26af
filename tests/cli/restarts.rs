//! Servers that restart in the middle of a copy, and networks that come and go: the copy goes on by itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use tempfile::{NamedTempFile, TempDir, tempdir};

use crate::support::{
    Outcome, Peer, Proxy, assert_same, blockferry,
    images::random_bytes,
    phoenix::{Phoenix, phoenixes},
    proxy::Fate,
    random_image,
    run::{finish, run, until},
};

const SIZE: usize = 48 << 20;

/// How often a server restarts.
const TIMES: usize = 4;

/// A copy that takes a second or so and has begun.
struct Copy {
    child: Child,
    log: NamedTempFile,
}

impl Copy {
    fn start(options: &[&str], source: impl AsRef<Path>, destination: impl AsRef<Path>) -> Self {
        let arguments = ["copy", "--rate=40M", "--progress=json"];
        let mut command = blockferry(arguments.iter().chain(options));
        command.arg(source.as_ref()).arg(destination.as_ref());
        Self::of(&mut command)
    }

    fn of(command: &mut Command) -> Self {
        let log = NamedTempFile::new().expect("a file");
        let file = log.reopen().expect("a file");
        let command = command.stdout(Stdio::piped()).stderr(file);
        let child = command.spawn().expect("the binary");
        let copy = Self { child, log };
        // Both sides are open then: the first connection is not opened again.
        until("the copy", || copy.told().contains("copying"));
        copy
    }

    fn told(&self) -> String {
        fs::read_to_string(self.log.path()).expect("a file")
    }

    fn finish(self) -> Outcome {
        let outcome = finish(self.child);
        let stderr = fs::read_to_string(self.log.path()).expect("a file");
        Outcome { stderr, ..outcome }
    }
}

/// Restarts `server` while the copy runs, and waits for the end of both.
fn restart_during(copy: Copy, server: &mut Phoenix) -> Outcome {
    for _ in 0..TIMES {
        thread::sleep(Duration::from_millis(250));
        server.restart();
    }
    copy.finish()
}

fn room() -> (TempDir, PathBuf) {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, SIZE);
    (dir, image)
}

#[test]
fn a_source_that_restarts_four_times_is_copied_whole() {
    let (dir, image) = room();
    for (name, mut server) in phoenixes(dir.path(), &image) {
        let destination = dir.path().join(format!("{name}.raw"));
        let copy = Copy::start(&[], server.uri(), &destination);
        let outcome = restart_during(copy, &mut server).success();
        assert_same(&image, &destination);
        let again = outcome.stderr.matches("connected again").count();
        assert!(again > 0, "{name}: {}", outcome.stderr);
    }
}

#[test]
fn a_destination_that_restarts_four_times_gets_everything() {
    let (dir, image) = room();
    let disk = dir.path().join("disk.raw");
    fs::write(&disk, vec![0x55; SIZE]).expect("room");
    for (name, mut server) in phoenixes(dir.path(), &disk) {
        let copy = Copy::start(&["--in-order"], &image, server.uri());
        restart_during(copy, &mut server).success();
        assert_same(&image, &disk);
        fs::write(&disk, vec![0xaa; SIZE]).expect("room");
        let copy = Copy::start(&[], &image, server.uri());
        let outcome = restart_during(copy, &mut server).success();
        assert_same(&image, &disk);
        let words = "that were not flushed";
        assert!(outcome.stderr.contains(words), "{name}: {}", outcome.stderr);
        fs::write(&disk, vec![0x55; SIZE]).expect("room");
    }
}

#[test]
fn a_destination_that_forgets_everything_when_it_restarts_gets_it_again() {
    let (dir, image) = room();
    let place = dir.path().to_owned();
    let mut server = Phoenix::new(move || Peer::nbdkit(&place, &["memory", "48M"]));
    let copy = Copy::start(&[], &image, server.uri());
    let outcome = restart_during(copy, &mut server).success();
    assert!(
        outcome.stderr.contains("writing"),
        "it never restarted in time: {}",
        outcome.stderr
    );
    let back = dir.path().join("back.raw");
    run(blockferry(["copy", &server.uri()]).arg(&back)).success();
    assert_same(&image, &back);
}

#[test]
fn a_pipe_gets_every_byte_once_although_its_source_restarts() {
    let (dir, image) = room();
    for (name, mut server) in phoenixes(dir.path(), &image) {
        let uri = server.uri();
        let copy = Copy::start(&["--quiet"], &uri, "-");
        let restarting = thread::spawn(move || copy.finish());
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(250));
            server.restart();
        }
        let outcome = restarting.join().expect("it ends").success();
        assert!(outcome.stdout == random_bytes(SIZE, 1), "{name}");
    }
}

#[test]
fn a_network_that_breaks_again_and_again_costs_only_time() {
    for source in [true, false] {
        for fate in [Fate::Cut, Fate::Stall] {
            let (dir, image) = room();
            let disk = dir.path().join("disk.raw");
            fs::write(&disk, vec![0x55; SIZE]).expect("room");
            let (served, local) = match source {
                true => (&image, &disk),
                false => (&disk, &image),
            };
            let server = Peer::blockferry(dir.path(), served);
            let seed = AtomicUsize::new(7);
            let proxy = Proxy::failing(dir.path(), server.socket(), 1, fate, move |number| {
                let seed = seed.fetch_add(number * 7919 + 1, Ordering::SeqCst);
                // Sometimes within the negotiation, sometimes within a payload.
                let limit = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % (6 << 20);
                (number < 10).then_some(limit.max(100))
            });
            let uri = proxy.uri();
            let mut command = blockferry(["copy", "--timeout=1", "--retries=30"]);
            let outcome = match source {
                true => run(command.arg(&uri).arg(local)),
                false => run(command.arg(local).arg(&uri)),
            };
            // Only the very first connection may fail for good.
            if outcome.code == 75 && outcome.stderr.contains("open:") {
                continue;
            }
            outcome.success();
            assert_same(&image, &disk);
            assert!(proxy.cut() > 0);
        }
    }
}

#[test]
fn a_server_that_does_not_come_back_ends_the_copy_after_the_attempts() {
    let (dir, image) = room();
    for (name, mut server) in phoenixes(dir.path(), &image) {
        let destination = dir.path().join(format!("{name}.raw"));
        let copy = Copy::start(&["--retries=3"], server.uri(), &destination);
        thread::sleep(Duration::from_millis(300));
        server.stop();
        let outcome = copy.finish();
        let words = ["attempt 3 of 3", "could not be opened again in 3 attempts"];
        outcome.failure(75, &words);
        assert!(!destination.exists());
    }
}

#[test]
fn a_server_that_was_started_for_the_copy_is_not_waited_for_when_it_has_ended() {
    let (dir, image) = room();
    let destination = dir.path().join("copy.raw");
    let pid = dir.path().join("pid");
    let file = format!("file={}", image.display());
    let arguments = ["copy", "--progress=json", "--rate=10M", "[", "nbdkit", "-P"];
    let mut command = blockferry(arguments);
    command
        .arg(&pid)
        .args(["file", &file, "]"])
        .arg(&destination);
    let copy = Copy::of(&mut command);
    let pid = fs::read_to_string(&pid).expect("a number");
    let kill = Command::new("kill").args(["-9", pid.trim()]).status();
    assert!(kill.expect("kill runs").success());
    copy.finish()
        .failure(75, &["is not started again", "signal 9", "nbdkit"]);
    assert!(!destination.exists());
}
