//! Endpoints that are read and written from front to back: standard input and output, pipes, character devices. Standard
//! streams that turn out to be files are devices.

use std::{
    fs::{self, File},
    io::{self, Seek},
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::Path,
    sync::Arc,
};

use crate::block::{ByteSource, FdSource, FileDevice, Result};

use super::{
    Endpoint, EndpointKind, OpenDevice,
    open::{away, local},
};

/// Standard input as a device, where it is a file or a disk of which nothing has been read: `< disk.raw`.
/// Its size is known then, and its holes need not be read.
pub(super) fn standard_input() -> Option<OpenDevice> {
    standard_file(io::stdin(), "standard input", FileDevice::from_file)
}

/// Standard output as a device, where it is a file that is still empty, as `> disk.raw` makes it: holes
/// stay holes then. What is appended to, or has something in it, is written behind that, as a stream.
pub(super) fn standard_output() -> Option<OpenDevice> {
    let metadata = File::from(io::stdout().as_fd().try_clone_to_owned().ok()?)
        .metadata()
        .ok()?;
    if !metadata.is_file() || metadata.len() > 0 {
        return None;
    }
    standard_file(io::stdout(), "standard output", |file, name| {
        FileDevice::from_file(file, name).map(FileDevice::growable)
    })
}

fn standard_file(
    standard: impl AsFd,
    name: &'static str,
    open: impl FnOnce(File, &'static str) -> Result<FileDevice>,
) -> Option<OpenDevice> {
    let mut file = File::from(standard.as_fd().try_clone_to_owned().ok()?);
    if file.stream_position().ok()? > 0 {
        return None;
    }
    let device = open(file.try_clone().ok()?, name).ok()?;
    let mut opened = local(Arc::new(device));
    opened.connection.standard = Some(file);
    Some(opened)
}

pub(super) async fn source_stream(endpoint: &Endpoint) -> Result<Option<Box<dyn ByteSource>>> {
    let source = match endpoint.kind() {
        EndpointKind::Standard => {
            FdSource::new(io::stdin().as_fd().try_clone_to_owned()?, "standard input")
        }
        EndpointKind::File(path) if is_stream(path) => {
            let reading = fs::OpenOptions::new().read(true).clone();
            let file = open_waiting(reading, path, endpoint).await?;
            FdSource::new(file, Arc::clone(endpoint.name()))
        }
        _ => return Ok(None),
    };
    Ok(Some(Box::new(source)))
}

/// Opens a named pipe, which can take until somebody opens its other end, away from this thread.
pub(super) async fn open_waiting(
    options: fs::OpenOptions,
    path: &Path,
    endpoint: &Endpoint,
) -> Result<File> {
    let path = path.to_owned();
    away(endpoint, move || Ok(options.open(path)?)).await
}

/// Whether it is read and written from front to back only.
pub(super) fn is_pipe(kind: &EndpointKind) -> bool {
    match kind {
        EndpointKind::Standard => true,
        EndpointKind::File(path) => is_stream(path),
        _ => false,
    }
}

/// Whether something without offsets lies there: a pipe, a character device, a socket.
pub(super) fn is_stream(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| {
        let kind = metadata.file_type();
        kind.is_fifo() || kind.is_char_device()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_device_is_a_stream() {
        assert!(is_stream(Path::new("/dev/null")));
    }
}
