//! Files: reading and writing at an offset, holes, durability, and what a descriptor stands for.
//!
//! Every function goes on after an interrupted call (`EINTR`).

use std::{
    io::{self, IoSliceMut},
    os::fd::AsFd,
};

use rustix::{
    fs::{Advice, FallocateFlags, FileType, OFlags, SeekFrom},
    io::{Errno, ReadWriteFlags, retry_on_intr},
};

/// What a descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A block device.
    BlockDevice,
    /// A character device, terminals included.
    CharacterDevice,
    /// A directory.
    Directory,
    /// A pipe, with or without a name.
    Pipe,
    /// A socket.
    Socket,
    /// Whatever else there is.
    Other,
}

/// What `fstat` says of a descriptor.
#[derive(Clone, Copy, Debug)]
pub struct FileFacts {
    /// What it is.
    pub kind: FileKind,
    /// The size in bytes of a regular file; a block device has 0 here.
    pub size: u64,
    /// The size of requests that suits the file system, in bytes.
    pub preferred_block: u64,
    /// The bytes that the file occupies.
    pub allocated: u64,
    /// Major number of the device that a device node stands for.
    pub major: u32,
    /// Minor number of the device that a device node stands for.
    pub minor: u32,
    /// The number of the device that the file system lies on.
    pub file_system: u64,
}

/// How a descriptor was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMode {
    /// It can be read.
    pub read: bool,
    /// It can be written.
    pub write: bool,
    /// Every write goes to the end, whatever offset it names (`O_APPEND`).
    pub append: bool,
}

/// What `fd` stands for.
///
/// # Errors
/// What `fstat` failed with.
pub fn inspect(fd: impl AsFd) -> io::Result<FileFacts> {
    let stat = rustix::fs::fstat(fd)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::Regular,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::CharacterDevice => FileKind::CharacterDevice,
        FileType::Directory => FileKind::Directory,
        FileType::Fifo => FileKind::Pipe,
        FileType::Socket => FileKind::Socket,
        _ => FileKind::Other,
    };
    Ok(FileFacts {
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        preferred_block: u64::try_from(stat.st_blksize).unwrap_or(0),
        allocated: u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512),
        major: rustix::fs::major(stat.st_rdev),
        minor: rustix::fs::minor(stat.st_rdev),
        file_system: stat.st_dev,
    })
}

/// How `fd` was opened.
///
/// # Errors
/// What `fcntl` failed with.
pub fn open_mode(fd: impl AsFd) -> io::Result<OpenMode> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    let access = flags & OFlags::RWMODE;
    Ok(OpenMode {
        read: access == OFlags::RDONLY || access == OFlags::RDWR,
        write: access == OFlags::WRONLY || access == OFlags::RDWR,
        append: flags.contains(OFlags::APPEND),
    })
}

/// Whether the file lives in memory (tmpfs, ramfs), so that reading it never waits for a disk.
#[must_use]
pub fn lives_in_memory(fd: impl AsFd) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    // The width and the sign of the field depend on the machine; the numbers have 32 bits.
    rustix::fs::fstatfs(fd)
        .is_ok_and(|facts| [TMPFS, RAMFS].contains(&(facts.f_type as u64 & 0xffff_ffff)))
}

/// Reads from `offset` on until `bytes` is full or the file ends, and says how many bytes came.
///
/// # Errors
/// What `pread` failed with.
pub fn read_at(fd: impl AsFd, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        match retry_on_intr(|| rustix::io::pread(&fd, &mut bytes[done..], at))? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// Reads what lies in the page cache from `offset` on, without waiting for a disk (`RWF_NOWAIT`), and
/// says how many bytes came: 0 when the first is not there, or when the file ends before it.
///
/// # Errors
/// `Unsupported` where the file system cannot tell; otherwise what `preadv2` failed with.
pub fn read_cached_at(fd: impl AsFd, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    let result = retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(bytes)];
        rustix::io::preadv2(&fd, &mut slices, offset, ReadWriteFlags::NOWAIT)
    });
    match result {
        Ok(count) => Ok(count),
        Err(Errno::AGAIN) => Ok(0),
        // An old kernel, or a sandbox that lets only the old calls through.
        Err(Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
        Err(error) => Err(error.into()),
    }
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// What `pwrite` failed with; a part may have been written. `WriteZero` when nothing more went in.
pub fn write_all_at(fd: impl AsFd, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        match retry_on_intr(|| rustix::io::pwrite(&fd, &bytes[done..], at))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => done += count,
        }
    }
    Ok(())
}

/// The first offset at or after `offset` where there is data (`SEEK_DATA`); `None` when only holes
/// follow, or when the file ends at or before `offset`.
///
/// # Errors
/// What `lseek` failed with: `InvalidInput` where the file system has no such thing.
pub fn next_data(fd: impl AsFd, offset: u64) -> io::Result<Option<u64>> {
    seek(fd, SeekFrom::Data(offset))
}

/// The first offset at or after `offset` where there is no data (`SEEK_HOLE`): the file's end at the
/// latest. `None` when the file ends before `offset`.
///
/// # Errors
/// As [`next_data`].
pub fn next_hole(fd: impl AsFd, offset: u64) -> io::Result<Option<u64>> {
    seek(fd, SeekFrom::Hole(offset))
}

