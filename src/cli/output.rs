//! Standard output and standard error. Data goes to the one, messages to the other.

use std::{
    io::{self, Write},
    os::unix::net::UnixDatagram,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::system;

use super::failure::Failure;

static PROGRAM: OnceLock<&str> = OnceLock::new();

/// Whether the library does what the command line of this process says.
static IS_THE_PROGRAM: AtomicBool = AtomicBool::new(false);

/// Says that this process is the program: its command line is read, and people are told.
pub(super) fn become_the_program() {
    IS_THE_PROGRAM.store(true, Ordering::Relaxed);
}

/// Whether this process is the program, and not another one that uses the library.
pub(crate) fn is_the_program() -> bool {
    IS_THE_PROGRAM.load(Ordering::Relaxed)
}

/// The name that messages begin with: this program's own, or that of the tool whose command line it speaks.
pub(crate) fn program() -> &'static str {
    PROGRAM.get().copied().unwrap_or("blockferry")
}

/// Speaks under another tool's name from now on; to be called once, before anything is said.
pub(crate) fn speak_as(name: &'static str) {
    // A second name would be a mistake, and the first one is still a good one.
    let _ = PROGRAM.set(name);
}

/// Writes `text` to standard output. A reader that went away, as `head` does, is no error: there is
/// nobody left to disappoint.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    let written = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| unprinted(&error)),
    }
}

/// The failure to write standard output.
pub(crate) fn unprinted(error: &io::Error) -> Failure {
    Failure::system("standard output", error)
}

/// Where messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    /// To standard error; the beginning of every program.
    StandardError,
    /// To the log of the system.
    SystemLog,
    /// To nobody.
    Nobody,
}

static VOICE: Mutex<Voice> = Mutex::new(Voice::StandardError);

/// Tells everything from now on to somebody else.
pub(crate) fn speak_to(voice: Voice) {
    *VOICE.lock().unwrap_or_else(PoisonError::into_inner) = voice;
}

/// Writes a line to standard error, or whoever else [is told](speak_to). Where that fails there is nobody to
/// tell.
pub(crate) fn tell(line: &str) {
    match *VOICE.lock().unwrap_or_else(PoisonError::into_inner) {
        Voice::StandardError => {}
        Voice::SystemLog if log(line).is_ok() => return,
        // A machine without such a log may still have a terminal.
        Voice::SystemLog => {}
        Voice::Nobody => return,
    }
    let line = system::without_numbers(format!("{line}\n"));
    let mut output = io::stderr().lock();
    let _ = output.write_all(line.as_bytes());
}

/// Writes a line to the system's log, as an error of a daemon (RFC 3164, section 4.1: facility 3, severity 3).
fn log(line: &str) -> io::Result<()> {
    let (program, number) = (program(), std::process::id());
    let line = line.strip_prefix(program).unwrap_or(line);
    let line = line.strip_prefix(": ").unwrap_or(line);
    let entry = format!("<27>{program}[{number}]: {line}");
    UnixDatagram::unbound()?.send_to(entry.as_bytes(), "/dev/log")?;
    Ok(())
}
