//! Going to the background, and ending with the process that started this one.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
};

use rustix::process::{Pid, Signal, WaitOptions};

/// Which side of [`to_background`] this process is.
#[derive(Debug)]
pub enum Background {
    /// The process that was there before. It should exit with this code now: 0 when the other side is
    /// [ready](Ready::tell), else what the other side exited with.
    Before(u8),
    /// The new process, in a session of its own. It has the same standard streams until it is ready.
    Behind(Ready),
}

/// Tells the process that is waited for when this one can do without it.
#[derive(Debug)]
pub struct Ready(io::PipeWriter);

/// Goes on in a new process in the background, while this one waits for it to be ready.
///
/// Call it before any thread is started: only the calling one would go on in the new process.
///
/// # Errors
/// When there is no room for a pipe or a process, or there are other threads.
pub fn to_background() -> io::Result<Background> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::other("there are other threads already"));
    }
    let (mut reader, writer) = io::pipe()?;
    // SAFETY: this is the only thread, so the child may do whatever the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            rustix::process::setsid()?;
            Ok(Background::Behind(Ready(writer)))
        }
        child => {
            drop(writer);
            let mut word = [0];
            if matches!(reader.read(&mut word), Ok(1)) {
                return Ok(Background::Before(0));
            }
            let child = Pid::from_raw(child);
            let status = loop {
                match rustix::process::waitpid(child, WaitOptions::empty()) {
                    Err(rustix::io::Errno::INTR) => {}
                    other => break other?,
                }
            };
            let code = status
                .and_then(|(_, status)| status.exit_status())
                .and_then(|code| u8::try_from(code).ok());
            // A child that was killed, or says that all is well without having been ready, has failed.
            Ok(Background::Before(
                code.filter(|code| *code != 0).unwrap_or(1),
            ))
        }
    }
}

impl Ready {
    /// Lets go of the terminal: the standard streams become `/dev/null`, and the process that waits exits.
    ///
    /// # Errors
    /// When `/dev/null` cannot be opened.
    pub fn tell(mut self) -> io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(null.as_fd())?;
        rustix::stdio::dup2_stdout(null.as_fd())?;
        rustix::stdio::dup2_stderr(null.as_fd())?;
        // A starter that is gone needs no word.
        let _ = self.0.write_all(&[1]);
        Ok(())
    }
}

/// Has the system send this process a SIGTERM when its parent ends; says whether the parent is still there.
/// To be called on the main thread.
///
/// # Errors
/// Where the system has no such thing.
pub fn end_with_parent() -> io::Result<bool> {
    let before = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    Ok(rustix::process::getppid() == before && before.is_some())
}
