//! A sparse device in memory.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crate::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Extent, Operation, Result, Status, WriteFlags, ZeroFlags,
    device::{check_allocation, request_range},
    push_merged,
};

/// The unit that memory is taken in: that of nbdkit's memory disks, whose extents look the same.
const PAGE: u64 = 32 << 10;

/// A device whose contents live in memory, in pages of 32 KiB that exist from their first write on.
///
/// Pages that were never written, or were zeroed or trimmed as a whole, take no memory and are holes
/// in [`extents`](BlockDevice::extents). Its size is fixed unless it is made [`growable`](Self::growable).
#[derive(Debug)]
pub struct MemoryDevice {
    info: DeviceInfo,
    contents: RwLock<Contents>,
}

#[derive(Debug)]
struct Contents {
    size: u64,
    pages: BTreeMap<u64, Mutex<Box<[u8]>>>,
}

impl MemoryDevice {
    /// A device of `size` zero bytes, `i64::MAX` at most, that takes no memory yet.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let size = ByteRange::between(0, size).end();
        let mut info = DeviceInfo::new("memory:", size);
        info.capabilities = Capabilities::WRITE
            | Capabilities::FLUSH
            | Capabilities::FUA
            | Capabilities::TRIM
            | Capabilities::ZERO
            | Capabilities::FAST_ZERO
            | Capabilities::MULTI_CONN
            | Capabilities::BORN_ZERO;
        info.contexts = vec![Context::Allocation];
        let pages = BTreeMap::new();
        Self {
            info,
            contents: RwLock::new(Contents { size, pages }),
        }
    }

    /// The same device, called `name` in messages.
    #[must_use]
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.info.name = name.into();
        self
    }

    /// A device of `size` bytes whose maker writes its first contents.
    pub(crate) fn holding(name: &str, size: u64) -> Self {
        let mut device = Self::new(size).named(name);
        device.info.capabilities -= Capabilities::BORN_ZERO;
        device
    }

    /// A device that holds `bytes`. Pages of zeroes among them are holes.
    #[must_use]
    pub fn from_bytes(bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let device = Self::holding("memory:", bytes.len() as u64);
        let mut contents = device.contents_mut();
        for (index, piece) in (0..).zip(bytes.chunks(PAGE as usize)) {
            if !crate::is_zero(piece) {
                contents.page_mut(index)[..piece.len()].copy_from_slice(piece);
            }
        }
        drop(contents);
        device
    }

    /// Lets the device change its size: by [`resize`](BlockDevice::resize), and by writes past its end.
    #[must_use]
    pub fn growable(mut self) -> Self {
        self.info.capabilities |= Capabilities::RESIZE;
        self
    }

    /// A copy of all bytes, from the first to the end of the device.
    ///
    /// # Panics
    /// When the device is larger than memory can be.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        let contents = self.contents_ref();
        let mut bytes =
            vec![0; usize::try_from(contents.size).expect("a size that fits in memory")];
        contents.read(0, &mut bytes);
        bytes
    }

    /// How many bytes of memory the pages take.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.contents_ref().pages.len() as u64 * PAGE
    }

    fn contents_ref(&self) -> RwLockReadGuard<'_, Contents> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn contents_mut(&self) -> RwLockWriteGuard<'_, Contents> {
        self.contents
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write_now(&self, range: ByteRange, data: &[u8]) -> Result<()> {
        let contents = self.contents_ref();
        self.info
            .check_within(contents.size, Operation::Write, range)?;
        // Most writes find their pages; then writers keep each other out page by page only.
        if range.end() <= contents.size && contents.overwrite(range, data) {
            return Ok(());
        }
        drop(contents);
        let mut contents = self.contents_mut();
        contents.grow(range.end());
        contents.write(range, data);
        Ok(())
    }

    fn zero_now(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        let mut contents = self.contents_mut();
        self.info
            .check_within(contents.size, Operation::Zero, range)?;
        let keep = flags.contains(ZeroFlags::NO_HOLE);
        let longest = u64::from(self.info.limits.maximum);
        if keep && (flags.contains(ZeroFlags::FAST) || range.len() > longest) {
            return Err(Error::with_message(
                ErrorKind::Unsupported,
                "memory is not allocated faster, nor more at once, than it is written",
            ));
        }
        contents.grow(range.end());
        if keep {
            for piece in range.pieces(PAGE) {
                contents.page_mut(piece.start() / PAGE)[in_page(piece)].fill(0);
            }
        } else {
            contents.drop_pages(range);
            contents.clear_edges(range);
        }
        Ok(())
    }
}

