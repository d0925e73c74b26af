//! The transmission phase as a client sees it: requests out, replies in (section
//! "Transmission").

use super::coverage::CoverError;
use super::event::{ReplyEvent, ServerError};
use super::request::{Request, RequestHeader, RequestRules};
use super::status;
use super::table::{Cookie, InFlight, Table};
use crate::error::{Error, Misbehaviour, Misuse, Result};
use crate::gather::Gather;
use crate::limits;
use crate::reader::{Reader, Truncated};
use crate::types::{Negotiated, ReplyMode};
use crate::wire::{self, Command, CommandFlags, Errno};

/// The requests in flight on one connection, and where in a reply the connection is.
///
/// [`submit`](Self::submit) gives the header of a request; [`receive`](Self::receive) takes what
/// arrives, except the data of reads, which the driver receives into its final place itself.
/// Neither allocates in the usual course of reads and writes.
#[derive(Debug)]
pub struct ClientSession {
    negotiated: Negotiated,
    rules: RequestRules,
    table: Table,
    gather: Gather,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before or inside the header of a reply.
    Header,
    /// In front of a part of the chunk that is needed as a whole.
    Body(Chunk),
    /// The reply is complete once what was announced last has been dealt with.
    Finish(Cookie),
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    cookie: Cookie,
    kind: u16,
    done: bool,
    /// Bytes of the chunk behind its header.
    length: u64,
    /// How many of them are needed first.
    want: usize,
}

#[derive(Clone, Copy, Debug)]
enum Reply {
    Simple {
        errno: u32,
        cookie: Cookie,
    },
    Chunk {
        flags: u16,
        kind: u16,
        cookie: Cookie,
        offset: Option<u64>,
        length: u64,
    },
}

impl ClientSession {
    /// A session on a connection whose handshake ended with `negotiated`.
    #[must_use]
    pub fn new(negotiated: &Negotiated) -> Self {
        Self {
            negotiated: negotiated.clone(),
            rules: RequestRules::new(negotiated),
            table: Table::new(),
            gather: Gather::default(),
            state: State::Header,
        }
    }

