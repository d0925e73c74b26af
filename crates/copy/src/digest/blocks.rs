//! What is computed of the bytes of one piece, in one pass over them.

use std::sync::{Arc, OnceLock};

use blockferry_block::{ByteRange, is_zero};

use super::{
    Digest, DigestOptions,
    options::Hasher,
    spans::{self, Sum},
};

/// What is to be computed of each piece.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    digest: Option<Arc<ZeroBlock>>,
    /// The length of the blocks whose sums are wanted, in bytes.
    sum_block: Option<u64>,
}

/// How blocks are hashed, and the digest of one that is zero, once it was needed.
#[derive(Debug)]
pub(super) struct ZeroBlock {
    pub(super) options: DigestOptions,
    digest: OnceLock<Digest>,
}

/// What was computed of one piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BlockDigests {
    /// The piece.
    pub(super) range: ByteRange,
    /// The whole blocks in it.
    pub(super) whole: ByteRange,
    /// Their digests, one behind the other.
    pub(super) digests: Vec<u8>,
    /// Bytes of blocks that go on outside of the piece, with their offsets: two runs at most.
    pub(super) fragments: Vec<(u64, Vec<u8>)>,
    /// What the piece adds to the sums of its spans.
    pub(super) sums: Vec<(u64, Sum)>,
}

impl Work {
    /// The digests of blocks as `digest` says, and the sums of blocks of `sum_block` bytes. Pieces must begin
    /// and end at multiples of the latter, or at the end of the image.
    pub(super) fn new(digest: Option<Arc<ZeroBlock>>, sum_block: Option<u32>) -> Self {
        Self {
            digest,
            sum_block: sum_block.map(u64::from),
        }
    }

    /// Computes all of it for `bytes`, which lie at `offset` in the image.
    pub(crate) fn compute(&self, offset: u64, bytes: &[u8]) -> BlockDigests {
        let range = ByteRange::between(offset, offset.saturating_add(bytes.len() as u64));
        let mut done = BlockDigests {
            range,
            whole: ByteRange::between(range.end(), range.end()),
            digests: Vec::new(),
            fragments: Vec::new(),
            sums: Vec::new(),
        };
        if let Some(zero) = &self.digest {
            hash_blocks(zero, bytes, &mut done);
        }
        if let Some(block) = self.sum_block {
            for part in range.pieces(block) {
                let bytes = &bytes[indices(range, part)];
                if !is_zero(bytes) {
                    spans::add(&mut done.sums, part.start(), block, bytes);
                }
            }
        }
        done
    }
}

impl ZeroBlock {
    pub(super) fn new(options: DigestOptions) -> Arc<Self> {
        Arc::new(Self {
            options,
            digest: OnceLock::new(),
        })
    }

    /// The digest of a block of zeroes.
    pub(super) fn digest(&self) -> Digest {
        *self.digest.get_or_init(|| {
            let mut hasher = Hasher::new(self.options.algorithm());
            update_zeroes(&mut hasher, u64::from(self.options.block_size()));
            hasher.finish()
        })
    }
}

fn hash_blocks(zero: &ZeroBlock, bytes: &[u8], done: &mut BlockDigests) {
    let block = u64::from(zero.options.block_size());
    let algorithm = zero.options.algorithm();
    for part in done.range.pieces(block) {
        let bytes = &bytes[indices(done.range, part)];
        if part.len() < block {
            done.fragments.push((part.start(), bytes.to_vec()));
            continue;
        }
        if done.whole.is_empty() {
            done.whole = ByteRange::between(part.start(), part.start());
            let blocks = (done.range.end() - part.start()) / block;
            let length = blocks * algorithm.digest_len() as u64;
            done.digests.reserve(usize::try_from(length).unwrap_or(0));
        }
        done.whole = ByteRange::between(done.whole.start(), part.end());
        match is_zero(bytes) {
            true => done.digests.extend_from_slice(zero.digest().as_bytes()),
            false => {
                let digest = algorithm.digest(bytes);
                done.digests.extend_from_slice(digest.as_bytes());
            }
        }
    }
}

/// Where `part` of the bytes of `range` lies among them.
fn indices(range: ByteRange, part: ByteRange) -> std::ops::Range<usize> {
    // Both lie in memory.
    let index = |offset: u64| (offset - range.start()) as usize;
    index(part.start())..index(part.end())
}

/// Takes in `length` zero bytes.
pub(super) fn update_zeroes(hasher: &mut Hasher, mut length: u64) {
    const ZEROES: [u8; 4096] = [0; 4096];
    while length > 0 {
        let count = length.min(ZEROES.len() as u64);
        hasher.update(&ZEROES[..count as usize]);
        length -= count;
    }
}
