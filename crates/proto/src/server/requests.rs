//! The transmission phase as a server reads it (sections "Request message" and "Extended request
//! message"): each request is either valid in every respect that the protocol knows, or refused
//! with the error to send and the number of bytes to drop first.

use super::rules::{Refusal, RequestRules};
use crate::error::{Misbehaviour, Result};
use crate::gather::Gather;
use crate::limits;
use crate::reader::{Reader, Truncated};
use crate::types::{Negotiated, ReplyMode};
use crate::wire::{self, Command, CommandFlags};

/// Bytes of the shortest and the longest payload that selects contexts: a length and some ids.
const SELECTION: std::ops::RangeInclusive<u64> = 12..=8 + 4 * limits::CONTEXTS as u64;

/// The requests of one connection.
///
/// [`receive`](Self::receive) takes what arrives except the payload of writes, which the driver
/// receives into its final place itself.
#[derive(Debug)]
pub struct ServerSession {
    rules: RequestRules,
    gather: Gather,
    /// A block status request whose selection of contexts is still to come.
    selecting: Option<RefusedRequest>,
}

/// What a server accepts beyond what the protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// The most bytes of a read or a write; 64 MiB unless changed. Should not be less than 32 MiB,
    /// which a client may use without asking.
    pub max_payload: u32,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            max_payload: limits::SERVER_PAYLOAD,
        }
    }
}

/// What has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEvent {
    /// All the bytes were taken, and more are needed.
    NeedMore,
    /// A request to carry out. If it is a write, `length` bytes of payload are next on the wire;
    /// the driver takes them and then hands what follows to [`ServerSession::receive`].
    Request(ServerRequest),
    /// A request to refuse: drop `payload` bytes from the wire, then answer with `errno`.
    Refused {
        /// What was asked.
        request: RefusedRequest,
        /// What to answer.
        errno: wire::Errno,
        /// Bytes on the wire that belong to the request, at most 4 GiB.
        payload: u64,
        /// For the answer, where it can carry a message.
        message: &'static str,
    },
    /// The client is about to go. Finish what is in flight, then close; there is no reply.
    Disconnect,
}

/// A valid request: its command and flags were offered, its range lies in the export and fits the
/// minimum block size, and it writes only where that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerRequest {
    /// To be repeated in the reply.
    pub cookie: u64,
    /// What to do; never [`Command::Disconnect`].
    pub command: Command,
    /// How to do it, without `PAYLOAD_LEN`.
    pub flags: CommandFlags,
    /// Bytes from the start of the export.
    pub offset: u64,
    /// Bytes; 0 for a flush, and for other commands where there is nothing to do.
    pub length: u64,
    /// Of a block status: the contexts to report. Otherwise none.
    pub contexts: ContextSelection,
}

/// A request that cannot be carried out, as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedRequest {
    /// To be repeated in the reply.
    pub cookie: u64,
    /// The command's number.
    pub code: u16,
    /// Bytes from the start of the export, as the client sent it.
    pub offset: u64,
    /// Bytes of the range or of the payload, as the client sent it.
    pub length: u64,
    /// As the client sent it.
    pub flags: CommandFlags,
}

impl RefusedRequest {
    /// The command, if it is a known one.
    #[must_use]
    pub fn command(&self) -> Option<Command> {
        Command::from_wire(self.code)
    }
}

/// A set of negotiated contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextSelection {
    /// Bit 0 is id 1; [`limits::CONTEXTS`] makes them fit.
    bits: u64,
}

impl ContextSelection {
    pub(super) fn of(negotiated: &Negotiated) -> Self {
        let mut all = Self::default();
        for context in &negotiated.contexts {
            all.bits |= Self::bit(context.id);
        }
        all
    }

    /// Whether the context with this id is in the set.
    #[must_use]
    pub fn contains(&self, id: u32) -> bool {
        self.bits & Self::bit(id) != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits == 0
    }

    /// How many contexts are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bits.count_ones() as usize
    }

    /// The ids in the set, in ascending order.
    pub fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        let set = *self;
        (1..=limits::CONTEXTS as u32).filter(move |&id| set.contains(id))
    }

    fn bit(id: u32) -> u64 {
        id.checked_sub(1)
            .and_then(|index| 1u64.checked_shl(index))
            .unwrap_or_default()
    }
}

impl ServerSession {
    /// A session on a connection whose handshake ended with `negotiated`.
    #[must_use]
    pub fn new(negotiated: &Negotiated, limits: RequestLimits) -> Self {
        Self {
            rules: RequestRules::new(negotiated, limits),
            gather: Gather::default(),
            selecting: None,
        }
    }

    /// How many bytes the next event needs at least.
    #[must_use]
    pub fn needed(&self) -> usize {
        let want = match self.selecting {
            Some(request) => request.length as usize,
            None => self.header_len(),
        };
        want.saturating_sub(self.gather.partial().len())
    }

