//! When the destination is flushed while the copy runs, and what is noted as done.
//!
//! A destination that is reached through a connection may lose what it did not flush when its server
//! dies. So it is flushed now and then, each connection for itself: what was acknowledged on it before is
//! done for good, and need not be written again whatever happens. With a checkpoint that is noted, too.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use blockferry_block::{BoxFuture, Error, Result};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use super::Engine;
use crate::{
    Checkpoint, CopyError, Done, Event, How, SaveDone, Side, Warning,
    lanes::LaneId,
    pieces::{Piece, Task},
    unflushed::Unflushed,
};

/// The shortest time between two flushes for a checkpoint.
const LEAST_PAUSE: Duration = Duration::from_millis(50);

/// Flushes that are under way, and what they made durable.
pub(crate) struct Durable {
    interval: Option<Duration>,
    begun: Instant,
    /// When the last flush was begun.
    last: Instant,
    flushing: FuturesUnordered<BoxFuture<'static, (LaneId, Result<bool>)>>,
    /// Whether the destination has no such thing as a flush.
    unsupported: bool,
    /// How many bytes are to be written again since there is no connection.
    lost: u64,
    checkpoint: Option<Noted>,
}

/// What is noted.
struct Noted {
    done: Done,
    save: Arc<dyn SaveDone>,
    saving: Option<BoxFuture<'static, Result<()>>>,
    /// Whether more was done since it was last noted.
    more: bool,
    warned: bool,
}

/// What became of a flush, or of noting what is done.
pub(crate) enum News {
    Flushed(LaneId, Result<bool>),
    Saved(Result<()>),
}

impl Durable {
    /// Nothing was written yet.
    pub(crate) fn new(interval: Option<Duration>, checkpoint: Option<&Checkpoint>) -> Self {
        let now = Instant::now();
        Self {
            interval,
            begun: now,
            last: now,
            flushing: FuturesUnordered::new(),
            unsupported: false,
            lost: 0,
            checkpoint: checkpoint.map(|checkpoint| Noted {
                done: checkpoint.done.clone(),
                save: Arc::clone(&checkpoint.save),
                saving: None,
                more: false,
                warned: false,
            }),
        }
    }

    /// Ready when a flush has ended, or what is done was noted.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<News> {
        if let Poll::Ready(Some((lane, result))) = self.flushing.poll_next_unpin(cx) {
            return Poll::Ready(News::Flushed(lane, result));
        }
        let Some(noted) = &mut self.checkpoint else {
            return Poll::Pending;
        };
        let Some(saving) = &mut noted.saving else {
            return Poll::Pending;
        };
        let saved = std::task::ready!(saving.as_mut().poll(cx));
        noted.saving = None;
        Poll::Ready(News::Saved(saved))
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        let saving = self
            .checkpoint
            .as_ref()
            .is_some_and(|it| it.saving.is_some());
        self.flushing.is_empty() && !saving
    }

    /// How long after the last flush the next one is due. With a checkpoint it comes soon in the beginning: what
    /// is lost with a copy that is killed is never much of it.
    fn pause(&self) -> Option<Duration> {
        let interval = self.interval?;
        if self.checkpoint.is_none() {
            return Some(interval);
        }
        let share = (self.last - self.begun) / 8;
        Some(share.max(LEAST_PAUSE).min(interval))
    }

    /// What was written has to be written again.
    pub(super) fn note_lost(&mut self, unflushed: &Unflushed) {
        self.lost += unflushed.len();
    }

    /// How many bytes have to be written again since this was asked last.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn note_durable(&mut self, flushed: &Unflushed) {
        let Some(noted) = &mut self.checkpoint else {
            return;
        };
        let before = noted.done.ranges.len();
        noted.done.ranges.extend(flushed.ranges());
        let (data, zero) = flushed.moved();
        // Where something was done twice the sum goes with what there is.
        let new = noted.done.ranges.len() - before;
        let data = data.min(new);
        debug_assert!(data + zero >= new);
        noted.done.data += data;
        noted.done.zero += new - data;
        noted.more |= new > 0;
    }

    /// Begins to note what is done, where there is something new.
    fn save(&mut self) {
        if let Some(noted) = &mut self.checkpoint
            && noted.more
            && noted.saving.is_none()
        {
            noted.more = false;
            noted.saving = Some(noted.save.save(&noted.done));
        }
    }
}

