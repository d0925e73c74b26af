//! Disks that were compressed as one stream: unpacked and packed from front to back, in one pass.

use std::{fmt, str::FromStr};

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Packing {
    /// gzip (RFC 1952).
    Gzip,
    /// xz, not the older lzma.
    Xz,
    /// Zstandard (RFC 8878).
    Zstd,
    /// bzip2.
    Bzip2,
}

impl Packing {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gzip, Self::Xz, Self::Zstd, Self::Bzip2];

    /// Its name, which is that of the program that makes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        }
    }
}

impl FromStr for Packing {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let named = Self::ALL.into_iter().find(|packing| packing.name() == name);
        named.ok_or(())
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a disk is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackOptions {
    /// As what: gzip or zstd.
    pub packing: Packing,
    /// How hard: 1 to 9 for gzip, 1 to 22 for zstd; `None`: what pays.
    pub level: Option<u32>,
    /// How many pieces are compressed at a time; 0: as many as there are processors.
    pub threads: usize,
}

impl PackOptions {
    /// `packing` as usual.
    #[must_use]
    pub fn new(packing: Packing) -> Self {
        Self {
            packing,
            level: None,
            threads: 0,
        }
    }
}
