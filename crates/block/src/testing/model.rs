//! Any device beside a plain row of bytes: both must stay equal, whatever is done to them.

use crate::{
    BlockDevice, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    WriteFlags, ZeroFlags, is_zero,
};

/// The longest request that is made, in bytes.
const LONGEST: u64 = 100_000;

/// The unit that the whole device is read in, in bytes.
const CHUNK: u64 = 64 << 10;

/// How far a device that can grow is made to grow behind its first size, in bytes.
const GROWTH: u64 = 200_000;

/// Makes `steps` random requests and compares every answer with what a row of bytes would answer; at
/// the end all contents are compared. What happens depends on `seed` alone. The whole device is held
/// in memory twice, so let it be small.
///
/// Requests keep to the device's limits and capabilities. Trimmed bytes may be anything until they are
/// written or zeroed. Extents must keep the rules of [`BlockDevice::extents`], and what they call zero
/// must be.
///
/// # Panics
/// When the device answers wrongly, or fails otherwise than with `Unsupported` where that is allowed.
pub async fn check_device(device: &dyn BlockDevice, seed: u64, steps: usize) {
    let mut model = Model::new(device, seed).await;
    for step in 0..steps {
        model.step = step;
        model.step().await;
    }
    model.compare_all().await;
}

struct Model<'a> {
    device: &'a dyn BlockDevice,
    info: DeviceInfo,
    bytes: Vec<u8>,
    /// Where a trim left no one knows what.
    is_unknown: Vec<bool>,
    random: u64,
    seed: u64,
    step: usize,
}

impl<'a> Model<'a> {
    async fn new(device: &'a dyn BlockDevice, seed: u64) -> Self {
        let info = device.info().clone();
        let size = usize::try_from(info.size).expect("a small device");
        let mut model = Self {
            device,
            info,
            bytes: vec![0; size],
            is_unknown: vec![false; size],
            random: seed,
            seed,
            step: 0,
        };
        for piece in ByteRange::between(0, size as u64).pieces(CHUNK) {
            let read = model.read(piece).await;
            model.set(piece, &read);
        }
        model
    }

    async fn step(&mut self) {
        let changes = self.info.can(Capabilities::WRITE);
        match self.below(if changes { 10 } else { 3 }) {
            0 | 1 => self.check_read().await,
            2 => self.check_extents().await,
            3..=5 => self.write().await,
            6 | 7 => self.zero().await,
            8 => self.trim().await,
            _ if self.info.can(Capabilities::RESIZE) && self.below(4) == 0 => self.resize().await,
            _ => self.device.flush().await.expect("a flush"),
        }
    }

    async fn check_read(&mut self) {
        let range = self.range_below(self.size());
        self.compare(range).await;
    }

    async fn compare(&self, range: ByteRange) {
        let read = self.read(range).await;
        let expected = &self.bytes[indices(range)];
        if read[..] == *expected {
            return;
        }
        for (index, (found, expected)) in read.iter().zip(expected).enumerate() {
            let at = range.start() as usize + index;
            assert!(
                found == expected || self.is_unknown[at],
                "{}: byte {at} of {range} is {found}, not {expected}",
                self.place()
            );
        }
    }

    async fn compare_all(&self) {
        for piece in ByteRange::between(0, self.size()).pieces(CHUNK) {
            self.compare(piece).await;
        }
    }

    async fn check_extents(&mut self) {
        let range = self.range_below(self.size());
        if !self.info.knows_allocation() {
            return;
        }
        let answer = match self.below(2) {
            0 => self.device.first_extent(range, &Context::Allocation).await,
            _ => self.device.extents(range, &Context::Allocation).await,
        };
        let list = answer.unwrap_or_else(|error| self.fail(&error));
        let place = self.place();
        assert_eq!(list.is_empty(), range.is_empty(), "{place}: {range}");
        let mut at = range.start();
        for extent in list {
            assert_eq!(extent.range.start(), at, "{place}: a gap or an overlap");
            assert!(!extent.range.is_empty(), "{place}: an empty extent");
            assert!(range.contains(extent.range), "{place}: not asked for");
            at = extent.range.end();
            assert!(
                !extent.status.is_zero() || self.may_be_zero(extent.range),
                "{place}: {} is called zero and is not",
                extent.range
            );
        }
    }

    fn may_be_zero(&self, range: ByteRange) -> bool {
        let (bytes, is_unknown) = (
            &self.bytes[indices(range)],
            &self.is_unknown[indices(range)],
        );
        is_zero(bytes)
            || bytes
                .iter()
                .zip(is_unknown)
                .all(|(byte, is_unknown)| *byte == 0 || *is_unknown)
    }

