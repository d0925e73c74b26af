//! What the source knows of itself, asked ahead of the data.
//!
//! One question covers 1 GiB, more when the answers are short. While the answer to one is being copied the
//! next is under way; no more than these two are held. An answer that fails or makes no sense turns its
//! range into data. So does a question that takes longer than reading would: see [`ExtentWalker::hurry`].

use std::{
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
    vec,
};

use blockferry_block::{
    BlockDevice, BoxFuture, ByteRange, Context, Error, ErrorKind, Extent, Operation, Result,
};
use tokio::time::Instant;

use crate::{Warning, plan::Plan};

/// The first question's length in bytes, and the longest one's to a source whose answers are long.
const QUESTION: u64 = 1 << 30;
/// The longest question in bytes.
const LONGEST_QUESTION: u64 = 1 << 40;
/// An answer of so many stretches at most is short: the next question may be longer.
const FEW_STRETCHES: usize = 256;
/// How many questions in a row may go down with their connection before no more are asked.
const MOST_LOST: u32 = 2;
/// What is read as data first when waiting for an answer takes too long, in bytes; it doubles each time.
const HURRY: u64 = 64 << 20;
/// How many stretches of one answer are kept; what lies behind them is asked again later.
const MAX_STRETCHES: usize = 1 << 16;

/// Holes of so many bytes or fewer are read along with the data around them, where the zeroes are found
/// again afterwards: one long request beats many short ones.
const BRIDGE: u64 = 16 << 10;

/// What came of a question.
#[derive(Debug)]
pub(crate) enum Told {
    /// More is known.
    More,
    /// More is known, and something should be told about it.
    Warning(Warning),
    /// The connection was lost: the question is asked again where there is another one.
    Lost(Error),
}

/// A part of the image that is zero, or that must be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) range: ByteRange,
    pub(crate) zero: bool,
}

/// Walks over the image once, in order.
pub(crate) struct ExtentWalker {
    device: Arc<dyn BlockDevice>,
    /// Stretches begin and end at multiples of this, or at the end.
    alignment: u64,
    /// In what steps zeroes are looked for in what was read, if at all.
    granularity: Option<u64>,
    /// The end of the walk, in bytes.
    end: u64,
    /// Where the next question begins.
    asked: u64,
    /// How long the next question is at most.
    reach: u64,
    asking: bool,
    question: Option<Question>,
    current: vec::IntoIter<Stretch>,
    next: Option<Vec<Stretch>>,
    requests: u64,
    /// How many questions were lost with their connection since one was answered.
    lost: u32,
    /// Whether the handle is of no use any more.
    waiting: bool,
    warned: bool,
    /// How much was answered, and how long that took.
    answered: u64,
    answering: Duration,
    /// How much is taken as data the next time that an answer is not waited for.
    hurry: u64,
    /// Whether answers are kept, and the last one, where somebody wants to hear them.
    keeps_heard: bool,
    heard: Option<Vec<Extent>>,
}

/// A question that was asked.
struct Question {
    range: ByteRange,
    answer: BoxFuture<'static, Result<Vec<Extent>>>,
    since: Instant,
    /// What lies before this offset was taken as data without waiting for the answer.
    taken: u64,
}

impl ExtentWalker {
    /// A walk from 0 to `end`, as `plan` wants it.
    pub(crate) fn new(device: Arc<dyn BlockDevice>, end: u64, plan: &Plan) -> Self {
        let alignment = plan.alignment;
        Self {
            device,
            alignment: u64::from(alignment),
            granularity: plan.granularity.map(u64::from),
            end,
            asked: 0,
            reach: QUESTION.max(u64::from(alignment)),
            asking: plan.extents,
            question: None,
            current: Vec::new().into_iter(),
            next: None,
            requests: 0,
            lost: 0,
            waiting: false,
            warned: false,
            answered: 0,
            answering: Duration::ZERO,
            hurry: HURRY.max(u64::from(alignment)),
            keeps_heard: false,
            heard: None,
        }
    }

    /// Keeps each answer for [`take_heard`](Self::take_heard).
    pub(crate) fn note_extents(&mut self) {
        self.keeps_heard = true;
    }

    /// The last answer, once, where answers are kept: extents in order, within what was asked.
    pub(crate) fn take_heard(&mut self) -> Option<Vec<Extent>> {
        self.heard.take()
    }

    /// The next stretch, as far as it is known.
    pub(crate) fn next_stretch(&mut self) -> Option<Stretch> {
        if let Some(stretch) = self.current.next() {
            return Some(stretch);
        }
        if !self.asking && self.next.is_none() && self.question.is_none() {
            let range = ByteRange::between(self.asked, self.end);
            self.asked = self.end;
            return (!range.is_empty()).then_some(Stretch { range, zero: false });
        }
        self.current = self.next.take()?.into_iter();
        self.current.next()
    }

