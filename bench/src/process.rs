//! Programs that we start: each leads a process group of its own, which is gone when we are.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use blockferry_sys::{Usage, Waited, await_exit, kill_group, reap, terminate_group};

use crate::interrupt::{self, Interrupt};

/// How long a server may take to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of what a program complained about is shown, in bytes from its end.
const COMPLAINT: usize = 2000;

/// A program that is running. Dropping it ends its whole process group.
pub(crate) struct Running {
    /// `None` once it was reaped.
    child: Option<Child>,
    name: String,
    started: Instant,
    stderr: PathBuf,
}

/// How a program ended, and what it took.
pub(crate) struct Ended {
    name: String,
    stderr: PathBuf,
    pub(crate) status: ExitStatus,
    pub(crate) wall: Duration,
    pub(crate) usage: Usage,
}

impl Running {
    /// Starts `command`, which has no input; what it writes to stderr is kept in the file `stderr`.
    pub(crate) fn start(command: &mut Command, stderr: &Path) -> Result<Self> {
        Self::start_with_input(command.stdin(Stdio::null()), stderr)
    }

    /// The same for a command that has its standard input already.
    fn start_with_input(command: &mut Command, stderr: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let errors = File::create(stderr).with_context(|| stderr.display().to_string())?;
        command.stderr(errors).process_group(0);
        forget_peak_memory();
        let started = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            child: Some(child),
            name,
            started,
            stderr: stderr.to_owned(),
        })
    }

    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.as_mut()?.stdout.take()
    }

    /// Waits for the end. An interrupt, or the end of `timeout`, ends the program and is an error.
    pub(crate) fn wait(mut self, interrupt: &Interrupt, timeout: Duration) -> Result<Ended> {
        match await_exit(self.child(), interrupt.as_fd(), timeout)? {
            Waited::Exited => self.reap(),
            Waited::Interrupted => bail!(interrupt::MESSAGE),
            Waited::TimedOut => bail!("{} still ran after {timeout:?}", self.name),
        }
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&self, interrupt: &Interrupt) -> Result<bool> {
        let waited = await_exit(self.child(), interrupt.as_fd(), Duration::ZERO)?;
        Ok(waited == Waited::Exited)
    }

    /// Asks it to end, insists after a while, and returns what it took.
    pub(crate) fn stop(mut self, interrupt: &Interrupt) -> Result<Ended> {
        // The group may be gone already.
        let _ = terminate_group(self.child());
        await_exit(self.child(), interrupt.as_fd(), PATIENCE)?;
        self.reap()
    }

    /// The last of what it wrote to stderr.
    pub(crate) fn complaint(&self) -> String {
        complaint(&self.stderr)
    }

    fn child(&self) -> &Child {
        self.child.as_ref().expect("it is reaped by value")
    }

    fn reap(&mut self) -> Result<Ended> {
        let wall = self.started.elapsed();
        let child = self.child.take().expect("it is reaped once");
        // Whatever it left behind must not disturb the next run. Until it is reaped, the group is its own.
        let _ = kill_group(&child);
        let (status, usage) = reap(child)?;
        Ok(Ended {
            name: self.name.clone(),
            stderr: self.stderr.clone(),
            status,
            wall,
            usage,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = kill_group(self.child());
            let _ = self.reap();
        }
    }
}

impl Ended {
    /// An error that says how it ended and what it wrote to stderr, unless it succeeded.
    pub(crate) fn success(&self) -> Result<()> {
        if self.status.success() {
            return Ok(());
        }
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        bail!("{}: {how}: {}", self.name, complaint(&self.stderr))
    }
}

/// What a program took at its peak begins with what the process that started it had taken until then:
/// Linux counts from before the exec. So our own peak is set back to what we take now (proc(5),
/// `clear_refs`), where that is allowed; without it, small programs look as large as we are.
fn forget_peak_memory() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn complaint(stderr: &Path) -> String {
    let text = fs::read(stderr).unwrap_or_default();
    let tail = &text[text.len().saturating_sub(COMPLAINT)..];
    String::from_utf8_lossy(tail).trim().to_owned()
}

/// Runs `command` to its end, and fails unless it succeeds. For preparations, not for measurements.
pub(crate) fn run(command: &mut Command, scratch: &Path, interrupt: &Interrupt) -> Result<()> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    run_as_it_is(command, scratch, interrupt)
}

/// The same for a command whose standard input and output go where they were told to go.
pub(crate) fn run_as_it_is(
    command: &mut Command,
    scratch: &Path,
    interrupt: &Interrupt,
) -> Result<()> {
    /// Preparing an image takes minutes at most.
    const TIMEOUT: Duration = Duration::from_secs(1800);
    let running = Running::start_with_input(command, &scratch.join("stderr"))?;
    running.wait(interrupt, TIMEOUT)?.success()
}

/// Reads everything from `stream` on a thread of its own and throws it away.
pub(crate) fn drain(mut stream: ChildStdout) -> thread::JoinHandle<io::Result<()>> {
    /// As much as `cat` reads at a time.
    const ROOM: usize = 128 << 10;
    thread::spawn(move || {
        let mut buffer = vec![0; ROOM];
        while stream.read(&mut buffer)? > 0 {}
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        command
    }

    #[test]
    fn a_failure_shows_the_exit_code_and_what_was_written_to_stderr() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, _writer) = Interrupt::detached();
        let mut command = shell("echo not today >&2; exit 4");
        let error = run(&mut command, directory.path(), &interrupt).unwrap_err();
        assert_eq!(error.to_string(), "sh: exit code 4: not today");
    }

    #[test]
    fn dropping_a_program_ends_its_children_too() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = shell("sleep 1000 & sleep 1000");
        let mut running = Running::start(&mut command, &directory.path().join("e")).unwrap();
        let mut output = running.take_stdout().unwrap();
        drop(running);
        // The end of the stream comes only when the last process that holds it is gone.
        assert_eq!(output.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn an_interrupt_ends_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, writer) = Interrupt::detached();
        let mut command = shell("sleep 1000 & sleep 1000");
        let mut running = Running::start(&mut command, &directory.path().join("e")).unwrap();
        let mut output = running.take_stdout().unwrap();
        io::Write::write_all(&mut &writer, b"x").unwrap();
        let error = running.wait(&interrupt, LONG).err().unwrap();
        assert_eq!(error.to_string(), interrupt::MESSAGE);
        assert_eq!(output.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_program_that_does_not_end_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, _writer) = Interrupt::detached();
        let mut command = shell("sleep 1000");
        let running = Running::start(&mut command, &directory.path().join("e")).unwrap();
        assert!(running.wait(&interrupt, Duration::ZERO).is_err());
    }

    #[test]
    fn stopping_a_server_returns_what_it_took() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, _writer) = Interrupt::detached();
        let mut command = shell("exec sleep 1000");
        let running = Running::start(&mut command, &directory.path().join("e")).unwrap();
        assert!(!running.has_ended(&interrupt).unwrap());
        let ended = running.stop(&interrupt).unwrap();
        assert!(!ended.status.success());
        assert!(ended.usage.peak_memory > 0);
    }
}
