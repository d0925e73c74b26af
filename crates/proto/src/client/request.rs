//! Requests as a client writes them: what may be asked of this export, and how it looks on the wire
//! (sections "Request message" and "Extended request message").

use super::table::Cookie;
use crate::error::{Misuse, Result};
use crate::limits;
use crate::reader::{Inline, Put};
use crate::types::{Negotiated, ReplyMode};
use crate::wire::{self, Command, CommandFlags, TransmissionFlags};

/// The longest range of a request with a 32-bit length: whole sectors, so that what follows begins with one,
/// and less than 2^32 - 1 bytes, whose block status makes nbdkit abort (CVE-2025-47711).
const LONGEST_NARROW: u64 = 0xffff_fe00;

/// A request of the transmission phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// How to do it. `PAYLOAD_LEN` is set on the wire where the framing needs it.
    pub flags: CommandFlags,
    /// Bytes from the start of the export.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// The bytes of a request up to its payload.
#[derive(Clone, Copy, Debug)]
pub struct RequestHeader(pub(crate) Inline<32>);

impl RequestHeader {
    /// An empty one, to be filled by [`submit`](crate::ClientSession::submit).
    #[must_use]
    pub const fn new() -> Self {
        Self(Inline::new())
    }

    /// What to put on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Default for RequestHeader {
    fn default() -> Self {
        Self::new()
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
    /// Bytes, a multiple of `minimum_block`.
    max_payload: u32,
    has_contexts: bool,
}

impl RequestRules {
    pub(super) fn new(negotiated: &Negotiated) -> Self {
        let sizes = negotiated.export.block_sizes.unwrap_or_default();
        let max_payload = match sizes.maximum() {
            // "No limit" is not an invitation to ask for 4 GiB at once.
            u32::MAX => limits::DEFAULT_PAYLOAD,
            maximum => maximum,
        };
        Self {
            mode: negotiated.mode,
            offered: negotiated.export.flags,
            size: negotiated.export.size,
            minimum_block: sizes.minimum(),
            max_payload,
            has_contexts: negotiated.mode.is_chunked() && !negotiated.contexts.is_empty(),
        }
    }

    pub(super) fn max_payload(&self) -> u32 {
        self.max_payload
    }

    pub(super) fn max_length(&self, command: Command) -> u64 {
        match command {
            // A cached range is read like any other: some servers limit it like one (qemu).
            Command::Read | Command::Write | Command::Cache => self.max_payload.into(),
            Command::Flush | Command::Disconnect => 0,
            _ => {
                let limit = match self.mode {
                    ReplyMode::Extended => limits::EXPORT_SIZE,
                    _ => LONGEST_NARROW,
                };
                limit - limit % u64::from(self.minimum_block)
            }
        }
    }

    pub(super) fn check(&self, request: &Request) -> Result<(), Misuse> {
        let Request {
            command,
            offset,
            length,
            ..
        } = *request;
        self.check_command(request)?;
        if command == Command::Flush {
            return if offset == 0 && length == 0 {
                Ok(())
            } else {
                Err(Misuse::FlushWithRange)
            };
        }
        if length == 0 {
            return Err(Misuse::Empty(command));
        }
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            let size = self.size;
            return Err(Misuse::OutOfBounds {
                offset,
                length,
                size,
            });
        }
        let minimum = self.minimum_block;
        if !(offset | length).is_multiple_of(minimum.into()) {
            return Err(Misuse::Unaligned {
                offset,
                length,
                minimum,
            });
        }
        let limit = self.max_length(command);
        if length > limit {
            return Err(Misuse::TooLong {
                command,
                length,
                limit,
            });
        }
        Ok(())
    }

    fn check_command(&self, request: &Request) -> Result<(), Misuse> {
        let Request { command, flags, .. } = *request;
        let offered = match command {
            Command::Disconnect => return Err(Misuse::NotARequest(command)),
            Command::BlockStatus => self.has_contexts,
            _ => self.offered.contains(command.requires()),
        };
        if command.is_write() && self.offered.contains(TransmissionFlags::READ_ONLY) {
            return Err(Misuse::ReadOnly);
        }
        if !offered {
            return Err(Misuse::NotOffered(command));
        }
        let mut allowed =
            CommandFlags::meaningful_on(command) & !CommandFlags::not_offered_by(self.offered);
        if !self.mode.is_chunked() {
            allowed -= CommandFlags::DF;
        }
        if command == Command::Write && self.mode == ReplyMode::Extended {
            allowed |= CommandFlags::PAYLOAD_LEN;
        }
        let flags = flags - allowed;
        if !flags.is_empty() {
            return Err(Misuse::Flags { command, flags });
        }
        Ok(())
    }

    /// Writes the header of a request that was [checked](Self::check).
    pub(super) fn encode(&self, request: &Request, cookie: Cookie, header: &mut RequestHeader) {
        let extended = self.mode == ReplyMode::Extended;
        let mut flags = request.flags;
        let header = &mut header.0;
        header.clear();
        if extended {
            flags.set(CommandFlags::PAYLOAD_LEN, request.command == Command::Write);
            header.put_u32(wire::EXTENDED_REQUEST_MAGIC);
        } else {
            header.put_u32(wire::REQUEST_MAGIC);
        }
        header.put_u16(flags.bits());
        header.put_u16(request.command.to_wire());
        header.put_u64(cookie.0);
        header.put_u64(request.offset);
        if extended {
            header.put_u64(request.length);
        } else {
            // Below 4 GiB: `max_length` sees to that.
            header.put_u32(request.length as u32);
        }
    }
}
