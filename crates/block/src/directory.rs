//! The files of a directory as exports.

use std::{ffi::OsStr, os::fd::OwnedFd, path::Path, sync::Arc};

use blockferry_sys::{self as sys, FileKind};

use crate::{
    Access, BoxFuture, ClientFacts, Error, ErrorKind, ExportEntry, Exports, FileDevice, OpenExport,
    Operation, Result, blocking::run_blocking, no_such_export,
};

/// The most exports that are listed. More can be opened.
const MOST_LISTED: usize = 10_000;

/// The regular files and block devices that lie in a directory, each an export by its name. There is no
/// default export.
///
/// A name never leads out of the directory: not by `/` or `..`, and not by a symbolic link. What may not
/// be written is served read-only.
#[derive(Debug)]
pub struct DirectoryExports {
    directory: Arc<OwnedFd>,
    access: Access,
}

impl DirectoryExports {
    /// The files in the directory at `path`, for clients that may do what `access` says.
    ///
    /// # Errors
    /// What opening the directory failed with.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let directory = sys::open_directory(path);
        let directory = directory.map_err(|error| Error::from(error).during(Operation::Open))?;
        Ok(Self {
            directory: Arc::new(directory),
            access,
        })
    }
}

impl Exports for DirectoryExports {
    /// Files whose name is UTF-8, in the order of their names: the first 10,000 of them.
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        let directory = Arc::clone(&self.directory);
        Box::pin(async move {
            let listed = run_blocking(move || list(&directory)).await?;
            listed.map_err(|error| error.during(Operation::Open))
        })
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        let directory = Arc::clone(&self.directory);
        let access = match client.read_only {
            true => Access::ReadOnly,
            false => self.access,
        };
        let name = name.to_owned();
        Box::pin(async move {
            let opened = run_blocking(move || open(&directory, &name, access)).await?;
            let device = opened.map_err(|error| error.during(Operation::Open))?;
            Ok(OpenExport::new(Arc::new(device)))
        })
    }
}

fn list(directory: &OwnedFd) -> Result<Vec<ExportEntry>> {
    let names = sys::list_directory(directory)?.into_iter();
    let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
    names.sort_unstable();
    let entries = names
        .into_iter()
        .filter(|name| is_image(directory, name))
        .take(MOST_LISTED)
        .map(|name| ExportEntry {
            name,
            description: None,
        });
    Ok(entries.collect())
}

fn is_image(directory: &OwnedFd, name: &str) -> bool {
    matches!(
        sys::kind_beneath(directory, OsStr::new(name)),
        Ok(FileKind::Regular | FileKind::BlockDevice)
    )
}

fn open(directory: &OwnedFd, name: &str, access: Access) -> Result<FileDevice> {
    if !is_image(directory, name) {
        return Err(no_such_export());
    }
    let write = access == Access::ReadWrite;
    let opened = sys::open_beneath(directory, OsStr::new(name), write);
    let file = match opened.map_err(Error::from) {
        Err(error)
            if write && matches!(error.kind(), ErrorKind::NotPermitted | ErrorKind::ReadOnly) =>
        {
            sys::open_beneath(directory, OsStr::new(name), false)?
        }
        opened => opened?,
    };
    FileDevice::from_file(file, name)
}
