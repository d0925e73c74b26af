//! One block of a deflate stream (RFC 1951, 3.2.3 to 3.2.7).

use super::{
    bits::Bits,
    huffman::{code_lengths, codes},
    matches::Counts,
};

/// Symbols of literals, the end of a block and lengths: 286 and 287 are never used.
const LITERAL_CODES: usize = 286;
/// Where the slots of lengths begin.
const END: usize = 256;
/// Symbols of distances: 30 and 31 are never used.
pub(super) const DISTANCE_CODES: usize = 30;
/// Four of those and what waits for a byte to become full fit into a word.
const LONGEST_LITERAL: usize = 14;
/// In which order the lengths of the codes for lengths of codes are written.
const ORDER: [u8; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
/// The shortest length of each slot.
const LENGTH_BASE: [u16; 29] = {
    let mut bases = [3; 29];
    let mut slot = 1;
    while slot < 28 {
        bases[slot] = bases[slot - 1] + (1 << extra_length_bits(slot as u32 - 1));
        slot += 1;
    }
    bases[28] = 258;
    bases
};
/// Which slot a length is in.
pub(super) const LENGTH_SLOT: [u8; 512] = {
    let mut slots = [0; 512];
    let mut length = 3;
    let mut slot = 0;
    while length <= 258 {
        while slot < 28 && LENGTH_BASE[slot + 1] as usize <= length {
            slot += 1;
        }
        slots[length] = slot as u8;
        length += 1;
    }
    slots
};

/// Which slot a distance is in, less one: the small ones, then the 128th part of any.
const DISTANCE_SLOT: [u8; 512] = {
    let mut slots = [0; 512];
    let mut index = 0;
    while index < 512 {
        let distance = if index < 256 {
            index
        } else {
            (index - 256) << 7
        };
        slots[index] = if distance < 4 {
            distance as u8
        } else {
            let log = distance.ilog2() as usize;
            (2 * log + (distance >> (log - 1) & 1)) as u8
        };
        index += 1;
    }
    slots
};

/// Literals and the match that follows them, if there is one.
#[derive(Clone, Copy)]
pub(super) struct Token(u64);

/// What becomes a block.
pub(super) struct Block<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) tokens: &'a [Token],
    /// Nothing comes after it.
    pub(super) last: bool,
}

/// A code: how long each symbol's is.
struct Lengths {
    literals: [u8; 288],
    distances: [u8; 32],
}

/// What stands before a block with codes of its own: their lengths, compressed.
struct Description {
    literals: usize,
    distances: usize,
    /// The lengths of the codes for what follows.
    lengths: [u8; 19],
    lengths_written: usize,
    /// Symbols with what follows them: from bit 5 on.
    symbols: [u16; LITERAL_CODES + DISTANCE_CODES],
    count: usize,
}

/// How many bits follow the code of a length in that slot.
pub(super) const fn extra_length_bits(slot: u32) -> u32 {
    match slot {
        8..28 => slot / 4 - 1,
        _ => 0,
    }
}

/// How many bits follow the code of a distance in that slot.
pub(super) const fn extra_distance_bits(slot: u32) -> u32 {
    match slot {
        4.. => slot / 2 - 1,
        _ => 0,
    }
}

/// Which slot a distance is in, 1 to 32768; 0 is in that of 1.
#[inline(always)]
pub(super) fn distance_slot(distance: u32) -> u8 {
    let distance = distance.saturating_sub(1) as usize;
    // From 256 on a slot holds a multiple of 128.
    let index = if distance < 256 {
        distance
    } else {
        256 + (distance >> 7)
    };
    DISTANCE_SLOT[index & 511]
}

impl Token {
    /// `literals`, less than 2^32, and a match of `length` bytes; 0: none.
    #[inline(always)]
    pub(super) fn new(literals: usize, length: u32, distance: u32) -> Self {
        let slot = u64::from(distance_slot(distance));
        Self(literals as u64 | u64::from(length) << 32 | slot << 41 | u64::from(distance) << 46)
    }

