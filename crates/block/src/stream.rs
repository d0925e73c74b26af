//! Byte streams: what has a front but no offsets, such as a pipe or standard output.
//!
//! A stream is no [`BlockDevice`](crate::BlockDevice): it cannot seek, and an input's length is not known
//! before its end. The copy engine takes either.

use std::sync::Arc;

use crate::{BoxFuture, Buffer, Operation, PipeBuffer, Result};

/// Bytes that come one after the other.
pub trait ByteSource: Send {
    /// The endpoint as the user wrote it, for messages.
    fn name(&self) -> &Arc<str>;

    /// Fills `buffer` with the next bytes and gives it back. It comes back shorter (`len()`) only when
    /// the stream ended; an empty one means that nothing was left.
    fn read(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>>;
}

/// A place that bytes go to one after the other.
pub trait ByteSink: Send {
    /// The endpoint as the user wrote it, for messages.
    fn name(&self) -> &Arc<str>;

    /// Writes the whole of `data` behind what was written before and gives the buffer back.
    fn write(&mut self, data: Buffer) -> BoxFuture<'_, Result<Buffer>>;

    /// Whether [`write_piped`](Self::write_piped) moves what is in a pipe on without a copy.
    fn can_splice(&self) -> bool {
        false
    }

    /// Writes the whole of `data` behind what was written before; the default copies it into memory. The
    /// data is used up, also when it fails.
    fn write_piped(&mut self, data: PipeBuffer) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let data = data
                .into_memory()
                .map_err(|error| error.during(Operation::Write))?;
            self.write(data).await.map(drop)
        })
    }

    /// Makes what was written as durable as the place can: a file is synced, a pipe has nothing to do.
    fn flush(&mut self) -> BoxFuture<'_, Result<()>>;
}
