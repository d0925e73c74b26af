//! Receiving replies with few system calls: payload goes straight to where it belongs.
//!
//! One receive takes, in order, the rest of the payload that is arriving, the header of the next
//! reply, and the payload that will most probably follow it: that of the oldest read in flight. When
//! the guess is right, a reply costs one system call and no copy. When it is wrong, the bytes that
//! landed in the wrong buffer are taken out as a stream and parsed from there; the buffer's own data is
//! still to come, so nothing is lost in it.
//!
//! Some servers end each reply with an empty chunk of its own, so that they can still report an error behind the
//! data. It is received along with the header that follows it.
//!
//! A read may also go into a pipe, which nothing can be received ahead of: while there is one, a receive takes
//! what it knows and the next header at most, and stops in front of the payload.
//!
//! No I/O here: [`Receiver::plan`] says what to receive, the caller receives it, and
//! [`Receiver::received`] says what it meant. Both clients use it.

use std::ops::Range;

use blockferry_proto::{ClientSession, Cookie, Error, Extent, ReplyEvent, ServerError};

/// Room for many small replies when no payload is expected.
const HEADER_ROOM: usize = 4096;

/// How much one wrong prediction that had to be copied adds to [`Receiver::surprise`]. Each reply
/// without prediction takes 1 away, so a server that answers in any order is mostly left in peace.
const SURPRISE: u32 = 4;

/// The bound of [`Receiver::surprise`]: in order again, the server is trusted after so many replies.
const MOST_SURPRISED: u32 = 64;

/// Whose requests are answered: the owner of the buffers.
pub(crate) trait Requests {
    /// The whole buffer of the read `cookie`. One that goes into a pipe gets a buffer now, with what the pipe
    /// has so far, and goes on in memory.
    fn buffer(&mut self, cookie: Cookie) -> &mut [u8];

    /// How many bytes the read `cookie` asked for.
    fn length(&mut self, cookie: Cookie) -> usize {
        self.buffer(cookie).len()
    }

    /// Whether some of the reads go into pipes. No payload is received ahead then.
    fn has_pipes(&self) -> bool {
        false
    }

    /// Whether the bytes of the read `cookie` from `offset` on can go into its pipe: all those before are in it.
    fn is_piped(&mut self, cookie: Cookie, offset: usize) -> bool {
        let _ = (cookie, offset);
        false
    }

    /// A hole in the read `cookie`: `range` becomes zeroes.
    fn clear(&mut self, cookie: Cookie, range: Range<usize>) {
        self.buffer(cookie)[range].fill(0);
    }

    /// Exchanges the buffers of two reads, when they are of the same length and the owner does not mind.
    /// Returns whether it did.
    fn exchange(&mut self, one: Cookie, other: Cookie) -> bool;

    /// A block status reply of `cookie` in the context with id `context`.
    fn extents(&mut self, cookie: Cookie, context: u32, extents: Vec<Extent>);

    /// The request is answered; its buffer is complete when it was a successful read.
    fn done(&mut self, cookie: Cookie, result: Result<(), ServerError>);
}

/// Part of the buffer of one read in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) cookie: Cookie,
    pub(crate) range: Range<usize>,
}

/// What to receive next: these parts, in this order, in one vectored call; or into a pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// `current` goes into the pipe of its read, and nothing else is received.
    pub(crate) piped: bool,
    /// The rest of the payload that is arriving.
    pub(crate) current: Option<Target>,
    /// How many bytes of [`Receiver::header_room`] come next.
    pub(crate) header: usize,
    /// How many of those will probably end the reply whose payload comes before them.
    pub(crate) closing: usize,
    /// Where the next payload will probably belong; never the same read as `current`.
    pub(crate) predicted: Option<Target>,
}

/// The receiving half of a connection, without the socket.
pub(crate) struct Receiver {
    /// The header bytes land here.
    room: Box<[u8; HEADER_ROOM]>,
    /// The payload that is arriving.
    current: Option<Target>,
    /// `current` goes into a pipe.
    piped: bool,
    /// Whose payload came last, or is arriving.
    latest: Option<Cookie>,
    /// Bytes that were received out of place, in order.
    spilled: Vec<u8>,
    /// How little the order of the replies can be predicted of late: above 0, nothing is.
    surprise: u32,
}

