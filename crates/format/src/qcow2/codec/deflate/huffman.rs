//! Prefix codes from frequencies (RFC 1951, 3.2.2).

/// The most symbols that a code has.
const MOST: usize = 288;
/// The longest code.
const LONGEST: usize = 15;

/// Fills `lengths` with those of an optimal prefix code for symbols that occur so often, at most `limit` bits each.
///
/// A symbol that does not occur has none, except that there are always two with a code: not every reader takes
/// fewer. No frequency is above 2^22, together they are below 2^32.
pub(super) fn code_lengths(frequencies: &[u32], limit: usize, lengths: &mut [u8]) {
    // Sorted by frequency, the symbol in the low bits.
    let mut keys = [0_u32; MOST];
    let mut count = 0;
    for (symbol, &frequency) in frequencies.iter().enumerate() {
        if frequency != 0 {
            keys[count] = frequency << 9 | symbol as u32;
            count += 1;
        }
    }
    for (symbol, &frequency) in frequencies.iter().enumerate().take(2) {
        if count < 2 && frequency == 0 {
            keys[count] = 1 << 9 | symbol as u32;
            count += 1;
        }
    }
    lengths.fill(0);
    let keys = &mut keys[..count];
    keys.sort_unstable();
    let counts = limited(&leaves_by_depth(keys), limit);
    // The rarest get the longest.
    let mut rarest = keys.iter();
    for (length, count) in counts.iter().enumerate().rev() {
        for key in rarest.by_ref().take(*count as usize) {
            lengths[(key & 511) as usize] = length as u8;
        }
    }
}

/// How many symbols of an optimal code have each length; longer ones are counted as the longest. Huffman's way, with
/// two queues: nodes are made in the order of their weight, so the lightest two are at the heads of the queues.
fn leaves_by_depth(keys: &[u32]) -> [u32; LONGEST + 1] {
    let mut weights = [0_u32; MOST];
    // The parent of each inner node, then its depth.
    let mut parents = [0_u16; MOST];
    // How many leaves each inner node has as children.
    let mut leaves = [0_u8; MOST];
    let inner = keys.len() - 1;
    let (mut leaf, mut node) = (0, 0);
    for made in 0..inner {
        let mut weight = 0;
        for _ in 0..2 {
            match keys.get(leaf).map(|key| key >> 9) {
                Some(light) if node == made || light <= weights[node] => {
                    weight += light;
                    leaves[made] += 1;
                    leaf += 1;
                }
                _ => {
                    weight += weights[node];
                    parents[node] = made as u16;
                    node += 1;
                }
            }
        }
        weights[made] = weight;
    }
    let mut counts = [0; LONGEST + 1];
    let depths = &mut parents;
    for made in (0..inner).rev() {
        if made + 1 < inner {
            depths[made] = depths[usize::from(depths[made])] + 1;
        }
        let depth = usize::from(depths[made]) + 1;
        counts[depth.min(LONGEST)] += u32::from(leaves[made]);
    }
    counts
}

/// The same number of symbols with lengths of at most `limit`: what was cut to it is paid for by making the
/// longest of the others longer, until the code fits again.
fn limited(counts: &[u32; LONGEST + 1], limit: usize) -> [u32; LONGEST + 1] {
    let mut limited = *counts;
    for length in limit + 1..=LONGEST {
        limited[limit] += limited[length];
        limited[length] = 0;
    }
    let used = |counts: &[u32; LONGEST + 1]| -> u32 {
        (1..=limit)
            .map(|length| counts[length] << (limit - length))
            .sum()
    };
    let mut used = used(&limited);
    while used > 1 << limit {
        let shorter = (1..limit).rev().find(|length| limited[*length] > 0);
        let Some(shorter) = shorter else { break };
        limited[shorter] -= 1;
        limited[shorter + 1] += 2;
        limited[limit] -= 1;
        used -= 1;
    }
    limited
}

