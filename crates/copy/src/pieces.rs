//! The image in order, cut into pieces: each one request's worth.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{BlockDevice, ByteRange};

use crate::{
    Warning,
    extents::{ExtentWalker, Stretch},
    plan::{Plan, SEGMENT},
};

/// A part of the image that is moved as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Pieces are numbered in the order of the image, from 0 on without a gap.
    pub(crate) number: u64,
    /// Where.
    pub(crate) range: ByteRange,
    /// Whether it is known to be zero and need not be read.
    pub(crate) zero: bool,
}

/// The pieces of a device.
pub(crate) struct Pieces {
    walker: ExtentWalker,
    request_size: u64,
    stretch: Option<Stretch>,
    returned: Vec<Stretch>,
    number: u64,
}

impl Pieces {
    /// The pieces of `device` from 0 to `end`.
    pub(crate) fn new(device: Arc<dyn BlockDevice>, end: u64, plan: &Plan) -> Self {
        Self {
            walker: ExtentWalker::new(device, end, plan),
            request_size: u64::from(plan.request_size),
            stretch: None,
            returned: Vec::new(),
            number: 0,
        }
    }

    /// The next piece, as far as it is known. Zeroes come in whole segments, or in pieces of the
    /// request size when they will be `written`.
    pub(crate) fn next_piece(&mut self, written: bool) -> Option<Piece> {
        let stretch = self.stretch.take().or_else(|| self.returned.pop());
        let Stretch { range, zero } = stretch.or_else(|| self.walker.next_stretch())?;
        let unit = if zero && !written {
            SEGMENT
        } else {
            self.request_size
        };
        let to_segment = SEGMENT - range.start() % SEGMENT;
        let to_unit = unit - range.start() % unit;
        let (range, rest) = range.split_at(to_unit.min(to_segment));
        if !rest.is_empty() {
            self.stretch = Some(Stretch { range: rest, zero });
        }
        let number = self.number;
        self.number += 1;
        Some(Piece {
            number,
            range,
            zero,
        })
    }

    /// Takes back a piece of zeroes that was handed out, to hand it out again in smaller ones.
    pub(crate) fn put_back(&mut self, range: ByteRange) {
        self.returned.push(Stretch { range, zero: true });
    }

    /// Whether no piece will come any more.
    pub(crate) fn is_done(&self) -> bool {
        self.stretch.is_none() && self.returned.is_empty() && self.walker.is_done()
    }

    /// How many questions for extents were asked.
    pub(crate) fn extent_requests(&self) -> u64 {
        self.walker.requests()
    }

    /// Drives the walk on. Ready when more pieces may be known, with what should be told.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<Warning>> {
        self.walker.poll_answer(cx)
    }
}