    #[inline(always)]
    fn literals(self) -> usize {
        self.0 as u32 as usize
    }

    #[inline(always)]
    fn length(self) -> usize {
        (self.0 >> 32) as usize & 511
    }

    #[inline(always)]
    fn distance(self) -> u32 {
        (self.0 >> 46) as u32
    }

    /// The slot of the distance.
    #[inline(always)]
    pub(super) fn slot(self) -> usize {
        (self.0 >> 41) as usize & 31
    }
}

impl Block<'_> {
    /// Writes it in the shortest of the three ways. `counts` are those of its tokens. `None`: there is not room for it.
    pub(super) fn write(&self, counts: &mut Counts, bits: &mut Bits<'_>) -> Option<()> {
        counts.lengths[0] = 1;
        let own = Lengths::optimal(counts);
        let description = Description::of(&own);
        let extra = 3 + counts.extra_bits();
        let with_own = extra + description.bits() + own.bits(counts);
        let with_fixed = extra + FIXED.bits(counts);
        let shorter = with_own.min(with_fixed) as usize;
        if self.stored_bits() < shorter {
            self.store(bits)
        } else if shorter > bits.room() {
            None
        } else if with_fixed <= with_own {
            bits.put(u64::from(self.last) | 1 << 1, 3);
            self.write_tokens(&FIXED, bits);
            Some(())
        } else {
            bits.put(u64::from(self.last) | 2 << 1, 3);
            description.write(bits);
            self.write_tokens(&own, bits);
            Some(())
        }
    }

    /// How many bits it takes as it is, at most.
    fn stored_bits(&self) -> usize {
        self.bytes.len().div_ceil(0xffff) * (3 + 7 + 32) + self.bytes.len() * 8
    }

    fn store(&self, bits: &mut Bits<'_>) -> Option<()> {
        let mut parts = self.bytes.chunks(0xffff).peekable();
        while let Some(part) = parts.next() {
            if bits.room() < (3 + 7 + 32) + part.len() * 8 {
                return None;
            }
            bits.put(u64::from(self.last && parts.peek().is_none()), 3);
            bits.align();
            let length = part.len() as u64;
            bits.put(length | (!length & 0xffff) << 16, 32);
            bits.flush();
            bits.copy(part);
        }
        Some(())
    }

    /// Writes the tokens and the end of the block; there is room for them.
    fn write_tokens(&self, lengths: &Lengths, bits: &mut Bits<'_>) {
        let codes = Codes::of(lengths);
        let mut rest = self.bytes;
        for token in self.tokens {
            let count = token.literals();
            let (mut literals, after) = rest.split_at(count);
            if let (0..=4, Some(four)) = (count, rest.first_chunk::<4>()) {
                // No branch: how many there are is hard to foretell.
                for (index, literal) in four.iter().enumerate() {
                    let beyond = usize::from(index >= count) << 8;
                    bits.put_code(codes.literals[usize::from(*literal) | beyond]);
                }
                bits.flush();
                literals = &[];
            }
            if !literals.is_empty() {
                let (fours, others) = literals.as_chunks::<4>();
                for four in fours {
                    for literal in four {
                        bits.put_code(codes.literals[usize::from(*literal)]);
                    }
                    bits.flush();
                }
                for literal in others {
                    bits.put_code(codes.literals[usize::from(*literal)]);
                }
                bits.flush();
            }
            let length = token.length();
            if length != 0 {
                bits.put_code(codes.lengths[length]);
                let distance = token.distance();
                let (code, extra) = codes.distances[token.slot()];
                bits.put_code(code);
                bits.put(u64::from((distance - 1) & ((1 << extra) - 1)), extra);
                bits.flush();
            }
            rest = &after[length..];
        }
        bits.put_code(codes.end);
        bits.flush();
    }
}

