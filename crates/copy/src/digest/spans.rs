//! Sums of what is in an image, one for each 16 MiB: two images that have the same sums are the same.
//!
//! The sum of a span is made of the BLAKE3 hashes of its blocks, each keyed with the block's place, as four
//! numbers that wrap around. So the order in which blocks come does not matter, and a block of zeroes adds
//! nothing. Memory is 32 bytes a span, up to the last one that is not zero.

use blockferry_block::ByteRange;

use super::BlockDigests;

/// How much of the image one sum stands for, in bytes.
pub(crate) const SPAN: u64 = 16 << 20;

/// The sum of one span.
pub(super) type Sum = [u64; 4];

/// The sums of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpanSums(Vec<Sum>);

impl SpanSums {
    /// The sums of an image of zeroes.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a piece, once.
    pub(crate) fn add(&mut self, piece: &BlockDigests) {
        for (span, sum) in &piece.sums {
            let Ok(span) = usize::try_from(*span) else {
                continue;
            };
            if self.0.len() <= span {
                self.0.resize(span + 1, Sum::default());
            }
            accumulate(&mut self.0[span], *sum);
        }
    }

    /// The first span that differs between two images that were cut into blocks of the same length.
    pub(crate) fn first_difference(&self, other: &Self) -> Option<ByteRange> {
        let sum = |sums: &Self, span: usize| sums.0.get(span).copied().unwrap_or_default();
        let spans = 0..self.0.len().max(other.0.len());
        let first = spans
            .into_iter()
            .find(|span| sum(self, *span) != sum(other, *span))? as u64;
        Some(ByteRange::between(first * SPAN, (first + 1) * SPAN))
    }
}

/// Adds the block at `offset`, which is not zero, to a list of sums.
pub(super) fn add(sums: &mut Vec<(u64, Sum)>, offset: u64, block_size: u64, bytes: &[u8]) {
    let mut key = [0; blake3::KEY_LEN];
    key[..8].copy_from_slice(&(offset / block_size).to_le_bytes());
    let hash = blake3::keyed_hash(&key, bytes);
    let (words, _) = hash.as_bytes().as_chunks::<8>();
    let mut sum = Sum::default();
    for (number, word) in sum.iter_mut().zip(words) {
        *number = u64::from_le_bytes(*word);
    }
    let span = offset / SPAN;
    match sums.last_mut() {
        Some((last, total)) if *last == span => accumulate(total, sum),
        _ => sums.push((span, sum)),
    }
}

fn accumulate(total: &mut Sum, sum: Sum) {
    for (number, more) in total.iter_mut().zip(sum) {
        *number = number.wrapping_add(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Work;
    use proptest::prelude::*;

    const BLOCK: u32 = 4096;

    /// The sums of `bytes`, cut at these blocks and taken in this order.
    fn sums(bytes: &[u8], base: u64, cuts: &[usize], backwards: bool) -> SpanSums {
        let work = Work::new(None, Some(BLOCK));
        let mut edges: Vec<_> = cuts
            .iter()
            .map(|cut| (cut * BLOCK as usize).min(bytes.len()))
            .chain([0, bytes.len()])
            .collect();
        edges.sort_unstable();
        let mut pieces: Vec<_> = edges
            .windows(2)
            .map(|edge| work.compute(base + edge[0] as u64, &bytes[edge[0]..edge[1]]))
            .collect();
        if backwards {
            pieces.reverse();
        }
        let mut sums = SpanSums::new();
        pieces.iter().for_each(|piece| sums.add(piece));
        sums
    }

    #[test]
    fn zeroes_add_nothing_wherever_they_are() {
        let zero = sums(&[0; 3 * BLOCK as usize + 5], 40 << 20, &[1], false);
        assert!(zero.0.is_empty());
        assert_eq!(zero.first_difference(&SpanSums::new()), None);
    }

    #[test]
    fn the_same_blocks_in_other_places_make_other_sums() {
        let (one, two) = ([1; BLOCK as usize], [2; BLOCK as usize]);
        let straight = sums(&[one, two].concat(), 0, &[1], false);
        let swapped = sums(&[two, one].concat(), 0, &[1], false);
        assert_eq!(
            straight.first_difference(&swapped),
            Some(ByteRange::between(0, SPAN))
        );
        let twice = sums(&[one, one].concat(), 0, &[1], false);
        assert!(twice.first_difference(&SpanSums::new()).is_some());
    }

    #[test]
    fn the_first_span_that_differs_is_named() {
        let one = sums(&[7; 100], 5 * SPAN, &[], false);
        let mut two = one.clone();
        assert_eq!(one.first_difference(&two), None);
        two.add(&Work::new(None, Some(BLOCK)).compute(9 * SPAN, &[1]));
        two.add(&Work::new(None, Some(BLOCK)).compute(7 * SPAN - 4096, &[1]));
        let expected = Some(ByteRange::between(6 * SPAN, 7 * SPAN));
        assert_eq!(one.first_difference(&two), expected);
        assert_eq!(two.first_difference(&one), expected);
    }

    proptest! {
        #[test]
        fn neither_cuts_nor_order_matter_and_every_byte_does(
            length in 1..60_000_usize,
            near_a_border in any::<bool>(),
            cuts in prop::collection::vec(0..15_usize, 0..5),
            place in any::<prop::sample::Index>(),
        ) {
            let base = if near_a_border { SPAN - 8192 } else { 0 };
            let mut bytes: Vec<_> = (0..length).map(|at| (at / 5000 % 3) as u8).collect();
            let whole = sums(&bytes, base, &[], false);
            let cut = sums(&bytes, base, &cuts, true);
            prop_assert_eq!(whole.first_difference(&cut), None);

            let place = place.index(length);
            bytes[place] ^= 0x10;
            let changed = sums(&bytes, base, &cuts, false);
            let span = (base + place as u64) / SPAN;
            prop_assert_eq!(
                whole.first_difference(&changed),
                Some(ByteRange::between(span * SPAN, (span + 1) * SPAN))
            );
        }
    }
}
