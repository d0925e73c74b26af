//! Deflate (RFC 1951) for clusters: the whole of one is in memory, and how far back a stream may refer is a
//! parameter, down to 4 KiB.
//!
//! ```text
//!  matches   finds what repeats: tokens, and how often each symbol occurs, piece by piece
//!  block     writes tokens as a block, with the codes that suit them
//!  huffman   codes from frequencies
//!  bits      where bits go
//! ```
//!
//! General libraries are slower here: they are made for streams, slide a window, and find out block by block what is
//! known of a cluster at once. Written after RFC 1951; the search keeps the last places of three and of six equal
//! bytes, as LZRW and its descendants do, and takes a match one byte later when it is longer.

mod bits;
mod block;
mod huffman;
mod matches;

use self::{
    bits::Bits,
    matches::{Finder, Piece},
};

/// Two pieces become blocks of their own when that saves more bits than this: about what the description of a
/// block's codes takes.
const BLOCK_BITS: f32 = 1000.0;

/// Compresses cluster after cluster.
pub(super) struct Deflater {
    finder: Finder,
}

impl Deflater {
    /// One whose streams refer at most `window` bytes back: a power of two from 4096 to 32768.
    pub(super) fn new(window: u32) -> Self {
        Self {
            finder: Finder::new(window),
        }
    }

    /// Compresses `cluster` into the beginning of `out` and returns how many bytes it took; `None` when there is
    /// not room enough.
    pub(super) fn compress(&mut self, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        let mut bits = Bits::new(out);
        self.finder.start();
        let mut position = 0;
        loop {
            let end = self.finder.find(cluster, position);
            self.write_blocks(cluster, position, &mut bits)?;
            position = end;
            if position == cluster.len() {
                return bits.finish();
            }
        }
    }

    /// Writes what was found from `start` on, neighbours that are alike in one block.
    fn write_blocks(&mut self, cluster: &[u8], start: usize, bits: &mut Bits<'_>) -> Option<()> {
        let (tokens, pieces) = self.finder.found();
        let (mut token, mut position) = (0, start);
        let mut pieces = pieces.iter_mut().peekable();
        while let Some(first) = pieces.next() {
            let mut together = first.counts.bits();
            let mut end = (first.tokens, first.end);
            while let Some(Piece { counts, .. }) = pieces.peek() {
                let both = first.counts.bits_with(counts);
                if both > together + counts.bits() + BLOCK_BITS {
                    break;
                }
                together = both;
                first.counts.add(counts);
                end = pieces.next().map_or(end, |next| (next.tokens, next.end));
            }
            let block = block::Block {
                bytes: &cluster[position..end.1],
                tokens: &tokens[token..end.0],
                last: end.1 == cluster.len(),
            };
            block.write(&mut first.counts, bits)?;
            (token, position) = end;
        }
        Some(())
    }
}
