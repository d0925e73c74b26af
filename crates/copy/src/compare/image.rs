//! One of the images: what is known of it, and the connections that it is read through.

use std::sync::Arc;

use blockferry_block::{BlockDevice, ByteRange, Error, NullDevice};

use crate::{
    CopyError, CopyOptions, Destination, Source, Warning,
    extents::{ExtentWalker, Stretch, Told},
    lanes::{Joining, LaneId, Lanes, Loss, Next},
    plan::Plan,
};

use super::CompareOptions;

/// The blocks of an image.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    /// The image's size in bytes.
    size: u64,
    /// That of a block.
    block: u64,
}

impl Blocks {
    /// What must be read to have `range`, which begins at a block or at the other image's end.
    pub(super) fn around(&self, range: ByteRange) -> ByteRange {
        let start = range.start() - range.start() % self.block;
        let end = range.end().next_multiple_of(self.block);
        ByteRange::between(start, end.min(self.size))
    }
}

/// One of the images.
pub(super) struct Image {
    pub(super) size: u64,
    pub(super) blocks: Blocks,
    retries: u32,
    pub(super) lanes: Lanes,
    pub(super) walker: ExtentWalker,
    /// What is known of the image from the present position on.
    pub(super) stretch: Option<Stretch>,
}

impl Image {
    /// The image on `device`, walked over in stretches that begin at multiples of `alignment`.
    pub(super) fn new(
        device: &Arc<dyn BlockDevice>,
        alignment: u32,
        options: &CompareOptions,
    ) -> Result<Self, CopyError> {
        // It is walked over as by a copy of it to nowhere.
        let nowhere: Arc<dyn BlockDevice> = Arc::new(NullDevice::new(0));
        let nowhere = Destination::Device(nowhere);
        let source = Source::Device(Arc::clone(device));
        let options = CopyOptions {
            connections: options.connections,
            extents: options.extents,
            retries: options.retries,
            ..CopyOptions::default()
        };
        let mut plan = Plan::new(&source, &nowhere, &options)?;
        plan.alignment = alignment;
        // Short holes cost less to read than to go around, and a zero is the same either way.
        plan.granularity = Some(alignment);
        let info = device.info();
        Ok(Self {
            size: info.size,
            blocks: Blocks {
                size: info.size,
                block: u64::from(info.limits.minimum),
            },
            retries: plan.retries,
            walker: ExtentWalker::new(Arc::clone(device), info.size, &plan),
            lanes: Lanes::new(Arc::clone(device), plan.connections, plan.retries),
            stretch: None,
        })
    }

    /// What is known from `position` on, which moves forwards only. The image's end is followed by zeroes up
    /// to `end`.
    pub(super) fn known_from(&mut self, position: u64, end: u64) -> Option<Stretch> {
        while let Some(stretch) = self.stretch.or_else(|| self.walker.next_stretch()) {
            let left = ByteRange::between(position, stretch.range.end());
            if !left.is_empty() {
                self.stretch = Some(Stretch {
                    range: left,
                    zero: stretch.zero,
                });
                return self.stretch;
            }
            self.stretch = None;
        }
        (position >= self.size).then(|| Stretch {
            range: ByteRange::between(position, end),
            zero: true,
        })
    }

    /// Gives up a connection, and says what should be told of it. An error when no other is left and none
    /// will be opened.
    pub(super) fn lose(&mut self, lane: LaneId, error: Error) -> Result<Option<Warning>, Error> {
        if self.lanes.is_lost(lane) {
            return Ok(None);
        }
        let (loss, _) = self.lanes.retire(lane);
        self.ask_another();
        match loss {
            Loss::Others(left) => Ok(Some(Warning::ConnectionLost { error, left })),
            Loss::Down(Next::Attempt { pause, number }) => Ok(Some(Warning::Reconnecting {
                error,
                pause,
                attempt: number,
                retries: self.retries,
            })),
            Loss::Down(Next::GivenUp { .. }) => Err(error),
        }
    }

    /// Takes in what came of a question for extents, and says what should be told of it.
    pub(super) fn told(&mut self, told: Told) -> Option<Warning> {
        match told {
            Told::More => None,
            Told::Warning(warning) => Some(warning),
            Told::Lost(error) => match self.lanes.find(self.walker.device()) {
                Some(lane) if self.lanes.can_do_without(lane) => {
                    self.lose(lane, error).ok().flatten()
                }
                // Reading will show whether it is of any use.
                Some(_) => self.walker.give_up(error),
                // That handle is gone already, and another one has its place.
                None => {
                    self.ask_another();
                    None
                }
            },
        }
    }

    /// Takes in news of the connections, and says what should be told of it. An error when there are none
    /// and will be none.
    pub(super) fn joining(&mut self, news: Joining) -> Result<Option<Warning>, Error> {
        match news {
            Joining::Joined { again, .. } => {
                self.ask_another();
                let endpoint = Arc::clone(&self.lanes.device(0).info().name);
                let alone = again && self.lanes.live() == 1;
                Ok(alone.then_some(Warning::Reconnected { endpoint, again: 0 }))
            }
            Joining::StillDown {
                error,
                next: Next::Attempt { pause, number },
            } => Ok(Some(Warning::Reconnecting {
                error,
                pause,
                attempt: number,
                retries: self.retries,
            })),
            Joining::StillDown {
                error,
                next: Next::GivenUp { attempts },
            } => Err(self.lanes.given_up(error, attempts)),
        }
    }

    /// Has a handle that is not lost asked for extents.
    fn ask_another(&mut self) {
        let asked = Arc::clone(self.walker.device());
        let lost = self
            .lanes
            .find(&asked)
            .is_none_or(|lane| self.lanes.is_lost(lane));
        if lost && !self.lanes.is_down() {
            let other = self.lanes.of_owner(0);
            let other = Arc::clone(self.lanes.device(other.place));
            self.walker.ask_instead(&asked, &other);
        }
    }
}
