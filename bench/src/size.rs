//! Sizes of images, as scenarios write them and as commands are given them.

use std::fmt;

use blockferry_block::{SizeError, parse_size};
use serde::Deserialize;

/// A size in bytes, and as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    written: String,
}

impl TryFrom<String> for Size {
    type Error = SizeError;

    fn try_from(written: String) -> Result<Self, SizeError> {
        let bytes = parse_size(&written)?;
        Ok(Self { bytes, written })
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
    fn a_size_has_its_bytes_and_is_shown_as_it_was_written() {
        let size = Size::try_from("64M".to_owned()).unwrap();
        assert_eq!((size.bytes, size.to_string()), (64 << 20, "64M".to_owned()));
        assert!(Size::try_from("much".to_owned()).is_err());
    }
}
