//! What is known of ranges of the disk: holes and zeroes, and which image of a chain has them.

use blockferry_block::{ByteRange, Context, Extent, Result, Status, push_merged};

use super::{
    read::Reader,
    runs::{Budget, Source},
};
use crate::{Contents, Place, PlaceFile, Placed, behind::Behind, holes::push_host};

/// The most extents of one answer: 1.5 MiB of memory.
pub(super) const MOST_EXTENTS: usize = 64 << 10;

/// What holes of the file are cut to, in bytes.
const HOLE: u64 = 4096;

/// The depth of what is in this image.
const OWN: Status = Status(1);

impl Reader {
    /// What is known of `range`, which lies on the disk, in `context`: `base:allocation` or
    /// `qemu:allocation-depth`. An answer as [`BlockDevice::extents`](blockferry_block::BlockDevice::extents) gives
    /// it, of `most` extents at most.
    ///
    /// # Errors
    /// `Corrupt` for damage at the range's start, what reading bitmaps and asking the parent failed with.
    pub(super) async fn status(
        &self,
        range: ByteRange,
        context: &Context,
        most: usize,
    ) -> Result<Vec<Extent>> {
        let holes = match context {
            Context::Allocation => Some(self.holes.of(&self.file, HOLE).await),
            _ => None,
        };
        let mut behind = Behind::new(self.parent.as_ref(), context, most == 1);
        let mut budget = Budget::of_an_answer();
        let mut list = Vec::new();
        let mut at = range.start();
        // The last extent may still grow before the list is full, so there may be one too many.
        while at < range.end() && list.len() <= most && !behind.is_spent && !budget.is_spent() {
            let rest = ByteRange::between(at, range.end());
            let run = match self.first_run(rest, &mut budget).await {
                Ok(run) => run,
                Err(error) if list.is_empty() => return Err(error),
                // Damage is met by whoever asks about it.
                Err(_) => break,
            };
            at = run.range.end();
            let mut push = |status| {
                let range = run.range;
                push_merged(&mut list, Extent { range, status });
            };
            match (run.source, context, holes) {
                (Source::Behind, ..) => {
                    at = behind.push(run.range, rest, most, &mut list).await?;
                }
                (_, Context::AllocationDepth, _) => push(OWN),
                (Source::Zero, ..) => push(Status::HOLE_ZERO),
                (Source::Host(host), _, Some(holes)) if !holes.is_empty() => {
                    push_host(&mut list, run.range, host, holes);
                }
                (Source::Host(_), ..) => push(Status::DATA),
            }
            if most == 1 {
                break;
            }
        }
        list.truncate(most);
        Ok(list)
    }

    /// What the image itself has of the beginning of `range`, which lies on the disk, and where.
    ///
    /// # Errors
    /// `Corrupt` for damage at the range's start, what reading bitmaps failed with.
    pub(super) async fn placed(&self, range: ByteRange) -> Result<Vec<Placed>> {
        let mut budget = Budget::of_an_answer();
        let mut list = Vec::new();
        let mut at = range.start();
        while at < range.end() && list.len() < MOST_EXTENTS && !budget.is_spent() {
            let rest = ByteRange::between(at, range.end());
            let run = match self.first_run(rest, &mut budget).await {
                Ok(run) => run,
                Err(error) if list.is_empty() => return Err(error),
                // Damage is met by whoever asks about it.
                Err(_) => break,
            };
            at = run.range.end();
            let (contents, host) = match run.source {
                Source::Host(host) => (Contents::Data, Some(host)),
                Source::Behind if self.parent.is_some() => (Contents::Absent, None),
                Source::Behind | Source::Zero => (Contents::Zero, None),
            };
            let file = PlaceFile::Image;
            let next = Placed {
                range: run.range,
                contents,
                compressed: false,
                place: host.map(|offset| Place { file, offset }),
            };
            Placed::push(&mut list, next);
        }
        Ok(list)
    }
}
