//! The holes of a file.

use std::{
    io,
    sync::{PoisonError, atomic::Ordering},
};

use blockferry_sys as sys;

use super::Handle;
use crate::{ByteRange, Extent, Status, push_merged};

/// The most extents of one answer: about 100 KiB of memory and a few milliseconds.
pub(super) const MOST_EXTENTS: usize = 4096;

/// The unit that holes come in, in bytes.
const PAGE: u64 = 4096;

impl Handle {
    /// The answer for `range`, if all of it lies in the data that was looked up last.
    pub(super) fn known_data(&self, range: ByteRange) -> Option<Extent> {
        let status = Status::DATA;
        (!range.is_empty() && self.data_run().contains(range)).then_some(Extent { range, status })
    }

    /// Forgets what was looked up: there may be holes in it now.
    pub(super) fn forget_data(&self) {
        self.set_data_run(ByteRange::default());
    }

    fn data_run(&self) -> ByteRange {
        *self.data_run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_data_run(&self, run: ByteRange) {
        *self.data_run.lock().unwrap_or_else(PoisonError::into_inner) = run;
    }

    /// At most `most` extents from the start of `range` on, at least 1.
    pub(super) fn extents(&self, range: ByteRange, most: usize) -> io::Result<Vec<Extent>> {
        let mut list = Vec::new();
        if self.is_block_device || self.lacks.seek_data.load(Ordering::Relaxed) {
            push(&mut list, range.start(), range.end(), Status::DATA);
            return Ok(list);
        }
        match self.seek_extents(range, most, &mut list) {
            // The file system has no such call: everything is data.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.lacks.seek_data.store(true, Ordering::Relaxed);
                let known = list.last().map_or(range.start(), |last| last.range.end());
                push(&mut list, known, range.end(), Status::DATA);
            }
            result => result?,
        }
        list.truncate(most);
        Ok(list)
    }

    /// Others may change the file between two calls, so each answer is taken for what it is worth and
    /// every step moves on.
    fn seek_extents(
        &self,
        range: ByteRange,
        most: usize,
        list: &mut Vec<Extent>,
    ) -> io::Result<()> {
        let end = range.end();
        let mut at = range.start();
        while at < end && list.len() < most {
            let run = self.data_run();
            if run.start() <= at && at < run.end() {
                let known = run.end().min(end);
                push(list, at, known, Status::DATA);
                at = known;
                continue;
            }
            let Some(data) = sys::next_data(&self.file, at)? else {
                // A hole up to the file's end. What was cut off is called data: reading it fails,
                // where a hole would copy a truncated image without a word.
                let file_end = sys::inspect(&self.file)?.size.clamp(at, end);
                push(list, at, file_end, Status::HOLE_ZERO);
                push(list, file_end, end, Status::DATA);
                return Ok(());
            };
            let data = data.clamp(at, end);
            push(list, at, data, Status::HOLE_ZERO);
            at = data;
            if at < end {
                let hole = sys::next_hole(&self.file, at)?.unwrap_or(end);
                // Not after `at`: the data was punched away meanwhile.
                let hole = if hole > at {
                    hole
                } else {
                    at - at % PAGE + PAGE
                };
                self.set_data_run(ByteRange::between(at, hole));
                push(list, at, hole.min(end), Status::DATA);
                at = hole.min(end);
            }
        }
        Ok(())
    }
}

fn push(list: &mut Vec<Extent>, start: u64, end: u64, status: Status) {
    let range = ByteRange::between(start, end);
    push_merged(list, Extent { range, status });
}
