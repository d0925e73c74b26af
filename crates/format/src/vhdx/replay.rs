//! The file as it is after its log was replayed, which nobody writes: what the log has lies over it.

use std::{collections::BTreeMap, sync::Arc};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, DeviceInfo, Error, ErrorKind, Mapping,
    Operation, Payload, PipeBuffer, RangeSet, Result, range_of, request_range,
};

use super::header::bytes_at;
use crate::{corrupt::corrupt, host::HostFile};

/// What a log's data come in, in bytes.
pub(crate) const PAGE: u64 = 4096;

/// How many places that are zero are kept: some 40 MiB of memory.
const MOST_ZEROES: usize = 1 << 20;

/// What lies over a file: pages of data, by where they belong, and zeroes; no place has both.
#[derive(Debug)]
pub(crate) struct Replay {
    pages: BTreeMap<u64, Page>,
    zeroes: RangeSet,
    /// How long the file itself is, and how long it is with what lies over it.
    below: u64,
    end: u64,
}

/// Where the data of a page are, in the file: the first and the last bytes there are others, for which these stand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) data: u64,
    pub(crate) leading: [u8; 8],
    pub(crate) trailing: [u8; 4],
}

/// Where bytes come from.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// From the file below.
    Below,
    /// Nowhere: they are zeroes.
    Zero,
    /// From a page, which begins at this offset.
    Page(u64, Page),
}

impl Replay {
    /// Nothing, over a file that ends at `end`.
    pub(crate) fn new(end: u64) -> Self {
        Self {
            pages: BTreeMap::new(),
            zeroes: RangeSet::new(),
            below: end,
            end,
        }
    }

    /// Puts a page at `offset`, a multiple of its size.
    pub(crate) fn write(&mut self, offset: u64, page: Page) {
        let range = ByteRange::between(offset, offset + PAGE);
        self.zeroes.remove(range);
        self.pages.insert(offset, page);
        self.end = self.end.max(range.end());
    }

    /// Puts zeroes on `range`, which is made of whole pages.
    ///
    /// # Errors
    /// `Unsupported` for very many of them: a log of 4 GiB has room for 128 million.
    pub(crate) fn zero(&mut self, range: ByteRange) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if self.zeroes.count() >= MOST_ZEROES {
            let message = format!("its log zeroes more than {MOST_ZEROES} places");
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        let gone = self.pages.range(range.start()..range.end());
        let gone: Vec<u64> = gone.map(|(offset, _)| *offset).collect();
        for offset in gone {
            self.pages.remove(&offset);
        }
        self.zeroes.insert(range);
        self.end = self.end.max(range.end());
        Ok(())
    }

    /// Makes the file at least `end` bytes long.
    ///
    /// # Errors
    /// `Corrupt` where no file can be as long.
    pub(crate) fn grow(&mut self, end: u64) -> Result<()> {
        if ByteRange::new(0, end).is_err() {
            return Err(corrupt(format!("its log wants a file of {end} bytes")));
        }
        self.end = self.end.max(end);
        Ok(())
    }

    /// The first part of `range`, which is not empty and ends before the end, and where it comes from.
    fn first(&self, range: ByteRange) -> (ByteRange, Source) {
        let start = range.start();
        let page = start - start % PAGE;
        if let Some(found) = self.pages.get(&page) {
            let part = range.intersection(ByteRange::between(page, page + PAGE));
            return (part, Source::Page(page, *found));
        }
        let next_page = self.pages.range(start..range.end()).next();
        let end = next_page.map_or(range.end(), |(offset, _)| *offset);
        let rest = ByteRange::between(start, end);
        let zero = self.zeroes.first_in(rest);
        match zero {
            Some(zero) if zero.start() == start => (zero, Source::Zero),
            _ if start >= self.below => (
                ByteRange::between(start, zero.map_or(end, ByteRange::start)),
                Source::Zero,
            ),
            _ => {
                let end = zero.map_or(end, ByteRange::start).min(self.below);
                (ByteRange::between(start, end), Source::Below)
            }
        }
    }
}

/// A file with what its log has over it, as a device.
pub(crate) struct Replayed {
    info: DeviceInfo,
    file: HostFile,
    replay: Arc<Replay>,
}

impl Replayed {
    pub(crate) fn new(file: HostFile, replay: Arc<Replay>) -> Self {
        let below = file.device().info();
        let mut info = DeviceInfo::new(Arc::clone(&below.name), replay.end);
        info.rotational = below.rotational;
        let kept = Capabilities::MULTI_CONN | Capabilities::SPLICE_READ | Capabilities::REOPEN;
        info.capabilities = below.capabilities & kept;
        Self { info, file, replay }
    }

