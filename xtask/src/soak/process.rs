//! Programs that the soak starts: each is marked, so that none is lost, and none may hang.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::watch::Usage;

/// The variable that marks every process of a soak, and all that those start.
const MARK: &str = "BLOCKFERRY_SOAK";

/// How often a process that is waited for is looked at.
const STEP: Duration = Duration::from_millis(10);

/// What all processes of a soak share.
pub(crate) struct World {
    /// The program under test.
    pub(crate) program: PathBuf,
    /// Where everything lies that this soak makes.
    pub(crate) directory: PathBuf,
    /// How long a copy may take before it counts as one that hangs.
    pub(crate) patience: Duration,
    /// Set when the person in front of it has had enough.
    pub(crate) over: Arc<AtomicBool>,
    mark: String,
}

impl World {
    pub(crate) fn new(
        program: PathBuf,
        directory: PathBuf,
        patience: Duration,
        over: Arc<AtomicBool>,
    ) -> Self {
        let mark = format!("{}-{}", std::process::id(), directory.display());
        Self {
            program,
            directory,
            patience,
            over,
            mark,
        }
    }

    /// Where temporary files of the processes go; nothing stays there.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.directory.join("tmp")
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// The program under test.
    pub(crate) fn ours(&self) -> Command {
        self.command(&self.program)
    }

    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env(MARK, &self.mark)
            .env("TMPDIR", self.scratch())
            .env("LC_ALL", "C")
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            // An interrupt from the terminal is for the soak alone.
            .process_group(0);
        command
    }

    /// Runs someone else's program, which must succeed.
    pub(crate) fn tool(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let output = self.command(program).args(arguments).output();
        let output = output.with_context(|| format!("cannot start {program}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{program} {}: {}: {said}",
                arguments.join(" "),
                output.status
            );
        }
        Ok(())
    }

    /// All processes of this soak that live.
    pub(crate) fn living(&self) -> Vec<(u32, String)> {
        let mark = format!("{MARK}={}", self.mark);
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            if read("environ")
                .split(|byte| *byte == 0)
                .any(|it| it == mark.as_bytes())
            {
                let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
                found.push((pid, line.trim_end().to_owned()));
            }
        }
        found
    }
}

/// A process that runs, with its standard error in a file.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    shown: String,
    peak: Usage,
    patience: Duration,
    started: Instant,
}

/// How a process ended.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    /// What was started, as a person would type it.
    pub(crate) shown: String,
    /// The exit code; 128 + n after signal n.
    pub(crate) code: i32,
    pub(crate) stderr: String,
    pub(crate) peak: Usage,
    /// Where it was stuck, if it had to be killed.
    pub(crate) hung: Option<String>,
    pub(crate) seconds: f64,
}

impl Running {
    /// Starts `command`; what it tells goes to the file `log`.
    pub(crate) fn start(world: &World, command: &mut Command, log: &Path) -> Result<Self> {
        let shown = shown(command);
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| log.display().to_string())?;
        command.stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        Ok(Self {
            child,
            log: log.to_owned(),
            shown,
            peak: Usage::default(),
            patience: world.patience,
            started: Instant::now(),
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    pub(crate) fn told(&self) -> String {
        fs::read(&self.log).map_or_else(
            |_| String::new(),
            |it| String::from_utf8_lossy(&it).into_owned(),
        )
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }

    /// Looks at it: what it uses goes into its peak.
    pub(crate) fn is_running(&mut self) -> bool {
        if let Some(usage) = Usage::of(self.child.id()) {
            self.peak = self.peak.max(usage);
        }
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for so long, or until it ends.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && self.is_running() {
            thread::sleep(STEP);
        }
    }

    /// Waits for its end. What does not end is killed, and it is noted where it was.
    pub(crate) fn finish(mut self) -> Ending {
        let mut hung = None;
        while self.is_running() {
            if self.started.elapsed() > self.patience && hung.is_none() {
                hung = Some(whereabouts(self.child.id()));
                self.signal(Signal::KILL);
            }
            thread::sleep(STEP);
        }
        let code = match self.child.wait() {
            Ok(status) => status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            Err(_) => -1,
        };
        Ending {
            code,
            hung,
            stderr: self.told(),
            shown: self.shown.clone(),
            peak: self.peak,
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }

    /// Kills it at once.
    pub(crate) fn kill(self) -> Ending {
        self.signal(Signal::KILL);
        self.finish()
    }

    /// Asks it to end, as whoever runs it would.
    pub(crate) fn terminate(mut self) -> Ending {
        self.signal(Signal::TERM);
        self.patience = self.started.elapsed() + Duration::from_secs(30);
        self.finish()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What each thread of a process waits for.
fn whereabouts(pid: u32) -> String {
    let mut text = String::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return text;
    };
    for task in tasks.flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (name, wait, call) = (read("comm"), read("wchan"), read("syscall"));
        let id = task.file_name();
        let line = [name.trim(), wait.trim(), call.trim()].join(" ");
        text.push_str(&format!("thread {} {line}\n", id.display()));
    }
    if let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) {
        for fd in fds.flatten() {
            let to = fs::read_link(fd.path()).unwrap_or_default();
            text.push_str(&format!(
                "fd {} {}\n",
                fd.file_name().display(),
                to.display()
            ));
        }
    }
    text
}

/// A command as a person would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+%@[]".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_typed() {
        let mut command = Command::new("copy");
        command.args(["nbd+unix:///?socket=/s", "", "it's"]);
        assert_eq!(
            shown(&command),
            r"copy 'nbd+unix:///?socket=/s' '' 'it'\''s'"
        );
    }
}
