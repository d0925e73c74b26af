//! The digest of an image from blocks and holes that come in any order.

use std::{collections::BTreeMap, fmt, sync::Arc};

use blockferry_block::ByteRange;

use super::{
    BlockDigests, Digest, DigestOptions,
    blocks::{ZeroBlock, update_zeroes},
    options::Hasher,
};

/// How many digests of zero blocks are taken in at a time.
const ZERO_DIGESTS: usize = 4096;

/// The digest of an image in the making.
///
/// Every part of the image is added once. What is contiguous from the image's start on is taken in at once;
/// what lies ahead of the first gap is kept: the digests of its blocks, one entry for each run of zeroes,
/// and of blocks that came in parts what cannot be hashed yet.
pub(super) struct ImageDigest {
    options: DigestOptions,
    hasher: Hasher,
    /// The end of what was taken in: a multiple of the block size.
    end: u64,
    /// What lies ahead, by its start.
    ahead: BTreeMap<u64, Run>,
    /// Blocks that came in parts, by their start.
    partial: BTreeMap<u64, Partial>,
    zero: Arc<ZeroBlock>,
    /// The digest of a block of zeroes, many times, once it was needed.
    zeroes: Vec<u8>,
}

/// Whole blocks, side by side.
enum Run {
    /// Zeroes up to this offset.
    Zeroes(u64),
    /// The digests of blocks.
    Digests(Vec<u8>),
}

/// A block of which not all has come.
struct Partial {
    hasher: Hasher,
    /// The end of what was hashed.
    end: u64,
    /// What lies ahead of that, by its start.
    ahead: BTreeMap<u64, Fragment>,
}

/// A part of a block.
enum Fragment {
    Zeroes(u64),
    Bytes(Vec<u8>),
}

impl ImageDigest {
    /// The digest of nothing yet.
    pub(super) fn new(zero: Arc<ZeroBlock>) -> Self {
        let options = zero.options;
        Self {
            options,
            hasher: Hasher::new(options.algorithm()),
            end: 0,
            ahead: BTreeMap::new(),
            partial: BTreeMap::new(),
            zero,
            zeroes: Vec::new(),
        }
    }

    /// Adds what was computed of a piece.
    pub(super) fn add(&mut self, piece: BlockDigests) {
        let BlockDigests {
            whole,
            digests,
            fragments,
            ..
        } = piece;
        if !whole.is_empty() {
            self.ahead.insert(whole.start(), Run::Digests(digests));
        }
        for (offset, bytes) in fragments {
            self.add_fragment(offset, Fragment::Bytes(bytes));
        }
        self.take_in();
    }

    /// Adds a part of the image that is zero.
    pub(super) fn add_zeroes(&mut self, range: ByteRange) {
        let block = self.block();
        let whole = range.aligned_within(block);
        let edges = match whole.is_empty() {
            true => range.split_at(block - range.start() % block),
            false => (
                ByteRange::between(range.start(), whole.start()),
                ByteRange::between(whole.end(), range.end()),
            ),
        };
        for edge in [edges.0, edges.1] {
            if !edge.is_empty() {
                self.add_fragment(edge.start(), Fragment::Zeroes(edge.len()));
            }
        }
        if !whole.is_empty() {
            self.add_zero_blocks(whole);
        }
        self.take_in();
    }

    /// The digest, if the image is `size` bytes long; `None` when parts of it were never added.
    pub(super) fn finish(mut self, size: u64) -> Option<Digest> {
        let last = size - size % self.block();
        if let Some(partial) = self.partial.remove(&last) {
            let digest = partial.finish(size)?;
            self.ahead.insert(last, Run::Digests(digest));
            self.take_in();
        }
        // The last block counts as a whole one.
        let end = size.checked_next_multiple_of(self.block())?;
        if self.end != end || !self.partial.is_empty() {
            return None;
        }
        self.hasher.update(&size.to_le_bytes());
        Some(self.hasher.finish())
    }

    /// How many runs wait for what lies before them.
    #[cfg(test)]
    pub(super) fn ahead_len(&self) -> usize {
        self.ahead.len()
    }

    fn block(&self) -> u64 {
        u64::from(self.options.block_size())
    }

    /// Keeps a run of zero blocks, as one with those beside it.
    fn add_zero_blocks(&mut self, range: ByteRange) {
        let mut end = range.end();
        if let Some(Run::Zeroes(next)) = self.ahead.get(&end) {
            let next = *next;
            self.ahead.remove(&end);
            end = next;
        }
        if let Some((_, Run::Zeroes(before))) = self.ahead.range_mut(..range.start()).next_back()
            && *before == range.start()
        {
            *before = end;
            return;
        }
        self.ahead.insert(range.start(), Run::Zeroes(end));
    }

    /// Takes in a part of a block, and the block when it is whole.
    fn add_fragment(&mut self, offset: u64, fragment: Fragment) {
        let block = self.block();
        let start = offset - offset % block;
        let algorithm = self.options.algorithm();
        let partial = self.partial.entry(start).or_insert_with(|| Partial {
            hasher: Hasher::new(algorithm),
            end: start,
            ahead: BTreeMap::new(),
        });
        partial.add(offset, fragment);
        if partial.end == start + block
            && let Some(partial) = self.partial.remove(&start)
        {
            let digest = partial.hasher.finish().as_bytes().to_vec();
            self.ahead.insert(start, Run::Digests(digest));
        }
    }

    /// Takes in what has become contiguous.
    fn take_in(&mut self) {
        while let Some(run) = self.ahead.remove(&self.end) {
            match run {
                Run::Digests(digests) => {
                    self.hasher.update(&digests);
                    let blocks = digests.len() / self.options.algorithm().digest_len();
                    self.end += blocks as u64 * self.block();
                }
                Run::Zeroes(end) => {
                    if self.zeroes.is_empty() {
                        self.zeroes = self.zero.digest().as_bytes().repeat(ZERO_DIGESTS);
                    }
                    let mut blocks = (end - self.end) / self.block();
                    while blocks > 0 {
                        let count = blocks.min(ZERO_DIGESTS as u64);
                        let length = count as usize * self.options.algorithm().digest_len();
                        self.hasher.update(&self.zeroes[..length]);
                        blocks -= count;
                    }
                    self.end = end;
                }
            }
        }
    }
}

impl Partial {
    fn add(&mut self, offset: u64, fragment: Fragment) {
        self.ahead.insert(offset, fragment);
        while let Some(fragment) = self.ahead.remove(&self.end) {
            match fragment {
                Fragment::Zeroes(length) => {
                    update_zeroes(&mut self.hasher, length);
                    self.end += length;
                }
                Fragment::Bytes(bytes) => {
                    self.hasher.update(&bytes);
                    self.end += bytes.len() as u64;
                }
            }
        }
    }

    /// The digest of the image's last block, if it has come up to `size`.
    fn finish(self, size: u64) -> Option<Vec<u8>> {
        let is_whole = self.end == size && self.ahead.is_empty();
        is_whole.then(|| self.hasher.finish().as_bytes().to_vec())
    }
}

impl fmt::Debug for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageDigest")
            .field("options", &self.options)
            .field("end", &self.end)
            .field("ahead", &self.ahead.len())
            .finish_non_exhaustive()
    }
}
