//! A generated disk: sparse as a real one is, and the same bytes everywhere, for ever.
//!
//! # The algorithm
//!
//! All numbers are unsigned and have 64 bits; sums and products wrap. `G` is `0x9e3779b97f4a7c15`,
//! and `mix` is the output function of SplitMix64 (Steele, Lea, Flood 2014):
//!
//! ```text
//! mix(z):  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
//!          z = (z ^ (z >> 27)) * 0x94d049bb133111eb
//!          z ^ (z >> 31)
//! ```
//!
//! **Data.** A page of 4 KiB is 64 rows of eight words of eight bytes, all in little-endian order. Page
//! `p` (at offset `4096 p`) has eight states, one for each word of a row: state `i` begins as
//! `mix(seed + (8 p + i + 1) G)`, or as `G` should that be 0; these are the outputs of SplitMix64
//! started with `seed`. For each row each state makes one step of xorshift64 (Marsaglia 2003), and is
//! then the row's word:
//!
//! ```text
//! step(x):  x = x ^ (x << 13)
//!           x = x ^ (x >> 7)
//!           x ^ (x << 17)
//! ```
//!
//! A state never becomes 0, so no word of the data is zero.
//!
//! **Layout.** The disk is cut into regions of 16 MiB. With `L = mix(seed ^ 0x6c61796f7574)`, region
//! `r` has the state `S = L + r G` and the hash `R = mix(S)`. The top four bits of `R` say what the
//! region is cut into; of region 0, cells of 64 KiB.
//!
//! | `R >> 60` | cells of | |
//! |---|---|---|
//! | 0 to 7 | 16 MiB | long runs |
//! | 8 to 11 | 1 MiB | |
//! | 12 to 14 | 64 KiB | |
//! | 15 | 4 KiB | fragmented |
//!
//! Cell `c` of a region (the first is 0) has the hash `mix(R + (c + 1) G)`; a cell that is a whole
//! region has `S` itself, which spreads such regions evenly. A cell is data when
//! `(hash >> 32) * 100 < percent * 2^32`, and otherwise a hole. So `percent` 0 is one hole, 100 is
//! all data, and between them the share of data comes close to it as the disk grows beyond a few MiB.

use std::{fmt, str::FromStr};

use crate::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Extent, Mapping, Operation, Result, SizeError, Status, WriteFlags, ZeroFlags,
    device::{check_allocation, request_range},
    parse_size, push_merged,
};

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const LAYOUT: u64 = 0x6c61_796f_7574;
const REGION: u64 = 16 << 20;
const PAGE: u64 = 4096;

/// Bytes of a write that are checked at a time, a multiple of the page.
const CHECKED: usize = 64 << 10;

/// The most extents of one answer.
const MOST_EXTENTS: usize = 4096;

/// What a [`SampleDevice`] looks like. `FromStr` reads `SIZE[,seed=N][,data=PERCENT]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleOptions {
    /// The size in bytes, `i64::MAX` at most.
    pub size: u64,
    /// Which disk it is among all of that size. Default: 0.
    pub seed: u64,
    /// How much of it is data, in percent; more than 100 counts as 100. Default: 25.
    pub data_percent: u8,
}

/// A text that describes no sample.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The seed is no number.
    #[error("seed={0:?} is not a number below 2^64")]
    Seed(String),
    /// The share of data is no percentage.
    #[error("data={0:?} is not a percentage from 0 to 100")]
    Data(String),
    /// There is no such option.
    #[error("a sample has no option {0:?}: write SIZE,seed=N,data=PERCENT")]
    Unknown(String),
}

/// A read-only disk whose bytes are computed: a source for tests and measurements that takes no space
/// and is equal everywhere. The [module](self) has the algorithm.
#[derive(Debug)]
pub struct SampleDevice {
    info: DeviceInfo,
    layout: Layout,
}

/// Where the data is.
#[derive(Clone, Copy, Debug)]
struct Layout {
    seed: u64,
    start: u64,
    percent: u64,
}

/// A part of a sample that is all data or all hole.
#[derive(Clone, Copy, Debug)]
struct Piece {
    range: ByteRange,
    is_data: bool,
}

impl SampleDevice {
    /// The sample that `options` describe.
    #[must_use]
    pub fn new(options: SampleOptions) -> Self {
        let size = ByteRange::between(0, options.size).end();
        let mut info = DeviceInfo::new(format!("sample:{options}"), size);
        info.capabilities = Capabilities::MULTI_CONN;
        info.contexts = vec![Context::Allocation];
        Self {
            info,
            layout: Layout {
                seed: options.seed,
                start: mix(options.seed ^ LAYOUT),
                percent: options.data_percent.min(100).into(),
            },
        }
    }
}

impl SampleDevice {
    /// The same, which takes writes of what it holds already. Others fail: so a copy of a sample onto itself
    /// is checked while it is made.
    #[must_use]
    pub fn checking(mut self) -> Self {
        self.info.capabilities |= Capabilities::WRITE
            | Capabilities::FLUSH
            | Capabilities::FUA
            | Capabilities::TRIM
            | Capabilities::ZERO;
        self
    }

    /// Fails unless the sample holds `data` from the start of `range` on.
    fn check_data(&self, range: ByteRange, mut data: &[u8]) -> Result<()> {
        let mut held = vec![0; data.len().min(CHECKED)];
        for piece in range.pieces(CHECKED as u64) {
            let (part, rest) = data.split_at(piece.len() as usize);
            let held = &mut held[..part.len()];
            self.layout.fill(piece, held);
            if part != held {
                return Err(differs(Operation::Write, piece));
            }
            data = rest;
        }
        Ok(())
    }