    async fn write(&mut self) {
        let range = self.range_to_change();
        let first = self.next() as u8;
        // Some writes are of zeroes: whoever finds that out must not be wrong about the rest.
        let factor = if self.below(4) == 0 { 0 } else { 7 };
        let data: Vec<u8> = (0..range.len())
            .map(|at| (at as u8).wrapping_add(first).wrapping_mul(factor))
            .collect();
        let flags = self.flag(Capabilities::FUA, WriteFlags::FUA);
        let written = self
            .device
            .write(range.start(), Buffer::from(&data[..]), flags);
        let written = written.await.unwrap_or_else(|error| self.fail(&error));
        assert_eq!(written[..], data[..], "the buffer comes back as it was");
        self.set(range, &data);
    }

    async fn zero(&mut self) {
        let range = self.range_to_change();
        if !self.info.can(Capabilities::ZERO) {
            return;
        }
        let mut flags = self.flag(Capabilities::FUA, ZeroFlags::FUA);
        flags |= self.flag(Capabilities::FAST_ZERO, ZeroFlags::FAST);
        flags |= self.flag(Capabilities::empty(), ZeroFlags::NO_HOLE);
        match self.device.zero(range, flags).await {
            Ok(()) => self.set(range, &vec![0; range.len() as usize]),
            Err(error) if error.kind() == ErrorKind::Unsupported => self.compare_all().await,
            Err(error) => self.fail(&error),
        }
    }

    async fn trim(&mut self) {
        let range = self.range_below(self.size());
        if !self.info.can(Capabilities::TRIM) {
            return;
        }
        let flags = self.flag(Capabilities::FUA, WriteFlags::FUA);
        let trimmed = self.device.trim(range, flags).await;
        trimmed.unwrap_or_else(|error| self.fail(&error));
        self.is_unknown[indices(range)].fill(true);
    }

    async fn resize(&mut self) {
        let size = self.below(self.info.size + GROWTH);
        let resized = self.device.resize(size).await;
        resized.unwrap_or_else(|error| self.fail(&error));
        self.bytes.resize(size as usize, 0);
        self.is_unknown.resize(size as usize, false);
    }

    async fn read(&self, range: ByteRange) -> Buffer {
        let buffer = Buffer::from(&vec![0x5a; range.len() as usize][..]);
        let read = self.device.read(range.start(), buffer).await;
        let read = read.unwrap_or_else(|error| self.fail(&error));
        assert_eq!(read.len() as u64, range.len(), "{}", self.place());
        read
    }

    fn set(&mut self, range: ByteRange, bytes: &[u8]) {
        if range.is_empty() {
            return;
        }
        if range.end() > self.size() {
            self.bytes.resize(range.end() as usize, 0);
            self.is_unknown.resize(range.end() as usize, false);
        }
        self.bytes[indices(range)].copy_from_slice(bytes);
        self.is_unknown[indices(range)].fill(false);
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn range_to_change(&mut self) -> ByteRange {
        let growth = if self.info.can(Capabilities::RESIZE) && self.below(8) == 0 {
            GROWTH
        } else {
            0
        };
        let end = self.size().min(self.info.size + GROWTH);
        self.range_below(end + growth)
    }

    /// A random range below `end`, on the device's blocks; short, long, or up to `end`.
    fn range_below(&mut self, end: u64) -> ByteRange {
        let minimum = u64::from(self.info.limits.minimum);
        let longest = LONGEST.min(self.info.limits.maximum.into());
        let length = match self.below(3) {
            0 => self.below(2 * minimum + 600),
            1 => longest,
            _ => self.below(longest + 1),
        };
        let start = self.below(end + 1);
        let start = start - start % minimum;
        let range = ByteRange::between(start, end.min(start + length));
        // Only the end of the device may be off the blocks.
        if range.end() == end && end >= self.size() {
            return range;
        }
        ByteRange::between(start, range.end() - range.end() % minimum)
    }

    fn flag<F: Default>(&mut self, needed: Capabilities, flag: F) -> F {
        if self.info.can(needed) && self.below(4) == 0 {
            flag
        } else {
            F::default()
        }
    }

    /// A random number below `bound` (0 when that is 0).
    fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    fn place(&self) -> String {
        format!("{}, seed {}, step {}", self.info.name, self.seed, self.step)
    }

    fn fail(&self, error: &Error) -> ! {
        panic!("{}: {error:?}", self.place())
    }
}

fn indices(range: ByteRange) -> std::ops::Range<usize> {
    range.start() as usize..range.end() as usize
}
