//! Reading a part of one image or of both, and what is found there.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Buffer, BufferPool, ByteRange, Error, is_zero};
use futures_util::future::join;

use crate::transfer::read;

/// A part of one image that is to be read.
pub(super) struct Reading {
    pub(super) device: Arc<dyn BlockDevice>,
    /// What is read.
    pub(super) blocks: ByteRange,
    /// What is wanted of it.
    pub(super) range: ByteRange,
    pub(super) pool: BufferPool,
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
    async fn read(&self) -> Result<Bytes, Error> {
        // All of these are no longer than a request. The buffer is taken only now, so that reads which are
        // answered at once use the same ones.
        let buffer = self.pool.take(self.blocks.len() as usize);
        let buffer = read(&self.device, self.blocks, buffer).await?;
        Ok(Bytes {
            buffer,
            skip: (self.range.start() - self.blocks.start()) as usize,
            length: self.range.len() as usize,
        })
    }

    /// The offset of the first byte that is not zero.
    async fn first_not_zero(self) -> Result<Option<u64>, Error> {
        let bytes = self.read().await?;
        let bytes = bytes.as_slice();
        if is_zero(bytes) {
            return Ok(None);
        }
        let first = bytes.iter().position(|byte| *byte != 0);
        Ok(first.map(|first| self.range.start() + first as u64))
    }
}

/// The offset of the first difference in a part of the image, where each side that is not read is zero; or
/// which side failed.
pub(super) async fn first_difference(
    sides: [Option<Reading>; 2],
) -> Result<Option<u64>, (usize, Error)> {
    match sides {
        [Some(a), Some(b)] => {
            let (one, other) = join(a.read(), b.read()).await;
            let one = one.map_err(|error| (0, error))?;
            let other = other.map_err(|error| (1, error))?;
            let first = first_other_byte(one.as_slice(), other.as_slice());
            Ok(first.map(|first| a.range.start() + first as u64))
        }
        [Some(a), None] => a.first_not_zero().await.map_err(|error| (0, error)),
        [None, Some(b)] => b.first_not_zero().await.map_err(|error| (1, error)),
        [None, None] => Ok(None),
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
