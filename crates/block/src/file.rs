//! Regular files and block devices of this machine.
//!
//! Data that lies in the page cache is read at once, on the caller's thread: a hop to another thread
//! costs more than the copy. What the disk must be asked for is read on the runtime's threads for
//! blocking calls. Writes go to the page cache and stay on the caller's thread; making them durable
//! does not.

mod copy;
mod extents;
mod open;
mod zero;

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use blockferry_sys as sys;

use crate::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, CopyFlags, DeviceInfo, Error,
    ErrorKind, Extent, FileRange, Mapping, Operation, Result, WriteFlags, ZeroFlags,
    blocking::run_blocking,
    device::{check_allocation, range_of, request_range},
};
use copy::Strangers;
use extents::MOST_EXTENTS;

pub use open::Access;

/// A regular file or a block device as a device of bytes.
///
/// The size is that of the moment it was opened: when someone else makes the file longer, the new
/// part is not seen, and reading what someone else cut off fails with `UnexpectedEnd`.
#[derive(Debug)]
pub struct FileDevice {
    info: DeviceInfo,
    handle: Arc<Handle>,
}

/// The open file and what was learned of it; calls on other threads share it.
#[derive(Debug)]
struct Handle {
    file: File,
    is_block_device: bool,
    /// Sectors of a block device, in bytes.
    sector: u64,
    /// The size as far as this device has changed it.
    size: AtomicU64,
    /// Reads never wait for a disk: the file lives in memory.
    in_memory: bool,
    /// Set when the size was changed, so that a flush has more than data to make durable.
    resized: AtomicBool,
    outdated: Outdated,
    /// The directory of a file that was created here, until its entry is durable.
    directory: Mutex<Option<File>>,
    lacks: Lacks,
    /// The file systems that nothing comes over from.
    strangers: Mutex<Strangers>,
    /// The last run of data that was looked up. Looking up where data ends can take long: a file in
    /// memory is walked page by page. Out of date it is only less precise.
    data_run: Mutex<ByteRange>,
}

/// Whether the file still has contents that are to be replaced. They are removed before the first
/// change, so that a file is lost only when there is something to take its place.
#[derive(Debug, Default)]
struct Outdated {
    is: AtomicBool,
    turn: Mutex<()>,
}

/// What the file turned out not to be able to do; asked once each.
#[derive(Debug, Default)]
struct Lacks {
    cached_reads: AtomicBool,
    punch_hole: AtomicBool,
    zero_range: AtomicBool,
    discard: AtomicBool,
    seek_data: AtomicBool,
}

