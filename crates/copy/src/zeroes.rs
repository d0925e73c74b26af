//! How zeroes come about in a destination.

use std::sync::atomic::{AtomicBool, Ordering};

use blockferry_block::{Capabilities, ZeroFlags};

use crate::CopyOptions;

/// How zeroes come about in a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZeroPolicy {
    /// They are there already.
    Skip,
    /// The destination is asked to zero the range.
    Request(ZeroFlags),
    /// They are written as data.
    Write,
}

impl ZeroPolicy {
    /// The policy for a device that can do this.
    pub(crate) fn new(can: Capabilities, options: &CopyOptions) -> Self {
        let is_zero = options.destination_is_zero || can.contains(Capabilities::BORN_ZERO);
        // That it is zero does not make it allocated.
        if is_zero && !options.allocated {
            Self::Skip
        } else if !can.contains(Capabilities::ZERO) {
            Self::Write
        } else if options.allocated {
            Self::Request(ZeroFlags::NO_HOLE)
        } else {
            Self::Request(ZeroFlags::empty())
        }
    }
}

/// The policy of one copy, which a destination may change by refusing to zero.
#[derive(Debug)]
pub(crate) struct Zeroing {
    policy: ZeroPolicy,
    refused: AtomicBool,
}

impl Zeroing {
    /// Begins with `policy`.
    pub(crate) fn new(policy: ZeroPolicy) -> Self {
        Self {
            policy,
            refused: AtomicBool::new(false),
        }
    }

    /// The policy now.
    pub(crate) fn policy(&self) -> ZeroPolicy {
        if self.refused.load(Ordering::Relaxed) {
            ZeroPolicy::Write
        } else {
            self.policy
        }
    }

    /// The destination turned out not to zero: from now on zeroes are written.
    pub(crate) fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }
}
