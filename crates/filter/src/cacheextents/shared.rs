//! What all handles of one export share: what is known, what is being asked, what is being changed.
//!
//! An answer tells of a moment between the question and its arrival, so what may be kept of it is what did not
//! change meanwhile. Each question that is under way has a list of the ranges in which its answer will be worth
//! nothing to anybody but the one who asked: those that were being changed when it began, and those of which a
//! change began since. A change forgets its range when it begins; nothing that is known of it comes back before it
//! has ended, and then only by questions that were asked after its end.
//!
//! A change that was given up, or was lost with its connection, may still happen: its range is not remembered for
//! a long while.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use blockferry_block::{ByteRange, Context, Extent, RangeSet, Result};
use tokio::{sync::watch, time::Instant};

use super::known::Known;

/// What is asked for at a time at first, in bytes.
const FIRST_WINDOW: u64 = 256 << 20;

/// So many extents are taken in before others get a turn at what is shared.
const BATCH: usize = 4096;

/// A source that offers more contexts than this is asked each time for the others.
const MOST_CONTEXTS: usize = 64;

/// An answer is not kept at all when so many places changed while it was on its way.
const MOST_UNUSABLE: usize = 1024;

/// How long a change that was lost is waited for.
const LOST: Duration = Duration::from_secs(600);

/// Of how many lost changes each one's own range is kept; of more, one around them all.
const MOST_LOST: usize = 256;

/// What the handles of one export share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// How many extents are kept at most.
    entries: usize,
    /// How much is asked for at a time at most, in bytes.
    window: u64,
    state: Mutex<State>,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) source_calls: AtomicU64,
    prefetches: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The size of the device that everything is known of; of devices of other sizes nothing is.
    size: Option<u64>,
    contexts: Vec<InContext>,
    questions: HashMap<u64, Question>,
    /// What is being changed.
    changes: HashMap<u64, ByteRange>,
    /// What may still be changed by a change that was lost, and until when that is waited for.
    lost: Vec<(ByteRange, Instant)>,
    /// Of questions and changes.
    next_id: u64,
    /// Where the last question began.
    focus: u64,
    is_asking_ahead: bool,
}

/// What is known in one context.
#[derive(Debug)]
struct InContext {
    context: Context,
    known: Known,
    /// Where a client has to come to for more to be asked for: it went over what lies in front in order.
    ahead: Option<u64>,
    /// Where a long question failed; short ones may not.
    trouble: ByteRange,
}

/// A question that is under way.
#[derive(Debug)]
struct Question {
    context: Context,
    range: ByteRange,
    /// Where its answer is not kept.
    unusable: RangeSet,
    /// Its answer is not kept at all.
    is_void: bool,
    outcome: watch::Sender<Outcome>,
}

/// What became of a question, for those who wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is under way.
    Pending,
    /// It was answered.
    Answered,
    /// It failed.
    Failed,
    /// Whoever asked went away.
    GivenUp,
}

/// A client's question.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) range: ByteRange,
    pub(super) context: &'a Context,
    /// The size of the device that is asked, in bytes.
    pub(super) size: u64,
    /// Its smallest block, in bytes.
    pub(super) block: u64,
}

/// How a question may be answered.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// By waiting for another one's.
    pub(super) wait: bool,
    /// By one about more.
    pub(super) widen: bool,
}

/// What to do about a question.
pub(super) enum Next {
    /// It is answered.
    Known(Vec<Extent>),
    /// Another one is under way that may answer it.
    Wait(Waiting),
    /// The source is to be asked this.
    Ask(Asking),
    /// The source is to be asked, and the answer not kept.
    Pass,
}

impl Shared {
    pub(super) fn new(entries: usize, window: u64) -> Self {
        Self {
            entries,
            window,
            state: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            source_calls: AtomicU64::new(0),
            prefetches: AtomicU64::new(0),
        }
    }