impl Bits<'_> {
    /// Puts a code that has its length in the low eight bits.
    #[inline(always)]
    fn put_code(&mut self, code: u32) {
        self.put(u64::from(code >> 8), code & 0xff);
    }
}

/// What is written for each symbol: the bits, and how many there are in the low eight.
struct Codes {
    /// From 256 on nothing is written.
    literals: [u32; 512],
    /// By length, with the bits that follow the code.
    lengths: [u32; 512],
    end: u32,
    /// The code, and how many bits follow it.
    distances: [(u32, u32); 32],
}

impl Codes {
    fn of(lengths: &Lengths) -> Self {
        let mut literals = [0; 288];
        codes(&lengths.literals, &mut literals);
        let mut distances = [0; 32];
        codes(&lengths.distances, &mut distances);
        let literal =
            |symbol: usize| u32::from(literals[symbol]) << 8 | u32::from(lengths.literals[symbol]);
        let mut made = Self {
            literals: [0; 512],
            lengths: [0; 512],
            end: literal(END),
            distances: [(0, 0); 32],
        };
        for (symbol, code) in made.literals[..END].iter_mut().enumerate() {
            *code = literal(symbol);
        }
        for (slot, base) in LENGTH_BASE.iter().enumerate() {
            let code = literal(END + 1 + slot);
            let extra = extra_length_bits(slot as u32);
            // Slot 27 has room for 258, which has a slot of its own.
            for more in 0..(1 << extra).min(258 - u32::from(*base)).max(1) {
                let bits = more << (8 + (code & 0xff));
                made.lengths[usize::from(*base) + more as usize] = (code | bits) + extra;
            }
        }
        let codes = distances.iter().zip(lengths.distances).zip(0..);
        for (made, ((code, length), slot)) in made.distances.iter_mut().zip(codes) {
            *made = (
                u32::from(*code) << 8 | u32::from(length),
                extra_distance_bits(slot),
            );
        }
        made
    }
}

/// The codes that need no description (RFC 1951, 3.2.6).
const FIXED: Lengths = {
    let mut literals = [8; 288];
    let mut symbol = 144;
    while symbol < 280 {
        literals[symbol] = if symbol < 256 { 9 } else { 7 };
        symbol += 1;
    }
    Lengths {
        literals,
        distances: [5; 32],
    }
};

impl Lengths {
    /// The best for symbols that occur so often.
    fn optimal(counts: &Counts) -> Self {
        let mut frequencies = [0; 288];
        frequencies[..END].copy_from_slice(&counts.literals);
        frequencies[END..].copy_from_slice(&counts.lengths);
        let mut lengths = Self {
            literals: [0; 288],
            distances: [0; 32],
        };
        code_lengths(&frequencies, LONGEST_LITERAL, &mut lengths.literals);
        code_lengths(&counts.distances, 15, &mut lengths.distances);
        lengths
    }

    /// How many bits the codes of all symbols have together.
    fn bits(&self, counts: &Counts) -> u32 {
        let (literals, others) = self.literals.split_at(END);
        let sum = |lengths: &[u8], counts: &[u32]| -> u32 {
            let pairs = lengths.iter().zip(counts);
            pairs
                .map(|(length, count)| u32::from(*length) * count)
                .sum()
        };
        sum(literals, &counts.literals)
            + sum(others, &counts.lengths)
            + sum(&self.distances, &counts.distances)
    }
}

