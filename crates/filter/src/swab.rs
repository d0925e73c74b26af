//! `swab`: the bytes of each word in the other order.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Exports, Extent, Operation, Parameter, ParameterType, Result, Status, WriteFlags, ZeroFlags,
    range_of,
};

use crate::{
    DeviceFilter, Effects, Filter, FilterKind, Filtered, Layer,
    aligned::{around, read, within},
    each_device,
};

pub(crate) static SWAB: FilterKind = FilterKind {
    name: "swab",
    syntax: "swab[:BITS]",
    help: "The bytes of each word in the other order: of disks from machines that were wired so",
    parameters: &[Parameter::new(
        "bits",
        ParameterType::Choice(&["16", "32", "64"]),
        "The size of a word; what does not fill one at the end is left out",
    )
    .first()
    .or("16")],
    effects: Effects {
        extents: "the source's; all data where they do not end with words",
        mapping: "none: bytes are changed on their way",
        ..Effects::NONE
    },
    build: |values| {
        let bits = values.word("bits");
        let bits = bits.and_then(|bits| bits.parse().ok()).unwrap_or(16);
        Ok(Arc::new(Swab { word: bits / 8 }))
    },
};

/// Turns the bytes of each word around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swab {
    /// The size of a word in bytes: 2, 4 or 8; 2 by default. 1 changes nothing.
    pub word: u32,
}

impl Default for Swab {
    fn default() -> Self {
        Self { word: 2 }
    }
}

impl Filter for Swab {
    fn kind(&self) -> &'static FilterKind {
        &SWAB
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let word = self.word;
        if !matches!(word, 1 | 2 | 4 | 8) {
            let message = format!("a word of {word} bytes: it has 1, 2, 4 or 8");
            return Err(Error::with_message(ErrorKind::InvalidInput, message));
        }
        Ok(each_device(SWAB.name, below, move |below| {
            let word = u64::from(word);
            let device = Filtered::new(Swabbed { below, word });
            Box::pin(async move { Ok(Arc::new(device) as Arc<dyn BlockDevice>) })
        }))
    }
}

struct Swabbed {
    below: Arc<dyn BlockDevice>,
    /// In bytes.
    word: u64,
}

impl Swabbed {
    fn size(&self) -> u64 {
        let size = self.below.info().size;
        size - size % self.word
    }

    fn swap(&self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(self.word as usize) {
            word.reverse();
        }
    }

    /// The range of a request, which must be on the device.
    fn range(&self, operation: Operation, offset: u64, length: u64) -> Result<ByteRange> {
        let range = range_of(operation, offset, length)?;
        match range.end() <= self.size() {
            true => Ok(range),
            false => {
                let error = Error::new(ErrorKind::OutOfBounds).during(operation);
                Err(error.at(offset, length))
            }
        }
    }

    /// The range of what is changed. It must be one of whole words: nothing tells of others where their bytes are.
    fn words(&self, operation: Operation, offset: u64, length: u64) -> Result<ByteRange> {
        let range = self.range(operation, offset, length)?;
        let is_whole = |place: u64| place.is_multiple_of(self.word);
        match is_whole(range.start()) && is_whole(range.end()) {
            true => Ok(range),
            false => {
                let message = "it begins or ends amid a word; the filter 'blocksize' in front of 'swab' helps";
                let error = Error::with_message(ErrorKind::InvalidInput, message);
                Err(error.during(operation).at(offset, length))
            }
        }
    }
}

