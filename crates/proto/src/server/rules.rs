//! Which requests a server carries out (sections "Request types", "Command flags", "Block size
//! constraints" and "Error values").

use super::requests::{ContextSelection, RefusedRequest, RequestLimits, ServerRequest};
use crate::types::{Negotiated, ReplyMode};
use crate::wire::{Command, CommandFlags, Errno, TransmissionFlags};

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) message: &'static str,
}

impl Refusal {
    pub(super) fn invalid(message: &'static str) -> Self {
        Self {
            errno: Errno::EINVAL,
            message,
        }
    }
}

/// What the handshake permits.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestRules {
    mode: ReplyMode,
    offered: TransmissionFlags,
    /// Bytes.
    size: u64,
    /// Bytes, a power of two.
    minimum_block: u32,
    /// Bytes.
    max_payload: u32,
    contexts: ContextSelection,
}

impl RequestRules {
    pub(super) fn new(negotiated: &Negotiated, limits: RequestLimits) -> Self {
        Self {
            mode: negotiated.mode,
            offered: negotiated.export.flags,
            size: negotiated.export.size,
            minimum_block: negotiated.export.block_sizes.unwrap_or_default().minimum(),
            max_payload: limits.max_payload,
            contexts: ContextSelection::of(negotiated),
        }
    }

    pub(super) fn mode(&self) -> ReplyMode {
        self.mode
    }

    pub(super) fn contexts(&self) -> ContextSelection {
        self.contexts
    }

    /// Whether the request's payload is a selection of contexts that the export understands.
    pub(super) fn selects_contexts(&self, request: &RefusedRequest) -> bool {
        self.mode == ReplyMode::Extended
            && request.command() == Some(Command::BlockStatus)
            && request.flags.contains(CommandFlags::PAYLOAD_LEN)
            && self
                .offered
                .contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
    }

    /// Checks a block status whose payload named its length and contexts.
    pub(super) fn check_status(
        &self,
        request: &RefusedRequest,
        length: u64,
        contexts: ContextSelection,
    ) -> Result<ServerRequest, Refusal> {
        let plain = RefusedRequest {
            flags: request.flags - CommandFlags::PAYLOAD_LEN,
            length,
            ..*request
        };
        let checked = self.check(&plain)?;
        Ok(ServerRequest {
            contexts,
            ..checked
        })
    }

    /// Checks everything about a request.
    pub(super) fn check(&self, request: &RefusedRequest) -> Result<ServerRequest, Refusal> {
        let RefusedRequest {
            cookie,
            offset,
            length,
            flags,
            ..
        } = *request;
        let command = request
            .command()
            .filter(|&command| command != Command::Disconnect)
            .ok_or(Refusal::invalid("unknown command"))?;
        if command.is_write() && self.offered.contains(TransmissionFlags::READ_ONLY) {
            return Err(Refusal {
                errno: Errno::EPERM,
                message: "the export is read-only",
            });
        }
        if !self.offered.contains(command.requires()) {
            return Err(Refusal::invalid("the command was not offered"));
        }
        self.check_flags(command, flags)?;
        self.check_range(command, offset, length)?;
        Ok(ServerRequest {
            cookie,
            command,
            flags: flags - CommandFlags::PAYLOAD_LEN,
            offset,
            length,
            contexts: match command {
                Command::BlockStatus => self.contexts,
                _ => ContextSelection::default(),
            },
        })
    }

    fn check_flags(&self, command: Command, flags: CommandFlags) -> Result<(), Refusal> {
        let mut allowed =
            CommandFlags::meaningful_on(command) & !CommandFlags::not_offered_by(self.offered);
        if command == Command::Write && self.mode == ReplyMode::Extended {
            allowed |= CommandFlags::PAYLOAD_LEN;
        }
        if allowed.contains(flags) {
            Ok(())
        } else {
            Err(Refusal::invalid("the flags were not offered"))
        }
    }

    fn check_range(&self, command: Command, offset: u64, length: u64) -> Result<(), Refusal> {
        match command {
            Command::Flush if offset != 0 || length != 0 => {
                return Err(Refusal::invalid("a flush has neither offset nor length"));
            }
            Command::BlockStatus if self.contexts.is_empty() => {
                return Err(Refusal::invalid("no metadata context was negotiated"));
            }
            Command::BlockStatus if length == 0 => {
                return Err(Refusal::invalid("block status of 0 bytes"));
            }
            Command::Read | Command::Write if length > self.max_payload.into() => {
                return Err(Refusal::invalid("the request is too long"));
            }
            _ => {}
        }
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(Refusal {
                errno: match command {
                    Command::Write | Command::WriteZeroes => Errno::ENOSPC,
                    _ => Errno::EINVAL,
                },
                message: "the request goes past the end of the export",
            });
        }
        if !(offset | length).is_multiple_of(self.minimum_block.into()) {
            return Err(Refusal::invalid(
                "the request is not aligned to the minimum block size",
            ));
        }
        Ok(())
    }
}
