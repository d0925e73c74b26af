//! Runs programs. Nothing may hang: a program that is not done in time fails its test.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long a program may take. It bounds a hang; no test depends on speed.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The exit code; 128 + n after signal n, as a shell says it.
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Its standard output as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("the output is UTF-8")
    }

    /// Fails the test unless the program succeeded.
    #[track_caller]
    pub(crate) fn success(self) -> Self {
        assert_eq!(self.code, 0, "standard error: {}", self.stderr);
        self
    }

    /// Fails the test unless the program failed as a good program fails: with this exit code, with
    /// one clear error that has all of `words` in it, without a panic, and without claiming success.
    #[track_caller]
    pub(crate) fn failure(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "standard error: {}", self.stderr);
        for word in words {
            assert!(
                self.stderr.contains(word),
                "{word:?} is not in: {}",
                self.stderr
            );
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let claim = self.stderr.lines().any(|line| line.starts_with("copied"));
        assert!(!claim, "success was claimed: {}", self.stderr);
        self
    }
}

/// The program under test.
pub(crate) fn blockferry<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs `command` to its end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Outcome {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    finish(child)
}

/// Runs another's program, which must succeed, and returns what it printed.
#[track_caller]
pub(crate) fn tool(program: &str, arguments: &[&str]) -> String {
    let outcome = run(Command::new(program).args(arguments).env("LC_ALL", "C"));
    assert_eq!(
        outcome.code, 0,
        "{program} {arguments:?}: {}",
        outcome.stderr
    );
    outcome.text().to_owned()
}

/// Runs `command` to its end with `input` on its standard input.
#[track_caller]
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Outcome {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    thread::scope(|scope| {
        // A program that fails early does not read its input.
        scope.spawn(move || drop(stdin.write_all(input)));
        finish(child)
    })
}

/// Waits for `child`, whose output goes to pipes.
#[track_caller]
pub(crate) fn finish(mut child: Child) -> Outcome {
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let code = wait(&mut child);
    let text = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader
            .map(|reader| reader.join().expect("the reader"))
            .unwrap_or_default()
    };
    let stdout = text(stdout);
    Outcome {
        code,
        stdout,
        stderr: String::from_utf8_lossy(&text(stderr)).into_owned(),
    }
}

/// Waits for the end of `child`.
#[track_caller]
pub(crate) fn wait(child: &mut Child) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("a program hangs");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `child` has written to a new file in `directory`, which may have no name yet.
#[track_caller]
pub(crate) fn until_it_writes(child: &Child, directory: &Path) {
    let directory = directory.canonicalize().expect("a directory");
    let begun = |fd: &Path| {
        let inside = fd.read_link().is_ok_and(|to| to.starts_with(&directory));
        inside
            && fd
                .metadata()
                .is_ok_and(|it| it.is_file() && it.blocks() > 0)
    };
    let fds = format!("/proc/{}/fd", child.id());
    until("the copy to begin", || {
        let Ok(mut fds) = std::fs::read_dir(&fds) else {
            return false;
        };
        fds.any(|fd| fd.is_ok_and(|fd| begun(&fd.path())))
    });
}

/// Sends `signal` (as `kill` names it) to `child`.
pub(crate) fn signal(child: &Child, signal: &str) {
    let status = Command::new("kill")
        .args(["-s", signal, &child.id().to_string()])
        .status();
    assert!(status.expect("kill runs").success());
    if signal == "STOP" {
        until("every thread to stop", || all_are_stopped(child.id()));
    }
}

/// Whether none of a process's threads runs any more: they stop one after the other.
fn all_are_stopped(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    threads.flatten().all(|thread| {
        let state = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // After the name, which is in brackets and may have any in it (proc_pid_stat(5)).
        let state = state.rsplit_once(") ").map_or("", |(_, rest)| rest);
        state.is_empty() || state.starts_with('T')
    })
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}