impl DeviceFilter for Swabbed {
    const PASSES: Capabilities = Capabilities::REOPEN;

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        let mut info = self.below.info().clone();
        info.size = self.size();
        // It is 8 at most.
        info.limits.minimum = info.limits.minimum.max(self.word as u32);
        info.limits.preferred = info.limits.preferred.max(info.limits.minimum);
        info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = self.range(Operation::Read, offset, buffer.len() as u64)?;
            let words = around(range, self.word, self.size());
            if words == range {
                let mut buffer = self.below.read(offset, buffer).await?;
                self.swap(&mut buffer);
                return Ok(buffer);
            }
            let whole = Buffer::zeroed(words.len() as usize);
            let mut whole = read(&*self.below, words, whole).await?;
            self.swap(&mut whole);
            buffer.copy_from_slice(&whole[within(range, words)]);
            Ok(buffer)
        })
    }

    fn write(
        &self,
        offset: u64,
        mut data: Buffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.words(Operation::Write, offset, data.len() as u64)?;
            self.swap(&mut data);
            let mut data = self.below.write(offset, data, flags).await?;
            // Whoever lent it may look at it again.
            self.swap(&mut data);
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        match self.words(Operation::Zero, range.start(), range.len()) {
            Ok(range) => self.below.zero(range, flags),
            Err(error) => Box::pin(async move { Err(error) }),
        }
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        match self.words(Operation::Trim, range.start(), range.len()) {
            Ok(range) => self.below.trim(range, flags),
            Err(error) => Box::pin(async move { Err(error) }),
        }
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            let extents = self.below.extents(range, context).await?;
            let mut ends = extents.iter().map(|extent| extent.range.end());
            // A hole that ends amid a word would take bytes of its neighbour along.
            match ends.all(|end| end.is_multiple_of(self.word) || end == range.end()) {
                false if *context == Context::Allocation => {
                    let status = Status::DATA;
                    Ok(vec![Extent { range, status }])
                }
                _ => Ok(extents),
            }
        })
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        match size.is_multiple_of(self.word) {
            true => self.below.resize(size),
            false => Box::pin(async {
                let message = "the new size ends amid a word";
                let error = Error::with_message(ErrorKind::InvalidInput, message);
                Err(error.during(Operation::Resize))
            }),
        }
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let word = self.word;
        Some(Self { below, word })
    }
}

#[cfg(test)]
mod tests {
    use blockferry_block::{MemoryDevice, testing::check_device};

    use super::*;
    use crate::testing::through;

    fn counting() -> Arc<MemoryDevice> {
        Arc::new(MemoryDevice::from_bytes(
            (0..=250).collect::<Vec<u8>>().as_slice(),
        ))
    }

    #[tokio::test]
    async fn words_are_read_and_written_the_other_way_round() {
        for (filter, size, first) in [
            ("swab", 250, [1, 0, 3, 2, 5, 4, 7, 6]),
            ("swab:32", 248, [3, 2, 1, 0, 7, 6, 5, 4]),
            ("swab:64", 248, [7, 6, 5, 4, 3, 2, 1, 0]),
        ] {
            let source = counting();
            let device = through(&[filter], source.clone()).await;
            assert_eq!(device.info().size, size, "{filter}");
            let read = device.read(0, Buffer::zeroed(8)).await.expect("read");
            assert_eq!(read[..], first, "{filter}");
            let part = device.read(3, Buffer::zeroed(3)).await.expect("read");
            assert_eq!(part[..], first[3..6], "{filter}");
            let straight = Buffer::from(&[0, 1, 2, 3, 4, 5, 6, 7][..]);
            let back = device.write(0, straight, WriteFlags::empty()).await;
            assert_eq!(back.expect("written")[..3], [0, 1, 2], "{filter}");
            let there = source.read(0, Buffer::zeroed(8)).await.expect("read");
            assert_eq!(there[..], first, "{filter}");
        }
    }

    #[tokio::test]
    async fn what_ends_amid_a_word_is_not_written() {
        let device = through(&["swab:32"], counting()).await;
        let write = device.write(4, Buffer::zeroed(2), WriteFlags::empty());
        let kind = write.await.expect_err("amid a word").kind();
        assert_eq!(kind, ErrorKind::InvalidInput);
        let range = ByteRange::between(2, 8);
        let zero = device.zero(range, ZeroFlags::empty()).await;
        let kind = zero.expect_err("amid a word").kind();
        assert_eq!(kind, ErrorKind::InvalidInput);
        let read = device.read(248, Buffer::zeroed(1)).await;
        let kind = read.expect_err("behind the end").kind();
        assert_eq!(kind, ErrorKind::OutOfBounds);
    }

    #[tokio::test]
    async fn a_hole_that_ends_amid_a_word_is_data() {
        for (filter, is_data) in [("swab:64", true), ("swab:32", false)] {
            let list = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(list.path(), "0 12 hole,zero\n12 4084\n").expect("room");
            let below = format!("extentlist:{}", list.path().display());
            let device = through(&[filter, &below], Arc::new(MemoryDevice::new(4096))).await;
            let range = ByteRange::between(0, 4096);
            let extents = device.extents(range, &Context::Allocation).await;
            let first = extents.expect("extents")[0];
            assert_eq!(first.status == Status::DATA, is_data, "{filter}");
        }
    }

    #[tokio::test]
    async fn it_stays_a_device() {
        for filter in ["swab", "swab:32", "swab:64"] {
            let device = through(&[filter], Arc::new(MemoryDevice::new(100_003))).await;
            check_device(&*device, 5, 200).await;
        }
    }
}