impl Receiver {
    pub(crate) fn new() -> Self {
        Self {
            room: Box::new([0; HEADER_ROOM]),
            current: None,
            piped: false,
            latest: None,
            spilled: Vec::new(),
            surprise: 0,
        }
    }

    /// Where the header bytes of a plan go: its first `plan.header` bytes.
    pub(crate) fn header_room(&mut self) -> &mut [u8] {
        &mut *self.room
    }

    /// Whether the rest of a payload is still to come.
    pub(crate) fn is_inside_payload(&self) -> bool {
        self.current.is_some()
    }

    /// What to receive next, when `requests` are in flight.
    pub(crate) fn plan(&self, session: &ClientSession, requests: &impl Requests) -> Plan {
        if self.piped && self.current.is_some() {
            return Plan {
                piped: true,
                current: self.current.clone(),
                header: 0,
                closing: 0,
                predicted: None,
            };
        }
        let busy = self.current.as_ref().map(|target| target.cookie);
        let next = (0..2)
            .filter_map(|n| session.nth_predicted_read(n))
            .find(|(cookie, ..)| Some(*cookie) != busy);
        let predicted = next.and_then(|(cookie, offset, length)| {
            let start = usize::try_from(offset).ok()?;
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            (start < end).then_some(Target {
                cookie,
                range: start..end,
            })
        });
        let header = match (&predicted, &self.current) {
            // The end of a header comes before anything can be predicted.
            (Some(_), None) if session.is_inside_reply_header() => session.needed().max(1),
            (Some(_), _) => {
                let closing = self.latest.filter(|_| self.surprise == 0);
                let closing = closing.map_or(0, |cookie| session.closing_chunk_len(cookie));
                let ahead = self.surprise == 0 && !requests.has_pipes();
                return Plan {
                    piped: false,
                    current: self.current.clone(),
                    header: closing + session.predicted_header_len(),
                    closing,
                    predicted: predicted.filter(|_| ahead),
                };
            }
            (None, _) => HEADER_ROOM,
        };
        Plan {
            piped: false,
            current: self.current.clone(),
            header: header.min(HEADER_ROOM),
            closing: 0,
            predicted: None,
        }
    }

    /// Takes note of `count` bytes that were received by `plan`.
    ///
    /// # Errors
    /// When the server broke the protocol; the connection is of no use then.
    pub(crate) fn received(
        &mut self,
        session: &mut ClientSession,
        plan: &Plan,
        count: usize,
        requests: &mut impl Requests,
    ) -> Result<(), Error> {
        let mut rest = count;
        if let Some(target) = &plan.current {
            let taken = rest.min(target.range.len());
            rest -= taken;
            self.advance(taken);
        }
        if self.current.is_none() {
            self.parse(session, &[], requests)?;
        }
        if rest == 0 {
            return Ok(());
        }
        let header = rest.min(plan.header);
        let ahead = rest - header;
        let (mut consumed, mut event) = session.receive(&self.room[..header])?;
        if plan.closing > 0 {
            let other = plan.predicted.as_ref().map(|target| target.cookie);
            match &event {
                ReplyEvent::Done { cookie, .. } if other != Some(*cookie) => {
                    self.handle(event, requests);
                    let (more, next) = session.receive(&self.room[consumed..header])?;
                    (consumed, event) = (consumed + more, next);
                }
                ReplyEvent::NeedMore => {}
                _ => self.be_surprised(),
            }
        }
        let landed = match (&event, &plan.predicted) {
            (
                ReplyEvent::Payload {
                    cookie,
                    offset,
                    length,
                },
                Some(predicted),
            ) if consumed == header => {
                let arriving = (*cookie, *offset, *length);
                self.landed(arriving, predicted, ahead, requests)
            }
            (ReplyEvent::Payload { .. }, None) => {
                self.surprise = self.surprise.saturating_sub(1);
                0
            }
            _ => 0,
        };
        // What is out of place is taken out before the event is told: it may be the end of the very
        // read whose buffer holds it.
        let mut spilled = std::mem::take(&mut self.spilled);
        spilled.clear();
        spilled.extend_from_slice(&self.room[consumed..header]);
        if let Some(predicted) = plan.predicted.as_ref().filter(|_| ahead > landed) {
            let start = predicted.range.start;
            let misplaced = start + landed..start + ahead;
            spilled.extend_from_slice(&requests.buffer(predicted.cookie)[misplaced]);
        }
        self.handle(event, requests);
        self.advance(landed);
        let result = self.parse(session, &spilled, requests);
        self.spilled = spilled;
        result
    }

