//! Standard output and standard error. Data goes to the one, messages to the other.

use std::io::{self, Write};

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
