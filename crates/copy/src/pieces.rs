//! The image cut into pieces, each one request's worth.
//!
//! Workers take the image in segments, in order; what is known of a segment when it is taken is its worker's alone, so
//! no two of them touch the same block. A single worker's pieces come in the image's order.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{BlockDevice, ByteRange, Error, Extent, RangeSet};

use crate::{
    Warning,
    extents::{ExtentWalker, Stretch, Told},
    plan::{Plan, SEGMENT},
    unflushed::{Again, Unflushed},
};

/// A part of the image that is moved as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Pieces are numbered as they are handed out, from 0 on without a gap: one worker's in the order
    /// of the image.
    pub(crate) number: u64,
    /// Where.
    pub(crate) range: ByteRange,
    /// Whether it is known to be zero and need not be read.
    pub(crate) zero: bool,
    /// Whose it is.
    pub(crate) worker: usize,
    /// What is to be done with it.
    pub(crate) task: Task,
}

/// What is to be done with a part of the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Task {
    /// It is copied, and counted as done then.
    #[default]
    Copy,
    /// It was counted as done, and is written again: it may have been lost since.
    CopyAgain,
    /// It was done before the copy began: it is read only, for what is to be known of the whole image.
    LookAt,
}

/// How the next piece is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// The longest piece of data, in bytes.
    pub(crate) request_size: u32,
    /// Whether zeroes will be written, so that they are no longer either.
    pub(crate) zeroes_written: bool,
}

/// The pieces of a device.
pub(crate) struct Pieces {
    walker: ExtentWalker,
    segment: u64,
    /// What is left of each worker's segment.
    workers: Vec<VecDeque<(Stretch, Task)>>,
    /// The part of a stretch that lies behind the last segment that was taken.
    rest: Option<Stretch>,
    /// Pieces to be done again as they are.
    failed: Vec<Piece>,
    /// What is to be done again, in smaller pieces.
    again: Vec<(Stretch, Task)>,
    /// What was done before the copy began.
    done: RangeSet,
    /// Whether that is to be looked at.
    look_at_done: bool,
    number: u64,
}

impl Pieces {
    /// The pieces of `device` from 0 to `end`, without those that are `done`.
    pub(crate) fn new(device: Arc<dyn BlockDevice>, end: u64, plan: &Plan, done: RangeSet) -> Self {
        Self {
            walker: ExtentWalker::new(device, end, plan),
            segment: plan.segment,
            workers: Vec::new(),
            rest: None,
            failed: Vec::new(),
            again: Vec::new(),
            done,
            look_at_done: plan.digest.is_some() || plan.sum_block.is_some(),
            number: 0,
        }
    }

    /// The next piece of `worker`, as far as it is known.
    pub(crate) fn next_piece(&mut self, worker: usize, cut: Cut) -> Option<Piece> {
        let (part, again) = match self.again.pop() {
            Some(part) => (part, true),
            None => (self.next_part(worker)?, false),
        };
        let (Stretch { range, zero }, task) = part;
        let unit = if zero && !cut.zeroes_written {
            SEGMENT
        } else {
            u64::from(cut.request_size)
        };
        let to_segment = SEGMENT - range.start() % SEGMENT;
        let to_unit = unit - range.start() % unit;
        let (range, rest) = range.split_at(to_unit.min(to_segment));
        if !rest.is_empty() {
            let rest = (Stretch { range: rest, zero }, task);
            match again {
                true => self.again.push(rest),
                false => self.workers[worker].push_front(rest),
            }
        }
        let number = self.number;
        self.number += 1;
        Some(Piece {
            number,
            range,
            zero,
            worker,
            task,
        })
    }

    /// A piece that is to be done again as it is, with its number.
    pub(crate) fn next_failed(&mut self) -> Option<Piece> {
        self.failed.pop()
    }

    /// Takes back a part of the image that was handed out, to hand it out again in smaller pieces. Only
    /// where the order does not matter.
    pub(crate) fn put_back_whole(&mut self, range: ByteRange, zero: bool, task: Task) {
        self.again.push((Stretch { range, zero }, task));
    }

