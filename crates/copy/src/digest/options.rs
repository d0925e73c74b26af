//! Which hash, over blocks of what size.

use std::{fmt, str::FromStr};

use blockferry_block::{SizeError, parse_size};
use sha2::Digest as _;

use super::Digest;

/// A hash function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// MD5 (RFC 1321): against accidents only.
    Md5,
    /// SHA-1 (FIPS 180-4): against accidents only.
    Sha1,
    /// SHA-256 (FIPS 180-4).
    #[default]
    Sha256,
    /// SHA-512 (FIPS 180-4).
    Sha512,
}

impl Algorithm {
    const ALL: [Self; 4] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512];

    /// The name as it is written: `sha256`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The length of a digest in bytes.
    #[must_use]
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The digest of `bytes`.
    pub(crate) fn digest(self, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(self);
        hasher.update(bytes);
        hasher.finish()
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the digest of an image is computed. As text it is `ALGORITHM/BLOCKSIZE`, such as `sha256/64k`.
///
/// ```
/// use blockferry_copy::{Algorithm, DigestOptions};
///
/// let options: DigestOptions = "sha1/1M".parse().unwrap();
/// assert_eq!((options.algorithm(), options.block_size()), (Algorithm::Sha1, 1 << 20));
/// assert_eq!(DigestOptions::default().to_string(), "sha256/64k");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DigestOptions {
    algorithm: Algorithm,
    block_size: u32,
}

/// A text that does not say how to compute a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// No hash function of that name is known.
    #[error("{0:?} is not a known digest: write md5, sha1, sha256 or sha512")]
    UnknownAlgorithm(String),
    /// The block size is no size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The block size does not suit.
    #[error("the block size of a digest is a power of two from 4 to 32M")]
    BlockSize,
}

impl DigestOptions {
    /// The smallest blocks, in bytes.
    const LEAST_BLOCK: u64 = 4;
    /// The largest blocks, in bytes.
    const LARGEST_BLOCK: u64 = 32 << 20;

    /// Blocks of `block_size` bytes, hashed by `algorithm`.
    ///
    /// # Errors
    /// When the block size is no power of two from 4 bytes to 32 MiB.
    pub fn new(algorithm: Algorithm, block_size: u64) -> Result<Self, OptionsError> {
        let fits = (Self::LEAST_BLOCK..=Self::LARGEST_BLOCK).contains(&block_size);
        match u32::try_from(block_size) {
            Ok(block_size) if fits && block_size.is_power_of_two() => Ok(Self {
                algorithm,
                block_size,
            }),
            _ => Err(OptionsError::BlockSize),
        }
    }

    /// The hash function.
    #[must_use]
    pub const fn algorithm(self) -> Algorithm {
        self.algorithm
    }

    /// The length of a block in bytes.
    #[must_use]
    pub const fn block_size(self) -> u32 {
        self.block_size
    }
}

/// What nbdcopy has by default: SHA-256 over blocks of 64 KiB.
impl Default for DigestOptions {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            block_size: 64 << 10,
        }
    }
}

impl FromStr for DigestOptions {
    type Err = OptionsError;

    /// Reads `ALGORITHM[/BLOCKSIZE]`, in upper or lower case; the block size is 64 KiB unless given.
    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let (name, size) = match text.split_once('/') {
            Some((name, size)) => (name, parse_size(size)?),
            None => (text, u64::from(Self::default().block_size)),
        };
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|known| known.as_str().eq_ignore_ascii_case(name))
            .ok_or_else(|| OptionsError::UnknownAlgorithm(name.to_owned()))?;
        Self::new(algorithm, size)
    }
}

impl fmt::Display for DigestOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, unit) = match self.block_size {
            size if size >= 1 << 20 => (size >> 20, "M"),
            size if size >= 1 << 10 => (size >> 10, "k"),
            size => (size, ""),
        };
        write!(f, "{}/{size}{unit}", self.algorithm)
    }
}

/// A hash in the making.
#[derive(Clone)]
pub(super) enum Hasher {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// The hash of nothing yet.
    pub(super) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Md5 => Self::Md5(md5::Md5::new()),
            Algorithm::Sha1 => Self::Sha1(sha1::Sha1::new()),
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
        }
    }

    /// Takes in the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of what was taken in.
    pub(super) fn finish(self) -> Digest {
        match self {
            Self::Md5(hasher) => Digest::new(&hasher.finalize()),
            Self::Sha1(hasher) => Digest::new(&hasher.finalize()),
            Self::Sha256(hasher) => Digest::new(&hasher.finalize()),
            Self::Sha512(hasher) => Digest::new(&hasher.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_nbdcopy_writes_them() {
        for (text, algorithm, block_size) in [
            ("md5", Algorithm::Md5, 64 << 10),
            ("SHA1/4k", Algorithm::Sha1, 4 << 10),
            ("sha256", Algorithm::Sha256, 64 << 10),
            ("sha256/512", Algorithm::Sha256, 512),
            ("sha512/32M", Algorithm::Sha512, 32 << 20),
        ] {
            let options: DigestOptions = text.parse().expect("valid");
            assert_eq!(
                (options.algorithm(), options.block_size()),
                (algorithm, block_size)
            );
            assert_eq!(options.to_string().parse(), Ok(options), "{options}");
        }
    }

    #[test]
    fn block_sizes_that_do_not_suit_are_refused() {
        for text in [
            "md5/2",
            "md5/12",
            "md5/64M",
            "md5/65537",
            "sha1/0",
            "sha1/4G",
        ] {
            assert_eq!(
                text.parse::<DigestOptions>(),
                Err(OptionsError::BlockSize),
                "{text}"
            );
        }
        let size: Result<DigestOptions, _> = "md5/x".parse();
        assert!(matches!(size, Err(OptionsError::Size(_))));
        for text in ["", "crc32", "sha-256", "/64k"] {
            let options: Result<DigestOptions, _> = text.parse();
            assert!(
                matches!(options, Err(OptionsError::UnknownAlgorithm(_))),
                "{text}"
            );
        }
    }

    /// The examples of RFC 1321 and FIPS 180-4.
    #[test]
    fn the_hashes_are_the_ones_they_are_called() {
        for (algorithm, digest) in [
            (Algorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (Algorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (
                Algorithm::Sha256,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                Algorithm::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
        ] {
            let computed = algorithm.digest(b"abc");
            assert_eq!(computed.to_string(), digest);
            assert_eq!(computed.as_bytes().len(), algorithm.digest_len());
        }
    }
}
