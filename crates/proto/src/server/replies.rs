//! Replies as a server writes them (sections "Simple reply message", "Structured reply chunk
//! message" and "Extended reply chunk message").

use super::requests::{RefusedRequest, ServerRequest};
use crate::limits;
use crate::reader::{self, Inline, Put};
use crate::types::{Extent, ReplyMode};
use crate::wire::{self, CommandFlags, Errno};

/// The bytes of a reply, or of one chunk of it, up to its payload.
#[derive(Clone, Copy, Debug)]
pub struct ReplyHeader(Inline<64>);

impl ReplyHeader {
    /// What to put on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What a reply repeats of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset.
    pub offset: u64,
}

impl From<&ServerRequest> for ReplyTo {
    fn from(request: &ServerRequest) -> Self {
        Self {
            cookie: request.cookie,
            offset: request.offset,
        }
    }
}

impl From<&RefusedRequest> for ReplyTo {
    fn from(request: &RefusedRequest) -> Self {
        Self {
            cookie: request.cookie,
            offset: request.offset,
        }
    }
}

/// Writes replies in the negotiated mode.
///
/// A reply is one of: [`done`](Self::done); [`error`](Self::error); or chunks, the last of which
/// is marked. In simple mode a read is answered by one [`data`](Self::data) that covers it.
///
/// Whoever marks a data chunk as the last one promises that its payload will not fail. Otherwise
/// the chunk is sent unmarked and followed by [`finish`](Self::finish), or, when reading failed
/// midway, by as many bytes as were announced and then an [`error`](Self::error).
#[derive(Clone, Copy, Debug)]
pub struct ReplyWriter {
    mode: ReplyMode,
}

impl ReplyWriter {
    /// A writer for this mode.
    #[must_use]
    pub fn new(mode: ReplyMode) -> Self {
        Self { mode }
    }

    /// How replies look.
    #[must_use]
    pub fn mode(&self) -> ReplyMode {
        self.mode
    }

    /// Success, without payload.
    #[must_use]
    pub fn done(&self, request: impl Into<ReplyTo>) -> ReplyHeader {
        let mut header = Inline::new();
        match self.mode {
            ReplyMode::Simple => simple(&mut header, Errno(0), request.into()),
            _ => self.chunk(&mut header, wire::CHUNK_NONE, true, request.into(), 0),
        }
        ReplyHeader(header)
    }

    /// The end of a reply whose chunks so far were not marked as the last.
    #[must_use]
    pub fn finish(&self, request: impl Into<ReplyTo>) -> ReplyHeader {
        debug_assert!(self.mode.is_chunked());
        self.done(request)
    }

    /// Failure, and the end of the reply. In simple mode the message, of which at most 4096 bytes
    /// are sent, has no place, and nothing of the reply may have been sent before.
    #[must_use]
    pub fn error(&self, request: impl Into<ReplyTo>, errno: Errno, message: &str) -> Vec<u8> {
        // 0 would be success.
        let errno = if errno.0 == 0 { Errno::EIO } else { errno };
        let mut bytes = Vec::new();
        match self.mode {
            ReplyMode::Simple => simple(&mut bytes, errno, request.into()),
            _ => {
                let message = reader::bounded(message).as_bytes();
                let length = 6 + message.len() as u32;
                self.chunk(&mut bytes, wire::CHUNK_ERROR, true, request.into(), length);
                bytes.put_u32(errno.0);
                bytes.put_u16(message.len() as u16);
                bytes.put(message);
            }
        }
        bytes
    }

    /// The header of `length` bytes of data for `offset` of the export; the payload follows.
    /// `last` ends the reply. In simple mode the data must be all of the read.
    #[must_use]
    pub fn data(
        &self,
        request: impl Into<ReplyTo>,
        offset: u64,
        length: u32,
        last: bool,
    ) -> ReplyHeader {
        let request = request.into();
        let mut header = Inline::new();
        if self.mode == ReplyMode::Simple {
            debug_assert!(last && offset == request.offset);
            simple(&mut header, Errno(0), request);
        } else {
            // A payload is far shorter than 4 GiB.
            debug_assert!(0 < length && length <= u32::MAX - 8);
            let length = length.saturating_add(8);
            self.chunk(&mut header, wire::CHUNK_OFFSET_DATA, last, request, length);
            header.put_u64(offset);
        }
        ReplyHeader(header)
    }

