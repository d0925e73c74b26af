//! What is known of a range of a device: hole, zero, dirty, depth.

use std::fmt;

use crate::ByteRange;

/// A range and what is known of it in one [`Context`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where.
    pub range: ByteRange,
    /// What.
    pub status: Status,
}

/// The status of an extent; its meaning depends on the [`Context`] it was asked in.
///
/// In `base:allocation` bit 0 says hole (not allocated) and bit 1 says zero (reads as zeroes): the
/// bits of the NBD specification, section "Metadata querying".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Status(pub u64);

impl Status {
    /// Allocated, contents unknown.
    pub const DATA: Self = Self(0x0);
    /// Not allocated, contents unknown.
    pub const HOLE: Self = Self(0x1);
    /// Allocated, reads as zeroes.
    pub const ZERO: Self = Self(0x2);
    /// Not allocated, reads as zeroes: what a sparse file's hole is.
    pub const HOLE_ZERO: Self = Self(0x3);

    /// Whether the range is not allocated (in `base:allocation`).
    #[must_use]
    pub const fn is_hole(self) -> bool {
        self.0 & 0x1 != 0
    }

    /// What a word says in nbdkit's scripts and lists of extents, in `base:allocation`: a number, of which the bits
    /// that NBD knows count and nothing behind its digits, or a text with `hole` and `zero` somewhere in it. `None`
    /// for a number that does not fit in 32 bits.
    #[must_use]
    pub fn from_word(word: &[u8]) -> Option<Self> {
        let digits = word.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            let number = std::str::from_utf8(&word[..digits]).ok()?;
            let number: u32 = number.parse().ok()?;
            return Some(Self(u64::from(number) & Self::HOLE_ZERO.0));
        }
        let has = |name: &[u8]| word.windows(name.len()).any(|part| part == name);
        let hole = if has(b"hole") { Self::HOLE.0 } else { 0 };
        let zero = if has(b"zero") { Self::ZERO.0 } else { 0 };
        Some(Self(hole | zero))
    }

    /// Whether the range is known to read as zeroes (in `base:allocation`).
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 & 0x2 != 0
    }
}

/// Which knowledge about extents is asked for. `Display` and `From<&str>` use NBD's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Context {
    /// `base:allocation`: holes and zeroes.
    #[default]
    Allocation,
    /// `qemu:allocation-depth`: 0 unallocated, 1 in the top image, n in the n-th of the chain.
    AllocationDepth,
    /// `qemu:dirty-bitmap:NAME`: bit 0 set where dirty.
    DirtyBitmap(String),
    /// Any other context, by its full name.
    Other(String),
}

impl From<&str> for Context {
    fn from(name: &str) -> Self {
        match name {
            "base:allocation" => Self::Allocation,
            "qemu:allocation-depth" => Self::AllocationDepth,
            _ => match name.strip_prefix("qemu:dirty-bitmap:") {
                Some(bitmap) => Self::DirtyBitmap(bitmap.to_owned()),
                None => Self::Other(name.to_owned()),
            },
        }
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allocation => f.write_str("base:allocation"),
            Self::AllocationDepth => f.write_str("qemu:allocation-depth"),
            Self::DirtyBitmap(bitmap) => write!(f, "qemu:dirty-bitmap:{bitmap}"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// Appends `extent` to `list`, merging it with the last one when it continues it with equal status.
pub fn push_merged(list: &mut Vec<Extent>, extent: Extent) {
    if extent.range.is_empty() {
        return;
    }
    if let Some(last) = list.last_mut()
        && last.status == extent.status
        && last.range.end() == extent.range.start()
    {
        last.range = ByteRange::between(last.range.start(), extent.range.end());
        return;
    }
    list.push(extent);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_spelled_as_nbd_spells_them() {
        for name in [
            "base:allocation",
            "qemu:allocation-depth",
            "qemu:dirty-bitmap:b0",
            "x:y",
        ] {
            assert_eq!(Context::from(name).to_string(), name);
        }
    }

    #[test]
    fn a_word_is_a_number_or_has_words_in_it() {
        let known: [(&[u8], Option<u64>); 9] = [
            (b"3", Some(3)),
            (b"02", Some(2)),
            (b"6", Some(2)),
            (b"0x2", Some(0)),
            (b"99999999999", None),
            (b"hole,zero", Some(3)),
            (b"zeroes", Some(2)),
            (b"hole", Some(1)),
            (b"", Some(0)),
        ];
        for (word, status) in known {
            assert_eq!(Status::from_word(word), status.map(Status), "{word:?}");
        }
    }

    #[test]
    fn equal_neighbours_merge() {
        let extent = |start, end, status| Extent {
            range: ByteRange::between(start, end),
            status,
        };
        let mut list = Vec::new();
        push_merged(&mut list, extent(0, 4, Status::DATA));
        push_merged(&mut list, extent(4, 8, Status::DATA));
        push_merged(&mut list, extent(8, 8, Status::HOLE));
        push_merged(&mut list, extent(8, 12, Status::HOLE_ZERO));
        assert_eq!(
            list,
            [extent(0, 8, Status::DATA), extent(8, 12, Status::HOLE_ZERO)]
        );
    }
}