impl Handle {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Reads what can be had without waiting for a disk and says how many bytes came.
    fn read_cached(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.lacks.cached_reads.load(Ordering::Relaxed) {
            match sys::read_cached_at(&self.file, bytes, offset) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    self.lacks.cached_reads.store(true, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        if self.in_memory {
            return sys::read_at(&self.file, bytes, offset);
        }
        Ok(0)
    }

    /// Reads what `read_cached` left: all but the first `done` bytes.
    fn read_rest(&self, bytes: &mut [u8], offset: u64, done: usize) -> Result<()> {
        let from = offset + done as u64;
        let count = sys::read_at(&self.file, &mut bytes[done..], from)?;
        if count == bytes.len() - done {
            return Ok(());
        }
        let end = from + count as u64;
        Err(Error::with_message(
            ErrorKind::UnexpectedEnd,
            format!("the file shrank: it ends at offset {end}"),
        ))
    }

    /// Removes the old contents of a file that is to be replaced; called before every change.
    fn begin_change(&self) -> io::Result<()> {
        if !self.outdated.is.load(Ordering::Acquire) {
            return Ok(());
        }
        let _turn = self
            .outdated
            .turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.outdated.is.load(Ordering::Acquire) {
            sys::set_size(&self.file, 0)?;
            self.resized.store(true, Ordering::Release);
            self.outdated.is.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn write(&self, data: &[u8], range: ByteRange) -> io::Result<()> {
        self.begin_change()?;
        sys::write_all_at(&self.file, data, range.start())?;
        self.grown_to(range.end());
        Ok(())
    }

    fn grown_to(&self, end: u64) {
        if self.size.fetch_max(end, Ordering::AcqRel) < end {
            self.resized.store(true, Ordering::Release);
        }
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        if self.outdated.is.load(Ordering::Acquire) && size > sys::inspect(&self.file)?.size {
            // A size that no file can have here fails while the old contents are still there.
            sys::set_size(&self.file, size)?;
        }
        self.begin_change()?;
        sys::set_size(&self.file, size)?;
        self.size.store(size, Ordering::Release);
        self.resized.store(true, Ordering::Release);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if self.resized.load(Ordering::Acquire) {
            sys::sync_all(&self.file)?;
        } else {
            sys::sync_data(&self.file)?;
        }
        let mut directory = self
            .directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*directory {
            match sys::sync_all(open) {
                // Some file systems cannot sync a directory, and need not.
                Err(error) if error.kind() != io::ErrorKind::InvalidInput => {
                    return Err(error.into());
                }
                _ => *directory = None,
            }
        }
        Ok(())
    }
}

impl FileDevice {
    fn check(&self, operation: Operation, range: ByteRange) -> Result<()> {
        self.info.check_within(self.handle.size(), operation, range)
    }

    /// Runs a call that may take long on another thread.
    async fn hop<T, F>(&self, call: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Handle) -> Result<T> + Send + 'static,
    {
        let handle = Arc::clone(&self.handle);
        run_blocking(move || call(&handle)).await?
    }

    async fn change<F>(&self, durable: bool, call: F) -> Result<()>
    where
        F: FnOnce(&Handle) -> Result<()> + Send + 'static,
    {
        // Of a file only its metadata changes; a block device may be busy for seconds.
        if self.handle.is_block_device {
            self.hop(call).await?;
        } else {
            call(&self.handle)?;
        }
        if durable {
            self.hop(Handle::flush).await?;
        }
        Ok(())
    }
}

impl FileDevice {
    /// At most `most` extents from the start of `range` on.
    fn find_extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
        most: usize,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            check_allocation(range, context)?;
            self.check(Operation::Extents, range)?;
            if let Some(known) = self.handle.known_data(range) {
                return Ok(vec![known]);
            }
            self.hop(move |handle| Ok(handle.extents(range, most)?))
                .await
                .map_err(|error| failed(error, Operation::Extents, range))
        })
    }
}

impl BlockDevice for FileDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.check(Operation::Read, range)?;
            let cached = self.handle.read_cached(&mut buffer, offset);
            let done = cached.map_err(|error| failed(error, Operation::Read, range))?;
            if done == buffer.len() {
                return Ok(buffer);
            }
            let rest = self.hop(move |handle| {
                handle.read_rest(&mut buffer, offset, done)?;
                Ok(buffer)
            });
            rest.await
                .map_err(|error| failed(error, Operation::Read, range))
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.check(Operation::Write, range)?;
            let written = self.handle.write(&data, range);
            written.map_err(|error| failed(error, Operation::Write, range))?;
            if flags.contains(WriteFlags::FUA) {
                let durable = self.hop(Handle::flush);
                durable
                    .await
                    .map_err(|error| failed(error, Operation::Write, range))?;
            }
            Ok(data)
        })
    }

    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = range_of(Operation::Copy, offset, source.range().len())?;
            self.check(Operation::Copy, range)?;
            let failed = |error| failed(error, Operation::Copy, range);
            // Known to be in vain: not worth another thread.
            let way = self.handle.way_from(&source, flags).map_err(failed)?;
            let copy = self.hop(move |handle| {
                handle.copy_from(offset, &source, way)?;
                if flags.contains(CopyFlags::FUA) {
                    handle.flush()?;
                }
                Ok(())
            });
            copy.await.map_err(failed)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check(Operation::Zero, range)?;
            let durable = flags.contains(ZeroFlags::FUA);
            self.change(durable, move |handle| handle.zero(range, flags))
                .await
                .map_err(|error| failed(error, Operation::Zero, range))
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check(Operation::Trim, range)?;
            let durable = flags.contains(WriteFlags::FUA);
            self.change(durable, move |handle| Ok(handle.trim(range)?))
                .await
                .map_err(|error| failed(error, Operation::Trim, range))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if !self.info.can(Capabilities::FLUSH) {
                return Ok(());
            }
            self.hop(Handle::flush)
                .await
                .map_err(|error| error.during(Operation::Flush))
        })
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check(Operation::Cache, range)?;
            sys::will_need(&self.handle.file, range.start(), range.len())
                .map_err(|error| failed(error, Operation::Cache, range))
        })
    }

    /// `base:allocation`, from the holes of the file; a block device is all data. One answer has at
    /// most 4096 extents.
    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.find_extents(range, context, MOST_EXTENTS)
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.find_extents(range, context, 1)
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        let inside = range.intersection(ByteRange::between(0, self.handle.size()));
        if inside.is_empty() {
            return Mapping::Opaque;
        }
        Mapping::File {
            fd: self.handle.file.as_fd(),
            offset: inside.start(),
            length: inside.len(),
        }
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check_resize(size)?;
            let resized = self.handle.resize(size);
            resized.map_err(|error| Error::from(error).during(Operation::Resize))
        })
    }
}

