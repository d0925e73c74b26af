//! What is said of a running server: to people on standard error, to programs in a log of JSON lines.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::endpoint::printable;

use super::super::{failure::Failure, output::tell};

/// How many failed requests are told one by one; a client can cause as many as it likes.
const FAILURES_TOLD: u32 = 20;

/// How much something matters to people.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    /// Good news: told unless quiet.
    News,
    /// Always told unless quiet.
    Trouble,
    /// A failed request: told unless there are too many.
    Request,
    /// Told when asked.
    Detail,
}

/// Tells people what they want to hear.
pub(crate) struct Teller {
    quiet: bool,
    verbose: bool,
    told: AtomicU32,
}

impl Teller {
    pub(crate) fn new(quiet: bool, verbose: bool) -> Self {
        Self {
            quiet,
            verbose,
            told: AtomicU32::new(0),
        }
    }

    /// Whether something of `level` would be told.
    pub(crate) fn wants(&self, level: Level) -> bool {
        match level {
            Level::News | Level::Trouble => !self.quiet,
            Level::Request => {
                let few = || self.told.load(Ordering::Relaxed) < FAILURES_TOLD;
                self.verbose || !self.quiet && few()
            }
            Level::Detail => self.verbose,
        }
    }

    pub(crate) fn tell(&self, level: Level, line: impl Into<String>) {
        if !self.wants(level) {
            return;
        }
        match level {
            Level::News => tell(&line.into()),
            Level::Request => {
                self.told.fetch_add(1, Ordering::Relaxed);
                tell(&Failure::failed(line).to_string());
            }
            Level::Trouble | Level::Detail => tell(&Failure::failed(line).to_string()),
        }
    }
}

/// A file of JSON lines, `-` for standard error. Each is written at once, so that whoever follows the file never sees a part.
pub(crate) struct Journal {
    file: Mutex<File>,
    /// Standard error has none.
    path: Option<PathBuf>,
}

impl Journal {
    /// # Errors
    /// When the log cannot be written.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            let error = io::stderr().as_fd().try_clone_to_owned();
            let error = error.map_err(|error| Failure::system("standard error", &error))?;
            return Ok(Self {
                file: Mutex::new(error.into()),
                path: None,
            });
        }
        // It is opened again where it was, wherever the server has gone to meanwhile.
        let absolute = std::path::absolute(path);
        let file = absolute.and_then(|path| Ok((appended(&path)?, path)));
        let (file, path) = file.map_err(|error| failed(path, &error))?;
        Ok(Self {
            file: Mutex::new(file),
            path: Some(path),
        })
    }

    /// Opens the file again, which may have been renamed meanwhile.
    ///
    /// # Errors
    /// When it cannot be written. Then it goes on in the file of before.
    pub(crate) fn reopen(&self) -> Result<(), Failure> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let file = appended(path).map_err(|error| failed(path, &error))?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        Ok(())
    }

    /// Writes an object, and when that was.
    pub(crate) fn write(&self, entry: Value) {
        let now = OffsetDateTime::now_utc().format(&Rfc3339);
        let entry = with(entry, json!({ "time": now.unwrap_or_default() }));
        let line = entry.to_string() + "\n";
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A disk that is full must not keep the server from serving.
        let _: io::Result<()> = append_whole(&mut file, line.as_bytes());
    }
}

/// Appends all of `line`, or nothing of it: half a line would make the next one unreadable, too.
fn append_whole(file: &mut File, line: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < line.len() {
        match file.write(&line[written..]) {
            Ok(0) => return take_back(file, written, io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return take_back(file, written, error),
        }
    }
    Ok(())
}

/// Takes back the last `written` bytes of `file`, as far as it is one that bytes can be taken back from.
fn take_back(file: &File, written: usize, error: io::Error) -> io::Result<()> {
    let metadata = file.metadata()?;
    if written > 0 && metadata.is_file() {
        file.set_len(metadata.len().saturating_sub(written as u64))?;
    }
    Err(error)
}

/// The object `entry` with the members of the object `details`.
pub(crate) fn with(mut entry: Value, details: Value) -> Value {
    if let (Some(entry), Value::Object(details)) = (entry.as_object_mut(), details) {
        entry.extend(details);
    }
    entry
}

fn appended(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    let path = printable(path.as_os_str());
    Failure::system(&format!("the log {path}"), error)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_log_goes_on_in_a_new_file_when_it_is_opened_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, old) = (directory.path().join("log"), directory.path().join("old"));
        let journal = Journal::open(&path).expect("opened");
        journal.write(json!({ "event": "first" }));
        fs::rename(&path, &old).expect("renamed");
        journal.write(json!({ "event": "second" }));
        journal.reopen().expect("opened again");
        journal.write(json!({ "event": "third" }));
        let events = |path: &Path| {
            let text = fs::read_to_string(path).expect("a log");
            let lines = text.lines().map(|line| {
                let entry: Value = serde_json::from_str(line).expect("JSON");
                assert!(entry["time"].is_string(), "{line}");
                entry["event"].as_str().unwrap_or_default().to_owned()
            });
            lines.collect::<Vec<_>>()
        };
        assert_eq!(events(&old), ["first", "second"]);
        assert_eq!(events(&path), ["third"]);
    }

    #[test]
    fn failed_requests_are_told_as_long_as_they_are_few() {
        let teller = Teller::new(false, false);
        assert!(teller.wants(Level::Request) && !teller.wants(Level::Detail));
        teller.told.store(FAILURES_TOLD, Ordering::Relaxed);
        assert!(!teller.wants(Level::Request) && teller.wants(Level::Trouble));
        let quiet = Teller::new(true, false);
        assert!(!quiet.wants(Level::News) && !quiet.wants(Level::Request));
        let verbose = Teller::new(false, true);
        verbose.told.store(FAILURES_TOLD, Ordering::Relaxed);
        assert!(verbose.wants(Level::Request) && verbose.wants(Level::Detail));
    }
}