/// The codes of symbols with those lengths, their bits in the order in which they are written.
pub(super) fn codes(lengths: &[u8], codes: &mut [u16]) {
    let mut counts = [0_u16; LONGEST + 1];
    for length in lengths {
        counts[usize::from(length & 15)] += 1;
    }
    counts[0] = 0;
    let mut next = [0_u16; LONGEST + 1];
    let mut code = 0;
    for length in 1..=LONGEST {
        code = (code + counts[length - 1]) << 1;
        next[length] = code;
    }
    for (code, &length) in codes.iter_mut().zip(lengths) {
        let next = &mut next[usize::from(length & 15)];
        *code = match length {
            0 => 0,
            _ => next.reverse_bits() >> (16 - length),
        };
        *next = next.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The cost of an optimal code without a limit, by merging the lightest two again and again.
    fn optimal(frequencies: &[u32]) -> u32 {
        let mut heap: Vec<u32> = frequencies.iter().copied().filter(|f| *f > 0).collect();
        let mut cost = 0;
        while heap.len() > 1 {
            heap.sort_unstable_by(|a, b| b.cmp(a));
            let sum = heap.pop().unwrap_or(0) + heap.pop().unwrap_or(0);
            cost += sum;
            heap.push(sum);
        }
        cost
    }

    fn lengths(frequencies: &[u32], limit: usize) -> Vec<u8> {
        let mut lengths = vec![0xff; frequencies.len()];
        code_lengths(frequencies, limit, &mut lengths);
        lengths
    }

    fn cost(frequencies: &[u32], lengths: &[u8]) -> u32 {
        let pairs = frequencies.iter().zip(lengths);
        pairs
            .map(|(count, length)| count * u32::from(*length))
            .sum()
    }

    /// How much of the space of codes of 15 bits is used.
    fn used(lengths: &[u8]) -> u32 {
        let used = lengths.iter().filter(|length| **length > 0);
        used.map(|length| 1 << (15 - length)).sum()
    }

    proptest! {
        // So few that no optimal code is longer than the limit.
        #[test]
        fn codes_are_complete_and_optimal(
            frequencies in prop::collection::vec(0..9_u32, 2..286),
        ) {
            let lengths = lengths(&frequencies, 15);
            prop_assert_eq!(used(&lengths), 1 << 15);
            for (length, frequency) in lengths.iter().zip(&frequencies) {
                prop_assert!(*frequency == 0 || *length > 0);
            }
            if frequencies.iter().filter(|count| **count > 0).count() > 1 {
                prop_assert_eq!(cost(&frequencies, &lengths), optimal(&frequencies));
            }
        }

        #[test]
        fn a_limit_is_kept_and_costs_little(
            frequencies in prop::collection::vec((0..18_u32).prop_map(|bits| 1 << bits >> 1), 2..19),
            limit in 7..=15_usize,
        ) {
            let lengths = lengths(&frequencies, limit);
            prop_assert!(lengths.iter().all(|length| usize::from(*length) <= limit));
            prop_assert_eq!(used(&lengths), 1 << 15);
            if frequencies.iter().filter(|count| **count > 0).count() > 1 {
                prop_assert!(cost(&frequencies, &lengths) <= optimal(&frequencies) * 5 / 4);
            }
        }

        #[test]
        fn no_code_begins_another(
            frequencies in prop::collection::vec(0..40_u32, 2..100),
        ) {
            let lengths = lengths(&frequencies, 15);
            let mut made = vec![0; lengths.len()];
            codes(&lengths, &mut made);
            for (one, length) in made.iter().zip(&lengths).filter(|(_, length)| **length > 0) {
                let begun = made.iter().zip(&lengths).filter(|(other, longer)| {
                    **longer >= *length && (*other ^ one) & ((1 << length) - 1) == 0
                });
                prop_assert_eq!(begun.count(), 1);
            }
        }
    }

    #[test]
    fn the_example_of_the_rfc_comes_out() {
        let lengths = [3, 3, 3, 3, 3, 2, 4, 4];
        let mut made = [0; 8];
        codes(&lengths, &mut made);
        let expected = ["010", "011", "100", "101", "110", "00", "1110", "1111"];
        for ((code, length), expected) in made.iter().zip(lengths).zip(expected) {
            let bits: String = (0..length)
                .map(|bit| char::from(b'0' + (code >> bit & 1) as u8))
                .collect();
            assert_eq!(bits, expected);
        }
    }

    #[test]
    fn two_symbols_always_have_codes() {
        for frequencies in [[0, 0, 0], [5, 0, 0], [0, 5, 0], [0, 0, 5]] {
            let lengths = lengths(&frequencies, 15);
            assert_eq!(
                lengths.iter().filter(|length| **length == 1).count(),
                2,
                "{frequencies:?}"
            );
        }
    }
}
