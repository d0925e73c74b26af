//! Chunks with a body that must be read as a whole: extents and errors (section "Structured reply
//! chunk message").

use super::event::ServerError;
use super::request::Request;
use crate::error::{Misbehaviour, Result};
use crate::limits;
use crate::reader::{Reader, Truncated, lossy};
use crate::types::{Extent, ReplyMode};
use crate::wire::{self, CommandFlags, Errno};

/// The longest message and everything around it, for error types still to be invented too.
const ERROR_CHUNK: u64 = 2 * limits::STRING as u64;

/// Whether a chunk of extents can have this length.
pub(super) fn status_length_is_valid(length: u64, mode: ReplyMode) -> bool {
    let (head, item) = status_layout(mode);
    length > head
        && (length - head).is_multiple_of(item)
        && (length - head) / item <= limits::EXTENTS as u64
}

/// Whether an error chunk can have this length.
pub(super) fn error_length_is_valid(length: u64, kind: u16) -> bool {
    let text = limits::STRING as u64;
    match kind {
        wire::CHUNK_ERROR => (6..=6 + text).contains(&length),
        wire::CHUNK_ERROR_OFFSET => (14..=14 + text).contains(&length),
        _ => (6..=ERROR_CHUNK).contains(&length),
    }
}

/// Bytes before the first extent, and of one extent.
fn status_layout(mode: ReplyMode) -> (u64, u64) {
    match mode {
        ReplyMode::Extended => (8, 16),
        _ => (4, 8),
    }
}

/// The context and the extents of a chunk whose length is valid. What lies behind the end of the
/// request is cut off: the last extent may say more than was asked, and some servers (nbdkit
/// before 1.44) do so even where one extent was requested.
pub(super) fn parse_status(
    body: &[u8],
    mode: ReplyMode,
    request: &Request,
) -> Result<(u32, Vec<Extent>)> {
    let kind = match mode {
        ReplyMode::Extended => wire::CHUNK_BLOCK_STATUS_EXT,
        _ => wire::CHUNK_BLOCK_STATUS,
    };
    let length = body.len() as u64;
    let malformed = |_: Truncated| Misbehaviour::ChunkLength { kind, length };
    let (head, item) = status_layout(mode);
    let count = length.saturating_sub(head) / item;

    let mut reader = Reader::new(body);
    let context = reader.u32().map_err(malformed)?;
    if mode == ReplyMode::Extended && u64::from(reader.u32().map_err(malformed)?) != count {
        return Err(Misbehaviour::ChunkLength { kind, length }.into());
    }
    if request.flags.contains(CommandFlags::REQ_ONE) && count != 1 {
        return Err(Misbehaviour::TooManyExtents(count).into());
    }

    let mut extents = Vec::with_capacity(count as usize);
    let mut at = 0;
    while !reader.is_empty() {
        let (length, flags) = match mode {
            ReplyMode::Extended => (
                reader.u64().map_err(malformed)?,
                reader.u64().map_err(malformed)?,
            ),
            _ => (
                reader.u32().map_err(malformed)?.into(),
                reader.u32().map_err(malformed)?.into(),
            ),
        };
        if length == 0 {
            return Err(Misbehaviour::EmptyExtent.into());
        }
        let left = request.length - at;
        if left == 0 {
            return Err(Misbehaviour::ExtentOutside(at).into());
        }
        let length = length.min(left);
        at += length;
        extents.push(Extent { length, flags });
    }
    Ok((context, extents))
}

/// The error of a chunk whose length is valid.
pub(super) fn parse_error(body: &[u8], kind: u16, request: &Request) -> Result<ServerError> {
    let length = body.len() as u64;
    let malformed = |_: Truncated| Misbehaviour::ChunkLength { kind, length };
    let mut reader = Reader::new(body);
    let errno = Errno(reader.u32().map_err(malformed)?);
    let text_length = usize::from(reader.u16().map_err(malformed)?);
    let text = reader.bytes(text_length).map_err(malformed)?;
    let offset = match kind {
        wire::CHUNK_ERROR_OFFSET => Some(reader.u64().map_err(malformed)?),
        _ => None,
    };
    let known = matches!(kind, wire::CHUNK_ERROR | wire::CHUNK_ERROR_OFFSET);
    if (known && !reader.is_empty()) || text.len() > limits::STRING {
        return Err(malformed(Truncated).into());
    }
    if errno.0 == 0 {
        return Err(Misbehaviour::ErrorWithoutNumber.into());
    }
    if let Some(offset) = offset
        && offset
            .checked_sub(request.offset)
            .is_none_or(|at| at >= request.length)
    {
        return Err(Misbehaviour::ChunkOutside { offset, length: 0 }.into());
    }
    Ok(ServerError {
        errno,
        message: (!text.is_empty()).then(|| lossy(text)),
        offset,
    })
}
