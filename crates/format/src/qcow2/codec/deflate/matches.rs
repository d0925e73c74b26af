//! What repeats in a cluster: literals and matches, and how often each symbol occurs.

use super::block::{DISTANCE_CODES, LENGTH_SLOT, Token, extra_distance_bits, extra_length_bits};

/// Tokens are found for so many bytes at a time: the default cluster in one go.
const SEGMENT: usize = 64 << 10;
/// Symbols are counted for so many bytes at a time; a block is one or more of those.
const PIECE: usize = 8 << 10;
/// The tables' sizes as powers of two: both lie in the nearest cache, 16 KiB each.
const SHORT_BITS: u32 = 13;
const LONG_BITS: u32 = 12;
/// The longest match (RFC 1951, 3.2.5).
const LONGEST: usize = 258;
/// As many bytes are looked at together; matches up to one less are measured without a loop.
const GLANCE: u32 = 16;
/// What follows a place that is searched: two glances, one of them a byte on, and what a match of less than a glance
/// puts into the tables.
const MARGIN: usize = 32;
/// Three bytes are worth no more as a match than as literals when they are farther away.
const FARTHEST_SHORT: usize = 4096;
/// After so many literals in a row places are left out, the more the longer it takes.
const PATIENCE_BITS: u32 = 9;

/// Finds matches, in a cluster after the other.
pub(super) struct Finder {
    /// One less than how far back a match may lie: the places in the tables are numbered modulo that.
    mask: u16,
    /// Where three bytes with this hash were last.
    short: Box<[u16; 1 << SHORT_BITS]>,
    /// Where six bytes with this hash were the last two times, the last one in the low half.
    long: Box<[u32; 1 << LONG_BITS]>,
    tokens: Vec<Token>,
    pieces: Vec<Piece>,
}

/// A stretch of a segment.
pub(super) struct Piece {
    pub(super) counts: Counts,
    /// How many of the segment's tokens there are up to its end.
    pub(super) tokens: usize,
    /// Where it ends in the cluster.
    pub(super) end: usize,
}

/// How often each symbol occurs.
pub(super) struct Counts {
    pub(super) literals: [u32; 256],
    /// The end of a block, then the slots of lengths.
    pub(super) lengths: [u32; 32],
    pub(super) distances: [u32; 32],
}

/// A match: a length of 0 is none.
#[derive(Clone, Copy)]
struct Match {
    length: u32,
    distance: usize,
}

impl Finder {
    pub(super) fn new(window: u32) -> Self {
        debug_assert!(window.is_power_of_two() && window <= 32768);
        Self {
            mask: (window - 1) as u16,
            short: Box::new([0; 1 << SHORT_BITS]),
            long: Box::new([0; 1 << LONG_BITS]),
            tokens: Vec::with_capacity(SEGMENT / 3 + SEGMENT / PIECE + 1),
            pieces: Vec::with_capacity(SEGMENT / PIECE),
        }
    }

    /// Forgets the cluster before: what comes out for a cluster depends on that cluster alone.
    pub(super) fn start(&mut self) {
        self.short.fill(0);
        self.long.fill(0);
    }

    /// What the last call of [`find`](Self::find) found.
    pub(super) fn found(&mut self) -> (&[Token], &mut [Piece]) {
        (&self.tokens, &mut self.pieces)
    }

    /// Finds tokens for a segment of `cluster` from `position` on, which is where the one before ended, and returns
    /// where it ends.
    pub(super) fn find(&mut self, cluster: &[u8], mut position: usize) -> usize {
        self.tokens.clear();
        self.pieces.clear();
        let end = cluster.len().min(position + SEGMENT);
        while position < end {
            let mut piece = Piece {
                counts: Counts::NONE,
                tokens: 0,
                end: position,
            };
            position = self.find_piece(
                cluster,
                position,
                end.min(position + PIECE),
                &mut piece.counts,
            );
            (piece.tokens, piece.end) = (self.tokens.len(), position);
            self.pieces.push(piece);
        }
        position
    }

