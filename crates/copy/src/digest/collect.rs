//! What is to be known of the image that a copy moves, piece by piece.

use std::future::Future;

use blockferry_block::{Buffer, ByteRange, Result};

use super::{
    BlockDigests, Digest, DigestOptions, HashThreads, ImageDigest, SpanSums, Work,
    blocks::ZeroBlock,
};

/// The digest of an image and the sums of its spans, as far as they are wanted.
///
/// Each part of the image is added once: either what was computed of its bytes, or that it is zero.
pub(crate) struct Collector {
    work: Work,
    threads: HashThreads,
    image: Option<ImageDigest>,
    sums: Option<SpanSums>,
}

impl Collector {
    /// For the digest that `digest` describes, and for sums over blocks of `sum_block` bytes; `None` when
    /// neither is wanted.
    pub(crate) fn new(digest: Option<DigestOptions>, sum_block: Option<u32>) -> Option<Self> {
        if digest.is_none() && sum_block.is_none() {
            return None;
        }
        let zero = digest.map(ZeroBlock::new);
        let work = Work::new(zero.clone(), sum_block);
        Some(Self {
            threads: HashThreads::new(work.clone()),
            work,
            image: zero.map(ImageDigest::new),
            sums: sum_block.map(|_| SpanSums::new()),
        })
    }

    /// Computes on another thread what is wanted of the bytes in `buffer`, which lie at `offset`, and gives
    /// the buffer back. Nothing is added yet.
    pub(crate) fn hash(
        &self,
        offset: u64,
        buffer: Buffer,
    ) -> impl Future<Output = Result<(Buffer, BlockDigests)>> + Send + 'static {
        self.threads.hash(offset, buffer)
    }

    /// Computes what is wanted of `bytes`, here and now. Nothing is added yet.
    pub(crate) fn compute(&self, offset: u64, bytes: &[u8]) -> BlockDigests {
        self.work.compute(offset, bytes)
    }

    /// Adds what was computed of a part of the image.
    pub(crate) fn add(&mut self, part: BlockDigests) {
        if let Some(sums) = &mut self.sums {
            sums.add(&part);
        }
        if let Some(image) = &mut self.image {
            image.add(part);
        }
    }

    /// Adds a part of the image that is zero.
    pub(crate) fn add_zeroes(&mut self, range: ByteRange) {
        if let Some(image) = &mut self.image {
            image.add_zeroes(range);
        }
    }

    /// The digest of the image, which turned out to be `size` bytes long, and its sums. There is no digest
    /// when none was wanted, or when a part of the image was never added.
    pub(crate) fn finish(self, size: u64) -> (Option<Digest>, Option<SpanSums>) {
        let digest = self.image.and_then(|image| image.finish(size));
        (digest, self.sums)
    }
}
