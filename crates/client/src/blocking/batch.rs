//! The requests of one call: sent a few at a time, answered in any order.

use std::{
    io::{IoSlice, IoSliceMut},
    ops::Range,
};

use blockferry_block::{Error, ErrorKind, Operation, Result};
use blockferry_proto::{ClientSession, Cookie, Extent, Request, RequestHeader, ServerError};

use crate::{
    errors,
    receiver::{Plan, Receiver, Requests},
    stream::BlockingStream,
};

/// How many requests of a call are in flight.
const DEPTH: usize = 8;

/// The caller's bytes.
pub(super) enum Payload<'a> {
    None,
    Into(&'a mut [u8]),
    From(&'a [u8]),
}

/// One request of a call, and the part of the caller's bytes that it is about.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) request: Request,
    pub(super) range: Range<usize>,
}

/// Answers to block status requests: the context's id and its extents.
pub(super) type StatusReplies = Vec<(u32, Vec<Extent>)>;

/// What one call has in flight and has learnt.
pub(super) struct Batch<'a> {
    operation: Operation,
    payload: Payload<'a>,
    /// By the slot of the cookie.
    in_flight: Vec<Option<Piece>>,
    count: usize,
    extents: StatusReplies,
    /// The first error that the server answered with.
    refused: Option<Error>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(operation: Operation, payload: Payload<'a>) -> Self {
        Self {
            operation,
            payload,
            in_flight: Vec::with_capacity(DEPTH),
            count: 0,
            extents: Vec::new(),
            refused: None,
        }
    }

    /// Sends all of `pieces` and receives all answers. An error here ends the connection.
    pub(super) fn run(
        &mut self,
        stream: &mut BlockingStream,
        session: &mut ClientSession,
        receiver: &mut Receiver,
        pieces: &mut impl Iterator<Item = Piece>,
    ) -> Result<()> {
        loop {
            // Half of the requests are renewed at a time: one system call sends several.
            if self.count <= DEPTH / 2 && self.refused.is_none() {
                self.send(stream, session, pieces)?;
            }
            if self.count == 0 {
                return Ok(());
            }
            let plan = receiver.plan(session, self);
            let count = self.receive(stream, receiver, &plan)?;
            if count == 0 {
                return Err(errors::closed_by_server());
            }
            receiver
                .received(session, &plan, count, self)
                .map_err(errors::from_proto)?;
        }
    }

    /// What the call returns when the connection is well.
    pub(super) fn into_result(self) -> Result<StatusReplies> {
        match self.refused {
            Some(error) => Err(error),
            None => Ok(self.extents),
        }
    }

    /// `error`, which ended the connection, with the first request that it left unanswered.
    pub(super) fn blame(&self, error: Error) -> Error {
        let oldest = self
            .in_flight
            .iter()
            .flatten()
            .min_by_key(|piece| piece.request.offset);
        match oldest {
            Some(piece) => error.at(piece.request.offset, piece.request.length),
            None => error,
        }
    }

    fn send(
        &mut self,
        stream: &mut BlockingStream,
        session: &mut ClientSession,
        pieces: &mut impl Iterator<Item = Piece>,
    ) -> Result<()> {
        let mut headers = [RequestHeader::new(); DEPTH];
        let mut payloads: [&[u8]; DEPTH] = [&[]; DEPTH];
        let mut used = 0;
        while self.count < DEPTH {
            let Some(piece) = pieces.next() else { break };
            let Request { offset, length, .. } = piece.request;
            let cookie = match session.submit(piece.request, &mut headers[used]) {
                Ok(cookie) => cookie,
                // Nothing of this piece was sent: the connection is as good as before.
                Err(error) => {
                    let error = errors::from_proto(error).during(self.operation);
                    self.refused.get_or_insert(error.at(offset, length));
                    break;
                }
            };
            if let Payload::From(data) = &self.payload {
                payloads[used] = &data[piece.range.clone()];
            }
            if self.in_flight.len() <= cookie.slot() {
                self.in_flight.resize(cookie.slot() + 1, None);
            }
            self.in_flight[cookie.slot()] = Some(piece);
            self.count += 1;
            used += 1;
        }
        let parts = headers.iter().zip(payloads).take(used);
        let mut slices: Vec<IoSlice<'_>> = parts
            .flat_map(|(header, payload)| [header.as_bytes(), payload])
            .filter(|part| !part.is_empty())
            .map(IoSlice::new)
            .collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let sent = stream.send(rest).map_err(errors::lost)?;
            IoSlice::advance_slices(&mut rest, sent);
        }
        Ok(())
    }

    fn receive(
        &mut self,
        stream: &mut BlockingStream,
        receiver: &mut Receiver,
        plan: &Plan,
    ) -> Result<usize> {
        let whole = |target: &crate::receiver::Target| {
            let piece = self.in_flight[target.cookie.slot()]
                .as_ref()
                .map_or(0, |it| it.range.start);
            piece + target.range.start..piece + target.range.end
        };
        let current = plan.current.as_ref().map_or(0..0, whole);
        let predicted = plan.predicted.as_ref().map_or(0..0, whole);
        let header = &mut receiver.header_room()[..plan.header];
        let result = match &mut self.payload {
            Payload::Into(buffer) => {
                let (first, second) = disjoint(buffer, current, predicted)?;
                stream.receive(&mut [
                    IoSliceMut::new(first),
                    IoSliceMut::new(header),
                    IoSliceMut::new(second),
                ])
            }
            _ => stream.receive(&mut [IoSliceMut::new(header)]),
        };
        result.map_err(errors::lost)
    }
}

impl Requests for Batch<'_> {
    fn buffer(&mut self, cookie: Cookie) -> &mut [u8] {
        let piece = self.in_flight.get(cookie.slot()).and_then(Option::as_ref);
        match (&mut self.payload, piece) {
            (Payload::Into(buffer), Some(piece)) => &mut buffer[piece.range.clone()],
            _ => &mut [],
        }
    }

    /// The caller's slices stay where they are.
    fn exchange(&mut self, _: Cookie, _: Cookie) -> bool {
        false
    }

    fn extents(&mut self, _: Cookie, context: u32, extents: Vec<Extent>) {
        self.extents.push((context, extents));
    }

    fn done(&mut self, cookie: Cookie, result: Result<(), ServerError>) {
        let Some(piece) = self.in_flight.get_mut(cookie.slot()).and_then(Option::take) else {
            return;
        };
        self.count -= 1;
        if let Err(error) = result {
            let Request { offset, length, .. } = piece.request;
            self.refused.get_or_insert_with(|| {
                errors::from_server(&error)
                    .during(self.operation)
                    .at(offset, length)
            });
        }
    }
}

/// Two parts of a buffer that do not overlap; empty ones may lie anywhere.
fn disjoint(
    buffer: &mut [u8],
    one: Range<usize>,
    other: Range<usize>,
) -> Result<(&mut [u8], &mut [u8])> {
    if one.is_empty() {
        return Ok((&mut [], &mut buffer[other]));
    }
    if other.is_empty() {
        return Ok((&mut buffer[one], &mut []));
    }
    match buffer.get_disjoint_mut([one, other]) {
        Ok([one, other]) => Ok((one, other)),
        // Reads in flight never share a byte. Were it otherwise, the bytes could not be told apart.
        Err(error) => Err(Error::with_source(ErrorKind::Io, error)),
    }
}
