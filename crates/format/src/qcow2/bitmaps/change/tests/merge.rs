//! Bitmaps of any granularities merged into one, beside a row of bits.

use proptest::prelude::*;

use super::*;

/// What a source says, as a row of bits.
#[derive(Clone, Debug)]
struct Naive {
    granularity: u64,
    bits: Vec<bool>,
}

impl Naive {
    fn new(size: u64, granularity: u64) -> Self {
        Self {
            granularity,
            bits: vec![false; size.div_ceil(granularity) as usize],
        }
    }

    fn is_dirty(&self, at: u64) -> bool {
        self.bits[(at / self.granularity) as usize]
    }

    /// Sets all bits that tell of a byte of which the other one says that it is dirty.
    fn merge(&mut self, other: &Self, size: u64) {
        for (index, is_dirty) in other.bits.iter().enumerate() {
            let start = index as u64 * other.granularity;
            let end = (start + other.granularity).min(size);
            if *is_dirty && start < end {
                let bits = start / self.granularity..end.div_ceil(self.granularity);
                self.bits[bits.start as usize..bits.end as usize].fill(true);
            }
        }
    }
}

/// A source whose bits come from a seed: some clusters of them empty, some full, others random.
async fn random_source(
    bits: u32,
    size: u64,
    granularity: u64,
    seed: u64,
) -> (Naive, Arc<MemoryDevice>) {
    let mut naive = Naive::new(size, granularity);
    let per_cluster = (8_usize << bits).min(naive.bits.len());
    let mut state = seed | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 33
    };
    let mut patterns = Vec::new();
    for chunk in naive.bits.chunks_mut(per_cluster) {
        patterns.push(match next() % 4 {
            0 => Pattern::Nothing,
            1 => {
                chunk.fill(true);
                Pattern::Everything
            }
            sparse => {
                let rare = if sparse == 2 { 2 } else { 40 };
                let mut bytes = vec![0; chunk.len().div_ceil(8)];
                for (index, bit) in chunk.iter_mut().enumerate() {
                    *bit = next() % rare == 0;
                    bytes[index / 8] |= u8::from(*bit) << (index % 8);
                }
                Pattern::Bits(bytes)
            }
        });
    }
    (naive, source(bits, size, granularity, patterns).await)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_bitmaps_merge_as_rows_of_bits_do(
        bits in 9_u32..=14,
        size in 1_u64..4_000_000,
        own in 9_u32..=18,
        others in prop::collection::vec((9_u32..=18, 9_u32..=12, any::<u64>()), 1..4),
    ) {
        let size = size.next_multiple_of(512);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut expected = Naive::new(size, 1 << own);
            let mut image = memory(&ImageBuilder::new(bits, size));
            image = changed(&image, "b", &add(1 << own)).await;
            image = changed(&image, "copy", &add(512)).await;
            for (granularity, bits, seed) in others {
                let (naive, source) = random_source(bits, size, 1 << granularity, seed).await;
                expected.merge(&naive, size);
                image = changed(&image, "b", &merge("s", Some(&source))).await;
                for found in &seen(&*image).await[0].ranges {
                    let range = found.range;
                    for at in (range.start()..range.end()).step_by(512) {
                        assert_eq!(found.status.0 == 1, expected.is_dirty(at), "{at}");
                    }
                }
            }
            image = changed(&image, "copy", &merge("b", None)).await;
            let both = seen(&*image).await;
            assert_eq!(both[0].ranges, both[1].ranges);
            image = changed(&image, "b", &BitmapChange::Remove).await;
            image = changed(&image, "copy", &BitmapChange::Remove).await;
            assert!(seen(&*image).await.is_empty());
        });
    }
}
