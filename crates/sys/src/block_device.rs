//! Block devices: their size, their sectors, discarding and zeroing (`ioctl`s of `linux/fs.h`).

use std::{io, os::fd::AsFd};

use rustix::{
    io::retry_on_intr,
    ioctl::{self, Getter, Opcode, Setter, opcode},
};

// The group and the numbers of linux/fs.h. BLKGETSIZE64 is defined over a `size_t` and fills 64 bits.
const BLKROTATIONAL: Opcode = opcode::none(0x12, 126);
const BLKDISCARD: Opcode = opcode::none(0x12, 119);
const BLKZEROOUT: Opcode = opcode::none(0x12, 127);
const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);

/// What a block device says of itself.
#[derive(Clone, Copy, Debug)]
pub struct BlockDeviceFacts {
    /// The size in bytes.
    pub size: u64,
    /// The smallest unit that it reads or writes, in bytes.
    pub logical_block: u32,
    /// The smallest unit that it writes without reading first, in bytes.
    pub physical_block: u32,
    /// Whether it is a spinning disk.
    pub rotational: bool,
}

/// What the block device `fd` says of itself.
///
/// # Errors
/// What an `ioctl` failed with; `ENOTTY` when `fd` is no block device.
pub fn inspect_block_device(fd: impl AsFd) -> io::Result<BlockDeviceFacts> {
    // SAFETY: BLKGETSIZE64 fills one u64.
    let size = unsafe { Getter::<BLKGETSIZE64, u64>::new() };
    // SAFETY: as above; where the descriptor is no block device the call only fails.
    let size = unsafe { ioctl::ioctl(&fd, size) }?;
    // SAFETY: BLKROTATIONAL fills one unsigned short.
    let rotational = unsafe { Getter::<BLKROTATIONAL, u16>::new() };
    // SAFETY: as above.
    let rotational = unsafe { ioctl::ioctl(&fd, rotational) };
    Ok(BlockDeviceFacts {
        size,
        logical_block: rustix::fs::ioctl_blksszget(&fd)?,
        physical_block: rustix::fs::ioctl_blkpbszget(&fd)?,
        rotational: rotational.is_ok_and(|value| value != 0),
    })
}

/// Tells the device that `length` bytes from `offset` are needed no more: what they read as
/// afterwards is undefined.
///
/// # Errors
/// What the `ioctl` failed with: `Unsupported` where the device cannot discard.
pub fn discard_blocks(fd: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    Ok(retry_on_intr(|| {
        // SAFETY: BLKDISCARD reads two u64.
        let range = unsafe { Setter::<BLKDISCARD, [u64; 2]>::new([offset, length]) };
        // SAFETY: the range lives until the call returns.
        unsafe { ioctl::ioctl(&fd, range) }
    })?)
}

/// Zeroes `length` bytes from `offset`; the kernel writes zeroes where the device has nothing better.
///
/// # Errors
/// What the `ioctl` failed with.
pub fn zero_blocks(fd: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    Ok(retry_on_intr(|| {
        // SAFETY: BLKZEROOUT reads two u64.
        let range = unsafe { Setter::<BLKZEROOUT, [u64; 2]>::new([offset, length]) };
        // SAFETY: the range lives until the call returns.
        unsafe { ioctl::ioctl(&fd, range) }
    })?)
}
