//! `--checkpoint FILE`: what is done of a copy, kept in a file, so that the same command goes on from there.
//!
//! The file is JSON. It names the source and the destination by what tells them from others (a file's
//! place, inode, size and time of change; an export's URI and size), so that a checkpoint of another copy,
//! or of an image that was changed since, is refused. It is replaced as a whole, and removed when the copy is.

mod image;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    block::{BoxFuture, ByteRange, Error, ErrorKind, Operation, RangeSet, Result},
    copy::{Checkpoint, Destination, Done, SaveDone, Source},
    endpoint::{DestinationFile, Endpoint, EndpointKind, printable},
    system,
};

use super::failure::Failure;
use image::Image;

/// The version of the file's format.
const VERSION: u32 = 1;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 256 << 20;

/// The file of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointFile {
    path: PathBuf,
    copy: Copy,
}

/// Which copy it is of.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Copy {
    source: Image,
    destination: Image,
}

/// What is in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    /// The version of the format.
    #[serde(rename = "blockferry-checkpoint")]
    version: u32,
    #[serde(flatten)]
    copy: Copy,
    data: u64,
    zero: u64,
    /// Starts and ends.
    done: Vec<(u64, u64)>,
}

impl CheckpointFile {
    /// The checkpoint at `path` for this copy, and what it says is done: nothing where there is none yet.
    /// Then it is written, so that a place where that cannot be is found out before anything is copied.
    pub(crate) fn open(
        path: &Path,
        (source, source_name): (&Source, &Endpoint),
        (destination, destination_name): (&Destination, &Endpoint),
        file: Option<&DestinationFile>,
    ) -> Result<(Self, Checkpoint), Failure> {
        let (Source::Device(from), Destination::Device(to)) = (source, destination) else {
            return Err(Failure::usage(
                "--checkpoint needs a source and a destination that can be read and written in the middle: \
                 neither may be a pipe, and what is compressed is read from its beginning",
            ));
        };
        let system = |what: &Endpoint, error: &io::Error| Failure::system(&what.to_string(), error);
        let copy = Copy {
            source: Image::source(source_name, from.info().size)
                .map_err(|error| system(source_name, &error))?,
            destination: Image::destination(destination_name, to.info().size, file)
                .map_err(|error| system(destination_name, &error))?,
        };
        let this = Self {
            path: path.to_owned(),
            copy,
        };
        let done = match this.load()? {
            Some(done) => done,
            None => {
                let done = Done::default();
                this.write(&done)?;
                done
            }
        };
        let checkpoint = Checkpoint {
            done,
            save: Arc::new(this.clone()),
        };
        Ok((this, checkpoint))
    }

    /// Refuses a checkpoint at the place of an image of the copy, before anything is opened.
    pub(crate) fn check_place(
        path: &Path,
        source: &Endpoint,
        destination: &Endpoint,
    ) -> Result<(), Failure> {
        let partial = match destination.kind() {
            EndpointKind::File(path) => DestinationFile::partial_beside(path),
            _ => None,
        };
        let images = source.files().into_iter().chain(destination.files());
        let taken: Vec<_> = images.chain(partial).collect();
        match taken.iter().find(|taken| is_same(path, taken)) {
            None => Ok(()),
            Some(taken) => {
                let taken = printable(taken.as_os_str());
                let message =
                    format!("--checkpoint needs a file of its own: {taken} is one of the copy");
                Err(Failure::usage(message))
            }
        }
    }

    /// The copy is whole: there is nothing to go on with.
    pub(crate) fn remove(self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The copy failed: how many bytes are done of it. A checkpoint that says that nothing is, is removed.
    pub(crate) fn keep(&self) -> Option<u64> {
        match self.load() {
            Ok(Some(done)) => Some(done.ranges.len()),
            Ok(None) => {
                // It would only be in the way, and that not much.
                let _ = fs::remove_file(&self.path);
                None
            }
            Err(_) => None,
        }
    }

    /// The file, for messages.
    pub(crate) fn name(&self) -> String {
        printable(self.path.as_os_str())
    }

    fn load(&self) -> Result<Option<Done>, Failure> {
        let text = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::system(&self.name(), &error)),
            Ok(metadata) if !metadata.is_file() => {
                return Err(self.refusal("it is not a regular file"));
            }
            Ok(metadata) if metadata.len() > LONGEST => {
                return Err(self.refusal("it is too long for a checkpoint"));
            }
            Ok(_) => fs::read(&self.path).map_err(|error| Failure::system(&self.name(), &error))?,
        };
        let contents: Contents = serde_json::from_slice(&text)
            .map_err(|error| self.refusal(&format!("it is not a checkpoint: {error}")))?;
        if contents.version != VERSION {
            let message = format!(
                "its format is of version {}, and this program knows {VERSION}",
                contents.version
            );
            return Err(self.refusal(&message));
        }
        if contents.done.is_empty() {
            // Whatever it was of, nothing would be lost with it.
            return Ok(None);
        }
        for (side, noted, now) in [
            ("source", &contents.copy.source, &self.copy.source),
            (
                "destination",
                &contents.copy.destination,
                &self.copy.destination,
            ),
        ] {
            if let Some(difference) = noted.difference(now) {
                return Err(self.refusal(&format!("it is of another {side}: {difference}")));
            }
        }
        contents
            .done()
            .filter(|done| self.copy.source.holds(done))
            .map(Some)
            .ok_or_else(|| self.refusal("what it says is done makes no sense"))
    }

    fn refusal(&self, message: &str) -> Failure {
        let hint = "remove the checkpoint to begin anew, or name another one";
        Failure::failed(format!("the checkpoint {}: {message}", self.name())).hint(hint)
    }

    /// Replaces the file.
    fn write(&self, done: &Done) -> Result<(), Error> {
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let write = || {
            let mut file = tempfile::Builder::new()
                .prefix(".checkpoint.")
                .tempfile_in(directory)?;
            let contents = Contents::new(self.copy.clone(), done);
            let mut text = serde_json::to_vec(&contents)?;
            text.push(b'\n');
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&self.path).map_err(|error| error.error)?;
            fs::File::open(directory)?.sync_all()
        };
        write().map_err(|error: io::Error| {
            let name = Arc::from(self.name());
            let kind = ErrorKind::from(&error);
            let why = system::words(&error);
            Error::with_message(kind, format!("the checkpoint cannot be written: {why}"))
                .during(Operation::Write)
                .on(&name)
        })
    }
}