    /// Finds tokens from `position` to `end`, or some way beyond when the last one is a match.
    fn find_piece(
        &mut self,
        cluster: &[u8],
        mut position: usize,
        end: usize,
        counts: &mut Counts,
    ) -> usize {
        let mut tables = Tables {
            mask: self.mask,
            short: &mut self.short,
            long: &mut self.long,
        };
        // What follows it is not yet in a token.
        let mut literals = position;
        let search_end = cluster.len().saturating_sub(MARGIN);
        let stop = end.min(search_end);
        if position == 0 && stop > 0 {
            // There is nothing yet to search.
            tables.remember(cluster, 0);
            counts.literals[usize::from(cluster[0])] += 1;
            position = 1;
        }
        while position < stop {
            let Some(here) = tables.search(cluster, position) else {
                counts.literals[usize::from(cluster[position])] += 1;
                position += 1;
                let in_vain = position - literals;
                if in_vain >> PATIENCE_BITS != 0 {
                    let skipped = (in_vain >> PATIENCE_BITS).min(8).min(stop - position);
                    counts.count_literals(&cluster[position..position + skipped]);
                    position += skipped;
                }
                continue;
            };
            let next = tables.search_both(cluster, position + 1);
            // No branch: what comes out is hard to foretell.
            let later = next.length > here.length;
            counts.literals[usize::from(cluster[position])] += u32::from(later);
            let start = position + usize::from(later);
            let Match {
                mut length,
                distance,
            } = if later { next } else { here };
            if length < GLANCE - 1 {
                let last = start + length as usize - 1;
                if length >= 7 {
                    tables.remember_four(cluster, start + 3);
                }
                tables.remember_short(cluster, position + 2);
                tables.remember(cluster, last);
            } else {
                length = measure(cluster, start, distance);
                let end = (start + length as usize).min(search_end);
                let mut within = position + 2;
                while within + 3 < end {
                    tables.remember_four(cluster, within);
                    within += 4;
                }
                tables.remember_four(cluster, end.saturating_sub(4));
            }
            let slot = usize::from(LENGTH_SLOT[length as usize & 511]);
            counts.lengths[(1 + slot) & 31] += 1;
            let token = Token::new(start - literals, length, distance as u32);
            counts.distances[token.slot()] += 1;
            self.tokens.push(token);
            position = start + length as usize;
            literals = position;
        }
        if position < end {
            counts.count_literals(&cluster[position..end]);
            position = end;
        }
        if literals < position {
            self.tokens.push(Token::new(position - literals, 0, 0));
        }
        position
    }
}

/// Where bytes were seen last. A hash says where to look, the bytes there decide: what a table says is never wrong,
/// only of no use.
struct Tables<'a> {
    mask: u16,
    short: &'a mut [u16; 1 << SHORT_BITS],
    long: &'a mut [u32; 1 << LONG_BITS],
}

impl Tables<'_> {
    /// The best match for the bytes at `position`, which is remembered; it is 15 bytes long if it is longer than
    /// that. Only where three bytes were found are six looked for.
    #[inline(always)]
    fn search(&mut self, cluster: &[u8], position: usize) -> Option<Match> {
        let bytes = eight(cluster, position);
        let (distance, long) = self.exchange(bytes, position);
        let equal = equal_bytes(bytes ^ eight(cluster, position - distance));
        let needed = 3 + u32::from(distance > FARTHEST_SHORT);
        (equal >= needed).then(|| self.longest(cluster, position, (equal, distance), long))
    }

    /// The same, without a way out before the end.
    #[inline(always)]
    fn search_both(&mut self, cluster: &[u8], position: usize) -> Match {
        let bytes = eight(cluster, position);
        let (distance, long) = self.exchange(bytes, position);
        let equal = equal_bytes(bytes ^ eight(cluster, position - distance));
        self.longest(cluster, position, (equal, distance), long)
    }

    /// Puts `position` into the tables; how far back they had bytes with the same hashes.
    #[inline(always)]
    fn exchange(&mut self, bytes: u64, position: usize) -> (usize, u32) {
        let short = &mut self.short[hash::<3, SHORT_BITS>(bytes)];
        let long = &mut self.long[hash::<6, LONG_BITS>(bytes)];
        let (place, places) = (*short, *long);
        *short = position as u16;
        *long = places << 16 | u32::from(position as u16);
        (self.distance(position, place), places)
    }

    /// The longest of the match that the table of three bytes gave, and the two of the other.
    #[inline(always)]
    fn longest(&self, cluster: &[u8], position: usize, short: (u32, usize), long: u32) -> Match {
        let bytes = sixteen(cluster, position);
        let equal = |distance: usize| {
            let other = sixteen(cluster, position - distance);
            ((bytes ^ other) | 1 << 127).trailing_zeros() / 8
        };
        let (mut length, mut distance) = short;
        if length == 7 {
            length = equal(distance);
        }
        for place in [long as u16, (long >> 16) as u16] {
            let other = self.distance(position, place);
            let equal = equal(other);
            let longer = equal > length;
            length = if longer { equal } else { length };
            distance = if longer { other } else { distance };
        }
        Match { length, distance }
    }

    /// How far back `place` is: within the window and the cluster, whatever the table said.
    #[inline(always)]
    fn distance(&self, position: usize, place: u16) -> usize {
        let back = (position as u16).wrapping_sub(place).wrapping_sub(1) & self.mask;
        (usize::from(back) + 1).min(position)
    }

    #[inline(always)]
    fn remember(&mut self, cluster: &[u8], position: usize) {
        let bytes = eight(cluster, position);
        self.short[hash::<3, SHORT_BITS>(bytes)] = position as u16;
        let long = &mut self.long[hash::<6, LONG_BITS>(bytes)];
        *long = *long << 16 | u32::from(position as u16);
    }

    #[inline(always)]
    fn remember_short(&mut self, cluster: &[u8], position: usize) {
        self.short[hash::<3, SHORT_BITS>(eight(cluster, position))] = position as u16;
    }

    /// Four places in the table of three bytes, the first of them in the other, too.
    #[inline(always)]
    fn remember_four(&mut self, cluster: &[u8], position: usize) {
        self.remember(cluster, position);
        let bytes = eight(cluster, position);
        for next in 1..4 {
            self.short[hash::<3, SHORT_BITS>(bytes >> (8 * next))] = (position + next) as u16;
        }
    }
}