    pub(super) fn counts(&self) -> Vec<(&'static str, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("hits", count(&self.hits)),
            ("misses", count(&self.misses)),
            ("source_calls", count(&self.source_calls)),
            ("prefetches", count(&self.prefetches)),
            ("entries", self.state().entries() as u64),
        ]
    }

    /// The most extents that an answer of the source is worth.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// A device of `size` bytes was opened: what is known of another size is not true any more.
    pub(super) fn opened(&self, size: u64) {
        let mut state = self.state();
        if state.size != Some(size) {
            state.forget();
            state.size = Some(size);
        }
    }

    /// `range` begins to be changed: nothing is known of it until that has ended.
    pub(super) fn change(self: &Arc<Self>, range: ByteRange) -> Change {
        self.begin_change(range, false)
    }

    /// The size begins to be changed: nothing is known until that has ended and a device is opened after it.
    pub(super) fn resize(self: &Arc<Self>) -> Change {
        self.begin_change(ByteRange::between(0, u64::MAX), true)
    }

    fn begin_change(self: &Arc<Self>, range: ByteRange, resizes: bool) -> Change {
        let mut state = self.state();
        for context in &mut state.contexts {
            context.known.remove(range);
        }
        for question in state.questions.values_mut() {
            question.spoil(range);
        }
        // What was one extent may be two now.
        state.evict(self.entries);
        let id = state.id();
        state.changes.insert(id, range);
        Change {
            shared: Arc::clone(self),
            id,
            range,
            resizes,
            is_settled: false,
        }
    }

    /// What to do about what is wanted.
    pub(super) fn look(self: &Arc<Self>, wanted: Wanted<'_>, manner: Manner) -> Next {
        let Wanted { range, context, .. } = wanted;
        let mut state = self.state();
        if state.size != Some(wanted.size) || range.end() > wanted.size {
            return Next::Pass;
        }
        let Some(index) = state.index_of(context) else {
            return Next::Pass;
        };
        state.focus = range.start();
        let known = state.contexts[index].known.answer(range);
        if !known.is_empty() {
            return Next::Known(known);
        }
        if manner.wait
            && let Some(question) = state.question_about(context, range.start())
            && question.unusable.range_at(range.start()).is_none()
        {
            return Next::Wait(Waiting(question.outcome.subscribe()));
        }
        let (question, walks) = match manner.widen && !state.contexts[index].is_trouble(range) {
            true => self.widened(&state.contexts[index].known, range, wanted),
            false => (self.narrowed(range, wanted), false),
        };
        Next::Ask(self.begin(&mut state, context, question, Purpose::Answer { walks }))
    }

    /// What to ask for beyond what a client has come to, if it is time to.
    pub(super) fn look_ahead(self: &Arc<Self>, wanted: Wanted<'_>) -> Option<Asking> {
        let Wanted { range, context, .. } = wanted;
        let mut state = self.state();
        if state.is_asking_ahead || state.size != Some(wanted.size) {
            return None;
        }
        let index = state.index_of(context)?;
        let at = range.start();
        let place = &mut state.contexts[index];
        place.ahead.filter(|marker| *marker <= at)?;
        let end = place.known.range_at(at)?.end();
        place.ahead = None;
        if end >= wanted.size || place.is_trouble(ByteRange::between(end, wanted.size)) {
            return None;
        }
        let rest = ByteRange::between(end, end.saturating_add(1));
        let (question, walks) = self.widened(&place.known, rest, wanted);
        if !walks || state.question_about(context, end).is_some() {
            return None;
        }
        state.is_asking_ahead = true;
        self.prefetches.fetch_add(1, Ordering::Relaxed);
        Some(self.begin(&mut state, context, question, Purpose::Ahead))
    }

    /// A question for more than `range`, at the start of which nothing is known, and whether it goes on where
    /// others ended, into what is not known.
    fn widened(&self, known: &Known, range: ByteRange, wanted: Wanted<'_>) -> (ByteRange, bool) {
        let before = range.start().checked_sub(1);
        let before = before.and_then(|last| known.range_at(last));
        let window = self.window.max(wanted.block);
        // What is known without a gap grows by as much again.
        let reach = before.map_or(0, ByteRange::len).max(FIRST_WINDOW);
        let length = reach.max(range.len()).min(window);
        let end = range.start().saturating_add(length);
        let whole = aligned(range.start(), end, wanted.block, wanted.size);
        match known.range_at(whole.end().saturating_sub(1)) {
            None => (whole, before.is_some()),
            // Only a gap.
            Some(behind) => {
                let gap = aligned(range.start(), behind.start(), wanted.block, wanted.size);
                (gap, false)
            }
        }
    }

    /// A question for `range` itself, or its beginning if it is too long.
    fn narrowed(&self, range: ByteRange, wanted: Wanted<'_>) -> ByteRange {
        let end = range
            .start()
            .saturating_add(self.window.max(wanted.block))
            .checked_next_multiple_of(wanted.block);
        range
            .split_at(end.map_or(u64::MAX, |end| end - range.start()))
            .0
    }

    fn begin(
        self: &Arc<Self>,
        state: &mut State,
        context: &Context,
        range: ByteRange,
        purpose: Purpose,
    ) -> Asking {
        let mut question = Question {
            context: context.clone(),
            range,
            unusable: RangeSet::new(),
            is_void: false,
            outcome: watch::channel(Outcome::Pending).0,
        };
        let now = Instant::now();
        state.lost.retain(|(_, until)| *until > now);
        let lost = state.lost.iter().map(|(range, _)| *range);
        for change in state.changes.values().copied().chain(lost) {
            question.spoil(change);
        }
        let id = state.id();
        state.questions.insert(id, question);
        Asking {
            shared: Arc::clone(self),
            id,
            range,
            purpose,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From `start` to `end`, outwards to whole blocks, up to the end of a device of `size` bytes.
fn aligned(start: u64, end: u64, block: u64, size: u64) -> ByteRange {
    let end = end.checked_next_multiple_of(block).unwrap_or(size);
    ByteRange::between(start - start % block, end.min(size))
}

impl State {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn entries(&self) -> usize {
        self.contexts.iter().map(|place| place.known.len()).sum()
    }

    /// Where what is known in `context` is, unless there are too many.
    fn index_of(&mut self, context: &Context) -> Option<usize> {
        let places = &mut self.contexts;
        if let Some(index) = places.iter().position(|place| place.context == *context) {
            return Some(index);
        }
        if places.len() >= MOST_CONTEXTS {
            return None;
        }
        places.push(InContext {
            context: context.clone(),
            known: Known::default(),
            ahead: None,
            trouble: ByteRange::default(),
        });
        Some(places.len() - 1)
    }

    /// A question that is under way whose answer may tell of `offset`.
    fn question_about(&self, context: &Context, offset: u64) -> Option<&Question> {
        let mut questions = self.questions.values();
        questions.find(|question| {
            let range = question.range;
            !question.is_void
                && range.start() <= offset
                && offset < range.end()
                && question.context == *context
        })
    }

    /// Forgets everything, also what is on its way.
    fn forget(&mut self) {
        self.size = None;
        self.contexts.clear();
        for question in self.questions.values_mut() {
            question.is_void = true;
        }
    }

    /// Forgets what lies farthest from the last question until `most` extents are left.
    fn evict(&mut self, most: usize) {
        let mut count = self.entries();
        let focus = self.focus;
        while count > most {
            let places = self.contexts.iter_mut();
            let farthest = places.max_by_key(|place| place.known.farthest(focus));
            let Some(place) = farthest else {
                return;
            };
            place.known.evict(focus);
            count -= 1;
        }
    }
}

impl InContext {
    /// Whether a long question from the start of `range` on failed.
    fn is_trouble(&self, range: ByteRange) -> bool {
        self.trouble.start() <= range.start() && range.start() < self.trouble.end()
    }
}

impl Question {
    /// What it is told of `range` is not kept.
    fn spoil(&mut self, range: ByteRange) {
        self.unusable.insert(range.intersection(self.range));
        if self.unusable.count() > MOST_UNUSABLE {
            self.is_void = true;
            self.unusable = RangeSet::new();
        }
    }

    /// The parts of `extents` that are kept, those without a gap together.
    fn usable(&self, extents: &[Extent]) -> Vec<Vec<Extent>> {
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else {
            return Vec::new();
        };
        let whole = ByteRange::between(first.range.start(), last.range.end());
        let parts = self.unusable.missing_in(whole).into_iter();
        parts.map(|part| clipped(extents, part)).collect()
    }
}

/// What `extents` say of `range`.
pub(super) fn clipped(extents: &[Extent], range: ByteRange) -> Vec<Extent> {
    let first = extents.partition_point(|extent| extent.range.end() <= range.start());
    let parts = extents[first..].iter().map(|extent| Extent {
        range: extent.range.intersection(range),
        status: extent.status,
    });
    parts
        .take_while(|extent| !extent.range.is_empty())
        .collect()
}

/// What a question is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A client waits for its answer; whether that goes over the device in order.
    Answer { walks: bool },
    /// Nobody has asked for it yet.
    Ahead,
}

/// A question for the source. Dropping it gives it up: those who wait for it ask themselves.
pub(super) struct Asking {
    shared: Arc<Shared>,
    id: u64,
    range: ByteRange,
    purpose: Purpose,
}

impl Asking {
    /// What is asked for.
    pub(super) fn range(&self) -> ByteRange {
        self.range
    }

    /// Takes in an answer: each extent begins where the one before it ends, the first one where the question does.
    pub(super) fn answered(self, extents: &[Extent]) {
        for batch in extents.chunks(BATCH) {
            let mut state = self.shared.state();
            let Some(question) = state.questions.get(&self.id) else {
                break;
            };
            if question.is_void {
                break;
            }
            let (parts, context) = (question.usable(batch), question.context.clone());
            let Some(index) = state.index_of(&context) else {
                break;
            };
            for part in parts {
                state.contexts[index].known.insert(&part);
            }
            state.evict(self.shared.entries);
        }
        let end = extents.last().map_or(0, |last| last.range.end());
        self.end(Outcome::Answered, |place, range, purpose| {
            if place.trouble.start() <= range.start() && range.start() < place.trouble.end() {
                place.trouble = ByteRange::between(end, place.trouble.end());
            }
            if purpose != (Purpose::Answer { walks: false }) {
                place.ahead = Some(range.start());
            }
        });
    }

    /// The source failed.
    pub(super) fn failed(self) {
        self.end(Outcome::Failed, |place, range, _| place.trouble = range);
    }

    fn end(&self, outcome: Outcome, note: impl FnOnce(&mut InContext, ByteRange, Purpose)) {
        let mut state = self.shared.state();
        let Some(question) = state.questions.remove(&self.id) else {
            return;
        };
        if !question.is_void
            && let Some(index) = state.index_of(&question.context)
        {
            note(&mut state.contexts[index], self.range, self.purpose);
        }
        drop(state);
        question.outcome.send_replace(outcome);
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.end(Outcome::GivenUp, |_, _, _| {});
        if self.purpose == Purpose::Ahead {
            self.shared.state().is_asking_ahead = false;
        }
    }
}

/// Waits for another one's question.
pub(super) struct Waiting(watch::Receiver<Outcome>);

impl Waiting {
    /// What became of it.
    pub(super) async fn outcome(mut self) -> Outcome {
        let over = self.0.wait_for(|outcome| *outcome != Outcome::Pending);
        over.await.map_or(Outcome::GivenUp, |outcome| *outcome)
    }
}

/// A change that has begun. Dropping it ends it, as lost unless it was [settled](Self::settled).
pub(super) struct Change {
    shared: Arc<Shared>,
    id: u64,
    range: ByteRange,
    resizes: bool,
    is_settled: bool,
}

impl Change {
    /// The source has answered it, so it will not happen later.
    pub(super) fn settled<T>(mut self, result: &Result<T>) {
        self.is_settled = match result {
            Ok(_) => true,
            Err(error) => !error.is_transient(),
        };
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.changes.remove(&self.id);
        if self.resizes {
            // Also what was opened with the size as it was.
            state.forget();
        }
        if self.is_settled || self.range.is_empty() {
            return;
        }
        let now = Instant::now();
        state.lost.retain(|(_, until)| *until > now);
        let mut range = self.range;
        if state.lost.len() >= MOST_LOST {
            for (other, _) in state.lost.drain(..) {
                let start = range.start().min(other.start());
                range = ByteRange::between(start, range.end().max(other.end()));
            }
        }
        state.lost.push((range, now + LOST));
    }
}
