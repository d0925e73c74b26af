//! What was received and not looked at yet.

use std::{
    io::{self, IoSliceMut},
    task::{Context, Poll, ready},
};

use crate::stream::Stream;

/// Bytes that one receive brings in beside a payload: some hundred requests.
const SIZE: usize = 16 << 10;

/// Behind a payload of this size or more, only a small part of the input is used: what comes next is
/// most likely another one, and what is received of it here has to be copied.
const LARGE_PAYLOAD: usize = 32 << 10;

/// The part of the input that is used behind a large payload, in bytes.
const SMALL_PART: usize = 512;

/// A small buffer in front of the parser, so that one system call brings many requests.
pub(crate) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; SIZE].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// What was received and not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops the first `count` bytes, of which there must be so many.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Moves bytes to the front of `target` and says how many.
    pub(crate) fn take(&mut self, target: &mut [u8]) -> usize {
        let count = target.len().min(self.bytes().len());
        target[..count].copy_from_slice(&self.bytes()[..count]);
        self.consume(count);
        count
    }

    /// Receives into the input, which must be empty. 0 is the end.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &Stream,
    ) -> Poll<io::Result<usize>> {
        (self.start, self.end) = (0, 0);
        let received = ready!(stream.poll_receive(cx, &mut [IoSliceMut::new(&mut self.bytes)]))?;
        self.end = received;
        Poll::Ready(Ok(received))
    }

    /// Receives into `payload`, and what follows it into the input, which must be empty. Says how many
    /// bytes of the payload came; 0 is the end.
    pub(crate) fn poll_fill_payload(
        &mut self,
        cx: &mut Context<'_>,
        stream: &Stream,
        payload: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let length = payload.len();
        let part = if length >= LARGE_PAYLOAD {
            SMALL_PART
        } else {
            SIZE
        };
        (self.start, self.end) = (0, 0);
        let mut slices = [
            IoSliceMut::new(payload),
            IoSliceMut::new(&mut self.bytes[..part]),
        ];
        let received = ready!(stream.poll_receive(cx, &mut slices))?;
        self.end = received.saturating_sub(length);
        Poll::Ready(Ok(received.min(length)))
    }
}