impl SaveDone for CheckpointFile {
    fn save(&self, done: &Done) -> BoxFuture<'static, Result<()>> {
        let (this, done) = (self.clone(), done.clone());
        Box::pin(async move {
            let written = tokio::task::spawn_blocking(move || this.write(&done)).await;
            written.map_err(|error| Error::with_source(ErrorKind::Io, error))?
        })
    }
}

impl Contents {
    fn new(copy: Copy, done: &Done) -> Self {
        let ranges = done.ranges.iter();
        Self {
            version: VERSION,
            copy,
            data: done.data,
            zero: done.zero,
            done: ranges.map(|range| (range.start(), range.end())).collect(),
        }
    }

    /// What is done, if that is possible at all.
    fn done(&self) -> Option<Done> {
        let mut ranges = RangeSet::new();
        for &(start, end) in &self.done {
            let length = end.checked_sub(start)?;
            ranges.insert(ByteRange::new(start, length).ok()?);
        }
        let whole = self.data.checked_add(self.zero) == Some(ranges.len());
        whole.then_some(Done {
            ranges,
            data: self.data,
            zero: self.zero,
        })
    }
}

/// Whether two paths lead to one file, or will.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    let found = fs::metadata(one).and_then(|one| Ok((one, fs::metadata(other)?)));
    match found {
        Ok((one, other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        Err(_) => std::path::absolute(one).ok() == std::path::absolute(other).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(directory: &Path) -> CheckpointFile {
        let image = |name: &str| Image::Named {
            endpoint: name.to_owned(),
            size: 1 << 20,
        };
        CheckpointFile {
            path: directory.join("checkpoint"),
            copy: Copy {
                source: image("nbd://from"),
                destination: image("nbd://to"),
            },
        }
    }

    fn done() -> Done {
        let ranges = [(0, 4096), (8192, 20_480)];
        let ranges = ranges.map(|(start, end)| ByteRange::between(start, end));
        Done {
            ranges: ranges.into_iter().collect(),
            data: 16_000,
            zero: 384,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let checkpoint = checkpoint(directory.path());
        assert_eq!(checkpoint.load().expect("none yet"), None);
        checkpoint.write(&Done::default()).expect("written");
        assert_eq!(checkpoint.load().expect("read"), None);
        assert_eq!(checkpoint.keep(), None);
        assert!(!checkpoint.path.exists());
        checkpoint.write(&done()).expect("written");
        assert_eq!(checkpoint.load().expect("read"), Some(done()));
        assert_eq!(checkpoint.keep(), Some(16_384));
        let names = fs::read_dir(directory.path()).expect("a directory").count();
        assert_eq!(names, 1, "nothing is left beside it");
        checkpoint.clone().remove().expect("removed");
        assert_eq!(checkpoint.load().expect("none any more"), None);
    }

    #[test]
    fn a_checkpoint_of_another_copy_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let one = checkpoint(directory.path());
        one.write(&done()).expect("written");
        let mut other = one.clone();
        other.copy.source = Image::Named {
            endpoint: "nbd://elsewhere".to_owned(),
            size: 1 << 20,
        };
        let text = other.load().expect_err("refused").to_string();
        assert!(
            text.contains("another source: nbd://from, not nbd://elsewhere"),
            "{text}"
        );
        let mut other = one;
        other.copy.destination = Image::Named {
            endpoint: "nbd://to".to_owned(),
            size: 2 << 20,
        };
        let text = other.load().expect_err("refused").to_string();
        assert!(
            text.contains("had 1048576 bytes and has 2097152 now"),
            "{text}"
        );
    }

    #[test]
    fn what_is_no_checkpoint_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let checkpoint = checkpoint(directory.path());
        let valid = serde_json::to_string(&Contents::new(checkpoint.copy.clone(), &done()));
        let valid = valid.expect("text");
        for (text, why) in [
            ("", "not a checkpoint"),
            ("{}", "not a checkpoint"),
            (&valid[..valid.len() / 2], "not a checkpoint"),
            (
                &valid.replace(r#"checkpoint":1"#, r#"checkpoint":2"#),
                "version 2",
            ),
            (&valid.replace("8192", "4096"), "no sense"),
            (&valid.replace("8192", "20481"), "no sense"),
            (&valid.replace("16000", "18446744073709551615"), "no sense"),
            (&valid.replace("20480", "18446744073709551615"), "no sense"),
            (
                &valid.replace("8192", "1040384").replace("20480", "1052672"),
                "no sense",
            ),
        ] {
            fs::write(&checkpoint.path, text).expect("written");
            let refused = checkpoint.load().expect_err(text).to_string();
            assert!(refused.contains(why), "{text}: {refused}");
            assert_eq!(fs::read_to_string(&checkpoint.path).expect("there"), text);
        }
    }
}