    /// Fails unless `range` is a hole.
    fn check_hole(&self, operation: Operation, range: ByteRange) -> Result<()> {
        let mut pieces = self.layout.pieces(range);
        match pieces.find(|piece| piece.is_data) {
            Some(piece) => Err(differs(operation, piece.range)),
            None => Ok(()),
        }
    }
}

fn differs(operation: Operation, range: ByteRange) -> Error {
    Error::with_message(ErrorKind::Io, "this is not what the sample holds there")
        .during(operation)
        .at(range.start(), range.len())
}

impl Layout {
    /// The cells that `range` touches, each cut to it, in order.
    fn pieces(self, range: ByteRange) -> impl Iterator<Item = Piece> {
        range.pieces(REGION).flat_map(move |part| {
            let region = part.start() / REGION;
            let state = self.start.wrapping_add(region.wrapping_mul(GOLDEN));
            let hash = mix(state);
            let cell_size = match (region, hash >> 60) {
                (0, _) => 64 << 10,
                (_, 0..8) => REGION,
                (_, 8..12) => 1 << 20,
                (_, 12..15) => 64 << 10,
                _ => 4 << 10,
            };
            part.pieces(cell_size).map(move |range| {
                let cell = range.start() % REGION / cell_size;
                let hash = if cell_size == REGION {
                    state
                } else {
                    mix(hash.wrapping_add((cell + 1).wrapping_mul(GOLDEN)))
                };
                Piece {
                    range,
                    is_data: (hash >> 32) * 100 < self.percent << 32,
                }
            })
        })
    }

    fn fill(self, range: ByteRange, mut bytes: &mut [u8]) {
        for piece in self.pieces(range) {
            // The piece is not longer than the rest of the bytes.
            let (part, rest) = bytes.split_at_mut(piece.range.len() as usize);
            if piece.is_data {
                self.generate(piece.range, part);
            } else {
                part.fill(0);
            }
            bytes = rest;
        }
    }

    fn generate(self, range: ByteRange, mut bytes: &mut [u8]) {
        for piece in range.pieces(PAGE) {
            let index = piece.start() / PAGE;
            let (part, rest) = bytes.split_at_mut(piece.len() as usize);
            if let Ok(page) = part.try_into() {
                generate_page(self.seed, index, page);
            } else {
                let mut page = [0; PAGE as usize];
                generate_page(self.seed, index, &mut page);
                let inside = (piece.start() % PAGE) as usize;
                part.copy_from_slice(&page[inside..inside + part.len()]);
            }
            bytes = rest;
        }
    }
}

/// Eight words at a time, so that the compiler makes vector instructions of it.
fn generate_page(seed: u64, index: u64, page: &mut [u8; PAGE as usize]) {
    let mut states: [u64; 8] = std::array::from_fn(|lane| {
        let output = index * 8 + lane as u64 + 1;
        match mix(seed.wrapping_add(output.wrapping_mul(GOLDEN))) {
            0 => GOLDEN,
            state => state,
        }
    });
    for row in page.as_chunks_mut::<64>().0 {
        for (state, word) in states.iter_mut().zip(row.as_chunks_mut().0) {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            *word = state.to_le_bytes();
        }
    }
}

/// The output function of SplitMix64.
const fn mix(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

impl BlockDevice for SampleDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.info.check(Operation::Read, range)?;
            self.layout.fill(range, &mut buffer);
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.info.check(Operation::Write, range)?;
            self.check_data(range, &data)?;
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, _: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Zero, range)?;
            self.check_hole(Operation::Zero, range)
        })
    }

    fn trim(&self, range: ByteRange, _: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Trim, range)?;
            self.check_hole(Operation::Trim, range)
        })
    }

    /// `base:allocation`, at most 4096 extents in one answer.
    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            check_allocation(range, context)?;
            self.info.check(Operation::Extents, range)?;
            let mut list = Vec::new();
            let status = |is_data| {
                if is_data {
                    Status::DATA
                } else {
                    Status::HOLE_ZERO
                }
            };
            if matches!(self.layout.percent, 0 | 100) {
                // Nothing to look for, however large the disk is.
                let status = status(self.layout.percent == 100);
                push_merged(&mut list, Extent { range, status });
                return Ok(list);
            }
            for Piece { range, is_data } in self.layout.pieces(range) {
                let status = status(is_data);
                push_merged(&mut list, Extent { range, status });
                if list.len() > MOST_EXTENTS {
                    list.truncate(MOST_EXTENTS);
                    break;
                }
            }
            Ok(list)
        })
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        let inside = range.intersection(ByteRange::between(0, self.info.size));
        match self.layout.pieces(inside).next() {
            Some(piece) if !piece.is_data => Mapping::Zero {
                length: piece.range.len(),
            },
            _ => Mapping::Opaque,
        }
    }
}

impl FromStr for SampleOptions {
    type Err = SampleError;

    fn from_str(text: &str) -> Result<Self, SampleError> {
        let mut words = text.split(',');
        let mut options = Self {
            size: parse_size(words.next().unwrap_or_default())?,
            seed: 0,
            data_percent: 25,
        };
        for word in words {
            match word.split_once('=') {
                Some(("seed", value)) => {
                    let seed = value.parse();
                    options.seed = seed.map_err(|_| SampleError::Seed(value.to_owned()))?;
                }
                Some(("data", value)) => {
                    let percent = value.strip_suffix('%').unwrap_or(value).parse().ok();
                    options.data_percent = percent
                        .filter(|percent| *percent <= 100)
                        .ok_or_else(|| SampleError::Data(value.to_owned()))?;
                }
                _ => return Err(SampleError::Unknown(word.to_owned())),
            }
        }
        Ok(options)
    }
}

impl fmt::Display for SampleOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            size,
            seed,
            data_percent,
        } = self;
        write!(f, "{size},seed={seed},data={data_percent}")
    }
}