    /// Takes note of `count` bytes of the current payload that went into its pipe.
    ///
    /// # Errors
    /// As [`received`](Self::received).
    pub(crate) fn received_in_pipe(
        &mut self,
        session: &mut ClientSession,
        count: usize,
        requests: &mut impl Requests,
    ) -> Result<(), Error> {
        self.advance(count);
        match self.current {
            Some(_) => Ok(()),
            None => self.parse(session, &[], requests),
        }
    }

    /// The rest of the current payload is to be received into memory.
    pub(crate) fn leave_pipe(&mut self) {
        self.piped = false;
    }

    /// How many of the `ahead` bytes that were received into the predicted read's buffer are now where
    /// the payload that is `arriving` (cookie, offset, length) belongs.
    fn landed(
        &mut self,
        (cookie, offset, length): (Cookie, u64, u64),
        predicted: &Target,
        ahead: usize,
        requests: &mut impl Requests,
    ) -> usize {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if cookie == predicted.cookie && offset == predicted.range.start as u64 {
            return ahead.min(length);
        }
        let both_untouched = offset == 0
            && predicted.range == (0..length)
            && requests.buffer(predicted.cookie).len() == length;
        if both_untouched && requests.exchange(cookie, predicted.cookie) {
            return ahead;
        }
        self.be_surprised();
        0
    }

    /// A guess was wrong.
    fn be_surprised(&mut self) {
        self.surprise = MOST_SURPRISED.min(self.surprise + SURPRISE);
    }

    /// Goes through `bytes` of the reply stream, payload and headers, and tells what they meant.
    fn parse(
        &mut self,
        session: &mut ClientSession,
        mut bytes: &[u8],
        requests: &mut impl Requests,
    ) -> Result<(), Error> {
        loop {
            if let Some(target) = &self.current {
                if bytes.is_empty() {
                    return Ok(());
                }
                let (taken, rest) = bytes.split_at(bytes.len().min(target.range.len()));
                let start = target.range.start;
                self.piped = false;
                requests.buffer(target.cookie)[start..start + taken.len()].copy_from_slice(taken);
                self.advance(taken.len());
                bytes = rest;
                continue;
            }
            if bytes.is_empty() && session.needed() > 0 {
                return Ok(());
            }
            let (consumed, event) = session.receive(bytes)?;
            bytes = &bytes[consumed..];
            self.handle(event, requests);
        }
    }

    /// `count` more bytes of the current payload are in their place.
    fn advance(&mut self, count: usize) {
        if let Some(target) = &mut self.current {
            target.range.start += count;
            if target.range.is_empty() {
                self.current = None;
            }
        }
    }

    fn handle(&mut self, event: ReplyEvent, requests: &mut impl Requests) {
        match event {
            ReplyEvent::NeedMore => {}
            ReplyEvent::Payload {
                cookie,
                offset,
                length,
            } => {
                if let Some(range) = within(offset, length, requests.length(cookie)) {
                    self.piped = requests.is_piped(cookie, range.start);
                    if !self.piped {
                        requests.buffer(cookie);
                    }
                    self.current = Some(Target { cookie, range });
                    self.latest = Some(cookie);
                }
            }
            ReplyEvent::Hole {
                cookie,
                offset,
                length,
            } => {
                if let Some(range) = within(offset, length, requests.length(cookie)) {
                    requests.clear(cookie, range);
                }
            }
            ReplyEvent::Extents {
                cookie,
                context,
                extents,
            } => {
                requests.extents(cookie, context, extents);
            }
            ReplyEvent::Done { cookie, result } => requests.done(cookie, result),
        }
    }
}

/// `length` bytes from `offset` as a range of a buffer of `size` bytes; the session has validated it.
fn within(offset: u64, length: u64, size: usize) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    debug_assert!(end <= size, "the session lets no payload past its request");
    (start < end && end <= size).then_some(start..end)
}

#[cfg(test)]
mod tests;
