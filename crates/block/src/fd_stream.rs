//! Byte streams over descriptors: pipes, terminals, sockets, character devices, files from their
//! current position on.

use std::{os::fd::OwnedFd, sync::Arc};

use blockferry_sys::{self as sys, FileKind};

use crate::{
    BoxFuture, Buffer, ByteSink, ByteSource, Error, ErrorKind, Operation, PipeBuffer, Result,
    blocking::run_blocking,
};

/// The major number of `/dev/null`, `/dev/zero` and their like.
const MEMORY_DEVICES: u32 = 1;

/// The major and the minor number of `/dev/null`.
const NULL_DEVICE: (u32, u32) = (MEMORY_DEVICES, 3);

/// A descriptor that bytes are read from, such as standard input.
///
/// A read that is waiting goes on when its future is dropped: what it gets is lost, and a runtime that
/// shuts down waits for it unless it is told not to (`Runtime::shutdown_background`).
#[derive(Debug)]
pub struct FdSource(Stream);

/// A descriptor that bytes are written to, such as standard output.
#[derive(Debug)]
pub struct FdSink(Stream);

#[derive(Debug)]
struct Stream {
    fd: Arc<OwnedFd>,
    name: Arc<str>,
    kind: FileKind,
    /// Bytes that went through; the offset of the next one.
    offset: u64,
    /// What is written may come out of a pipe without a copy.
    splices: bool,
    /// Calls never wait for anyone else, so they need no thread of their own.
    immediate: bool,
}

impl FdSource {
    /// Reads from `fd`, which messages call `name`.
    #[must_use]
    pub fn new(fd: impl Into<OwnedFd>, name: impl Into<Arc<str>>) -> Self {
        Self(Stream::new(fd.into(), name.into(), false))
    }
}

impl FdSink {
    /// Writes to `fd`, which messages call `name`.
    #[must_use]
    pub fn new(fd: impl Into<OwnedFd>, name: impl Into<Arc<str>>) -> Self {
        Self(Stream::new(fd.into(), name.into(), true))
    }
}

impl Stream {
    fn new(fd: OwnedFd, name: Arc<str>, writes: bool) -> Self {
        let facts = sys::inspect(&fd).ok();
        let kind = facts.map_or(FileKind::Other, |facts| facts.kind);
        let is_memory = facts.is_some_and(|facts| facts.major == MEMORY_DEVICES);
        let immediate = match kind {
            // What is written goes to the page cache; what is read may have to come from a disk.
            FileKind::Regular => writes,
            FileKind::CharacterDevice => is_memory,
            _ => false,
        };
        // Of a file the pages would be copied all the same, and /dev/zero takes no splice.
        let splices = match kind {
            FileKind::Pipe => true,
            FileKind::CharacterDevice => {
                facts.is_some_and(|facts| (facts.major, facts.minor) == NULL_DEVICE)
            }
            _ => false,
        };
        Self {
            fd: Arc::new(fd),
            name,
            kind,
            splices,
            offset: 0,
            immediate,
        }
    }

    async fn run<T, F>(&self, call: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&OwnedFd) -> Result<T> + Send + 'static,
    {
        if self.immediate {
            return call(&self.fd);
        }
        let fd = Arc::clone(&self.fd);
        run_blocking(move || call(&fd)).await?
    }

    fn failed(&self, error: Error, operation: Operation, length: u64) -> Error {
        error.during(operation).at(self.offset, length)
    }
}

impl ByteSource for FdSource {
    fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    fn read(&mut self, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let length = buffer.len() as u64;
            let read = self.0.run(move |fd| {
                let count = sys::read_stream(fd, &mut buffer)?;
                buffer.set_len(count);
                Ok(buffer)
            });
            let read = read.await;
            let buffer = read.map_err(|error| self.0.failed(error, Operation::Read, length))?;
            self.0.offset += buffer.len() as u64;
            Ok(buffer)
        })
    }
}

impl ByteSink for FdSink {
    fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    fn write(&mut self, data: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let length = data.len() as u64;
            let written = self.0.run(move |fd| {
                sys::write_stream(fd, &data)?;
                Ok(data)
            });
            let written = written.await;
            let data = written.map_err(|error| self.0.failed(error, Operation::Write, length))?;
            self.0.offset += length;
            Ok(data)
        })
    }

    fn can_splice(&self) -> bool {
        self.0.splices
    }

    fn write_piped(&mut self, mut data: PipeBuffer) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let length = data.len() as u64;
            let splices = self.0.splices;
            let written = self.0.run(move |fd| {
                if splices {
                    match data.drain_all_to(fd) {
                        // It was opened with O_APPEND; what is left goes the other way.
                        Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                        result => return result,
                    }
                }
                Ok(sys::write_stream(fd, &data.into_memory()?)?)
            });
            let written = written.await;
            written.map_err(|error| self.0.failed(error, Operation::Write, length))?;
            self.0.offset += length;
            Ok(())
        })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if !matches!(self.0.kind, FileKind::Regular | FileKind::BlockDevice) {
                return Ok(());
            }
            let fd = Arc::clone(&self.0.fd);
            run_blocking(move || sys::sync_data(&fd))
                .await?
                .map_err(|error| Error::from(error).during(Operation::Flush))
        })
    }
}