impl Contents {
    fn page_mut(&mut self, index: u64) -> &mut [u8] {
        self.pages
            .entry(index)
            .or_insert_with(|| Mutex::new(vec![0; PAGE as usize].into_boxed_slice()))
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of the page, unless it is a hole.
    fn page(&self, index: u64) -> Option<MutexGuard<'_, Box<[u8]>>> {
        let page = self.pages.get(&index)?;
        Some(page.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read(&self, offset: u64, mut bytes: &mut [u8]) {
        for piece in ByteRange::between(offset, offset + bytes.len() as u64).pieces(PAGE) {
            let (part, rest) = bytes.split_at_mut(in_page(piece).len());
            match self.page(piece.start() / PAGE) {
                Some(page) => part.copy_from_slice(&page[in_page(piece)]),
                None => part.fill(0),
            }
            bytes = rest;
        }
    }

    /// Writes where every page exists; otherwise nothing may have been written, or a part.
    fn overwrite(&self, range: ByteRange, mut data: &[u8]) -> bool {
        for piece in range.pieces(PAGE) {
            let Some(mut page) = self.page(piece.start() / PAGE) else {
                return false;
            };
            let (part, rest) = data.split_at(in_page(piece).len());
            page[in_page(piece)].copy_from_slice(part);
            data = rest;
        }
        true
    }

    fn write(&mut self, range: ByteRange, mut data: &[u8]) {
        for piece in range.pieces(PAGE) {
            let (part, rest) = data.split_at(in_page(piece).len());
            self.page_mut(piece.start() / PAGE)[in_page(piece)].copy_from_slice(part);
            data = rest;
        }
    }

    fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    /// Gives back the pages that lie wholly in `range`.
    fn drop_pages(&mut self, range: ByteRange) {
        let whole = range.aligned_within(PAGE);
        let (first, end) = (whole.start() / PAGE, whole.end() / PAGE);
        // Not one lookup for each possible page: there may be far more of those than pages.
        while let Some((index, _)) = self.pages.range(first..end.max(first)).next() {
            let index = *index;
            self.pages.remove(&index);
        }
    }

    /// Zeroes what `range` has of pages that it does not cover wholly.
    fn clear_edges(&mut self, range: ByteRange) {
        let (head, rest) = range.split_at(PAGE - range.start() % PAGE);
        // The rest begins at a page, so this is what it has of its last one.
        let (_, tail) = rest.split_at(rest.len() - rest.len() % PAGE);
        for edge in [head, tail] {
            let index = edge.start() / PAGE;
            if !edge.is_empty() && self.pages.contains_key(&index) {
                self.page_mut(index)[in_page(edge)].fill(0);
            }
        }
    }

    fn extents(&self, range: ByteRange) -> Vec<Extent> {
        let mut list = Vec::new();
        let mut push = |start, end, status| {
            let range = ByteRange::between(start, end);
            push_merged(&mut list, Extent { range, status });
        };
        let mut at = range.start();
        let pages = range.start() / PAGE..range.end().div_ceil(PAGE);
        for (index, _) in self.pages.range(pages) {
            let page = ByteRange::between(index * PAGE, (index + 1).saturating_mul(PAGE));
            let page = page.intersection(range);
            push(at, page.start(), Status::HOLE_ZERO);
            push(page.start(), page.end(), Status::DATA);
            at = page.end();
        }
        push(at, range.end(), Status::HOLE_ZERO);
        list
    }

    fn resize(&mut self, size: u64) {
        // What is cut off must read as zeroes should the device grow again.
        self.pages.split_off(&size.div_ceil(PAGE));
        if let Some(page) = self.pages.get_mut(&(size / PAGE)) {
            let page = page.get_mut().unwrap_or_else(PoisonError::into_inner);
            page[(size % PAGE) as usize..].fill(0);
        }
        self.size = size;
    }
}

/// Where `piece`, which lies within one page, lies in that page.
fn in_page(piece: ByteRange) -> std::ops::Range<usize> {
    let start = (piece.start() % PAGE) as usize;
    start..start + piece.len() as usize
}

impl BlockDevice for MemoryDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            let contents = self.contents_ref();
            self.info
                .check_within(contents.size, Operation::Read, range)?;
            contents.read(offset, &mut buffer);
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.write_now(range, &data)?;
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.zero_now(range, flags)
                .map_err(|error| error.during(Operation::Zero).at(range.start(), range.len()))
        })
    }

    fn trim(&self, range: ByteRange, _: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut contents = self.contents_mut();
            self.info
                .check_within(contents.size, Operation::Trim, range)?;
            contents.drop_pages(range);
            Ok(())
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            let contents = self.contents_ref();
            check_allocation(range, context)?;
            self.info
                .check_within(contents.size, Operation::Extents, range)?;
            Ok(contents.extents(range))
        })
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check_resize(size)?;
            self.contents_mut().resize(size);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn write(device: &MemoryDevice, offset: u64, bytes: &[u8]) {
        let write = device.write(offset, Buffer::from(bytes), WriteFlags::empty());
        assert_eq!(write.await.expect("written")[..], *bytes);
    }

    #[tokio::test]
    async fn only_what_was_written_takes_memory() {
        let device = MemoryDevice::new(i64::MAX as u64);
        assert_eq!(device.allocated(), 0);
        write(&device, (1 << 62) - 1, &[1, 2]).await;
        assert_eq!(device.allocated(), 2 * PAGE);
        let end = ByteRange::between((1 << 62) - 1, 1 << 62);
        device
            .trim(end, WriteFlags::empty())
            .await
            .expect("trimmed");
        assert_eq!(device.allocated(), 2 * PAGE, "no whole page was trimmed");
        let all = ByteRange::between(0, u64::MAX);
        device.zero(all, ZeroFlags::FAST).await.expect("zeroed");
        assert_eq!(device.allocated(), 0);
    }

    #[tokio::test]
    async fn zeroing_without_a_hole_allocates() {
        let device = MemoryDevice::new(4 * PAGE);
        let range = ByteRange::between(PAGE, 3 * PAGE);
        let fast = ZeroFlags::NO_HOLE | ZeroFlags::FAST;
        let error = device.zero(range, fast).await.expect_err("not fast");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(device.allocated(), 0);
        device
            .zero(range, ZeroFlags::NO_HOLE)
            .await
            .expect("zeroed");
        assert_eq!(device.allocated(), 2 * PAGE);
        let whole = ByteRange::between(0, 4 * PAGE);
        let extents = device.extents(whole, &Context::Allocation).await;
        let statuses: Vec<_> = extents
            .expect("an answer")
            .iter()
            .map(|extent| extent.status)
            .collect();
        assert_eq!(
            statuses,
            [Status::HOLE_ZERO, Status::DATA, Status::HOLE_ZERO]
        );
    }

    #[tokio::test]
    async fn what_was_cut_off_does_not_come_back() {
        let device = MemoryDevice::from_bytes(vec![7; 200_000]).growable();
        device.resize(100_000).await.expect("shrunk");
        let error = device
            .read(100_000, Buffer::zeroed(1))
            .await
            .expect_err("gone");
        assert_eq!(error.kind(), ErrorKind::OutOfBounds);
        write(&device, 150_000, &[8]).await;
        let mut expected = vec![0; 150_001];
        expected[..100_000].fill(7);
        expected[150_000] = 8;
        assert_eq!(device.contents(), expected);
        device
            .resize(u64::MAX)
            .await
            .expect_err("larger than any offset");
    }

    #[test]
    fn the_device_itself_says_how_large_it_can_be() {
        assert_eq!(MemoryDevice::new(u64::MAX).info().size, i64::MAX as u64);
        assert!(!MemoryDevice::new(1).info().can(Capabilities::RESIZE));
        let pages = MemoryDevice::from_bytes(vec![0; 1 << 20]);
        assert_eq!(pages.allocated(), 0, "zeroes are holes");
    }
}
