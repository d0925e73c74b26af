//! Where the page is written: never over anything but an earlier page, and all of it at once.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    endpoint::{DestinationFile, Endpoint, EndpointKind, printable},
    system,
};

use super::super::{
    checkpoint::is_same,
    failure::Failure,
    options::{CopyJob, DigestTo},
};

/// What every page begins with, and what is replaced by one must.
const BEGINNING: &str = "<!doctype html>";

/// The place of a page.
#[derive(Debug)]
pub(crate) struct Place {
    /// Behind all links.
    path: PathBuf,
    name: String,
}

impl Place {
    /// The place at `path`, if the page of `job` can be written there.
    ///
    /// # Errors
    /// The place is one of the files of the copy, something else than a page is there, or nothing can be.
    pub(crate) fn check(path: &Path, job: &CopyJob) -> Result<Self, Failure> {
        let name = printable(path.as_os_str());
        let partial = match job.destination.kind() {
            EndpointKind::File(path) => DestinationFile::partial_beside(path),
            _ => None,
        };
        let digest = match &job.digest.to {
            DigestTo::File(path) => Some(path.clone()),
            _ => None,
        };
        let data_file = job.format.data_file(&job.destination);
        let files = [
            Some(&job.source),
            Some(&job.destination),
            data_file.as_ref(),
        ];
        let files = files.into_iter().flatten().flat_map(Endpoint::files);
        let others = [
            partial,
            digest,
            job.checkpoint.clone(),
            job.rate.file.clone(),
        ];
        let mut taken = files.chain(others.into_iter().flatten());
        if let Some(taken) =
            taken.find(|taken| is_same(path, taken) || resolved(path) == resolved(taken))
        {
            let taken = printable(taken.as_os_str());
            return Err(Failure::usage(format!(
                "--report needs a file of its own: {taken} is one of the copy"
            )));
        }
        let place = Self {
            path: resolved(path),
            name,
        };
        place.check_present()?;
        place
            .temporary()
            .map_err(|error| place.failure("cannot be written", &error))?;
        Ok(place)
    }

    /// The place, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Writes the page, or leaves what was there.
    pub(crate) fn write(&self, page: &str) -> Result<(), Failure> {
        self.check_present()?;
        let write = || {
            let mut file = self.temporary()?;
            file.write_all(page.as_bytes())?;
            file.persist(&self.path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|error: io::Error| self.failure("cannot be written", &error))
    }

    /// Refuses to replace what is no page.
    fn check_present(&self) -> Result<(), Failure> {
        let metadata = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.failure("cannot be looked at", &error)),
        };
        let refuse = |what: &str| {
            let name = &self.name;
            let failure = Failure::failed(format!("--report {name}: {what}"));
            Err(failure.hint("name a file that is not there yet, or an earlier report"))
        };
        if !metadata.is_file() {
            return refuse("it is not a regular file");
        }
        let mut beginning = [0; BEGINNING.len()];
        let read = fs::File::open(&self.path).and_then(|mut file| file.read(&mut beginning));
        match read {
            Err(error) => Err(self.failure("cannot be looked at", &error)),
            Ok(0) => Ok(()),
            Ok(_) if beginning.eq_ignore_ascii_case(BEGINNING.as_bytes()) => Ok(()),
            Ok(_) => refuse("it is there and no report: it would be lost"),
        }
    }

    fn temporary(&self) -> io::Result<tempfile::NamedTempFile> {
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        // As a file is that a program writes: the process's mask takes from it.
        let permissions = fs::Permissions::from_mode(0o666);
        builder.prefix(".report.").permissions(permissions);
        builder.tempfile_in(directory)
    }

    fn failure(&self, what: &str, error: &io::Error) -> Failure {
        let why = system::words(error);
        Failure::failed(format!("--report {}: it {what}: {why}", self.name))
    }
}

/// A path without links, also where nothing is there yet.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| {
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        let directory = fs::canonicalize(parent.unwrap_or(Path::new(".")));
        match (directory, path.file_name()) {
            (Ok(directory), Some(name)) => directory.join(name),
            _ => path.to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::DestinationFormat;

    fn check(page: &Path, from: &Path, to: &Path) -> Result<Place, Failure> {
        let (from, to) = (
            Endpoint::from(from.to_owned()),
            Endpoint::from(to.to_owned()),
        );
        let mut job = CopyJob::new(from, to, DestinationFormat::Raw);
        job.checkpoint = Some(page.with_file_name("progress"));
        Place::check(page, &job)
    }

    #[test]
    fn a_page_replaces_a_page_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let (from, to) = (at("from"), at("to"));
        fs::write(&from, "<!doctype html>, as it happens").expect("written");
        fs::write(at("other"), "precious").expect("written");
        fs::write(at("page"), "<!DOCTYPE HTML><p>earlier").expect("written");
        fs::write(at("empty"), "").expect("written");
        std::os::unix::fs::symlink(&from, at("link")).expect("linked");
        for (name, code) in [
            ("from", 2),
            ("link", 2),
            ("to", 2),
            ("./to", 2),
            ("to.partial", 2),
            ("progress", 2),
            ("other", 1),
            ("none/page", 1),
            (".", 1),
        ] {
            let failure = check(&at(name), &from, &to).expect_err(name);
            assert_eq!(failure.code(), code, "{name}: {failure}");
        }
        for name in ["page", "empty", "new"] {
            let place = check(&at(name), &from, &to).expect(name);
            place.write("<!doctype html><p>new").expect("written");
            place.write("<!doctype html><p>newer").expect("written");
            let text = fs::read_to_string(at(name)).expect("there");
            assert_eq!(text, "<!doctype html><p>newer");
        }
        let left = fs::read_dir(directory.path()).expect("a directory").count();
        assert_eq!(left, 6, "nothing else is left behind");
    }

    #[test]
    fn what_appeared_meanwhile_is_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let page = directory.path().join("page");
        let place = check(&page, Path::new("from"), Path::new("to")).expect("a place");
        fs::write(&page, "precious").expect("written");
        let failure = place.write("<!doctype html>").expect_err("refused");
        assert!(failure.to_string().contains("no report"), "{failure}");
        assert_eq!(fs::read(&page).expect("there"), b"precious");
    }
}