    /// Fills `buffer` with `part`, which comes from one place.
    async fn read_part(
        &self,
        part: ByteRange,
        source: Source,
        mut buffer: Buffer,
    ) -> Result<Buffer> {
        match source {
            Source::Below => self.file.read(part.start(), buffer).await,
            Source::Zero => {
                buffer.fill(0);
                Ok(buffer)
            }
            Source::Page(offset, page) => {
                let mut bytes = bytes_at(&self.file, page.data, PAGE).await?;
                bytes[..8].copy_from_slice(&page.leading);
                bytes[PAGE as usize - 4..].copy_from_slice(&page.trailing);
                let from = (part.start() - offset) as usize;
                let length = buffer.len();
                buffer.copy_from_slice(&bytes[from..][..length]);
                Ok(buffer)
            }
        }
    }
}

impl BlockDevice for Replayed {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.info.check(Operation::Read, range)?;
            let mut rest = range;
            while !rest.is_empty() {
                let (part, source) = self.replay.first(rest);
                if part == range {
                    return self.read_part(part, source, buffer).await;
                }
                let bytes = Buffer::zeroed(part.len() as usize);
                let bytes = self.read_part(part, source, bytes).await?;
                let to = (part.start() - offset) as usize;
                buffer[to..][..bytes.len()].copy_from_slice(&bytes);
                rest = rest.split_at(part.len()).1;
            }
            Ok(buffer)
        })
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        Box::pin(async move {
            let range = range_of(Operation::Read, offset, length as u64)?;
            self.info.check(Operation::Read, range)?;
            if !range.is_empty()
                && let (part, Source::Below) = self.replay.first(range)
                && part == range
                && self.file.takes(range)
            {
                return self.file.device().read_piped(offset, length, pipe).await;
            }
            drop(pipe);
            let buffer = self.read(offset, Buffer::zeroed(length)).await?;
            Ok(Payload::Memory(buffer))
        })
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        let range = range.intersection(ByteRange::between(0, self.info.size));
        if range.is_empty() {
            return Mapping::Opaque;
        }
        match self.replay.first(range) {
            (part, Source::Below) => self.file.device().mapping(part),
            (part, Source::Zero) => Mapping::Zero { length: part.len() },
            (_, Source::Page(..)) => Mapping::Opaque,
        }
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let below = self.file.device().reopen().await?;
            let file = self.file.through(below);
            let again = Self::new(file, Arc::clone(&self.replay));
            Ok(Arc::new(again) as Arc<dyn BlockDevice>)
        })
    }
}

#[cfg(test)]
mod tests {
    use blockferry_block::{MemoryDevice, testing::check_device};

    use super::*;

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    /// A file of 40 pages with pages and zeroes over it, also behind its end.
    fn replayed() -> (Replayed, Vec<u8>) {
        let bytes = pattern(40 * PAGE as usize);
        let mut expected = bytes.clone();
        expected.resize(60 * PAGE as usize, 0);
        let file = HostFile::new(Arc::new(MemoryDevice::from_bytes(bytes.clone())));
        let mut replay = Replay::new(file.end());
        let steps = [(3, 30, 0), (4, 31, 8), (41, 32, 0), (3, 33, 1), (20, 34, 0)];
        for (to, from, zeroes) in steps {
            let (to, from) = (to * PAGE, from * PAGE);
            let page = Page {
                data: from,
                leading: [0xaa; 8],
                trailing: [0xbb; 4],
            };
            replay.write(to, page);
            let place = &mut expected[to as usize..][..PAGE as usize];
            place.copy_from_slice(&bytes[from as usize..][..PAGE as usize]);
            place[..8].fill(0xaa);
            place[PAGE as usize - 4..].fill(0xbb);
            let zeroed = ByteRange::between(to + PAGE, to + (1 + zeroes) * PAGE);
            replay.zero(zeroed).expect("few");
            expected[zeroed.start() as usize..zeroed.end() as usize].fill(0);
        }
        let zeroed = replay.zero(ByteRange::between(19 * PAGE, 21 * PAGE));
        zeroed.expect("few");
        expected[19 * PAGE as usize..21 * PAGE as usize].fill(0);
        replay.grow(60 * PAGE).expect("it can be as long");
        (Replayed::new(file, Arc::new(replay)), expected)
    }

    #[tokio::test]
    async fn what_was_written_last_lies_over_the_file() {
        let (device, expected) = replayed();
        assert_eq!(device.info().size, 60 * PAGE);
        let whole = device.read(0, Buffer::zeroed(expected.len())).await;
        assert!(whole.expect("read")[..] == expected);
        for seed in 0..4 {
            check_device(&device, seed, 200).await;
        }
    }

    #[test]
    fn only_what_the_log_did_not_touch_is_mapped() {
        let (device, _) = replayed();
        let mapping = |page: u64| device.mapping(ByteRange::between(page * PAGE, 60 * PAGE));
        assert!(matches!(mapping(3), Mapping::Opaque));
        assert!(matches!(mapping(50), Mapping::Zero { length } if length == 10 * PAGE));
        assert!(matches!(mapping(19), Mapping::Zero { length } if length == 2 * PAGE));
    }

    #[test]
    fn no_file_is_longer_than_files_can_be() {
        let error = Replay::new(0).grow(1 << 63).expect_err("too long");
        assert!(error.to_string().contains("9223372036854775808"), "{error}");
    }
}
