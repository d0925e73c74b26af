//! Reads into pipes and writes out of them.

use std::sync::atomic::Ordering;

use blockferry_block::{
    BlockDevice, Buffer, Error, ErrorKind, Operation, Payload, PipeBuffer, Result, WriteFlags,
};
use blockferry_proto::{Command, CommandFlags, Request, TransmissionFlags};

use super::{Client, LONG};
use crate::{in_flight::Reply, info::write_flags};

impl Client {
    /// Reads `length` bytes into `pipe`, in one chunk if the server can be told so.
    pub(super) async fn read_into_pipe(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> Result<Payload> {
        let range = self.range_of(Operation::Read, offset, length)?;
        if range.is_empty() {
            return Ok(Payload::Piped(pipe));
        }
        if pipe.capacity() < length || !pipe.is_empty() {
            return self.read_into_memory(offset, length).await;
        }
        if range.len() >= LONG {
            self.warm_up(range);
        }
        let flags = self.flags_of_a_read_in_one();
        let request = Request {
            command: Command::Read,
            flags,
            offset,
            length: range.len(),
        };
        let load = Some(Payload::Piped(pipe));
        let Reply { pipe, buffer, .. } = match self.request(Operation::Read, request, load).await {
            Ok(reply) => reply,
            Err(failure) if flags.is_empty() => return Err(failure.error),
            // A server may refuse more than 64 KiB in one chunk (EOVERFLOW).
            Err(failure) if failure.error.kind() == ErrorKind::InvalidInput => {
                let buffer = Buffer::zeroed(length);
                let buffer = self.read_in_chunks(offset, buffer).await?;
                return Ok(Payload::Memory(buffer));
            }
            Err(failure) => return Err(failure.error),
        };
        match (pipe, buffer) {
            (Some(pipe), _) => Ok(Payload::Piped(pipe)),
            (None, Some(buffer)) => Ok(Payload::Memory(buffer)),
            (None, None) => Err(Error::new(ErrorKind::Io).during(Operation::Read)),
        }
    }

    /// Writes what is in `data`.
    pub(super) async fn write_from_pipe(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> Result<()> {
        let range = self.range_of(Operation::Write, offset, data.len())?;
        if range.is_empty() {
            return Ok(());
        }
        if range.len() >= LONG {
            self.warm_up(range);
        }
        let request = Request {
            command: Command::Write,
            flags: write_flags(flags),
            offset,
            length: range.len(),
        };
        let load = Some(Payload::Piped(data));
        self.request(Operation::Write, request, load).await?;
        Ok(())
    }

    async fn read_into_memory(&self, offset: u64, length: usize) -> Result<Payload> {
        let buffer = self.read(offset, Buffer::zeroed(length)).await?;
        Ok(Payload::Memory(buffer))
    }

    /// "Don't fragment", where the server knows it and has not refused it.
    pub(super) fn flags_of_a_read_in_one(&self) -> CommandFlags {
        let negotiated = &self.handle.negotiated;
        let knows_df = negotiated.export.flags.contains(TransmissionFlags::SEND_DF);
        let mut flags = CommandFlags::empty();
        flags.set(
            CommandFlags::DF,
            knows_df
                && negotiated.mode.is_chunked()
                && !self.handle.in_chunks.load(Ordering::Relaxed),
        );
        flags
    }
}
