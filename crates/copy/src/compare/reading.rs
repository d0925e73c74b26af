//! Reading a part of one image or of both, and what is found there.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Buffer, BufferPool, ByteRange, Error, is_zero};
use futures_util::future::join;

use crate::transfer::{beside, read};

use super::image::Blocks;

/// How one image is read.
pub(super) struct Reading {
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) blocks: Blocks,
    pub(super) pool: BufferPool,
}

/// A part of the image, and how the sides of it are read that are not known to be zero.
pub(super) struct Parts {
    pub(super) range: ByteRange,
    pub(super) sides: [Option<Reading>; 2],
    /// The longest piece that is read at once: a divisor of where parts begin.
    pub(super) request: u64,
}

/// A part of one image.
struct Bytes {
    buffer: Buffer,
    /// How many bytes of the buffer lie before it.
    skip: usize,
    length: usize,
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        &self.buffer[self.skip..self.skip + self.length]
    }
}

impl Reading {
    async fn read(&self, range: ByteRange) -> Result<Bytes, Error> {
        // All of these are no longer than a request. The buffer is taken only now, so that reads which are
        // answered at once use the same ones.
        let blocks = self.blocks.around(range);
        let buffer = self.pool.take(blocks.len() as usize);
        let buffer = read(&self.device, blocks, buffer).await?;
        Ok(Bytes {
            buffer,
            skip: (range.start() - blocks.start()) as usize,
            length: range.len() as usize,
        })
    }

    /// The place of the first byte that is not zero.
    async fn first_not_zero(&self, range: ByteRange) -> Result<Option<usize>, Error> {
        let bytes = self.read(range).await?;
        let bytes = bytes.as_slice();
        match is_zero(bytes) {
            true => Ok(None),
            false => Ok(bytes.iter().position(|byte| *byte != 0)),
        }
    }
}

impl Parts {
    /// The offset of the first difference, where each side that is not read is zero; or which side failed.
    pub(super) async fn first_difference(self) -> Result<Option<u64>, (usize, Error)> {
        let mut rest = self.range;
        while !rest.is_empty() {
            let left = self.request - rest.start() % self.request;
            let (piece, behind) = rest.split_at(left);
            if let Some(place) = self.first_difference_in(piece).await? {
                return Ok(Some(piece.start() + place as u64));
            }
            rest = behind;
        }
        Ok(None)
    }

    /// The same on another thread, so that several parts are read and compared at a time.
    pub(super) async fn first_difference_beside(self) -> Result<Option<u64>, (usize, Error)> {
        let compared = beside(async move { Ok(self.first_difference().await) }).await;
        compared.map_err(|error| (0, error))?
    }

    async fn first_difference_in(&self, piece: ByteRange) -> Result<Option<usize>, (usize, Error)> {
        match &self.sides {
            [Some(a), Some(b)] => {
                let (one, other) = join(a.read(piece), b.read(piece)).await;
                let one = one.map_err(|error| (0, error))?;
                let other = other.map_err(|error| (1, error))?;
                Ok(first_other_byte(one.as_slice(), other.as_slice()))
            }
            [Some(a), None] => {
                let found = a.first_not_zero(piece).await;
                found.map_err(|error| (0, error))
            }
            [None, Some(b)] => {
                let found = b.first_not_zero(piece).await;
                found.map_err(|error| (1, error))
            }
            [None, None] => Ok(None),
        }
    }
}

/// Where two runs of bytes of the same length begin to differ.
fn first_other_byte(one: &[u8], other: &[u8]) -> Option<usize> {
    const STRIDE: usize = 4096;
    let mut strides = one.chunks(STRIDE).zip(other.chunks(STRIDE));
    let stride = strides.position(|(one, other)| one != other)?;
    let start = stride * STRIDE;
    let mut pairs = one[start..].iter().zip(&other[start..]);
    pairs
        .position(|(one, other)| one != other)
        .map(|at| start + at)
}
