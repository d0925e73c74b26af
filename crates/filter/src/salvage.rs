//! `salvage`: what a broken source still has.
//!
//! A read that fails is repeated in halves down to the smallest block, so that only what really cannot be read is
//! lost: zeroes stand for it, and it is told where they do. A failure that may pass (a lost connection, a
//! time-out), and one that says that the request makes no sense, are passed on: what comes later is not lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, DeviceInfo, Error, ErrorKind, Exports,
    Operation, Parameter, ParameterType, RangeSet, Result, Values, request_range,
};

use crate::{
    DeviceFilter, DeviceLayer, Effects, Filter, FilterKind, Filtered, Layer, Opened, PerExport,
};

pub(crate) static SALVAGE: FilterKind = FilterKind {
    name: "salvage",
    syntax: "salvage[:block=SIZE]",
    help: "What cannot be read is read in smaller parts, and zeroes stand for what is left of it",
    parameters: &[Parameter::new(
        "block",
        ParameterType::Size,
        "The smallest part that is read, a power of two; the source's smallest block, if that is larger",
    )
    .or("512")],
    effects: Effects {
        extents: "passed through",
        mapping: "hidden: what cannot be read has to be seen",
        flush: "passed through",
        concurrency: "as the source's; the parts of a read that failed are read one after the other",
    },
    build: |values| Salvage::from_values(values).map(|filter| Arc::new(filter) as _),
};

/// The smallest part that is read unless something else is said, in bytes: a sector.
const SECTOR: u32 = 512;

/// The largest that can be said.
const LARGEST_BLOCK: u64 = 1 << 20;

/// Of how many places it is known where they are; others are only counted.
const MOST_PLACES: usize = 10_000;

/// Zeroes where a source cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salvage {
    /// The smallest part that is read, in bytes: a power of two, 1 MiB at most. The source's smallest block holds
    /// where that is larger. Default: 512.
    pub block: u32,
}

impl Default for Salvage {
    fn default() -> Self {
        Self { block: SECTOR }
    }
}

impl Salvage {
    fn from_values(values: &Values) -> Result<Self, String> {
        let block = values.size("block").unwrap_or(SECTOR.into());
        match u32::try_from(block) {
            Ok(size) if size.is_power_of_two() && block <= LARGEST_BLOCK => {
                Ok(Self { block: size })
            }
            _ => Err("block is a power of two, 1M at most".to_owned()),
        }
    }
}

impl Filter for Salvage {
    fn kind(&self) -> &'static FilterKind {
        &SALVAGE
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(PerExport::new(*self, below)))
    }
}

impl DeviceLayer for Salvage {
    type Shared = Losses;

    fn name(&self) -> &'static str {
        SALVAGE.name
    }

    fn share(&self, _: &str) -> Result<Losses> {
        Ok(Losses::default())
    }

    fn open(&self, opened: Opened<Losses>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let device = Salvaging {
                block: self.block.max(opened.device.info().limits.minimum),
                below: opened.device,
                losses: opened.shared,
            };
            Ok(Arc::new(Filtered::new(device)) as Arc<dyn BlockDevice>)
        })
    }

    fn counts(&self, losses: &Losses) -> Vec<(&'static str, u64)> {
        let lost = losses.lost();
        let places = lost.places.count() as u64 + lost.elsewhere.0;
        let bytes = lost.places.len() + lost.elsewhere.1;
        vec![("lost_places", places), ("lost_bytes", bytes)]
    }

    fn warnings(&self, losses: &Losses) -> Vec<String> {
        let lost = losses.lost();
        let ranges = lost.places.iter();
        let told = |range: ByteRange| {
            let (start, length) = (range.start(), range.len());
            format!("{length} bytes at offset {start} cannot be read: zeroes stand for them")
        };
        ranges.map(told).collect()
    }

    fn must_keep(&self, losses: &Losses) -> bool {
        !losses.lost().places.is_empty()
    }
}

/// What is lost of an export.
#[derive(Default)]
pub struct Losses(Mutex<Lost>);

#[derive(Default)]
struct Lost {
    places: RangeSet,
    /// How many there are beyond [`MOST_PLACES`], and how many bytes they have.
    elsewhere: (u64, u64),
}