impl Counts {
    const NONE: Self = Self {
        literals: [0; 256],
        lengths: [0; 32],
        distances: [0; 32],
    };

    fn count_literals(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.literals[usize::from(*byte)] += 1;
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        let add = |to: &mut [u32], from: &[u32]| {
            for (to, from) in to.iter_mut().zip(from) {
                *to += from;
            }
        };
        add(&mut self.literals, &other.literals);
        add(&mut self.lengths, &other.lengths);
        add(&mut self.distances, &other.distances);
    }

    /// About how many bits these symbols take with codes of their own.
    pub(super) fn bits(&self) -> f32 {
        self.bits_with(&Self::NONE)
    }

    /// About how many bits these symbols and others take with codes of their own.
    pub(super) fn bits_with(&self, other: &Self) -> f32 {
        let literals = Entropy::of(&self.literals, &other.literals);
        let lengths = Entropy::of(&self.lengths, &other.lengths);
        let distances = Entropy::of(&self.distances, &other.distances);
        let codes = literals.and(&lengths).bits() + distances.bits();
        codes + (self.extra_bits() + other.extra_bits()) as f32
    }

    /// How many bits follow the codes.
    pub(super) fn extra_bits(&self) -> u32 {
        let lengths = self.lengths[1..].iter().zip(0..);
        let lengths = lengths.map(|(count, slot)| count * extra_length_bits(slot));
        let distances = self.distances.iter().zip(0..DISTANCE_CODES as u32);
        let distances = distances.map(|(count, slot)| count * extra_distance_bits(slot));
        lengths.sum::<u32>() + distances.sum::<u32>()
    }
}

/// What an ideal code takes for symbols: n log n, less the sum of c log c.
struct Entropy {
    symbols: u32,
    sum: f32,
}

impl Entropy {
    fn of<const N: usize>(one: &[u32; N], other: &[u32; N]) -> Self {
        const LANES: usize = 8;
        let (mut symbols, mut sums) = ([0; LANES], [0.0; LANES]);
        let (ones, _) = one.as_chunks::<LANES>();
        let (others, _) = other.as_chunks::<LANES>();
        for (one, other) in ones.iter().zip(others) {
            for lane in 0..LANES {
                let count = one[lane] + other[lane];
                symbols[lane] += count;
                sums[lane] += n_log_n(count);
            }
        }
        Self {
            symbols: symbols.iter().sum(),
            sum: sums.iter().sum(),
        }
    }

    fn and(&self, other: &Self) -> Self {
        Self {
            symbols: self.symbols + other.symbols,
            sum: self.sum + other.sum,
        }
    }

    fn bits(&self) -> f32 {
        n_log_n(self.symbols) - self.sum
    }
}

/// n log2 n, to some thousandths: the exponent, and a parabola through the mantissa.
#[inline(always)]
fn n_log_n(n: u32) -> f32 {
    let float = n as i32 as f32;
    let bits = float.to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    let mantissa = f32::from_bits(bits & 0x007f_ffff | 0x3f80_0000);
    let parabola = (-0.344_845 * mantissa + 2.024_658) * mantissa - 1.679_813;
    float * (exponent as f32 + parabola)
}

/// How many bytes from `position` on equal those `distance` before: 258 at most.
#[inline(always)]
fn measure(cluster: &[u8], position: usize, distance: usize) -> u32 {
    let most = (cluster.len() - position).min(LONGEST);
    let these = &cluster[position..position + most];
    let those = &cluster[position - distance..][..most];
    let (words, rest) = these.as_chunks::<8>();
    let (other_words, other_rest) = those.as_chunks::<8>();
    let mut length = 0;
    for (word, other) in words.iter().zip(other_words) {
        let differ = u64::from_le_bytes(*word) ^ u64::from_le_bytes(*other);
        if differ != 0 {
            return length + differ.trailing_zeros() / 8;
        }
        length += 8;
    }
    let rest = rest.iter().zip(other_rest);
    length + rest.take_while(|(byte, other)| byte == other).count() as u32
}

/// How many bytes are equal where nothing differs in this: 7 at most.
#[inline(always)]
fn equal_bytes(differ: u64) -> u32 {
    (differ | 1 << 63).trailing_zeros() / 8
}

/// A hash of the first bytes: multiplied by the golden ratio, the highest bits.
#[inline(always)]
fn hash<const BYTES: u32, const BITS: u32>(bytes: u64) -> usize {
    let product = (bytes << (64 - 8 * BYTES)).wrapping_mul(0x9e37_79b1_85eb_ca87);
    (product >> (64 - BITS)) as usize
}

#[inline(always)]
fn eight(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes[at..at + 8].first_chunk();
    u64::from_le_bytes(*bytes.unwrap_or(&[0; 8]))
}

#[inline(always)]
fn sixteen(bytes: &[u8], at: usize) -> u128 {
    let bytes = bytes[at..at + 16].first_chunk();
    u128::from_le_bytes(*bytes.unwrap_or(&[0; 16]))
}
