//! What a device says of itself: size, block sizes, abilities.

use std::sync::Arc;

use bitflags::bitflags;

use crate::Context;

/// What is known of a device when it is opened; it does not change while the device is open.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The endpoint as the user wrote it, for messages.
    pub name: Arc<str>,
    /// The size in bytes, `i64::MAX` at most.
    pub size: u64,
    /// What requests must look like.
    pub limits: BlockLimits,
    /// What the device can do beyond reading.
    pub capabilities: Capabilities,
    /// Whether it is a spinning disk, where order matters.
    pub rotational: bool,
    /// The contexts that [`extents`](crate::BlockDevice::extents) answers; empty when none.
    pub contexts: Vec<Context>,
    /// A description for people, from a server or an image; escape it before printing.
    pub description: Option<String>,
}

impl DeviceInfo {
    /// A readable device of `size` bytes that can do nothing else and wants nothing special.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, size: u64) -> Self {
        Self {
            name: name.into(),
            size,
            limits: BlockLimits::default(),
            capabilities: Capabilities::empty(),
            rotational: false,
            contexts: Vec::new(),
            description: None,
        }
    }

    /// Whether the device can do all of `capabilities`.
    #[must_use]
    pub fn can(&self, capabilities: Capabilities) -> bool {
        self.capabilities.contains(capabilities)
    }

    /// Whether `base:allocation` is among its contexts.
    #[must_use]
    pub fn knows_allocation(&self) -> bool {
        self.contexts.contains(&Context::Allocation)
    }
}

/// The shape of the requests that a device takes, in bytes. NBD's "block size constraints".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLimits {
    /// Offsets and lengths are multiples of this power of two, except at the very end of a device
    /// whose size is no multiple of it.
    pub minimum: u32,
    /// The size that works best: a power of two.
    pub preferred: u32,
    /// The longest read or write in one request. A device splits nothing by itself.
    pub maximum: u32,
}

impl Default for BlockLimits {
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
            maximum: 32 << 20,
        }
    }
}

bitflags! {
    /// What a device can do beyond reading.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Capabilities: u32 {
        /// It takes writes. Without it every change fails with `ReadOnly`.
        const WRITE = 1 << 0;
        /// A flush makes acknowledged writes durable.
        const FLUSH = 1 << 1;
        /// A write can be durable when it is acknowledged.
        const FUA = 1 << 2;
        /// Ranges can be discarded.
        const TRIM = 1 << 3;
        /// Ranges can be zeroed without sending zeroes.
        const ZERO = 1 << 4;
        /// It can say at once that zeroing would be no faster than writing (`ZeroFlags::FAST`).
        const FAST_ZERO = 1 << 5;
        /// Ranges can be read ahead into a cache.
        const CACHE = 1 << 6;
        /// Several handles to the device see each other's flushed writes.
        const MULTI_CONN = 1 << 7;
        /// Its size can be changed, and writes past the end make it grow.
        const RESIZE = 1 << 8;
        /// All of it reads as zeroes and was never written: a file that was just created.
        const BORN_ZERO = 1 << 9;
        /// [`read_piped`](crate::BlockDevice::read_piped) moves what is read into a pipe without a copy, and
        /// that costs less than a read into memory, for 64 KiB and more at a time and a destination with
        /// [`SPLICE_WRITE`](Self::SPLICE_WRITE).
        const SPLICE_READ = 1 << 10;
        /// [`write_piped`](crate::BlockDevice::write_piped) moves what is in a pipe on without a copy, and
        /// that costs less than a write from memory, for 64 KiB and more at a time.
        const SPLICE_WRITE = 1 << 11;
        /// It may take bytes over from a file without moving them through this process
        /// ([`copy_from`](crate::BlockDevice::copy_from)): worth a try.
        const COPY_FROM = 1 << 12;
        /// What is written is thrown away, so nothing needs to be known of it.
        const DISCARDS = 1 << 13;
        /// [`reopen`](crate::BlockDevice::reopen) gives another handle, also after this one was lost: it is
        /// reached through a connection.
        const REOPEN = 1 << 14;
    }
}