    /// `length` zeroes for `offset` of the export, without payload. Not in simple mode.
    #[must_use]
    pub fn hole(
        &self,
        request: impl Into<ReplyTo>,
        offset: u64,
        length: u32,
        last: bool,
    ) -> ReplyHeader {
        debug_assert!(self.mode.is_chunked() && length > 0);
        let mut header = Inline::new();
        self.chunk(
            &mut header,
            wire::CHUNK_OFFSET_HOLE,
            last,
            request.into(),
            12,
        );
        header.put_u64(offset);
        header.put_u32(length);
        ReplyHeader(header)
    }

    /// The status of the blocks from the start of the request on, in one context. Not in simple
    /// mode. `last` ends the reply.
    ///
    /// What the protocol forbids is put right: extents of no bytes are left out, what goes past the
    /// request is cut off, at most 2^20 extents are sent, and only the first where the client
    /// asked for one. No extents at all become one of status 0, which promises nothing.
    #[must_use]
    pub fn block_status(
        &self,
        request: &ServerRequest,
        context: u32,
        extents: &[Extent],
        last: bool,
    ) -> Vec<u8> {
        debug_assert!(self.mode.is_chunked());
        let limit = if request.flags.contains(CommandFlags::REQ_ONE) {
            1
        } else {
            limits::EXTENTS
        };
        let mut left = request.length;
        let mut sent: Vec<Extent> = extents
            .iter()
            .filter(|extent| extent.length > 0)
            .map_while(|extent| {
                let length = extent.length.min(left);
                left -= length;
                (length > 0).then_some(Extent { length, ..*extent })
            })
            .take(limit)
            .collect();
        if sent.is_empty() {
            sent.push(Extent {
                length: request.length,
                flags: 0,
            });
        }
        let count = sent.len() as u32;
        let mut bytes = Vec::new();
        if self.mode == ReplyMode::Extended {
            let kind = wire::CHUNK_BLOCK_STATUS_EXT;
            self.chunk(&mut bytes, kind, last, request.into(), 8 + 16 * count);
            bytes.put_u32(context);
            bytes.put_u32(count);
            for extent in sent {
                bytes.put_u64(extent.length);
                bytes.put_u64(extent.flags);
            }
        } else {
            let kind = wire::CHUNK_BLOCK_STATUS;
            self.chunk(&mut bytes, kind, last, request.into(), 4 + 8 * count);
            bytes.put_u32(context);
            for extent in sent {
                // The length of a request has 32 bits in this mode, and so has a status.
                bytes.put_u32(extent.length as u32);
                bytes.put_u32(extent.flags as u32);
            }
        }
        bytes
    }

    fn chunk(&self, out: &mut impl Put, kind: u16, last: bool, request: ReplyTo, length: u32) {
        let flags = if last { wire::CHUNK_DONE } else { 0 };
        let extended = self.mode == ReplyMode::Extended;
        out.put_u32(if extended {
            wire::EXTENDED_REPLY_MAGIC
        } else {
            wire::STRUCTURED_REPLY_MAGIC
        });
        out.put_u16(flags);
        out.put_u16(kind);
        out.put_u64(request.cookie);
        if extended {
            out.put_u64(request.offset);
            out.put_u64(length.into());
        } else {
            out.put_u32(length);
        }
    }
}

fn simple(out: &mut impl Put, errno: Errno, request: ReplyTo) {
    out.put_u32(wire::SIMPLE_REPLY_MAGIC);
    out.put_u32(errno.0);
    out.put_u64(request.cookie);
}