    /// What the handshake settled.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// How many requests are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.table.len()
    }

    /// A request in flight.
    #[must_use]
    pub fn request(&self, cookie: Cookie) -> Option<&Request> {
        self.table.peek(cookie).map(|entry| &entry.request)
    }

    /// The requests in flight, in no order: what is lost if the connection is.
    pub fn requests(&self) -> impl Iterator<Item = (Cookie, &Request)> {
        self.table.iter()
    }

    /// The most bytes of a read or a write: the maximum block size, or 32 MiB where the server
    /// advertised none.
    #[must_use]
    pub fn max_payload(&self) -> u32 {
        self.rules.max_payload()
    }

    /// The most bytes that a request of this kind may cover, a multiple of the minimum block size:
    /// [`max_payload`](Self::max_payload) for reads, writes and caching, otherwise what the header
    /// can express.
    #[must_use]
    pub fn max_length(&self, command: Command) -> u64 {
        self.rules.max_length(command)
    }

    /// Checks a request against what was negotiated, puts it in flight and writes its header.
    /// The payload of a write follows the header on the wire and is sent by the caller.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`]; nothing has changed then, and the session goes on.
    pub fn submit(&mut self, request: Request, header: &mut RequestHeader) -> Result<Cookie> {
        self.rules.check(&request)?;
        let cookie = self
            .table
            .insert(request)
            .ok_or(Misuse::TooManyInFlight(limits::IN_FLIGHT))?;
        self.rules.encode(&request, cookie, header);
        Ok(cookie)
    }

    /// Writes the header of the farewell. The server finishes what is in flight and closes.
    pub fn disconnect(&mut self, header: &mut RequestHeader) {
        let farewell = Request {
            command: Command::Disconnect,
            flags: CommandFlags::empty(),
            offset: 0,
            length: 0,
        };
        self.rules.encode(&farewell, Cookie(0), header);
    }

    /// The read whose data will most probably come next, the first gap in its data and the
    /// length of that gap: `(cookie, offset in the buffer, bytes)`. Data that was announced as
    /// [`ReplyEvent::Payload`] counts as received.
    #[must_use]
    pub fn predicted_read(&self) -> Option<(Cookie, u64, u64)> {
        self.nth_predicted_read(0)
    }

    /// As [`predicted_read`](Self::predicted_read), for the `n`th read from then, starting at 0.
    #[must_use]
    pub fn nth_predicted_read(&self, n: usize) -> Option<(Cookie, u64, u64)> {
        self.table.nth_read(n)
    }

    /// Bytes from the start of a reply to a read to the first byte of its data.
    #[must_use]
    pub fn predicted_header_len(&self) -> usize {
        match self.negotiated.mode {
            ReplyMode::Simple => wire::SIMPLE_REPLY_LEN,
            ReplyMode::Structured => wire::STRUCTURED_REPLY_LEN + 8,
            ReplyMode::Extended => wire::EXTENDED_REPLY_LEN + 8,
        }
    }

    /// Bytes of the empty chunk that most probably comes next because it ends the reply to the read `cookie`:
    /// all data was announced, the end was not. 0 in every other case.
    #[must_use]
    pub fn closing_chunk_len(&self, cookie: Cookie) -> usize {
        let entry = self.table.peek(cookie);
        let complete = entry.is_some_and(|entry| entry.coverage.is_complete(entry.request.length));
        match (self.state, self.negotiated.mode) {
            (State::Header, ReplyMode::Structured) if complete => wire::STRUCTURED_REPLY_LEN,
            (State::Header, ReplyMode::Extended) if complete => wire::EXTENDED_REPLY_LEN,
            _ => 0,
        }
    }

    /// Whether a part of a reply's header has been taken and the rest is still to come.
    #[must_use]
    pub fn is_inside_reply_header(&self) -> bool {
        !matches!(self.state, State::Header) || !self.gather.partial().is_empty()
    }

    /// How many bytes the next event needs at least; 0 when it is ready without any.
    #[must_use]
    pub fn needed(&self) -> usize {
        let want = match self.state {
            State::Finish(_) => return 0,
            State::Body(chunk) => chunk.want,
            State::Header => match first_u32(self.gather.partial()) {
                Some(magic) => self.header_len(magic).unwrap_or(wire::SIMPLE_REPLY_LEN),
                None => wire::SIMPLE_REPLY_LEN,
            },
        };
        want.saturating_sub(self.gather.partial().len())
    }

    /// Takes bytes that arrived, up to the end of one event, and says how many were taken and
    /// what they mean. The bytes of a [`ReplyEvent::Payload`] are not to be given here.
    ///
    /// # Errors
    ///
    /// [`Error::Misbehaved`]; the connection must be closed.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(usize, ReplyEvent)> {
        let mut input = bytes;
        let event = loop {
            let event = match self.state {
                State::Finish(cookie) => Some(self.finish(cookie)?),
                State::Header => match self.read_header(&mut input)? {
                    None => Some(ReplyEvent::NeedMore),
                    Some(Reply::Simple { errno, cookie }) => self.simple_reply(errno, cookie)?,
                    Some(Reply::Chunk {
                        flags,
                        kind,
                        cookie,
                        offset,
                        length,
                    }) => {
                        let done = flags & wire::CHUNK_DONE != 0;
                        self.begin_chunk(kind, done, cookie, offset, length)?;
                        None
                    }
                },
                State::Body(chunk) => self.read_body(chunk, &mut input)?,
            };
            if let Some(event) = event {
                break event;
            }
        };
        Ok((bytes.len() - input.len(), event))
    }

    /// The length of a reply header that starts with this magic.
    fn header_len(&self, magic: u32) -> Result<usize, Misbehaviour> {
        let mode = self.negotiated.mode;
        match (magic, mode) {
            (wire::SIMPLE_REPLY_MAGIC, ReplyMode::Simple | ReplyMode::Structured) => {
                Ok(wire::SIMPLE_REPLY_LEN)
            }
            (wire::STRUCTURED_REPLY_MAGIC, ReplyMode::Structured) => Ok(wire::STRUCTURED_REPLY_LEN),
            (wire::EXTENDED_REPLY_MAGIC, ReplyMode::Extended) => Ok(wire::EXTENDED_REPLY_LEN),
            _ => Err(Misbehaviour::ReplyMagic { magic, mode }),
        }
    }

    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<Reply>> {
        // The magic is looked at before the longest header is waited for, so that a reply of
        // another mode is an error instead of a wait without end.
        if !self.gather.ensure(input, 4) {
            return Ok(None);
        }
        let magic = first_u32(self.gather.view(input, 4)).unwrap_or_default();
        let length = self.header_len(magic)?;
        if !self.gather.ensure(input, length) {
            return Ok(None);
        }
        let header = parse_header(magic, self.gather.view(input, length)).map_err(|_| {
            let mode = self.negotiated.mode;
            Misbehaviour::ReplyMagic { magic, mode }
        })?;
        self.gather.consume(input, length);
        Ok(Some(header))
    }

    fn simple_reply(&mut self, errno: u32, cookie: Cookie) -> Result<Option<ReplyEvent>> {
        let chunked = self.negotiated.mode.is_chunked();
        let entry = find(&mut self.table, cookie)?;
        let command = entry.request.command;
        let needs_chunks = match command {
            Command::Read => true,
            Command::BlockStatus => errno == 0,
            _ => false,
        };
        if chunked && needs_chunks {
            return Err(Misbehaviour::SimpleReply(command).into());
        }
        self.state = State::Finish(cookie);
        if errno != 0 {
            entry.error = Some(ServerError {
                errno: Errno(errno),
                message: None,
                offset: None,
            });
        } else if command == Command::Read {
            let (offset, length) = (entry.request.offset, entry.request.length);
            let at = self.cover(cookie, offset, length)?;
            return Ok(Some(ReplyEvent::Payload {
                cookie,
                offset: at,
                length,
            }));
        }
        Ok(None)
    }

    fn begin_chunk(
        &mut self,
        kind: u16,
        done: bool,
        cookie: Cookie,
        offset: Option<u64>,
        length: u64,
    ) -> Result<()> {
        let mode = self.negotiated.mode;
        let entry = find(&mut self.table, cookie)?;
        let command = entry.request.command;
        if let Some(actual) = offset
            && actual != entry.request.offset
        {
            let expected = entry.request.offset;
            return Err(Misbehaviour::ReplyOffset { expected, actual }.into());
        }
        let (command_fits, length_fits, want) = match kind {
            wire::CHUNK_NONE if !done => return Err(Misbehaviour::EmptyChunkNotLast.into()),
            wire::CHUNK_NONE => (true, length == 0, 0),
            wire::CHUNK_OFFSET_DATA => {
                let fits = length > 8 && length - 8 <= entry.request.length;
                (command == Command::Read, fits, 8)
            }
            wire::CHUNK_OFFSET_HOLE => (command == Command::Read, length == 12, 12),
            wire::CHUNK_BLOCK_STATUS if mode == ReplyMode::Structured => (
                command == Command::BlockStatus,
                status::status_length_is_valid(length, mode),
                length,
            ),
            wire::CHUNK_BLOCK_STATUS_EXT if mode == ReplyMode::Extended => (
                command == Command::BlockStatus,
                status::status_length_is_valid(length, mode),
                length,
            ),
            _ if kind & wire::CHUNK_ERROR_BIT != 0 => {
                (true, status::error_length_is_valid(length, kind), length)
            }
            _ => return Err(Misbehaviour::ChunkType { kind }.into()),
        };
        if !command_fits {
            return Err(Misbehaviour::ChunkForCommand { kind, command }.into());
        }
        if !length_fits {
            return Err(Misbehaviour::ChunkLength { kind, length }.into());
        }
        self.state = if kind == wire::CHUNK_NONE {
            State::Finish(cookie)
        } else {
            State::Body(Chunk {
                cookie,
                kind,
                done,
                length,
                // Bounded by the checks above.
                want: want as usize,
            })
        };
        Ok(())
    }

    fn read_body(&mut self, chunk: Chunk, input: &mut &[u8]) -> Result<Option<ReplyEvent>> {
        let Chunk {
            cookie,
            kind,
            length,
            want,
            ..
        } = chunk;
        if !self.gather.ensure(input, want) {
            return Ok(Some(ReplyEvent::NeedMore));
        }
        let body = self.gather.view(input, want);
        let malformed = |_: Truncated| Misbehaviour::ChunkLength { kind, length };
        let event = match kind {
            wire::CHUNK_OFFSET_DATA | wire::CHUNK_OFFSET_HOLE => {
                let mut reader = Reader::new(body);
                let start = reader.u64().map_err(malformed)?;
                if kind == wire::CHUNK_OFFSET_DATA {
                    let length = length - 8;
                    let offset = self.cover(cookie, start, length)?;
                    Some(ReplyEvent::Payload {
                        cookie,
                        offset,
                        length,
                    })
                } else {
                    let length = reader.u32().map_err(malformed)?.into();
                    let offset = self.cover(cookie, start, length)?;
                    Some(ReplyEvent::Hole {
                        cookie,
                        offset,
                        length,
                    })
                }
            }
            wire::CHUNK_BLOCK_STATUS | wire::CHUNK_BLOCK_STATUS_EXT => {
                let entry = find(&mut self.table, cookie)?;
                let (context, extents) =
                    status::parse_status(body, self.negotiated.mode, &entry.request)?;
                mark_context(entry, &self.negotiated, context)?;
                Some(ReplyEvent::Extents {
                    cookie,
                    context,
                    extents,
                })
            }
            _ => {
                let entry = find(&mut self.table, cookie)?;
                let error = status::parse_error(body, kind, &entry.request)?;
                entry.error.get_or_insert(error);
                None
            }
        };
        self.gather.consume(input, want);
        self.state = if chunk.done {
            State::Finish(cookie)
        } else {
            State::Header
        };
        Ok(event)
    }

    /// Counts a part of a read as received; returns where it starts in the buffer.
    fn cover(&mut self, cookie: Cookie, offset: u64, length: u64) -> Result<u64> {
        let entry = find(&mut self.table, cookie)?;
        let request = entry.request;
        let outside = Misbehaviour::ChunkOutside { offset, length };
        let Some(at) = offset.checked_sub(request.offset) else {
            return Err(outside.into());
        };
        if length == 0 || at >= request.length || length > request.length - at {
            return Err(outside.into());
        }
        entry.data_chunks = entry.data_chunks.saturating_add(1);
        if entry.data_chunks > 1 && request.flags.contains(CommandFlags::DF) {
            return Err(Misbehaviour::Fragmented.into());
        }
        entry
            .coverage
            .add(at, length)
            .map_err(|error| match error {
                CoverError::Overlap => Misbehaviour::ChunkOverlap { offset },
                CoverError::TooManyFragments => Misbehaviour::TooManyFragments(limits::FRAGMENTS),
            })?;
        if entry.coverage.is_complete(request.length) {
            self.table.unchain(cookie);
        }
        Ok(at)
    }

    fn finish(&mut self, cookie: Cookie) -> Result<ReplyEvent> {
        let entry = find(&mut self.table, cookie)?;
        let length = entry.request.length;
        if entry.error.is_none() {
            match entry.request.command {
                Command::Read if !entry.coverage.is_complete(length) => {
                    let covered = entry.coverage.covered();
                    return Err(Misbehaviour::IncompleteRead { length, covered }.into());
                }
                Command::BlockStatus => {
                    let missing = self.negotiated.contexts.iter().zip(0..);
                    for (context, index) in missing {
                        if entry.contexts & bit(index) == 0 {
                            return Err(Misbehaviour::MissingStatus(context.id).into());
                        }
                    }
                }
                _ => {}
            }
        }
        self.state = State::Header;
        let result = match self.table.remove(cookie) {
            Some(error) => Err(error),
            None => Ok(()),
        };
        Ok(ReplyEvent::Done { cookie, result })
    }
}

