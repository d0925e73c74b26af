//! Bytes from one file into another inside the kernel: copied, or shared where the file system can.
//!
//! Every function goes on after an interrupted call (`EINTR`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use rustix::{
    io::{Errno, retry_on_intr},
    ioctl::{self, Opcode, Setter, opcode},
};

/// The most that the kernel moves in one call: what a signed 32-bit number holds, in whole pages.
const LONGEST: u64 = 0x7fff_f000;

/// FICLONERANGE of linux/fs.h, over a `struct file_clone_range`: four numbers of 64 bits.
const FICLONERANGE: Opcode = opcode::write::<[u64; 4]>(0x94, 13);

/// Copies up to `length` bytes of the regular file `source` from `source_offset` on to `offset` of the
/// regular file `destination` (`copy_file_range`), and says how many. They may be fewer; 0 where the
/// source ends, and some special file systems give 0 where it does not. A file system that lets files
/// share blocks may do that instead of copying.
///
/// # Errors
/// `Unsupported` where the kernel does not copy between the two: other file systems, something else
/// than regular files, overlapping ranges of one file, an old kernel. Otherwise what
/// `copy_file_range` failed with.
pub fn copy_range(
    source: impl AsFd,
    source_offset: u64,
    destination: impl AsFd,
    offset: u64,
    length: u64,
) -> io::Result<u64> {
    let length = usize::try_from(length.min(LONGEST)).unwrap_or(usize::MAX);
    let result = retry_on_intr(|| {
        let (mut from, mut to) = (source_offset, offset);
        rustix::fs::copy_file_range(
            &source,
            Some(&mut from),
            &destination,
            Some(&mut to),
            length,
        )
    });
    match result {
        Ok(count) => Ok(count as u64),
        Err(Errno::INVAL) => Err(io::ErrorKind::Unsupported.into()),
        Err(error) => Err(unless_unsupported(error)),
    }
}

/// Lets the `length` bytes at `offset` of the regular file `destination` be the blocks that `source`
/// has at `source_offset` (`FICLONERANGE`): nothing is copied before one of the two changes. All of it
/// is done or nothing. The offsets and the length are multiples of the file system's block size.
///
/// # Errors
/// `InvalidInput` where this range cannot be shared: not aligned, past the source's end, overlapping.
/// `Unsupported` where no range can: other file systems, or one without shared blocks. Otherwise what
/// the call failed with.
pub fn clone_range(
    source: impl AsFd,
    source_offset: u64,
    destination: impl AsFd,
    offset: u64,
    length: u64,
) -> io::Result<()> {
    // To the kernel no length means all the rest.
    if length == 0 {
        return Ok(());
    }
    let source = source.as_fd();
    let descriptor = i64::from(source.as_raw_fd()).cast_unsigned();
    let result = retry_on_intr(|| {
        let range = [descriptor, source_offset, length, offset];
        // SAFETY: FICLONERANGE reads four numbers of 64 bits: descriptor, offset, length, offset.
        let range = unsafe { Setter::<FICLONERANGE, [u64; 4]>::new(range) };
        // SAFETY: the numbers live, and the descriptor is open, until the call returns.
        unsafe { ioctl::ioctl(&destination, range) }
    });
    result.map_err(unless_unsupported)
}

/// The errors that say that something else has to be tried. `EPERM` is what a sandbox that knows only
/// the old calls answers; whatever else it may mean, writing will say it too.
fn unless_unsupported(error: Errno) -> io::Error {
    match error {
        Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::PERM => {
            io::ErrorKind::Unsupported.into()
        }
        error => error.into(),
    }
}

/// Whether a copy within the file system of `fd` surely has space of its own: true where files are
/// known not to share blocks (tmpfs, ramfs, ext2 to ext4), false where they may.
#[must_use]
pub fn never_shares_blocks(fd: impl AsFd) -> bool {
    const EXT: u64 = 0xef53;
    super::lives_in_memory(&fd)
        || rustix::fs::fstatfs(fd).is_ok_and(|facts| facts.f_type as u64 & 0xffff_ffff == EXT)
}

/// The block size of the file system of `fd`, in bytes.
///
/// # Errors
/// What `fstatfs` failed with.
pub fn file_system_block(fd: impl AsFd) -> io::Result<u64> {
    // The sign of the field depends on the machine.
    Ok(rustix::fs::fstatfs(fd)?.f_bsize as u64)
}

// Miri knows nothing of copy_file_range.
#[cfg(all(test, not(miri)))]
mod tests {
    use std::{
        fs::File,
        path::{Path, PathBuf},
    };

    use super::*;

    /// A new file in `directory` with these bytes.
    fn file(directory: &Path, name: &str, bytes: &[u8]) -> (File, PathBuf) {
        let path = directory.join(format!("sys-copy-{name}-{}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path);
        let file = file.expect("a file");
        crate::write_all_at(&file, bytes, 0).expect("written");
        (file, path)
    }

    #[test]
    fn a_copy_ends_where_the_source_ends() {
        let directory = std::env::temp_dir();
        let bytes: Vec<u8> = (0..100_000).map(|at: u32| (at % 251) as u8).collect();
        let (source, source_path) = file(&directory, "end-source", &bytes);
        let (copy, copy_path) = file(&directory, "end-copy", &[]);
        let mut done = 0;
        while let count @ 1.. =
            copy_range(&source, 7 + done, &copy, 33 + done, 200_000).expect("copied")
        {
            done += count;
        }
        assert_eq!(done, 100_000 - 7);
        let mut read = vec![1; 100_100];
        let count = crate::read_at(&copy, &mut read, 0).expect("read");
        assert_eq!(count, 33 + 100_000 - 7);
        assert_eq!(read[..33], [0; 33]);
        assert_eq!(read[33..count], bytes[7..]);
        for path in [source_path, copy_path] {
            std::fs::remove_file(path).expect("removed");
        }
    }

    #[test]
    fn a_range_is_shared_or_nothing_changes() {
        let directory = std::env::temp_dir();
        let (source, source_path) = file(&directory, "share-source", &[5; 1 << 16]);
        let (copy, copy_path) = file(&directory, "share-copy", &[6; 1 << 16]);
        let expected = match clone_range(&source, 1 << 15, &copy, 0, 1 << 15) {
            Ok(()) => 5,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::Unsupported);
                6
            }
        };
        clone_range(&source, 0, &copy, 0, 0).expect("nothing to be done");
        let mut read = vec![1; 1 << 17];
        let count = crate::read_at(&copy, &mut read, 0).expect("read");
        assert_eq!(count, 1 << 16);
        assert!(read[..1 << 15].iter().all(|byte| *byte == expected));
        assert!(read[1 << 15..count].iter().all(|byte| *byte == 6));
        for path in [source_path, copy_path] {
            std::fs::remove_file(path).expect("removed");
        }
    }

    #[test]
    fn what_is_no_regular_file_is_not_supported() {
        let directory = std::env::temp_dir();
        let (copy, path) = file(&directory, "irregular", &[]);
        let null = File::open("/dev/null").expect("opened");
        let error = copy_range(&null, 0, &copy, 0, 10).expect_err("a character device");
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        std::fs::remove_file(path).expect("removed");
    }
}
