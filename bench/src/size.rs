//! Sizes of images as scenarios write them: whole bytes, or K, M, G, T in powers of 1024.

use std::{fmt, str::FromStr};

use anyhow::{Context, bail};
use serde::Deserialize;

/// A size in bytes, and as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    written: String,
}

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(written: &str) -> anyhow::Result<Self> {
        let digits = written.trim_end_matches(['K', 'M', 'G', 'T']);
        let shift = match &written[digits.len()..] {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            other => bail!("`{other}` is no unit of a size: K, M, G or T"),
        };
        let number: u64 = digits
            .parse()
            .with_context(|| format!("`{written}` is no size"))?;
        let bytes = number
            .checked_mul(1 << shift)
            .with_context(|| format!("`{written}` is too large"))?;
        Ok(Self {
            bytes,
            written: written.to_owned(),
        })
    }
}

impl TryFrom<String> for Size {
    type Error = anyhow::Error;

    fn try_from(written: String) -> anyhow::Result<Self> {
        written.parse()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        let bytes = |text: &str| text.parse::<Size>().map(|size| size.bytes).ok();
        assert_eq!(bytes("512"), Some(512));
        assert_eq!(bytes("64K"), Some(65_536));
        assert_eq!(bytes("3G"), Some(3_221_225_472));
        for wrong in ["", "G", "1GG", "1.5G", "-1", "99999999T", "1g"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_size_is_shown_as_it_was_written() {
        assert_eq!("64M".parse::<Size>().unwrap().to_string(), "64M");
    }
}
