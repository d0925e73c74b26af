//! Files at one end. The kernel splices them, but a disk may keep it waiting, so a thread of the runtime waits in
//! its place.
//!
//! A file's position moves as if it had been read or written. tokio's `File` reads ahead and writes behind:
//! before the kernel touches the file, both are settled.

use std::{
    future::poll_fn,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    fs::File,
    io::{AsyncRead, AsyncSeekExt, AsyncWrite, AsyncWriteExt},
    task::spawn_blocking,
};

use crate::{Cause, clock::Clock, flow::Flow, pool::Lent};

/// Whether all was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Yes,
    /// The kernel does not splice these two: the rest goes through memory.
    No,
}

/// One copy with a file at one end.
pub(crate) struct FileCopy<'c> {
    pub(crate) flow: &'c mut Flow,
    pub(crate) clock: &'c mut Option<Box<Clock>>,
    /// Counts down with what is taken.
    pub(crate) limit: &'c mut u64,
}

impl FileCopy<'_> {
    /// Splices from `file` to `writer` until the file ends or the limit is reached.
    pub(crate) async fn read_file<W>(
        mut self,
        file: &mut File,
        writer: &mut W,
    ) -> Result<Done, Cause>
    where
        W: AsyncWrite + Unpin + 'static,
    {
        let Some(source) = settle(file).await.map_err(Cause::Read)? else {
            return Ok(Done::No);
        };
        while *self.limit > 0 {
            // The last one is empty again, and serves for what follows.
            let Some(lent) = self.flow.unhitch().or_else(|| self.flow.lend()) else {
                return Ok(Done::No);
            };
            let wanted = (*self.limit).min(lent.capacity());
            let granted = poll_fn(|context| self.flow.poll_grant(context, wanted)).await;
            let from = Arc::clone(&source);
            let filling = spawn_blocking(move || fill(lent, &from, granted));
            let (lent, filled) = filling.await.map_err(|error| Cause::Read(error.into()))?;
            let count = *filled.as_ref().unwrap_or(&0) as u64;
            self.flow.give_back(granted - count);
            match filled {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(Done::No),
                Err(error) => return Err(Cause::Read(error)),
            }
            *self.limit -= count;
            self.flow.carry(lent);
            self.unload(writer).await?;
        }
        self.flow.rest();
        writer.flush().await.map_err(Cause::Write)?;
        Ok(Done::Yes)
    }

    /// Splices from `reader` to `file` until the reader ends or the limit is reached.
    pub(crate) async fn write_file<R>(
        mut self,
        reader: &mut R,
        file: &mut File,
    ) -> Result<Done, Cause>
    where
        R: AsyncRead + Unpin + 'static,
    {
        let Some(target) = settle(file).await.map_err(Cause::Write)? else {
            return Ok(Done::No);
        };
        while *self.limit > 0 {
            let count = self.load(reader).await?;
            if count == 0 {
                break;
            }
            *self.limit -= count;
            let Some(lent) = self.flow.unhitch() else {
                self.flow.note_moved(count);
                self.unload(file).await?;
                // What follows may go around tokio's file, and must not overtake.
                file.flush().await.map_err(Cause::Write)?;
                continue;
            };
            let to = Arc::clone(&target);
            let draining = spawn_blocking(move || drain(lent, &to));
            let (lent, was, drained) =
                draining.await.map_err(|error| Cause::Write(error.into()))?;
            self.flow.delivered(was - lent.len());
            self.flow.carry(lent);
            match drained {
                Ok(()) => {}
                // Files opened for appending, some devices. What is in the pipe goes through memory now.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.flow.unload_by_memory().map_err(Cause::Write)?;
                    self.unload(file).await?;
                    file.flush().await.map_err(Cause::Write)?;
                    return Ok(Done::No);
                }
                Err(error) => return Err(Cause::Write(error)),
            }
        }
        self.flow.rest();
        Ok(Done::Yes)
    }

    async fn load<R>(&mut self, reader: &mut R) -> Result<u64, Cause>
    where
        R: AsyncRead + Unpin + 'static,
    {
        self.flow.set_limit(*self.limit);
        poll_fn(|context| match self.flow.poll_load(context, reader) {
            Poll::Ready(loaded) => Poll::Ready(loaded.map_err(Cause::Read)),
            Poll::Pending => {
                self.flow.rest();
                self.poll_clock(context).map(Err)
            }
        })
        .await
    }

    async fn unload<W>(&mut self, writer: &mut W) -> Result<(), Cause>
    where
        W: AsyncWrite + Unpin + 'static,
    {
        poll_fn(|context| match self.flow.poll_unload(context, writer) {
            Poll::Ready(unloaded) => Poll::Ready(unloaded.map_err(Cause::Write)),
            Poll::Pending => self.poll_clock(context).map(Err),
        })
        .await
    }

    fn poll_clock(&mut self, context: &mut Context<'_>) -> Poll<Cause> {
        match self.clock {
            Some(clock) => clock.poll(context, self.flow.progress(), false),
            None => Poll::Pending,
        }
    }
}

/// The file's descriptor, when its position is where its user thinks. `None` for what has no position.
async fn settle(file: &mut File) -> io::Result<Option<Arc<OwnedFd>>> {
    file.flush().await?;
    if file.stream_position().await.is_err() {
        return Ok(None);
    }
    Ok(file.as_fd().try_clone_to_owned().ok().map(Arc::new))
}

fn fill(mut lent: Lent, from: &OwnedFd, length: u64) -> (Lent, io::Result<usize>) {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let filled = match lent.pipe() {
        Some(pipe) => pipe.fill_once(from, length),
        None => Ok(0),
    };
    (lent, filled)
}

fn drain(mut lent: Lent, to: &OwnedFd) -> (Lent, u64, io::Result<()>) {
    let length = lent.len();
    let drained = match lent.pipe() {
        Some(pipe) => pipe.drain_all_to(to),
        None => Ok(()),
    };
    (lent, length, drained)
}