    /// Whether nothing will come any more.
    pub(crate) fn is_done(&self) -> bool {
        self.asked >= self.end
            && self.question.is_none()
            && self.next.is_none()
            && self.current.as_slice().is_empty()
    }

    /// The handle `lost` is of no use any more: `other` is asked from now on, also what was being asked.
    pub(crate) fn ask_instead(
        &mut self,
        lost: &Arc<dyn BlockDevice>,
        other: &Arc<dyn BlockDevice>,
    ) {
        if !Arc::ptr_eq(&self.device, lost) {
            return;
        }
        self.device = Arc::clone(other);
        self.waiting = false;
        if let Some(question) = self.question.take() {
            self.asked = self.asked.max(question.taken);
        }
    }

    /// The handle that is asked failed with `error`, and there is no other: nothing is asked any more.
    pub(crate) fn give_up(&mut self, error: Error) -> Option<Warning> {
        (self.asking, self.waiting) = (false, false);
        self.warning(error)
    }

    /// The handle that is asked.
    pub(crate) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// How many questions were asked.
    pub(crate) fn requests(&self) -> u64 {
        self.requests
    }

    /// Drives the questions on. Ready when an answer came, with what should be told about it.
    pub(crate) fn poll_answer(&mut self, cx: &mut TaskContext<'_>) -> Poll<Told> {
        self.ask();
        let Some(question) = &mut self.question else {
            return Poll::Pending;
        };
        let answer = std::task::ready!(question.answer.as_mut().poll(cx));
        let Some(question) = self.question.take() else {
            return Poll::Pending;
        };
        match answer {
            Err(error) if error.is_transient() && self.lost < MOST_LOST => {
                self.lost += 1;
                self.waiting = true;
                self.asked = self.asked.max(question.taken);
                Poll::Ready(Told::Lost(self.named(error, question.range)))
            }
            answer => Poll::Ready(match self.take_in(&question, answer) {
                Some(warning) => Told::Warning(warning),
                None => Told::More,
            }),
        }
    }

    /// The copy could do more than it knows of. Where the answers so far came at a lower rate than the
    /// `rate` at which data is moved, both in bytes of the image a second, the next part of the image is
    /// taken as data instead of waiting: true then.
    pub(crate) fn hurry(&mut self, rate: f64) -> bool {
        if self.next.is_some() || !self.current.as_slice().is_empty() {
            return false;
        }
        let could_be_moved = rate * self.answering.as_secs_f64();
        let is_slow = self.answered > 0 && (self.answered as f64) < could_be_moved;
        let Some(question) = self.question.as_mut().filter(|_| is_slow) else {
            return false;
        };
        let (range, _) = ByteRange::between(question.taken, self.end).split_at(self.hurry);
        self.hurry = self.hurry.saturating_mul(2);
        question.taken = range.end();
        if question.taken >= question.range.end() {
            // Its answer is of no use any more.
            self.asked = question.taken;
            self.question = None;
        }
        self.next = Some(vec![Stretch { range, zero: false }]);
        true
    }

    fn ask(&mut self) {
        let idle = self.question.is_none() && self.next.is_none();
        if !self.asking || self.waiting || !idle || self.asked >= self.end {
            return;
        }
        let range = ByteRange::between(self.asked, self.end)
            .split_at(self.reach)
            .0;
        let device = Arc::clone(&self.device);
        self.question = Some(Question {
            range,
            answer: Box::pin(async move { device.extents(range, &Context::Allocation).await }),
            since: Instant::now(),
            taken: range.start(),
        });
        self.requests += 1;
    }

    fn take_in(&mut self, question: &Question, answer: Result<Vec<Extent>>) -> Option<Warning> {
        let range = question.range;
        let (mut stretches, error) = match answer.and_then(|extents| self.heard(range, extents)) {
            Ok(stretches) => {
                self.lost = 0;
                (stretches, None)
            }
            Err(error) => {
                // Who cannot do it at all is not asked again, nor is who dies of it.
                self.asking = error.kind() != ErrorKind::Unsupported && self.lost < MOST_LOST;
                self.reach = QUESTION.max(self.alignment);
                let (range, _) = range.split_at(self.reach);
                (vec![Stretch { range, zero: false }], Some(error))
            }
        };
        let known = stretches
            .last()
            .map_or(range.end(), |last| last.range.end());
        if let Some(heard) = &mut self.heard {
            // What lies behind is asked again.
            heard.retain_mut(|extent| {
                let known = ByteRange::between(range.start(), known);
                extent.range = extent.range.intersection(known);
                !extent.range.is_empty()
            });
        }
        self.answered += known - range.start();
        self.answering += question.since.elapsed();
        self.asked = known.max(question.taken);
        let left = ByteRange::between(question.taken, self.asked);
        stretches.retain_mut(|stretch| {
            stretch.range = stretch.range.intersection(left);
            !stretch.range.is_empty()
        });
        match &mut self.next {
            // What was taken as data in a hurry was not even begun.
            Some(next) => next.extend(stretches),
            None => self.next = (!stretches.is_empty()).then_some(stretches),
        }

        self.warning(self.named(error?, range))
    }