    /// Takes bytes that arrived, up to the end of one event, and says how many were taken and
    /// what they mean. The payload of a write or of a refused request is not to be given here.
    ///
    /// # Errors
    ///
    /// [`Error::Misbehaved`](crate::Error::Misbehaved): the connection must be closed.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(usize, RequestEvent)> {
        let mut input = bytes;
        let event = if let Some(request) = self.selecting {
            self.read_selection(request, &mut input)
        } else {
            self.read_header(&mut input)?
        };
        Ok((bytes.len() - input.len(), event))
    }

    fn header_len(&self) -> usize {
        match self.rules.mode() {
            ReplyMode::Extended => wire::EXTENDED_REQUEST_LEN,
            _ => wire::REQUEST_LEN,
        }
    }

    fn read_header(&mut self, input: &mut &[u8]) -> Result<RequestEvent> {
        let length = self.header_len();
        // The magic is looked at before the rest is waited for.
        if !self.gather.ensure(input, 4) {
            return Ok(RequestEvent::NeedMore);
        }
        let mode = self.rules.mode();
        let expected = match mode {
            ReplyMode::Extended => wire::EXTENDED_REQUEST_MAGIC,
            _ => wire::REQUEST_MAGIC,
        };
        let magic = Reader::new(self.gather.view(input, 4)).u32();
        let magic = magic.unwrap_or_default();
        if magic != expected {
            return Err(Misbehaviour::RequestMagic(magic).into());
        }
        if !self.gather.ensure(input, length) {
            return Ok(RequestEvent::NeedMore);
        }
        let request = parse_header(self.gather.view(input, length), mode)
            .map_err(|_| Misbehaviour::RequestMagic(magic))?;
        self.gather.consume(input, length);
        self.judge(request, input)
    }

    fn judge(&mut self, request: RefusedRequest, input: &mut &[u8]) -> Result<RequestEvent> {
        if request.command() == Some(Command::Disconnect) {
            return Ok(RequestEvent::Disconnect);
        }
        let payload = self.payload_len(&request)?;
        if self.rules.selects_contexts(&request) && SELECTION.contains(&payload) {
            self.selecting = Some(request);
            return Ok(self.read_selection(request, input));
        }
        Ok(match self.rules.check(&request) {
            Ok(request) => RequestEvent::Request(request),
            Err(Refusal { errno, message }) => RequestEvent::Refused {
                request,
                errno,
                payload,
                message,
            },
        })
    }

    /// How many bytes behind the header belong to the request.
    fn payload_len(&self, request: &RefusedRequest) -> Result<u64> {
        let is_write = request.command() == Some(Command::Write);
        let announced = request.flags.contains(CommandFlags::PAYLOAD_LEN);
        let length = match self.rules.mode() {
            ReplyMode::Extended if announced => request.length,
            // Under extended headers a write must announce its payload; qemu 10's client does not,
            // and means it all the same.
            _ if is_write => request.length,
            _ => 0,
        };
        if length > u64::from(u32::MAX) {
            return Err(Misbehaviour::PayloadTooLong(length).into());
        }
        Ok(length)
    }

    fn read_selection(&mut self, request: RefusedRequest, input: &mut &[u8]) -> RequestEvent {
        // Between 12 and 264 bytes, or `judge` would not have come here.
        let length = request.length as usize;
        if !self.gather.ensure(input, length) {
            return RequestEvent::NeedMore;
        }
        let available = self.rules.contexts();
        let selection = parse_selection(self.gather.view(input, length), available);
        self.gather.consume(input, length);
        self.selecting = None;
        let checked = match selection {
            Some((length, contexts)) => self.rules.check_status(&request, length, contexts),
            None => Err(Refusal::invalid("unknown or repeated metadata context")),
        };
        match checked {
            Ok(request) => RequestEvent::Request(request),
            Err(Refusal { errno, message }) => RequestEvent::Refused {
                request,
                errno,
                payload: 0,
                message,
            },
        }
    }
}

fn parse_header(header: &[u8], mode: ReplyMode) -> Result<RefusedRequest, Truncated> {
    let mut reader = Reader::new(header);
    reader.u32()?;
    Ok(RefusedRequest {
        flags: CommandFlags::from_bits_retain(reader.u16()?),
        code: reader.u16()?,
        cookie: reader.u64()?,
        offset: reader.u64()?,
        length: match mode {
            ReplyMode::Extended => reader.u64()?,
            _ => reader.u32()?.into(),
        },
    })
}

/// The length of the range and the contexts, if all are negotiated and none comes twice.
fn parse_selection(payload: &[u8], available: ContextSelection) -> Option<(u64, ContextSelection)> {
    let mut reader = Reader::new(payload);
    let length = reader.u64().ok()?;
    let mut selected = ContextSelection::default();
    while !reader.is_empty() {
        let id = reader.u32().ok()?;
        if !available.contains(id) || selected.contains(id) {
            return None;
        }
        selected.bits |= ContextSelection::bit(id);
    }
    Some((length, selected))
}