impl Description {
    fn of(lengths: &Lengths) -> Self {
        let used = |lengths: &[u8]| {
            lengths
                .iter()
                .rposition(|length| *length != 0)
                .map_or(0, |last| last + 1)
        };
        let literals = used(&lengths.literals).clamp(257, LITERAL_CODES);
        let distances = used(&lengths.distances).clamp(1, DISTANCE_CODES);
        let mut all = [0; LITERAL_CODES + DISTANCE_CODES];
        all[..literals].copy_from_slice(&lengths.literals[..literals]);
        all[literals..literals + distances].copy_from_slice(&lengths.distances[..distances]);
        let mut description = Self {
            literals,
            distances,
            lengths: [0; 19],
            lengths_written: 0,
            symbols: [0; LITERAL_CODES + DISTANCE_CODES],
            count: 0,
        };
        for run in all[..literals + distances].chunk_by(PartialEq::eq) {
            description.add_run(run[0], run.len());
        }
        let mut frequencies = [0; 19];
        for symbol in &description.symbols[..description.count] {
            frequencies[usize::from(symbol & 31)] += 1;
        }
        code_lengths(&frequencies, 7, &mut description.lengths);
        let last = ORDER
            .iter()
            .rposition(|symbol| description.lengths[usize::from(*symbol)] != 0);
        description.lengths_written = last.map_or(4, |last| (last + 1).max(4));
        description
    }

    /// A length that occurs `run` times in a row.
    fn add_run(&mut self, length: u8, mut run: usize) {
        if length == 0 {
            while run >= 11 {
                let part = run.min(138);
                self.add(18, part - 11);
                run -= part;
            }
            if run >= 3 {
                self.add(17, run - 3);
                run = 0;
            }
        } else if run >= 4 {
            self.add(length, 0);
            run -= 1;
            while run >= 3 {
                let part = run.min(6);
                self.add(16, part - 3);
                run -= part;
            }
        }
        for _ in 0..run {
            self.add(length, 0);
        }
    }

    fn add(&mut self, symbol: u8, extra: usize) {
        self.symbols[self.count] = u16::from(symbol) | (extra as u16) << 5;
        self.count += 1;
    }

    /// How many bits follow a symbol.
    fn extra_bits(symbol: u16) -> u32 {
        match symbol & 31 {
            16 => 2,
            17 => 3,
            18 => 7,
            _ => 0,
        }
    }

    fn bits(&self) -> u32 {
        let symbols = self.symbols[..self.count].iter();
        let symbols = symbols.map(|symbol| {
            u32::from(self.lengths[usize::from(symbol & 31)]) + Self::extra_bits(*symbol)
        });
        5 + 5 + 4 + 3 * self.lengths_written as u32 + symbols.sum::<u32>()
    }

    fn write(&self, bits: &mut Bits<'_>) {
        bits.put((self.literals - 257) as u64, 5);
        bits.put((self.distances - 1) as u64, 5);
        bits.put((self.lengths_written - 4) as u64, 4);
        bits.flush();
        for symbol in &ORDER[..self.lengths_written] {
            bits.put(self.lengths[usize::from(*symbol)].into(), 3);
            bits.flush();
        }
        let mut made = [0; 19];
        codes(&self.lengths, &mut made);
        for symbol in &self.symbols[..self.count] {
            let index = usize::from(symbol & 31);
            bits.put(made[index].into(), self.lengths[index].into());
            bits.put(u64::from(symbol >> 5), Self::extra_bits(*symbol));
            bits.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_rfc() {
        for (length, slot, extra) in [
            (3, 0, 0),
            (10, 7, 0),
            (11, 8, 1),
            (12, 8, 1),
            (227, 27, 5),
            (257, 27, 5),
            (258, 28, 0),
        ] {
            assert_eq!(LENGTH_SLOT[length], slot, "{length}");
            assert_eq!(extra_length_bits(slot.into()), extra, "{length}");
        }
        for (distance, slot, extra) in [
            (1, 0, 0),
            (2, 1, 0),
            (4, 3, 0),
            (5, 4, 1),
            (4096, 23, 10),
            (4097, 24, 11),
            (32768, 29, 13),
        ] {
            assert_eq!(distance_slot(distance), slot, "{distance}");
            assert_eq!(extra_distance_bits(slot.into()), extra, "{distance}");
        }
    }
}
