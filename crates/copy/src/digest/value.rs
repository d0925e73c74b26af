//! A digest as people read and write it.

use std::{fmt, str::FromStr};

use super::{DigestOptions, OptionsError};

/// The longest digest in bytes.
const LONGEST: usize = 64;

/// A digest. It prints as hexadecimal digits in lower case and is read from them in any case.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest {
    bytes: [u8; LONGEST],
    length: usize,
}

/// A text that is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// Something else than hexadecimal digits, or a number of them that no digest has.
    #[error("a digest is 32, 40, 64 or 128 hexadecimal digits")]
    Malformed,
    /// It is a digest, but not of the algorithm that was named.
    #[error("a digest of {options} has {expected} hexadecimal digits, not {found}")]
    WrongLength {
        /// What was named.
        options: DigestOptions,
        /// How many digits its digests have.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// What stands before the colon does not say how it was computed.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

impl Digest {
    /// The digest with these bytes, 64 at most.
    pub(super) fn new(digest: &[u8]) -> Self {
        let mut bytes = [0; LONGEST];
        bytes[..digest.len()].copy_from_slice(digest);
        Self {
            bytes,
            length: digest.len(),
        }
    }

    /// The digest's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        if !matches!(text.len(), 32 | 40 | 64 | 128) {
            return Err(DigestError::Malformed);
        }
        let (pairs, _) = text.as_bytes().as_chunks::<2>();
        let mut bytes = [0; LONGEST];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = nibble(*high)? << 4 | nibble(*low)?;
        }
        Ok(Self::new(&bytes[..pairs.len()]))
    }
}

fn nibble(digit: u8) -> Result<u8, DigestError> {
    let value = char::from(digit).to_digit(16);
    value
        .and_then(|value| u8::try_from(value).ok())
        .ok_or(DigestError::Malformed)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// A digest that an image should have, and how it was computed if that was said. As text it is
/// `[ALGORITHM/BLOCKSIZE:]DIGITS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectedDigest {
    /// How it was computed, where the text said it.
    pub options: Option<DigestOptions>,
    /// The digest.
    pub digest: Digest,
}

impl ExpectedDigest {
    /// Whether it can be a digest that is computed as `options` say.
    ///
    /// # Errors
    /// [`DigestError::WrongLength`] when it cannot.
    pub fn check(&self, options: DigestOptions) -> Result<(), DigestError> {
        let (expected, found) = (options.algorithm().digest_len(), self.digest.length);
        if expected != found {
            return Err(DigestError::WrongLength {
                options,
                expected: 2 * expected,
                found: 2 * found,
            });
        }
        Ok(())
    }
}

impl FromStr for ExpectedDigest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (options, digits) = match text.split_once(':') {
            Some((options, digits)) => (Some(options.parse()?), digits),
            None => (None, text),
        };
        let expected = Self {
            options,
            digest: digits.parse()?,
        };
        if let Some(options) = options {
            expected.check(options)?;
        }
        Ok(expected)
    }
}

impl fmt::Display for ExpectedDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(options) = self.options {
            write!(f, "{options}:")?;
        }
        self.digest.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    const MD5: &str = "900150983cd24fb0d6963f7d28e17f72";

    #[test]
    fn a_digest_is_read_in_any_case_and_printed_in_lower() {
        let digest: Digest = MD5.to_uppercase().parse().expect("a digest");
        assert_eq!(digest.to_string(), MD5);
        assert_eq!(digest, MD5.parse().expect("a digest"));
        assert_ne!(digest, MD5.replace('9', "8").parse().expect("a digest"));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let long = "0".repeat(130);
        for text in ["", "00", &MD5[1..], &MD5.replace('9', "x"), &long, "\u{e9}"] {
            assert_eq!(text.parse::<Digest>(), Err(DigestError::Malformed));
        }
        let umlauts = "\u{e9}".repeat(16);
        assert_eq!(umlauts.parse::<Digest>(), Err(DigestError::Malformed));
    }

    #[test]
    fn an_expected_digest_may_say_how_it_was_computed() {
        let expected: ExpectedDigest = format!("md5/1M:{MD5}").parse().expect("valid");
        let options = expected.options.expect("said");
        assert_eq!(
            (options.algorithm(), options.block_size()),
            (Algorithm::Md5, 1 << 20)
        );
        assert_eq!(expected.to_string(), format!("md5/1M:{MD5}"));
        let plain: ExpectedDigest = MD5.parse().expect("valid");
        assert_eq!(plain.options, None);
        assert!(plain.check(options).is_ok());
        assert!(plain.check(DigestOptions::default()).is_err());
    }

    #[test]
    fn an_expected_digest_that_contradicts_itself_is_refused() {
        let error = format!("sha256:{MD5}").parse::<ExpectedDigest>();
        let text = error.expect_err("too short").to_string();
        assert_eq!(
            text,
            "a digest of sha256/64k has 64 hexadecimal digits, not 32"
        );
        let error = format!("md6:{MD5}").parse::<ExpectedDigest>();
        assert!(matches!(error, Err(DigestError::Options(_))));
    }
}
