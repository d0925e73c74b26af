//! A disk in memory whose first contents stand in a text.
//!
//! The text is written in the language of nbdkit's data plugin (nbdkit-data-plugin(1)): fields that put
//! bytes at the current offset, or move it.
//!
//! | field | what it does |
//! |---|---|
//! | `0x55` | a byte: decimal, octal (`0...`) or hexadecimal (`0x...`) |
//! | `le16:N` `be16:N` `le32:N` `be32:N` `le64:N` `be64:N` | a word |
//! | `"text"` | bytes, with C's escapes |
//! | `<FILE` `<(SCRIPT)` | the bytes of a file, or what a shell script prints |
//! | `( ... )` | fields as one, with offsets of its own |
//! | `$NAME` | the fields that a variable holds, as if in parentheses |
//! | `\NAME` | what was assigned to the name |
//! | `FIELD*N` `FIELD[N:M]` `FIELD -> \NAME` | repeats it, takes a part of it, assigns it |
//! | `@N` `@+N` `@-N` `@^N` | moves the offset: to, forward, back, to the next multiple |
//! | `# ...` | a comment to the end of the line |
//!
//! A text becomes a tree (`parse`), the tree a value that shares and repeats without copies (`evaluate`,
//! `value`), and only the value's data is laid out in memory. So what is small in the end may be large on
//! the way, and what is too large is refused before it takes memory.

mod evaluate;
mod parse;
mod value;

use crate::{Error, ErrorKind, HumanSize, MemoryDevice, Operation, Result};
use evaluate::{Outside, evaluate};

/// The most bytes of memory that the contents may take.
const MOST_MEMORY: u64 = 1 << 30;

/// What a data disk holds at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataOptions {
    /// Its bytes.
    pub contents: DataContents,
    /// Its size in bytes, `i64::MAX` at most; what is longer is cut off. `None`: as long as the contents.
    pub size: Option<u64>,
    /// What `$NAME` stands for in an expression: another expression. The environment has what is not here.
    pub variables: Vec<(String, Vec<u8>)>,
}

/// The bytes of a data disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataContents {
    /// As a text describes them; see the [module](self).
    Expression(Vec<u8>),
    /// As they are.
    Bytes(Vec<u8>),
}

/// A text that describes no bytes, or none that can be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// It breaks the rules of the language.
    #[error("at byte {position}: {what}")]
    Syntax {
        /// Where in the text, from 0 on.
        position: usize,
        /// Which rule.
        what: String,
    },
    /// In the text of a variable.
    #[error("in ${name}: {error}")]
    Variable {
        /// Its name.
        name: String,
        /// What is wrong there.
        error: Box<DataError>,
    },
    /// A name that nothing was assigned to.
    #[error("{0} is not defined")]
    Undefined(String),
    /// A part that the whole has not.
    #[error("[{start}:{end}] is not a part of {size} bytes")]
    Slice {
        /// Its first byte.
        start: u64,
        /// The byte behind its last.
        end: u64,
        /// What there is.
        size: u64,
    },
    /// `@-N` before the beginning.
    #[error("@-{by} at offset {offset} would leave the disk")]
    BeforeStart {
        /// How far.
        by: u64,
        /// Where.
        offset: u64,
    },
    /// The disk would be larger than any can be.
    #[error("it would be larger than an image can be (8 EiB)")]
    TooLarge,
    /// Its data would take too much memory.
    #[error("its data takes more than {} of memory", HumanSize(MOST_MEMORY))]
    TooMuch,
    /// Parentheses, variables or names within each other without an end.
    #[error("it is nested too deeply")]
    TooDeep,
    /// Variables that make more and more of themselves.
    #[error("it has too many parts")]
    TooMany,
    /// A file or a script.
    #[error("{name}: {error}")]
    Outside {
        /// The file or the script.
        name: String,
        /// What it failed with.
        error: String,
    },
    /// It is not base64.
    #[error("it is not base64: {0}")]
    Base64(String),
}

impl DataOptions {
    /// Checks what can be checked without reading a file, running a script, or looking at variables.
    ///
    /// # Errors
    /// What is wrong with the text, and where.
    pub fn check(&self) -> Result<(), DataError> {
        match &self.contents {
            DataContents::Expression(text) => parse::parse(text).map(drop),
            DataContents::Bytes(_) => Ok(()),
        }
    }

    /// Makes the disk: a [`MemoryDevice`] that can be written. Files are read and scripts are run, so let
    /// the text come from somebody who may do both. It takes as long as they take.
    ///
    /// # Errors
    /// `InvalidInput` with a [`DataError`] that says what cannot be had.
    pub fn open(&self) -> Result<MemoryDevice> {
        self.make(Outside::Allowed).map_err(refused)
    }

    /// The same for a text that nobody vouches for: one with files, scripts, or variables of the environment
    /// is refused.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_inside(&self) -> Result<MemoryDevice> {
        self.make(Outside::Refused).map_err(refused)
    }

    fn make(&self, outside: Outside) -> Result<MemoryDevice, DataError> {
        let mut value = match &self.contents {
            DataContents::Expression(text) => evaluate(text, &self.variables, outside)?,
            DataContents::Bytes(bytes) => value::Value::bytes(bytes.clone()),
        };
        if let Some(size) = self.size {
            value = value.resized(size)?;
        }
        let device = MemoryDevice::holding("data:", value.size());
        value.lay_out(&device, MOST_MEMORY)?;
        Ok(device)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(error: DataError) -> Error {
    Error::with_message(ErrorKind::InvalidInput, error.to_string()).during(Operation::Open)
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
