//! Standard output and standard error. Data goes to the one, messages to the other.

use std::{
    io::{self, Write},
    sync::OnceLock,
};

static PROGRAM: OnceLock<&str> = OnceLock::new();

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
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    let written = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes a line to standard error. Where that fails there is nobody to tell.
pub(crate) fn tell(line: &str) {
    let mut output = io::stderr().lock();
    let _ = output.write_all(format!("{line}\n").as_bytes());
}