    /// What should be told of `error`, the first time.
    fn warning(&mut self, error: Error) -> Option<Warning> {
        let first = !std::mem::replace(&mut self.warned, true);
        let endpoint = Arc::clone(&self.device.info().name);
        first.then_some(Warning::Extents { endpoint, error })
    }

    fn named(&self, error: Error, range: ByteRange) -> Error {
        let error = error.during(Operation::Extents);
        error
            .at(range.start(), range.len())
            .on(&self.device.info().name)
    }

    /// The same as [`stretches`](Self::stretches), and the answer is kept where somebody wants to hear it.
    fn heard(&mut self, range: ByteRange, extents: Vec<Extent>) -> Result<Vec<Stretch>> {
        let stretches = self.stretches(range, &extents)?;
        self.heard = self.keeps_heard.then_some(extents);
        Ok(stretches)
    }

    /// An answer to the question about `range` as aligned stretches from its start on: at least one.
    fn stretches(&mut self, range: ByteRange, extents: &[Extent]) -> Result<Vec<Stretch>> {
        let covered = check(range, extents)?;
        let mut stretches = Vec::new();
        let mut done = range.start();
        for run in zero_runs(extents) {
            let zero = self.aligned_within(run);
            if zero.is_empty() || self.is_bridged(done, zero) {
                continue;
            }
            if stretches.len() + 2 > MAX_STRETCHES {
                self.reach = (done - range.start()).max(self.alignment);
                return Ok(stretches);
            }
            push(
                &mut stretches,
                ByteRange::between(done, zero.start()),
                false,
            );
            push(&mut stretches, zero, true);
            done = zero.end();
        }
        let longest = match stretches.len() <= FEW_STRETCHES && covered >= range.end() {
            true => LONGEST_QUESTION,
            false => QUESTION.max(self.reach),
        };
        self.reach = (self.reach * 2).min(longest.max(self.alignment));
        let end = self.aligned_end(range, covered);
        push(&mut stretches, ByteRange::between(done, end), false);
        Ok(stretches)
    }

    /// Whether a hole behind data that begins at `data` is read along with it: when it is short, and
    /// where looking for zeroes will find just this hole again.
    fn is_bridged(&self, data: u64, hole: ByteRange) -> bool {
        let Some(granularity) = self.granularity else {
            return false;
        };
        let edges = [data, hole.start(), hole.end()];
        data < hole.start()
            && hole.len() <= BRIDGE
            && edges.iter().all(|edge| edge.is_multiple_of(granularity))
    }

    /// The part of a zero run that can be zeroed: a block that is partly data is data.
    fn aligned_within(&self, run: ByteRange) -> ByteRange {
        let aligned = run.aligned_within(self.alignment);
        if run.end() < self.end {
            return aligned;
        }
        // The image may end within a block, and that block may be all that the run has of it.
        match run.start().checked_next_multiple_of(self.alignment) {
            Some(start) => ByteRange::between(start, run.end()),
            None => aligned,
        }
    }

    /// Where an answer that covers its question up to `covered` is left, to go on with the next
    /// question: always behind the question's start.
    fn aligned_end(&self, range: ByteRange, covered: u64) -> u64 {
        if covered >= range.end() {
            return range.end();
        }
        let whole = covered - covered % self.alignment;
        // Less than a block: the block is data, so that the walk goes on.
        whole.max(range.start() + self.alignment).min(range.end())
    }
}

/// Where a valid answer ends; an error for an answer that breaks the rules.
fn check(range: ByteRange, extents: &[Extent]) -> Result<u64> {
    let mut end = range.start();
    for extent in extents {
        if extent.range.is_empty() || extent.range.start() != end {
            return Err(broken("the extents are not contiguous"));
        }
        end = extent.range.end();
    }
    if end > range.end() {
        return Err(broken("the extents go beyond the range asked for"));
    }
    if end == range.start() {
        return Err(broken("no extents in the answer"));
    }
    Ok(end)
}

fn broken(message: &str) -> Error {
    Error::with_message(ErrorKind::Protocol, message)
}

/// The longest zero runs of contiguous extents.
fn zero_runs(extents: &[Extent]) -> impl Iterator<Item = ByteRange> + '_ {
    let runs = extents.chunk_by(|a, b| a.status.is_zero() == b.status.is_zero());
    runs.filter_map(|run| match run {
        [first, .., last] if first.status.is_zero() => {
            Some(ByteRange::between(first.range.start(), last.range.end()))
        }
        [only] if only.status.is_zero() => Some(only.range),
        _ => None,
    })
}

fn push(stretches: &mut Vec<Stretch>, range: ByteRange, zero: bool) {
    if !range.is_empty() {
        stretches.push(Stretch { range, zero });
    }
}
