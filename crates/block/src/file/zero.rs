//! Zeroing and discarding ranges of a file or a block device.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use blockferry_sys::{self as sys, ZeroMethod};

use super::Handle;
use crate::{ByteRange, Error, ErrorKind, Result, ZeroFlags};

impl Handle {
    pub(super) fn zero(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.begin_change()?;
        let done = if self.is_block_device {
            self.zero_blocks(range, flags)?
        } else if flags.contains(ZeroFlags::NO_HOLE) {
            self.zero_allocated(range)?
        } else {
            self.zero_sparse(range)?
        };
        self.forget_data();
        if done {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported))
    }

    /// Makes `range` undefined where that frees space; a file system or a device that cannot is left
    /// as it is.
    pub(super) fn trim(&self, range: ByteRange) -> io::Result<()> {
        self.begin_change()?;
        if !self.is_block_device {
            let inside = range.intersection(ByteRange::between(0, self.size()));
            let punched = self.punch(inside).map(|_| ());
            self.forget_data();
            return punched;
        }
        let sectors = range.aligned_within(self.sector);
        unless_lacking(&self.lacks.discard, || {
            if sectors.is_empty() {
                return Ok(());
            }
            sys::discard_blocks(&self.file, sectors.start(), sectors.len())
        })
        .map(|_| ())
    }

    /// Never by discarding: what reads back after that is the device's own affair.
    fn zero_blocks(&self, range: ByteRange, flags: ZeroFlags) -> io::Result<bool> {
        if !flags.contains(ZeroFlags::NO_HOLE) && self.punch(range)? {
            return Ok(true);
        }
        if flags.contains(ZeroFlags::FAST) {
            // What is left may write zeroes inside the kernel.
            return Ok(false);
        }
        if !self.keep_allocated(range)? {
            sys::zero_blocks(&self.file, range.start(), range.len())?;
        }
        Ok(true)
    }

    fn zero_allocated(&self, range: ByteRange) -> io::Result<bool> {
        if range.end() <= self.size() {
            return self.keep_allocated(range);
        }
        let done = self.attempt(&self.lacks.zero_range, range, ZeroMethod::AllocateAndGrow)?;
        if done {
            self.grown_to(range.end());
        }
        Ok(done)
    }

    fn zero_sparse(&self, range: ByteRange) -> io::Result<bool> {
        let whole = ByteRange::between(0, self.size());
        let inside = range.intersection(whole);
        if !inside.is_empty() && !self.punch(inside)? && !self.keep_allocated(inside)? {
            return Ok(false);
        }
        if whole.contains(range) {
            return Ok(true);
        }
        // Setting the size could cut off what someone writes further behind at this moment; one
        // written byte cannot. Its block is given back where that is possible.
        sys::write_all_at(&self.file, &[0], range.end() - 1)?;
        self.grown_to(range.end());
        let beyond = ByteRange::between(range.start().max(whole.end()), range.end());
        // The range reads as zeroes already, so a failure here loses nothing.
        let _ = self.punch(beyond);
        Ok(true)
    }

    fn punch(&self, range: ByteRange) -> io::Result<bool> {
        self.attempt(&self.lacks.punch_hole, range, ZeroMethod::PunchHole)
    }

    fn keep_allocated(&self, range: ByteRange) -> io::Result<bool> {
        self.attempt(&self.lacks.zero_range, range, ZeroMethod::KeepAllocated)
    }

    /// Whether `method` did it; it did nothing where it is not supported.
    fn attempt(
        &self,
        lacks: &AtomicBool,
        range: ByteRange,
        method: ZeroMethod,
    ) -> io::Result<bool> {
        if range.is_empty() {
            return Ok(true);
        }
        unless_lacking(lacks, || {
            sys::zero_range(&self.file, range.start(), range.len(), method)
        })
    }
}

/// Whether `call` did it. A call that turns out to be unsupported is remembered and not made again.
fn unless_lacking(lacks: &AtomicBool, call: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
    if lacks.load(Ordering::Relaxed) {
        return Ok(false);
    }
    match call() {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            lacks.store(true, Ordering::Relaxed);
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
