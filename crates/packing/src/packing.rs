//! The ways in which streams are compressed, by name and by magic.

use std::{error, fmt, str::FromStr};

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

    /// So many bytes from the beginning are enough to tell it.
    pub const MAGIC_LENGTH: usize = 10;

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

    /// What the names of such files end in, behind a dot.
    #[must_use]
    pub fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Gzip => &["gz", "gzip"],
            Self::Xz => &["xz"],
            Self::Zstd => &["zst", "zstd"],
            Self::Bzip2 => &["bz2", "bzip2"],
        }
    }

    /// What seems to be compressed that begins with `bytes`: [`MAGIC_LENGTH`](Self::MAGIC_LENGTH) of them, fewer where
    /// there are no more.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let packings = Self::ALL.into_iter();
        packings.into_iter().find(|packing| packing.begins(bytes))
    }

    /// Whether `bytes` begin as what is compressed so.
    pub(crate) fn begins(self, bytes: &[u8]) -> bool {
        match self {
            // The method, and no flags that there are not.
            Self::Gzip => {
                bytes.starts_with(&[0x1f, 0x8b, 8]) && bytes.get(3).is_some_and(|flags| *flags < 32)
            }
            Self::Xz => bytes.starts_with(b"\xfd7zXZ\0"),
            Self::Zstd => match bytes.first_chunk() {
                Some(magic) => {
                    let magic = u32::from_le_bytes(*magic);
                    magic == 0xfd2f_b528 || magic & !0xf == 0x184d_2a50
                }
                None => false,
            },
            // The size of blocks, and the magic of the first block, or of the end of an empty stream.
            Self::Bzip2 => {
                let block = bytes.get(4..10);
                bytes.starts_with(b"BZh")
                    && matches!(bytes.get(3), Some(b'1'..=b'9'))
                    && (block == Some(b"1AY&SY") || block == Some(b"\x17\x72\x45\x38\x50\x90"))
            }
        }
    }
}

/// A name that no way of packing has which is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownPacking;

impl fmt::Display for UnknownPacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Packing::ALL.map(Packing::name).join(", ");
        write!(f, "no compression has that name: {names} are known")
    }
}

impl error::Error for UnknownPacking {}

impl FromStr for Packing {
    type Err = UnknownPacking;

    /// One under its [name](Packing::name).
    fn from_str(name: &str) -> Result<Self, UnknownPacking> {
        let named = Self::ALL.into_iter().find(|packing| packing.name() == name);
        named.ok_or(UnknownPacking)
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_by_its_magic_and_by_its_name() {
        for (bytes, packing) in [
            (&b"\x1f\x8b\x08\x00\0\0\0\0\0\x03"[..], Some(Packing::Gzip)),
            (b"\x1f\x8b\x08\xff\0\0\0\0\0\x03", None),
            (b"\x1f\x8b\x07\x00", None),
            (b"\xfd7zXZ\0\0\x04", Some(Packing::Xz)),
            (b"\xfd7zXZ", None),
            (b"\x28\xb5\x2f\xfd\x04", Some(Packing::Zstd)),
            (b"\x5e\x2a\x4d\x18\x04", Some(Packing::Zstd)),
            (b"\x6e\x2a\x4d\x18\x04", None),
            (b"BZh91AY&SY", Some(Packing::Bzip2)),
            (b"BZh5\x17\x72\x45\x38\x50\x90", Some(Packing::Bzip2)),
            (b"BZh01AY&SY", None),
            (b"BZh9nothing", None),
            (b"", None),
            (&[0; 512], None),
        ] {
            assert_eq!(Packing::of(bytes), packing, "{bytes:?}");
        }
        for packing in Packing::ALL {
            assert_eq!(packing.name().parse(), Ok(packing));
        }
    }

    #[test]
    fn a_name_that_is_none_is_told_which_there_are() {
        for name in ["", "GZIP", "gz", "lzip"] {
            let error = name.parse::<Packing>().expect_err(name);
            assert_eq!(
                error.to_string(),
                "no compression has that name: gzip, xz, zstd, bzip2 are known"
            );
        }
    }
}