impl Losses {
    fn lost(&self) -> MutexGuard<'_, Lost> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, range: ByteRange) {
        let mut lost = self.lost();
        if lost.places.count() < MOST_PLACES {
            lost.places.insert(range);
        } else if !lost.places.missing_in(range).is_empty() {
            lost.elsewhere.0 += 1;
            lost.elsewhere.1 += range.len();
        }
    }
}

struct Salvaging {
    below: Arc<dyn BlockDevice>,
    block: u32,
    losses: Arc<Losses>,
}

impl Salvaging {
    /// Reads the parts of `range`, of which not all can be read, for `error`. Fails with what is no loss.
    async fn read_parts(&self, range: ByteRange, error: Error) -> Result<Buffer> {
        let mut whole = Buffer::zeroed(range.len() as usize);
        let mut parts = Vec::new();
        self.cut(range, error, &mut parts)?;
        while let Some(part) = parts.pop() {
            let buffer = Buffer::zeroed(part.len() as usize);
            match self.below.read(part.start(), buffer).await {
                Ok(bytes) => {
                    let at = (part.start() - range.start()) as usize;
                    whole[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                Err(error) => self.cut(part, error, &mut parts)?,
            }
        }
        Ok(whole)
    }

    /// Cuts a range that cannot be read in two, of which the first is read next. One that is a block is lost.
    fn cut(&self, range: ByteRange, error: Error, parts: &mut Vec<ByteRange>) -> Result<()> {
        if !is_loss(&error) {
            return Err(error);
        }
        let block = u64::from(self.block);
        let middle = range.start() + range.len() / 2;
        let middle = middle - middle % block;
        // A range of less than two blocks may still have the boundary of one in it.
        let middle = match middle > range.start() {
            true => middle,
            false => range.start() - range.start() % block + block,
        };
        if middle >= range.end() {
            self.losses.add(range);
            return Ok(());
        }
        parts.push(ByteRange::between(middle, range.end()));
        parts.push(ByteRange::between(range.start(), middle));
        Ok(())
    }
}

/// Whether what cannot be read for this error will never be.
fn is_loss(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Io
            | ErrorKind::NotPermitted
            | ErrorKind::NoSpace
            | ErrorKind::Overflow
            | ErrorKind::Unsupported
            | ErrorKind::UnexpectedEnd
            | ErrorKind::Mismatch
            | ErrorKind::Corrupt
    )
}

impl DeviceFilter for Salvaging {
    const PASSES: Capabilities = Capabilities::SPLICE_WRITE
        .union(Capabilities::COPY_FROM)
        .union(Capabilities::REOPEN);

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        self.below.info().clone()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.below.info().check(Operation::Read, range)?;
            match self.below.read(offset, buffer).await {
                Err(error) if !range.is_empty() => {
                    let moved = |error: Error| error.moved_to(range.start(), range.len());
                    self.read_parts(range, error).await.map_err(moved)
                }
                done => done,
            }
        })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        Some(Self {
            below,
            block: self.block,
            losses: Arc::clone(&self.losses),
        })
    }
}

#[cfg(test)]
mod tests {
    use blockferry_block::{
        MemoryDevice, WriteFlags,
        testing::{Fault, FaultyDevice, Rule, check_device},
    };

    use super::*;
    use crate::testing::through;

    const SIZE: u64 = 100_000;

    /// A disk of ones, of which some cannot be read.
    async fn broken(bad: &[(u64, u64)], kind: ErrorKind) -> Arc<dyn BlockDevice> {
        let memory = MemoryDevice::new(SIZE);
        let ones = Buffer::from(&[1; SIZE as usize][..]);
        memory
            .write(0, ones, WriteFlags::empty())
            .await
            .expect("written");
        let device = FaultyDevice::new(Arc::new(memory));
        for &(start, end) in bad {
            let place = ByteRange::between(start, end);
            let rule = Rule::on(Operation::Read).within(place);
            device.add(rule.fault(Fault::Error(kind)));
        }
        Arc::new(device)
    }

    async fn read_all(device: &dyn BlockDevice) -> Result<Buffer> {
        device.read(0, Buffer::zeroed(SIZE as usize)).await
    }

    fn salvaging(below: Arc<dyn BlockDevice>, block: u32) -> (Filtered<Salvaging>, Arc<Losses>) {
        let losses = Arc::new(Losses::default());
        let device = Salvaging {
            below,
            block,
            losses: Arc::clone(&losses),
        };
        (Filtered::new(device), losses)
    }