impl Engine<'_> {
    /// A piece is stored.
    pub(super) fn note_done(&mut self, piece: Piece, lane: LaneId, data: u64, zero: u64) {
        if self.durable.interval.is_some()
            && let Some(output) = self.output.device()
        {
            output.lanes.note_written(lane);
            let known_zero = piece.zero;
            match output.lanes.unflushed(lane) {
                Some(unflushed) => unflushed.add(piece.range, known_zero, data, zero),
                // It was acknowledged by a connection that was lost meanwhile.
                None => {
                    if piece.task == Task::Copy {
                        self.count_piece(piece, zero);
                    }
                    let task = Task::CopyAgain;
                    return self.put_back_whole(Piece { task, ..piece });
                }
            }
        }
        if piece.task == Task::Copy {
            self.achieved(Side::Destination, lane);
            self.count_piece(piece, zero);
        }
    }

    fn count_piece(&mut self, piece: Piece, zero: u64) {
        let how = match piece.zero {
            true => How::KnownZero,
            false => How::Moved { zero },
        };
        self.count_part(piece.range, how);
    }

    /// When the destination is to be flushed next, if there will be something to flush.
    pub(super) fn flush_due(&mut self) -> Option<Instant> {
        let pause = self.durable.pause();
        let pause = pause.filter(|_| !self.durable.unsupported && self.durable.is_idle())?;
        let output = self.output.device()?;
        let wanted = output.lanes.to_flush().is_some();
        wanted.then(|| self.durable.last + pause)
    }

    /// Begins the flushes that are due.
    pub(super) fn begin_flushes(&mut self) {
        let now = Instant::now();
        if self.failure.is_some() || self.flush_due().is_none_or(|due| due > now) {
            return;
        }
        self.flush_all();
    }

    /// Takes in what became of a flush, or of noting what is done.
    pub(super) fn durable(&mut self, news: News) {
        match news {
            News::Flushed(lane, Ok(flushed)) => {
                let Some(output) = self.output.device() else {
                    return;
                };
                let done = output.lanes.flushed(lane);
                self.durable.unsupported |= !flushed;
                if flushed {
                    self.durable.note_durable(&done);
                }
                if self.durable.flushing.is_empty() {
                    self.durable.save();
                }
            }
            News::Flushed(lane, Err(error)) => {
                if !error.is_transient() || !self.lose(Side::Destination, lane, &error) {
                    self.fail(CopyError::new(Side::Destination, error));
                }
            }
            News::Saved(Ok(())) => {}
            News::Saved(Err(error)) => self.not_saved(error),
        }
    }

    /// Makes all that was written durable, through each connection that wrote. `None` when a connection was
    /// lost on the way: there may be more to write first. Otherwise whether the destination has such a thing.
    pub(crate) async fn flush(&mut self) -> Result<Option<bool>, CopyError> {
        self.observer.event(Event::Flushing);
        if self.output.device().is_none() {
            let done = self.output.flush_stream().await;
            done.map_err(|error| CopyError::new(Side::Destination, error).after(self.progress))?;
            return Ok(Some(true));
        }
        self.stand(Side::Destination).await?;
        if !self.input.is_done() {
            return Ok(None);
        }
        let redoes = self.input.device().is_some() && self.durable.interval.is_some();
        self.flush_all();
        if self.durable.flushing.is_empty()
            && let Some(output) = self.output.device()
        {
            let lane = output.lanes.of_owner(0);
            let flush = output.flush(lane);
            self.durable.flushing.push(flush);
        }
        let (mut supported, mut lost) = (true, None);
        while let Some((lane, result)) = self.durable.flushing.next().await {
            match result {
                Ok(flushed) => {
                    supported &= flushed;
                    self.durable(News::Flushed(lane, Ok(flushed)));
                }
                Err(error) => {
                    if !error.is_transient() || !self.lose(Side::Destination, lane, &error) {
                        return Err(CopyError::new(Side::Destination, error).after(self.progress));
                    }
                    lost = Some(error);
                }
            }
        }
        if let Some(error) = lost {
            // What went through a lost connection is covered by the flush of any other, if the server still
            // runs. Where it can be written again that is done instead.
            let down = self.output.is_down();
            return match (redoes, down) {
                (true, _) => Ok(None),
                (false, false) => Ok(Some(supported)),
                (false, true) => Err(CopyError::new(Side::Destination, error).after(self.progress)),
            };
        }
        Ok(Some(supported))
    }

    /// Makes durable what there is of a copy that did not come to its end, as far as that can be done, and
    /// notes it.
    pub(crate) async fn leave(&mut self) {
        if self.output.is_down() || self.output.device().is_none() {
            return;
        }
        // What was acknowledged since a flush began is not covered by it: that one ends first.
        self.end_flushes().await;
        self.flush_all();
        self.end_flushes().await;
        self.save_all().await;
    }

    /// Waits for the flushes that are under way, and takes in those that end well.
    async fn end_flushes(&mut self) {
        while let Some((lane, result)) = self.durable.flushing.next().await {
            if result.is_ok() {
                self.durable(News::Flushed(lane, result));
            }
        }
    }

    /// Notes what is done.
    async fn save_all(&mut self) {
        loop {
            let saving = match &mut self.durable.checkpoint {
                Some(noted) => noted.saving.take(),
                None => return,
            };
            match saving {
                Some(saving) => {
                    if let Err(error) = saving.await {
                        return self.not_saved(error);
                    }
                }
                None => {
                    self.durable.save();
                    let begun = self.durable.checkpoint.as_ref();
                    if begun.is_none_or(|noted| noted.saving.is_none()) {
                        return;
                    }
                }
            }
        }
    }

    fn flush_all(&mut self) {
        self.durable.last = Instant::now();
        let Some(output) = self.output.device() else {
            return;
        };
        while let Some(lane) = output.lanes.to_flush() {
            let flush = output.flush(lane);
            self.durable.flushing.push(flush);
        }
    }

    fn not_saved(&mut self, error: Error) {
        let first = match &mut self.durable.checkpoint {
            Some(noted) => !std::mem::replace(&mut noted.warned, true),
            None => false,
        };
        if first {
            self.warn(Warning::Checkpoint { error });
        }
    }
}
