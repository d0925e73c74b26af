//! Connections that are lost, and opened again.
//!
//! What a lost connection had in flight is done again: reading twice harms nobody, nor does writing the
//! same bytes to the same place. What went through it and was not flushed may be lost with its server, so
//! that is written again, too, unless the source is a stream, which cannot be read twice. While a side
//! has no connection nothing is begun.

use std::{
    future::Future,
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{BlockDevice, Error, Result};

use super::Engine;
use crate::{
    CopyError, Event, Side, Warning,
    extents::Told,
    lanes::{Joining, LaneId, Lanes, Loss, Next},
    pieces::Piece,
    transfer::Target,
    unflushed::Unflushed,
};

impl Engine<'_> {
    /// A piece failed on its way.
    pub(super) fn failed(&mut self, side: Side, piece: Piece, lane: LaneId, error: Error) {
        let device = self.input.device().is_some();
        let heals = error.is_transient() && device && self.lose(side, lane, &error);
        if !heals {
            self.fail(CopyError::new(side, error));
        } else if let (true, Some(input)) = (self.plan.in_order, self.input.device()) {
            input.pieces.put_back(piece);
        } else {
            // It may have been cut longer than what is read or written at once.
            self.put_back_whole(piece);
        }
    }

    /// What came of a question for extents.
    pub(super) fn told(&mut self, told: Told) {
        match told {
            Told::More => {
                let heard = self.input.device().and_then(|it| it.pieces.take_heard());
                if let Some(extents) = heard {
                    self.observer.event(Event::Extents(extents.into()));
                }
            }
            Told::Warning(warning) => self.warn(warning),
            Told::Lost(error) => {
                let Some(input) = self.input.device() else {
                    return;
                };
                let asked = Arc::clone(input.pieces.asked());
                match input.lanes.find(&asked) {
                    Some(lane) if input.lanes.can_do_without(lane) => {
                        self.lose(Side::Source, lane, &error);
                    }
                    // Reading will show whether it is of any use.
                    Some(_) => {
                        if let Some(warning) = input.pieces.ask_no_more(error) {
                            self.warn(warning);
                        }
                    }
                    // That handle is gone already, and another one has its place.
                    None => self.ask_another(),
                }
            }
        }
    }

    /// Something was achieved through a connection.
    pub(super) fn achieved(&mut self, side: Side, lane: LaneId) {
        if let Some(lanes) = self.lanes(side) {
            lanes.achieved(lane);
        }
    }

    /// Gives up a connection. False when no other is left and none will be opened.
    pub(super) fn lose(&mut self, side: Side, lane: LaneId, error: &Error) -> bool {
        let source_is_device = self.input.device().is_some();
        let retries = self.plan.retries;
        let Some(lanes) = self.lanes(side) else {
            return false;
        };
        if lanes.is_lost(lane) {
            return true;
        }
        let (loss, unflushed) = lanes.retire(lane);
        self.tell_handles(side);
        let heals = match loss {
            Loss::Others(left) => {
                self.warn(Warning::ConnectionLost {
                    error: error.clone(),
                    left,
                });
                true
            }
            Loss::Down(Next::Attempt { pause, number }) => {
                self.warn(Warning::Reconnecting {
                    error: error.clone(),
                    pause,
                    attempt: number,
                    retries,
                });
                true
            }
            Loss::Down(Next::GivenUp { .. }) => false,
        };
        match side {
            Side::Source => self.ask_another(),
            _ if source_is_device => self.write_again(unflushed),
            _ => {}
        }
        heals
    }

    /// Ready when there is news of the handles of a side.
    pub(super) fn poll_joining(&mut self, cx: &mut Context<'_>) -> Poll<(Side, Joining)> {
        if let Poll::Ready(news) = self.input.poll_join(cx) {
            return Poll::Ready((Side::Source, news));
        }
        let news = std::task::ready!(self.output.poll_join(cx));
        Poll::Ready((Side::Destination, news))
    }

    /// Takes in news of the handles of a side.
    pub(super) fn joining(&mut self, side: Side, news: Joining) {
        if matches!(news, Joining::Joined { .. }) {
            self.tell_handles(side);
        }
        match news {
            Joining::Joined { again: false, .. } => {}
            Joining::Joined { again: true, .. } => {
                let again = match side {
                    Side::Destination => self.durable.take_lost(),
                    _ => 0,
                };
                // One of several that is replaced is not worth a word.
                if let Some(lanes) = self.lanes(side).filter(|lanes| lanes.live() == 1) {
                    let endpoint = Arc::clone(&lanes.device(0).info().name);
                    self.warn(Warning::Reconnected { endpoint, again });
                }
            }
            Joining::StillDown {
                error,
                next: Next::Attempt { pause, number },
            } => self.warn(Warning::Reconnecting {
                error,
                pause,
                attempt: number,
                retries: self.plan.retries,
            }),
            Joining::StillDown {
                error,
                next: Next::GivenUp { attempts },
            } => {
                let Some(lanes) = self.lanes(side) else {
                    return;
                };
                let failure = lanes.given_up(error, attempts);
                self.fail(CopyError::new(side, failure));
            }
        }
    }

    /// Calls the source until that succeeds, or fails for another reason than a lost connection.
    pub(crate) async fn with_source<T, F>(
        &mut self,
        call: impl Fn(Arc<dyn BlockDevice>) -> F,
    ) -> Result<T, CopyError>
    where
        F: Future<Output = Result<T>>,
    {
        loop {
            self.stand(Side::Source).await?;
            let Some(input) = self.input.device() else {
                return Err(CopyError::cancelled());
            };
            let lane = input.lanes.of_owner(0);
            let device = Arc::clone(input.lanes.device(lane.place));
            match call(device).await {
                Ok(done) => return Ok(done),
                Err(error) => self.call_failed(Side::Source, lane, error)?,
            }
        }
    }

    /// Calls the destination until that succeeds, or fails for another reason than a lost connection. `None`
    /// where it is a stream.
    pub(crate) async fn with_destination<T, F>(
        &mut self,
        call: impl Fn(Arc<Target>) -> F,
    ) -> Result<Option<T>, CopyError>
    where
        F: Future<Output = Result<T>>,
    {
        loop {
            self.stand(Side::Destination).await?;
            let Some((lane, target)) = self.output.target() else {
                return Ok(None);
            };
            match call(target).await {
                Ok(done) => return Ok(Some(done)),
                Err(error) => self.call_failed(Side::Destination, lane, error)?,
            }
        }
    }

    /// Waits until a side has a connection.
    pub(super) async fn stand(&mut self, side: Side) -> Result<(), CopyError> {
        let mut cancelled = std::pin::pin!(self.control.cancelled());
        loop {
            if let Some(failure) = self.failure.take() {
                return Err(failure.after(self.progress));
            }
            if self.lanes(side).is_none_or(|lanes| !lanes.is_down()) {
                return Ok(());
            }
            let news = std::future::poll_fn(|cx| {
                if cancelled.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                self.poll_joining(cx).map(Some)
            });
            match news.await {
                Some((side, news)) => self.joining(side, news),
                None => return Err(CopyError::cancelled().after(self.progress)),
            }
        }
    }

    fn call_failed(&mut self, side: Side, lane: LaneId, error: Error) -> Result<(), CopyError> {
        if error.is_transient() && self.lose(side, lane, &error) {
            return Ok(());
        }
        Err(CopyError::new(side, error).after(self.progress))
    }

    /// What may be lost with a connection is to be written again.
    fn write_again(&mut self, unflushed: Unflushed) {
        self.durable.note_lost(&unflushed);
        if let Some(input) = self.input.device() {
            input.pieces.put_back_done(unflushed);
        }
    }

    /// Has a handle that is not lost asked for extents.
    fn ask_another(&mut self) {
        let Some(input) = self.input.device() else {
            return;
        };
        let asked = Arc::clone(input.pieces.asked());
        let lost = input
            .lanes
            .find(&asked)
            .is_none_or(|lane| input.lanes.is_lost(lane));
        if lost && !input.lanes.is_down() {
            let other = Arc::clone(input.lanes.device(input.lanes.of_owner(0).place));
            input.pieces.ask_instead(&asked, &other);
        }
    }

    /// Tells how many handles a side has now.
    pub(crate) fn tell_handles(&mut self, side: Side) {
        let live = self.lanes(side).map_or(1, |lanes| lanes.live());
        self.observer.event(Event::Handles { side, live });
    }

    pub(super) fn warn(&self, warning: Warning) {
        self.observer.event(Event::Warning(warning));
    }

    pub(super) fn lanes(&mut self, side: Side) -> Option<&mut Lanes> {
        match side {
            Side::Source => self.input.device().map(|input| &mut input.lanes),
            _ => self.output.device().map(|output| &mut output.lanes),
        }
    }
}