    #[tokio::test]
    async fn only_the_sectors_that_cannot_be_read_are_zeroes() {
        let bad = [(5000, 5001), (40_000, 41_500), (SIZE - 1, SIZE)];
        let (device, losses) = salvaging(broken(&bad, ErrorKind::Io).await, 512);
        let bytes = read_all(&device).await.expect("read");
        let mut expected = vec![1; SIZE as usize];
        for lost in [4608..5120, 39_936..41_984, 99_840..100_000] {
            expected[lost].fill(0);
        }
        assert!(bytes[..] == expected[..]);
        let filter = Salvage::default();
        // What is read again is not counted again.
        read_all(&device).await.expect("read");
        let counts = filter.counts(&losses);
        assert_eq!(
            counts,
            [("lost_places", 3), ("lost_bytes", 512 + 2048 + 160)]
        );
        let warnings = filter.warnings(&losses);
        assert_eq!(
            warnings[1],
            "2048 bytes at offset 39936 cannot be read: zeroes stand for them"
        );
        assert!(filter.must_keep(&losses));
    }

    #[tokio::test]
    async fn a_read_across_boundaries_loses_no_more() {
        let (device, _) = salvaging(broken(&[(4096, 4097)], ErrorKind::Corrupt).await, 4096);
        let bytes = device.read(4000, Buffer::zeroed(5000)).await.expect("read");
        assert!(bytes[..96].iter().all(|byte| *byte == 1));
        assert!(bytes[96..4192].iter().all(|byte| *byte == 0));
        assert!(bytes[4192..].iter().all(|byte| *byte == 1));
    }

    #[tokio::test]
    async fn what_may_pass_is_no_loss() {
        for kind in [
            ErrorKind::ConnectionLost,
            ErrorKind::TimedOut,
            ErrorKind::ShuttingDown,
            ErrorKind::OutOfMemory,
            ErrorKind::InvalidInput,
        ] {
            let (device, losses) = salvaging(broken(&[(5000, 5001)], kind).await, 512);
            let error = read_all(&device).await.expect_err("passed on");
            assert_eq!(error.kind(), kind);
            assert_eq!((error.offset(), error.length()), (Some(0), Some(SIZE)));
            assert!(losses.lost().places.is_empty());
        }
        let (device, losses) = salvaging(broken(&[], ErrorKind::Io).await, 512);
        let error = device.read(SIZE, Buffer::zeroed(1)).await;
        assert_eq!(error.expect_err("outside").kind(), ErrorKind::OutOfBounds);
        assert!(losses.lost().places.is_empty());
    }

    #[tokio::test]
    async fn one_that_is_lost_while_parts_are_read_is_passed_on() {
        let memory = Arc::new(MemoryDevice::new(SIZE));
        let below = FaultyDevice::new(memory);
        let reads = Rule::on(Operation::Read);
        below.add(reads.clone().after(2).fault(Fault::Die));
        let sector = ByteRange::between(512, 1024);
        below.add(reads.within(sector).fault(Fault::Error(ErrorKind::Io)));
        let (device, _) = salvaging(Arc::new(below), 512);
        let error = read_all(&device).await.expect_err("it died");
        assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    }

    #[tokio::test]
    async fn places_without_end_are_counted() {
        let losses = Losses::default();
        for place in 0..MOST_PLACES as u64 + 5 {
            losses.add(ByteRange::between(place * 1024, place * 1024 + 512));
        }
        let counts = Salvage::default().counts(&losses);
        let all = MOST_PLACES as u64 + 5;
        assert_eq!(counts, [("lost_places", all), ("lost_bytes", all * 512)]);
    }

    #[tokio::test]
    async fn a_sound_device_is_what_it_was() {
        for seed in 0..3 {
            let memory = Arc::new(MemoryDevice::new(SIZE));
            let device = through(&["salvage:block=4K"], memory).await;
            check_device(&*device, seed, 200).await;
        }
    }

    #[test]
    fn blocks_that_are_none_are_refused() {
        for text in ["salvage:block=0", "salvage:block=1000", "salvage:block=2M"] {
            assert!(crate::NamedFilter::parse(text.as_ref()).is_err(), "{text}");
        }
    }
}
