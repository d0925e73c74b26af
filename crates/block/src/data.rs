//! A disk in memory whose first contents are written on the command line.

use crate::{MemoryDevice, Result};

/// What a data disk holds at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataOptions {
    /// Its bytes.
    pub contents: DataContents,
    /// Its size in bytes, `i64::MAX` at most; what is longer is cut off. `None`: as long as the contents.
    pub size: Option<u64>,
    /// What `$NAME` in an expression stands for: another expression. The environment's variables come after these.
    pub variables: Vec<(String, Vec<u8>)>,
}

/// The bytes of a data disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataContents {
    /// As an expression describes them.
    Expression(Vec<u8>),
    /// As they are.
    Bytes(Vec<u8>),
}

/// A text that describes no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// It is not base64.
    #[error("it is not base64: {0}")]
    Base64(String),
}

impl DataOptions {
    /// Checks what can be checked without reading a file or running a script.
    ///
    /// # Errors
    /// What is wrong with the expression, and where.
    pub fn check(&self) -> Result<(), DataError> {
        Ok(())
    }

    /// Makes the disk.
    ///
    /// # Errors
    /// What reading a file or running a script failed with.
    pub fn open(&self) -> Result<MemoryDevice> {
        let bytes = match &self.contents {
            DataContents::Bytes(bytes) | DataContents::Expression(bytes) => bytes,
        };
        Ok(MemoryDevice::from_bytes(bytes))
    }
}

/// The bytes that `text` stands for in base64, with or without padding; white space does not count.
///
/// # Errors
/// When it is no base64.
pub fn decode_base64(text: &[u8]) -> Result<Vec<u8>, DataError> {
    use base64::{Engine, alphabet, engine};
    let config = engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(engine::DecodePaddingMode::Indifferent);
    let engine = engine::GeneralPurpose::new(&alphabet::STANDARD, config);
    let text: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    engine
        .decode(text)
        .map_err(|error| DataError::Base64(error.to_string()))
}
