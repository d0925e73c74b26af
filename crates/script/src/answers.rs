//! What scripts print, understood: sizes, words, lists of exports, extents, errors. No processes here.
//!
//! The texts come from a program that may be wrong or worse: whatever they are, the answer is a value or an
//! [`AnswerError`], and no longer than the text.

use std::fmt;

use blockferry_block::{
    BlockLimits, ByteRange, ErrorKind, ExportEntry, Extent, Status, parse_size, push_merged,
};

/// More extents than this are not looked at.
pub const MOST_EXTENTS: usize = 1 << 20;

/// A list with more exports than this is refused.
pub const MOST_EXPORTS: usize = 10_000;

/// The longest name or description in bytes (NBD's own bound on strings).
pub const LONGEST_STRING: usize = 4096;

/// An answer that makes no sense, and why. Holds text of the script; `Display` escapes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AnswerError {
    expected: &'static str,
    found: String,
}

impl AnswerError {
    fn new(expected: &'static str, found: &[u8]) -> Self {
        // Enough to recognise it by.
        let end = found.len().min(80);
        Self {
            expected,
            found: String::from_utf8_lossy(&found[..end]).into_owned(),
        }
    }
}

impl fmt::Display for AnswerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expected, found } = self;
        write!(f, "it printed \"{}\", not {expected}", found.escape_debug())
    }
}

impl std::error::Error for AnswerError {}

/// How many calls of a script may run at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThreadModel {
    /// One client at a time; another one waits until the first has gone.
    SerializeConnections,
    /// One call at a time.
    #[default]
    SerializeAllRequests,
    /// One call of each client at a time.
    SerializeRequests,
    /// Any number.
    Parallel,
}

impl ThreadModel {
    /// The model's name, as nbdkit prints it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SerializeConnections => "serialize_connections",
            Self::SerializeAllRequests => "serialize_all_requests",
            Self::SerializeRequests => "serialize_requests",
            Self::Parallel => "parallel",
        }
    }

    /// The model that a script names; the default for anything else.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let name = line(text).to_ascii_lowercase();
        match name.as_slice() {
            b"parallel" => Self::Parallel,
            b"serialize_requests" | b"serialize-requests" => Self::SerializeRequests,
            b"serialize_connections" | b"serialize-connections" => Self::SerializeConnections,
            _ => Self::default(),
        }
    }
}

/// Who does what a request asks for beside the plain thing: `can_fua`, `can_cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Nobody: clients are not offered it.
    None,
    /// We, with other calls.
    Emulate,
    /// The script.
    Native,
}

impl Support {
    /// What `text` says.
    ///
    /// # Errors
    /// When it is none of the three words.
    pub fn parse(text: &[u8]) -> Result<Self, AnswerError> {
        let word = line(text);
        match word.to_ascii_lowercase().as_slice() {
            b"none" => Ok(Self::None),
            b"emulate" => Ok(Self::Emulate),
            b"native" => Ok(Self::Native),
            _ => Err(AnswerError::new("none, emulate or native", word)),
        }
    }
}

/// A text without the one newline at its end.
#[must_use]
pub fn line(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\n").unwrap_or(text)
}

/// The size that `text` says in bytes; white space around it does not matter.
///
/// # Errors
/// When it is no size, or beyond 2^63 - 1.
pub fn size(text: &[u8]) -> Result<u64, AnswerError> {
    let text = text.trim_ascii();
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| parse_size(text).ok())
        .ok_or_else(|| AnswerError::new("a size", text))
}

/// The shape of requests from `MINIMUM PREFERRED MAXIMUM`; three zeroes say that there is none, which is
/// `None`. No maximum goes beyond `most`.
///
/// # Errors
/// When these are not three sizes, or make no sense: the minimum is a power of two up to 64 KiB, the
/// preferred one a power of two from 512 bytes to 32 MiB and not below the minimum, the maximum
/// not below that and a multiple of the minimum, or 2^32 - 1 for any.
pub fn block_size(text: &[u8], most: u32) -> Result<Option<BlockLimits>, AnswerError> {
    let wrong = || {
        let expected = "the minimum, preferred and maximum block size";
        AnswerError::new(expected, text.trim_ascii())
    };
    let mut sizes = [0; 3];
    let mut words = words(text);
    for size in &mut sizes {
        *size = self::size(words.next().ok_or_else(wrong)?)?;
    }
    if sizes == [0; 3] {
        return Ok(None);
    }
    let [minimum, preferred, maximum] = sizes.map(|size| u32::try_from(size).ok());
    let (Some(minimum), Some(preferred), Some(maximum)) = (minimum, preferred, maximum) else {
        return Err(wrong());
    };
    let sound = minimum.is_power_of_two()
        && minimum <= 64 << 10
        && preferred.is_power_of_two()
        && (512..=32 << 20).contains(&preferred)
        && minimum <= preferred
        && preferred <= maximum
        && (maximum == u32::MAX || maximum.is_multiple_of(minimum));
    if !sound {
        return Err(wrong());
    }
    Ok(Some(BlockLimits {
        minimum,
        preferred,
        maximum: maximum.min(most),
    }))
}