#[inline]
fn find(table: &mut Table, cookie: Cookie) -> Result<&mut InFlight, Error> {
    table
        .find(cookie)
        .ok_or_else(|| Misbehaviour::UnknownCookie(cookie.0).into())
}

fn mark_context(entry: &mut InFlight, negotiated: &Negotiated, id: u32) -> Result<()> {
    let index = negotiated
        .contexts
        .iter()
        .position(|context| context.id == id)
        .ok_or(Misbehaviour::UnknownContext(id))?;
    if entry.contexts & bit(index) != 0 {
        return Err(Misbehaviour::DuplicateStatus(id).into());
    }
    entry.contexts |= bit(index);
    Ok(())
}

/// The bit of a context; a handshake never selects more than [`limits::CONTEXTS`].
fn bit(index: usize) -> u64 {
    1u64.checked_shl(index as u32).unwrap_or_default()
}

fn first_u32(bytes: &[u8]) -> Option<u32> {
    Reader::new(bytes).u32().ok()
}

fn parse_header(magic: u32, header: &[u8]) -> Result<Reply, Truncated> {
    let mut reader = Reader::new(header);
    reader.u32()?;
    if magic == wire::SIMPLE_REPLY_MAGIC {
        return Ok(Reply::Simple {
            errno: reader.u32()?,
            cookie: Cookie(reader.u64()?),
        });
    }
    let flags = reader.u16()?;
    let kind = reader.u16()?;
    let cookie = Cookie(reader.u64()?);
    let (offset, length) = match magic {
        wire::EXTENDED_REPLY_MAGIC => (Some(reader.u64()?), reader.u64()?),
        _ => (None, reader.u32()?.into()),
    };
    Ok(Reply::Chunk {
        flags,
        kind,
        cookie,
        offset,
        length,
    })
}