fn failed(error: impl Into<Error>, operation: Operation, range: ByteRange) -> Error {
    error
        .into()
        .during(operation)
        .at(range.start(), range.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;

    const SIZE: u64 = 300_000;

    /// A file without a hole, whose byte at `n` is `n` modulo 251, and its device after `lacking`.
    fn device(lacking: impl FnOnce(&Lacks)) -> (tempfile::NamedTempFile, FileDevice) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let bytes: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
        std::fs::write(file.path(), &bytes).expect("written");
        let device = FileDevice::open(file.path(), Access::ReadWrite).expect("opened");
        lacking(&device.handle.lacks);
        (file, device)
    }

    async fn check_contents(device: &FileDevice) {
        let read = device.read(1, Buffer::zeroed(SIZE as usize - 1)).await;
        let read = read.expect("read");
        assert!(
            (1..)
                .zip(&read[..])
                .all(|(at, byte)| *byte == (at % 251) as u8)
        );
    }

    #[tokio::test]
    async fn what_is_not_known_to_be_cached_is_read_all_the_same() {
        let (_file, device) = device(|lacks| lacks.cached_reads.store(true, Ordering::Relaxed));
        check_contents(&device).await;
    }

    #[tokio::test]
    async fn where_nothing_can_zero_nothing_changes() {
        let (_file, device) = device(|lacks| {
            lacks.punch_hole.store(true, Ordering::Relaxed);
            lacks.zero_range.store(true, Ordering::Relaxed);
        });
        for flags in [ZeroFlags::empty(), ZeroFlags::NO_HOLE, ZeroFlags::FAST] {
            let zero = device.zero(ByteRange::between(10, 100_000), flags).await;
            let error = zero.expect_err("unsupported");
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!((error.offset(), error.length()), (Some(10), Some(99_990)));
        }
        let trim = device.trim(ByteRange::between(0, 8192), WriteFlags::empty());
        trim.await.expect("a trim may do nothing");
        check_contents(&device).await;
    }

    #[tokio::test]
    async fn where_nothing_can_punch_zeroing_keeps_the_space() {
        let (_file, device) = device(|lacks| lacks.punch_hole.store(true, Ordering::Relaxed));
        let range = ByteRange::between(5, 200_000);
        match device.zero(range, ZeroFlags::empty()).await {
            Ok(()) => {
                let read = device.read(4, Buffer::zeroed(200_000)).await.expect("read");
                assert_eq!((read[0], read[199_996]), (4, (200_000 % 251) as u8));
                assert!(crate::is_zero(&read[1..199_996]));
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
        }
    }

    #[tokio::test]
    async fn a_file_still_grows_by_zeroes_where_nothing_can_zero() {
        let (_file, device) = device(|lacks| {
            lacks.punch_hole.store(true, Ordering::Relaxed);
            lacks.zero_range.store(true, Ordering::Relaxed);
        });
        let device = device.growable();
        let beyond = ByteRange::between(SIZE, SIZE + 10_000);
        let zero = device.zero(beyond, ZeroFlags::empty());
        zero.await.expect("what is new is zero anyhow");
        let read = device.read(SIZE - 1, Buffer::zeroed(10_001)).await;
        let read = read.expect("it has grown");
        assert_eq!(read[0], ((SIZE - 1) % 251) as u8);
        assert!(crate::is_zero(&read[1..]));
    }

    #[tokio::test]
    async fn without_a_way_to_find_holes_everything_is_data() {
        let (file, device) = device(|lacks| lacks.seek_data.store(true, Ordering::Relaxed));
        file.as_file().set_len(0).expect("cut");
        file.as_file().set_len(SIZE).expect("one hole");
        let range = ByteRange::between(7, SIZE);
        let extents = device.extents(range, &Context::Allocation).await;
        let status = Status::DATA;
        assert_eq!(extents.expect("an answer"), [Extent { range, status }]);
    }

    #[tokio::test]
    async fn the_directory_of_a_new_file_is_synced_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("new");
        let device = FileDevice::create(&path).expect("created");
        let pending = || {
            device
                .handle
                .directory
                .lock()
                .expect("not poisoned")
                .is_some()
        };
        assert!(pending());
        device.flush().await.expect("flushed");
        assert!(!pending());
        let again = FileDevice::create(&path).expect("emptied");
        assert!(
            again
                .handle
                .directory
                .lock()
                .expect("not poisoned")
                .is_none()
        );
    }

    #[tokio::test]
    async fn the_first_extent_is_found_without_the_others() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("grown");
        for at in (0..1 << 20).step_by(128 << 10) {
            std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], at).expect("written");
        }
        let device = FileDevice::from_file(file, "fragments").expect("a device");
        for start in [0, 4096, 128 << 10, 100_000] {
            let range = ByteRange::between(start, 1 << 20);
            let all = device.extents(range, &Context::Allocation).await;
            let first = device.first_extent(range, &Context::Allocation).await;
            let (all, first) = (all.expect("extents"), first.expect("an extent"));
            assert_eq!(first, all[..1]);
            assert!(all.len() > 8, "{all:?}");
        }
    }
}