/// The exports of a list: its first line says how the others are to be read, and is a name itself when it
/// does not.
///
/// # Errors
/// When there are more than [`MOST_EXPORTS`], or something is longer than [`LONGEST_STRING`].
pub fn exports(text: &[u8]) -> Result<Vec<ExportEntry>, AnswerError> {
    let text = line(text);
    let mut lines: Vec<&[u8]> = Vec::new();
    if !text.is_empty() {
        for line in text.split(|byte| *byte == b'\n') {
            if line.len() > LONGEST_STRING {
                let expected = "names and descriptions of up to 4096 bytes";
                return Err(AnswerError::new(expected, line));
            }
            if lines.len() > 2 * MOST_EXPORTS {
                return Err(AnswerError::new("a list of up to 10000 exports", text));
            }
            lines.push(line);
        }
    }
    let rest = lines.get(1..).unwrap_or_default();
    let list: Vec<_> = match lines.first().copied() {
        Some(b"NAMES") => rest.iter().map(|name| entry(name, None)).collect(),
        Some(b"INTERLEAVED") => rest
            .chunks(2)
            .map(|pair| entry(pair[0], pair.get(1).copied()))
            .collect(),
        Some(b"NAMES+DESCRIPTIONS") => {
            // Without a description for each the last names have none.
            let (names, descriptions) = rest.split_at(rest.len().div_ceil(2));
            let described = names.iter().enumerate();
            described
                .map(|(index, name)| entry(name, descriptions.get(index).copied()))
                .collect()
        }
        _ => lines.iter().map(|name| entry(name, None)).collect(),
    };
    if list.len() > MOST_EXPORTS {
        return Err(AnswerError::new("a list of up to 10000 exports", text));
    }
    Ok(list)
}

fn entry(name: &[u8], description: Option<&[u8]>) -> ExportEntry {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    ExportEntry {
        name: text(name),
        description: description.map(text),
    }
}

/// The extents of `range` from lines of `OFFSET LENGTH [TYPE]`; TYPE is a number (bit 0 hole, bit 1 zero) or
/// has the words `hole` and `zero` in it. What lies outside the range is left out, equal neighbours are one,
/// and blank lines and those that begin with `#` do not count.
///
/// # Errors
/// When a line is none of these, when they are not in order and without gaps, when the first one
/// begins behind the range's start, or when nothing is said of the range.
pub fn extents(text: &[u8], range: ByteRange) -> Result<Vec<Extent>, AnswerError> {
    let mut list: Vec<Extent> = Vec::new();
    let mut next = None;
    for line in text.split(|byte| *byte == b'\n') {
        let mut words = words(line);
        let Some(first) = words.next().filter(|word| !word.starts_with(b"#")) else {
            continue;
        };
        let wrong = |expected| AnswerError::new(expected, line.trim_ascii());
        let length = words.next().ok_or_else(|| wrong("OFFSET LENGTH [TYPE]"))?;
        let extent = ByteRange::new(size(first)?, size(length)?)
            .map_err(|_| wrong("an extent that ends before 2^63"))?;
        if next.is_some_and(|next| next != extent.start()) {
            return Err(wrong("an extent that begins where the last one ended"));
        }
        next = Some(extent.end());
        let status = match words.next() {
            Some(kind) => Status::from_word(kind).ok_or_else(|| wrong("a type below 2^32"))?,
            None => Status::DATA,
        };
        if list.is_empty() && !extent.is_empty() && extent.start() > range.start() {
            return Err(wrong("an extent that begins at or before the request"));
        }
        let part = extent.intersection(range);
        if !part.is_empty() && list.len() < MOST_EXTENTS {
            push_merged(
                &mut list,
                Extent {
                    range: part,
                    status,
                },
            );
        }
    }
    if list.is_empty() && !range.is_empty() {
        return Err(AnswerError::new("an extent of the request", b""));
    }
    Ok(list)
}

/// What a script said before it failed: which kind of failure, and in which words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What the error's name stands for; `Io` without one.
    pub kind: ErrorKind,
    /// The rest of the first line, escaped; empty when there is none.
    pub words: String,
}

impl Complaint {
    /// Understands what is on standard error.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let line = text.trim_ascii_start();
        // A name alone may have its message on the next line.
        let end = line.iter().position(u8::is_ascii_whitespace);
        let (name, rest) = line.split_at(end.unwrap_or(line.len()));
        let (kind, message) = match error_kind(name) {
            Some(kind) => (kind, rest.trim_ascii_start()),
            None => (ErrorKind::Io, line),
        };
        let first = message.split(|byte| *byte == b'\n').next();
        let first = first.unwrap_or_default().trim_ascii_end();
        // Enough of a very long line.
        let first = &first[..first.len().min(LONGEST_STRING / 4)];
        Self {
            kind,
            words: printable(&String::from_utf8_lossy(first)),
        }
    }
}

/// The kind of failure that an error's name stands for.
fn error_kind(name: &[u8]) -> Option<ErrorKind> {
    Some(match name.to_ascii_uppercase().as_slice() {
        b"EIO" => ErrorKind::Io,
        b"EPERM" => ErrorKind::NotPermitted,
        b"EROFS" => ErrorKind::ReadOnly,
        b"ENOMEM" => ErrorKind::OutOfMemory,
        b"EINVAL" => ErrorKind::InvalidInput,
        b"ENOSPC" | b"EDQUOT" | b"EFBIG" => ErrorKind::NoSpace,
        b"EOVERFLOW" => ErrorKind::Overflow,
        b"ESHUTDOWN" => ErrorKind::ShuttingDown,
        b"ENOTSUP" | b"EOPNOTSUPP" => ErrorKind::Unsupported,
        _ => return None,
    })
}

/// `text` with its control characters escaped, and nothing else.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            printable.extend(character.escape_debug());
        } else {
            printable.push(character);
        }
    }
    printable
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
}
