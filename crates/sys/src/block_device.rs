//! Block devices: their size, their sectors, discarding and zeroing (`ioctl`s of `linux/fs.h`).

use std::{io, os::fd::AsFd, path::Path};

use rustix::{
    fs::{Mode, OFlags},
    io::{Errno, retry_on_intr},
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

/// Whether the block device at `path` belongs to somebody: it is mounted, or a part of another device.
///
/// # Errors
/// What the open failed with.
pub fn is_block_device_claimed(path: &Path) -> io::Result<bool> {
    // To a block device O_EXCL without O_CREAT means that nobody else may have claimed it.
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())) {
        Ok(_) => Ok(false),
        Err(Errno::BUSY) => Ok(true),
        Err(error) => Err(error.into()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_can_be_claimed() {
        let error = is_block_device_claimed(Path::new("/no/such/device")).expect_err("nothing");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let file = std::env::temp_dir().join(format!("sys-claimed-{}", std::process::id()));
        std::fs::write(&file, "no device").expect("written");
        assert!(!is_block_device_claimed(&file).expect("a file belongs to nobody"));
        std::fs::remove_file(file).expect("removed");
    }
}