fn seek(fd: impl AsFd, to: SeekFrom) -> io::Result<Option<u64>> {
    match retry_on_intr(|| rustix::fs::seek(&fd, to)) {
        Ok(offset) => Ok(Some(offset)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// How [`zero_range`] makes zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMethod {
    /// The space is given back; the size stays. On a block device: only where the device does it by
    /// itself, and what was written reads as zeroes surely.
    PunchHole,
    /// The space stays (or becomes) allocated; the size stays. On a block device the kernel writes
    /// zeroes where the device has nothing better.
    KeepAllocated,
    /// As `KeepAllocated`, and the file grows when the range ends behind its end.
    AllocateAndGrow,
}

/// Makes `length` bytes (not 0) from `offset` read as zeroes.
///
/// # Errors
/// `Unsupported` where the file or the file system has no such operation; otherwise what `fallocate`
/// failed with.
pub fn zero_range(fd: impl AsFd, offset: u64, length: u64, method: ZeroMethod) -> io::Result<()> {
    let mode = match method {
        ZeroMethod::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        ZeroMethod::KeepAllocated => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        ZeroMethod::AllocateAndGrow => FallocateFlags::ZERO_RANGE,
    };
    match retry_on_intr(|| rustix::fs::fallocate(&fd, mode, offset, length)) {
        Err(Errno::NOSYS | Errno::NODEV) => Err(io::ErrorKind::Unsupported.into()),
        result => Ok(result?),
    }
}

/// Sets the size of a regular file; what is new is a hole.
///
/// # Errors
/// What `ftruncate` failed with.
pub fn set_size(fd: impl AsFd, size: u64) -> io::Result<()> {
    Ok(retry_on_intr(|| rustix::fs::ftruncate(&fd, size))?)
}

/// Makes the contents durable, and as much of the metadata as is needed to read them (`fdatasync`).
///
/// # Errors
/// What `fdatasync` failed with.
pub fn sync_data(fd: impl AsFd) -> io::Result<()> {
    Ok(retry_on_intr(|| rustix::fs::fdatasync(&fd))?)
}

/// Makes contents and metadata durable (`fsync`).
///
/// # Errors
/// What `fsync` failed with.
pub fn sync_all(fd: impl AsFd) -> io::Result<()> {
    Ok(retry_on_intr(|| rustix::fs::fsync(&fd))?)
}

/// Asks the kernel to read a range ahead into the page cache (`POSIX_FADV_WILLNEED`).
///
/// # Errors
/// What `posix_fadvise` failed with.
pub fn will_need(fd: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let Some(length) = std::num::NonZeroU64::new(length) else {
        return Ok(());
    };
    Ok(rustix::fs::fadvise(
        fd,
        offset,
        Some(length),
        Advice::WillNeed,
    )?)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, path::PathBuf};

    use super::*;

    fn file(name: &str) -> (File, PathBuf) {
        let path = std::env::temp_dir().join(format!("sys-fs-{name}-{}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .expect("a file");
        (file, path)
    }

    #[test]
    fn what_was_written_is_read_up_to_the_end() {
        let (file, path) = file("read");
        write_all_at(&file, &[7; 10_000], 5_000).expect("written");
        let mut bytes = [1; 20_000];
        assert_eq!(read_at(&file, &mut bytes, 4_999).expect("read"), 10_001);
        assert_eq!(
            (bytes[0], bytes[1], bytes[10_000], bytes[10_001]),
            (0, 7, 7, 1)
        );
        assert_eq!(read_at(&file, &mut bytes, 15_000).expect("the end"), 0);
        std::fs::remove_file(path).expect("removed");
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri knows nothing of preadv2")]
    fn a_cached_read_gives_a_true_part_or_nothing() {
        let (file, path) = file("cached");
        let written: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 253) as u8).collect();
        write_all_at(&file, &written, 0).expect("written");
        sync_all(&file).expect("durable");
        for advice in [Advice::Normal, Advice::DontNeed] {
            rustix::fs::fadvise(&file, 0, None, advice).expect("advice");
            let mut bytes = vec![0; written.len()];
            match read_cached_at(&file, &mut bytes, 0) {
                Ok(count) => assert_eq!(bytes[..count], written[..count]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
            }
        }
        assert_eq!(read_cached_at(&file, &mut [], 0).expect("nothing"), 0);
        std::fs::remove_file(path).expect("removed");
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri knows nothing of SEEK_HOLE")]
    fn holes_are_found_and_made() {
        let (file, path) = file("holes");
        set_size(&file, 4 << 20).expect("sized");
        write_all_at(&file, &[1; 1 << 20], 1 << 20).expect("written");
        sync_data(&file).expect("durable");
        assert_eq!(next_data(&file, 0).expect("data"), Some(1 << 20));
        assert_eq!(next_hole(&file, 1 << 20).expect("a hole"), Some(2 << 20));
        assert_eq!(next_data(&file, 2 << 20).expect("none"), None);
        assert_eq!(next_hole(&file, 4 << 20).expect("behind the end"), None);
        let before = inspect(&file).expect("facts").allocated;
        zero_range(&file, 1 << 20, 1 << 20, ZeroMethod::PunchHole).expect("punched");
        let after = inspect(&file).expect("facts");
        assert!(after.allocated < before && after.size == 4 << 20);
        assert_eq!(next_data(&file, 0).expect("none"), None);
        std::fs::remove_file(path).expect("removed");
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri knows nothing of fstat")]
    fn descriptors_are_told_apart() {
        let kind = |file: File| inspect(file).expect("facts").kind;
        assert_eq!(kind(File::open("/").expect("opened")), FileKind::Directory);
        let null = File::open("/dev/null").expect("opened");
        assert_eq!(inspect(&null).expect("facts").major, 1);
        assert_eq!(kind(null), FileKind::CharacterDevice);
        let (reader, writer) = io::pipe().expect("a pipe");
        assert_eq!(inspect(&reader).expect("facts").kind, FileKind::Pipe);
        let mode = open_mode(&writer).expect("a mode");
        assert!(mode.write && !mode.read && !mode.append);
        drop((reader, writer));
    }

    #[test]
    fn a_full_disk_says_so() {
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("opened");
        let error = write_all_at(&full, &[0; 10], 0).expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
