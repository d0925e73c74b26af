//! What is known of ranges that an image has nothing of: what the image behind it says.

use blockferry_block::{
    BlockDevice, ByteRange, Context, ErrorKind, Extent, Result, Status, push_merged,
};

use crate::host::HostFile;

/// The depth of what is in the image behind this one.
const BEHIND: Status = Status(2);

/// What is behind an image, and what was heard of it. It is asked once for one answer: were it asked again to see how
/// that goes on, each image of a chain would be asked twice as often as the one before it.
pub(crate) struct Behind<'a> {
    device: Option<&'a dyn BlockDevice>,
    size: u64,
    context: &'a Context,
    /// Whether one extent is all that is wanted.
    is_first: bool,
    was_asked: bool,
    /// Its answer, in the image's own terms, and how much of that lies before what is asked for now.
    answer: Vec<Extent>,
    passed: usize,
    /// More is wanted than its answer tells of.
    pub(crate) is_spent: bool,
}

impl<'a> Behind<'a> {
    pub(crate) fn new(backing: Option<&'a HostFile>, context: &'a Context, is_first: bool) -> Self {
        Self {
            device: backing.map(|backing| &**backing.device()),
            size: backing.map_or(0, HostFile::end),
            context,
            is_first,
            was_asked: false,
            answer: Vec::new(),
            passed: 0,
            is_spent: false,
        }
    }

    /// Adds what shows in `range`, which the image has nothing of, until the list is longer than `most` or no more is
    /// known. What lies up to the end of `asked`, which begins as `range` does, is asked for at once. Says how far it
    /// came.
    pub(crate) async fn push(
        &mut self,
        range: ByteRange,
        asked: ByteRange,
        most: usize,
        list: &mut Vec<Extent>,
    ) -> Result<u64> {
        let mut at = range.start();
        while at < range.end() && list.len() <= most {
            let rest = ByteRange::between(at, range.end());
            let next = match self.device {
                Some(_) if at < self.size => self.next(rest, asked.end()).await?,
                device => Some(Extent {
                    range: rest,
                    status: self.status_of_nothing(device.is_some()),
                }),
            };
            let Some(next) = next else {
                self.is_spent = true;
                break;
            };
            push_merged(list, next);
            at = next.range.end();
        }
        Ok(at)
    }

    /// The status of what is in no image: what lies behind the end of a backing file counts as that file's.
    fn status_of_nothing(&self, has_backing: bool) -> Status {
        match self.context {
            Context::AllocationDepth if has_backing => BEHIND,
            Context::AllocationDepth => Status(0),
            _ => Status::HOLE_ZERO,
        }
    }

    /// The first extent of `range`, which begins before the end of the backing file; `None` where its answer tells
    /// nothing of that.
    async fn next(&mut self, range: ByteRange, asked_end: u64) -> Result<Option<Extent>> {
        let at = range.start();
        loop {
            while let Some(known) = self.answer.get(self.passed) {
                if known.range.end() <= at {
                    self.passed += 1;
                    continue;
                }
                if known.range.start() > at {
                    break;
                }
                return Ok(Some(Extent {
                    range: known.range.intersection(range),
                    status: known.status,
                }));
            }
            if self.was_asked {
                return Ok(None);
            }
            self.was_asked = true;
            let end = if self.is_first {
                range.end()
            } else {
                asked_end
            };
            self.ask(ByteRange::between(at, end.min(self.size))).await?;
        }
    }

    /// Asks the backing file about `range`, which it has. There is an answer about its start afterwards.
    async fn ask(&mut self, range: ByteRange) -> Result<()> {
        let whole = |status| vec![Extent { range, status }];
        let unknown = match self.context {
            Context::AllocationDepth => BEHIND,
            _ => Status::DATA,
        };
        let Some(device) = self.device else {
            self.answer = whole(unknown);
            return Ok(());
        };
        // What knows nothing of chains has all of itself.
        if !device.info().contexts.contains(self.context) {
            self.answer = whole(unknown);
            return Ok(());
        }
        let answer = match self.is_first {
            true => device.first_extent(range, self.context).await,
            false => device.extents(range, self.context).await,
        };
        self.answer = match answer {
            Err(error) if error.kind() == ErrorKind::Unsupported => whole(unknown),
            answer => answer?,
        };
        // An answer that leaves the range, or a part of it out, is not believed.
        let mut at = range.start();
        let is_row = |extent: &Extent| {
            let goes_on = extent.range.start() == at && !extent.range.is_empty();
            at = extent.range.end();
            goes_on && at <= range.end()
        };
        if self.answer.is_empty() || !self.answer.iter().all(is_row) {
            self.answer = whole(unknown);
        }
        if *self.context == Context::AllocationDepth {
            for extent in &mut self.answer {
                let depth = extent.status.0;
                extent.status = Status(if depth == 0 {
                    0
                } else {
                    depth.saturating_add(1)
                });
            }
        }
        Ok(())
    }
}
