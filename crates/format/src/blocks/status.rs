//! What is known of ranges of the disk: holes and zeroes, and which image of a chain has them.

use blockferry_block::{ByteRange, Context, Extent, Result, Status};

use super::{
    read::Reader,
    runs::{Budget, Source},
};
use crate::{Contents, Place, PlaceFile, Placed, answer::Answer, disk::MOST_EXTENTS};

/// What holes of the file are cut to, in bytes.
const HOLE: u64 = 4096;

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
        let holes = holes.filter(|holes| !holes.is_empty());
        let mut answer = Answer::new(self.parent.as_ref(), context, range, most);
        let mut budget = Budget::of_an_answer();
        let mut at = range.start();
        while at < range.end() && !answer.is_full() && !budget.is_spent() {
            let rest = ByteRange::between(at, range.end());
            let run = match self.first_run(rest, &mut budget).await {
                Ok(run) => run,
                Err(error) if answer.is_empty() => return Err(error),
                // Damage is met by whoever asks about it.
                Err(_) => break,
            };
            at = match (run.source, holes) {
                (Source::Behind, _) => answer.push_behind(run.range).await?,
                (Source::Zero, _) => answer.push(run.range, Status::HOLE_ZERO),
                (Source::Host(host), Some(holes)) => answer.push_host(run.range, host, holes),
                (Source::Host(_), None) => answer.push(run.range, Status::DATA),
            };
            if answer.is_for_one() {
                break;
            }
        }
        Ok(answer.finish())
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
