//! Finding zeroes in data.

use std::ops::Range;

/// How many bytes are looked at between two decisions: enough for the widest registers of a machine,
/// few enough that data which is not zero is left early.
const BLOCK: usize = 256;

/// A long run of bytes is looked at in so many places at a time, each this far from the next: out of the
/// cache, one place after the other leaves half of the memory's speed unused (measured: 14 GB/s in
/// one place, 20 in four; other numbers and distances were slower).
const LANES: usize = 4;
const LANE: usize = 64 << 10;

/// Whether every byte is zero. True for no bytes.
///
/// It runs at the speed of memory on zeroes and looks no further than a few hundred bytes behind the
/// first byte that is not, in one of four places.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // What is not zero mostly shows it at once.
    if let Some(head) = bytes.first_chunk()
        && u128::from_ne_bytes(*head) != 0
    {
        return false;
    }
    let (strips, rest) = bytes.as_chunks::<{ LANES * LANE }>();
    if !strips.iter().all(is_strip_zero) {
        return false;
    }
    let (blocks, tail) = rest.as_chunks::<BLOCK>();
    blocks.iter().all(is_block_zero) && tail.iter().fold(0, |all, byte| all | byte) == 0
}

/// All lanes side by side, a block of each at a time.
fn is_strip_zero(strip: &[u8; LANES * LANE]) -> bool {
    let (lanes, _) = strip.as_chunks::<LANE>();
    (0..LANE / BLOCK).all(|index| {
        lanes.iter().fold(true, |zero, lane| {
            let (blocks, _) = lane.as_chunks::<BLOCK>();
            zero & is_block_zero(&blocks[index])
        })
    })
}

/// Written so that the compiler makes vector instructions of it: no decision inside.
fn is_block_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().fold(0, |all, byte| all | byte) == 0
}

/// A run of bytes that are all zero, or a run of blocks that are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZeroRun {
    /// Where the run lies in the bytes that were searched.
    pub range: Range<usize>,
    /// Whether all of it is zero.
    pub is_zero: bool,
}

/// Cuts `bytes` into runs of zero and of other blocks, each block `granularity` bytes long (0 counts
/// as 1; the last block may be shorter). The runs lie side by side, cover everything, and alternate.
pub fn zero_runs(bytes: &[u8], granularity: usize) -> impl Iterator<Item = ZeroRun> {
    let granularity = granularity.max(1);
    let mut blocks = bytes.chunks(granularity).map(is_zero).peekable();
    let mut start = 0_usize;
    std::iter::from_fn(move || {
        let is_zero = blocks.next()?;
        let mut count = 1;
        while blocks.next_if_eq(&is_zero).is_some() {
            count += 1;
        }
        let end = start.saturating_add(granularity.saturating_mul(count));
        let range = start..end.min(bytes.len());
        start = range.end;
        Some(ZeroRun { range, is_zero })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_zero_naive(bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| *byte == 0)
    }

    fn run(range: Range<usize>, is_zero: bool) -> ZeroRun {
        ZeroRun { range, is_zero }
    }

    #[test]
    fn one_byte_anywhere_is_found_at_every_alignment() {
        let mut bytes = vec![0; 700];
        for start in 0..40 {
            for length in [0, 1, 15, 16, 17, 255, 256, 257, 271, 272, 273, 600] {
                assert!(is_zero(&bytes[start..start + length]));
            }
            for place in start..start + 600 {
                bytes[place] = 0x80;
                assert!(!is_zero(&bytes[start..start + 600]), "{start} {place}");
                bytes[place] = 0;
            }
        }
    }

    #[test]
    fn one_byte_in_any_lane_of_a_long_run_is_found() {
        let mut bytes = vec![0; 2 * LANES * LANE + 1000];
        assert!(is_zero(&bytes) && is_zero(&bytes[1..]));
        let edges = (0..=2 * LANES).flat_map(|lane| [lane * LANE, lane * LANE + LANE - 1]);
        let places = (0..bytes.len())
            .step_by(4093)
            .chain(edges)
            .chain([bytes.len() - 1]);
        for place in places.filter(|place| *place < 2 * LANES * LANE + 1000) {
            bytes[place] = 1;
            assert!(!is_zero(&bytes), "{place}");
            bytes[place] = 0;
        }
    }

    #[test]
    fn runs_merge_and_the_last_block_may_be_short() {
        let mut bytes = vec![0; 10];
        bytes[5] = 1;
        let runs: Vec<_> = zero_runs(&bytes, 4).collect();
        assert_eq!(runs, [run(0..4, true), run(4..8, false), run(8..10, true)]);
        let whole: Vec<_> = zero_runs(&bytes, usize::MAX).collect();
        assert_eq!(whole, [run(0..10, false)]);
        assert_eq!(zero_runs(&[], 512).count(), 0);
    }

    proptest! {
        #[test]
        fn zero_detection_agrees_with_the_naive_one(
            length in 0..3000_usize,
            skip in 0..64_usize,
            bytes_set in prop::collection::vec((0..3000_usize, any::<u8>()), 0..3),
        ) {
            let mut bytes = vec![0; length];
            for (place, value) in bytes_set {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = value;
                }
            }
            let bytes = &bytes[skip.min(length)..];
            prop_assert_eq!(is_zero(bytes), is_zero_naive(bytes));
        }

        #[test]
        fn runs_cover_everything_alternate_and_say_the_truth(
            length in 0..5000_usize,
            granularity in prop_oneof![Just(0), 1..600_usize, Just(usize::MAX)],
            bytes_set in prop::collection::vec(0..5000_usize, 0..6),
        ) {
            let mut bytes = vec![0; length];
            for place in bytes_set {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = 1;
                }
            }
            let mut end = 0;
            let mut last = None;
            for run in zero_runs(&bytes, granularity) {
                prop_assert_eq!(run.range.start, end);
                prop_assert!(run.range.end > end);
                prop_assert_ne!(last, Some(run.is_zero));
                for block in bytes[run.range.clone()].chunks(granularity.max(1)) {
                    prop_assert_eq!(is_zero_naive(block), run.is_zero);
                }
                (end, last) = (run.range.end, Some(run.is_zero));
            }
            prop_assert_eq!(end, length);
        }
    }
}