    /// Takes back what was done and may have been lost since.
    pub(crate) fn put_back_done(&mut self, unflushed: Unflushed) {
        for Again { range, zero } in unflushed.into_parts() {
            self.put_back_whole(range, zero, Task::CopyAgain);
        }
    }

    /// Takes back a piece whose connection was lost, to hand it out again as it is: with its number.
    pub(crate) fn put_back(&mut self, piece: Piece) {
        self.failed.push(piece);
    }

    /// Whether no piece will come any more.
    pub(crate) fn is_done(&self) -> bool {
        !self.has_any() && self.walker.is_done()
    }

    /// Has `other` asked for extents instead of the handle `lost`, if that was asked.
    pub(crate) fn ask_instead(
        &mut self,
        lost: &Arc<dyn BlockDevice>,
        other: &Arc<dyn BlockDevice>,
    ) {
        self.walker.ask_instead(lost, other);
    }

    /// The handle that is asked for extents failed for good: the rest of the image is data.
    pub(crate) fn ask_no_more(&mut self, error: Error) -> Option<Warning> {
        self.walker.give_up(error)
    }

    /// The handle that is asked for extents.
    pub(crate) fn asked(&self) -> &Arc<dyn BlockDevice> {
        self.walker.device()
    }

    /// Keeps what the device answers for [`take_heard`](Self::take_heard).
    pub(crate) fn note_extents(&mut self) {
        self.walker.note_extents();
    }

    /// The last answer to a question for extents, once, where answers are kept.
    pub(crate) fn take_heard(&mut self) -> Option<Vec<Extent>> {
        self.walker.take_heard()
    }

    /// How many questions for extents were asked.
    pub(crate) fn extent_requests(&self) -> u64 {
        self.walker.requests()
    }

    /// Drives the walk on. Ready when more pieces may be known, with what should be told.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Told> {
        self.walker.poll_answer(cx)
    }

    /// There is room for more pieces, while data moves at `rate` bytes a second: true when nothing was known
    /// and there are pieces now, because reading is faster than asking.
    pub(crate) fn hurry(&mut self, rate: f64) -> bool {
        !self.has_any() && self.walker.hurry(rate)
    }

    /// Whether anything is left of what was taken from the walk.
    fn has_any(&self) -> bool {
        let again = !self.failed.is_empty() || !self.again.is_empty();
        again || self.rest.is_some() || self.workers.iter().any(|queue| !queue.is_empty())
    }

    fn next_part(&mut self, worker: usize) -> Option<(Stretch, Task)> {
        if self.workers.len() <= worker {
            self.workers.resize_with(worker + 1, VecDeque::new);
        }
        // A segment may be done wholly, or known only in part.
        while self.workers[worker].is_empty() && self.take_segment(worker) {}
        self.workers[worker].pop_front()
    }

    /// Gives `worker` what is known of the next segment and not done. False when nothing is known.
    fn take_segment(&mut self, worker: usize) -> bool {
        let mut end = None;
        while let Some(stretch) = self.rest.take().or_else(|| self.walker.next_stretch()) {
            let start = stretch.range.start();
            let end = *end.get_or_insert(start - start % self.segment + self.segment);
            let (inside, beyond) = stretch.range.split_at(end.saturating_sub(start));
            let zero = stretch.zero;
            let mut position = start;
            let end_of_it = ByteRange::between(inside.end(), inside.end());
            let missing = self.done.missing_in(inside).into_iter().chain([end_of_it]);
            for range in missing {
                let done = ByteRange::between(position, range.start());
                if self.look_at_done && !done.is_empty() {
                    let done = Stretch { range: done, zero };
                    self.workers[worker].push_back((done, Task::LookAt));
                }
                if !range.is_empty() {
                    self.workers[worker].push_back((Stretch { range, zero }, Task::Copy));
                }
                position = range.end();
            }
            if !beyond.is_empty() {
                let beyond = Stretch {
                    range: beyond,
                    zero,
                };
                self.rest = Some(beyond);
                break;
            }
        }
        end.is_some()
    }
}
