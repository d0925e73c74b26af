//! What is known of ranges of a disk, while it is being put together: what the image says itself, and what shows where
//! it has nothing.

use blockferry_block::{ByteRange, Context, Extent, RangeSet, Result, Status, push_merged};

use crate::{behind::Behind, holes::push_host, host::HostFile};

/// The depth of what is in this image.
const OWN: Status = Status(1);

/// An answer as [`BlockDevice::extents`](blockferry_block::BlockDevice::extents) gives it, in `base:allocation` or
/// `qemu:allocation-depth`.
pub(crate) struct Answer<'a> {
    context: &'a Context,
    behind: Behind<'a>,
    /// The end of what was asked for.
    end: u64,
    most: usize,
    list: Vec<Extent>,
}

impl<'a> Answer<'a> {
    /// One about `range`, of `most` extents at most, for an image in front of `behind`.
    pub(crate) fn new(
        behind: Option<&'a HostFile>,
        context: &'a Context,
        range: ByteRange,
        most: usize,
    ) -> Self {
        Self {
            context,
            behind: Behind::new(behind, context, most == 1),
            end: range.end(),
            most,
            list: Vec::new(),
        }
    }

    /// Whether it is as long as it may become. The last extent may still grow before, so there may be one too many.
    pub(crate) fn is_full(&self) -> bool {
        self.list.len() > self.most || self.behind.is_spent
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether one extent is all that is wanted.
    pub(crate) fn is_for_one(&self) -> bool {
        self.most == 1
    }

    /// Whether it tells what is allocated, and not in which image.
    pub(crate) fn is_of_allocation(&self) -> bool {
        *self.context == Context::Allocation
    }

    /// Adds `range`, which the image has itself, and which is `status` in `base:allocation`. Says how far it came.
    pub(crate) fn push(&mut self, range: ByteRange, status: Status) -> u64 {
        let status = match self.context {
            Context::AllocationDepth => OWN,
            _ => status,
        };
        push_merged(&mut self.list, Extent { range, status });
        range.end()
    }

    /// As [`push`](Self::push) of data that lies from `host` on in a file that has `holes`.
    pub(crate) fn push_host(&mut self, range: ByteRange, host: u64, holes: &RangeSet) -> u64 {
        match self.is_of_allocation() {
            true => push_host(&mut self.list, range, host, holes),
            false => return self.push(range, Status::DATA),
        }
        range.end()
    }

    /// Adds what shows in `range`, which the image has nothing of, and says how far it came.
    ///
    /// # Errors
    /// What asking the image behind failed with.
    pub(crate) async fn push_behind(&mut self, range: ByteRange) -> Result<u64> {
        let asked = ByteRange::between(range.start(), self.end);
        let (most, list) = (self.most, &mut self.list);
        self.behind.push(range, asked, most, list).await
    }

    pub(crate) fn finish(mut self) -> Vec<Extent> {
        self.list.truncate(self.most);
        self.list
    }
}
