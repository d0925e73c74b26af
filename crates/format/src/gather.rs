//! A request that is read in several parts.

use blockferry_block::{Buffer, ByteRange, Result};
use futures_util::{StreamExt, TryStreamExt, future::try_join, stream};

/// How many parts of a request are read at a time.
pub(crate) const SIDE_BY_SIDE: usize = 16;

/// What was read of a request, and where it belongs.
pub(crate) struct Filled {
    pub(crate) buffer: Buffer,
    /// The range of the disk that its bytes begin with, and those that follow in it.
    pub(crate) first: ByteRange,
    pub(crate) others: Vec<ByteRange>,
}

impl Filled {
    /// One range of the disk.
    pub(crate) fn one(range: ByteRange, buffer: Buffer) -> Self {
        Self {
            buffer,
            first: range,
            others: Vec::new(),
        }
    }

    /// Puts the bytes into `bytes`, which are those of `range`.
    fn copy_to(&self, range: ByteRange, bytes: &mut [u8]) {
        let mut rest = &self.buffer[..];
        for part in [&self.first].into_iter().chain(&self.others) {
            let to = (part.start() - range.start()) as usize;
            let (own, others) = rest.split_at(part.len() as usize);
            bytes[to..][..own.len()].copy_from_slice(own);
            rest = others;
        }
    }
}

/// Fills `buffer` with `range`, some parts at a time. The `first` one, of so many bytes, is read where it belongs, by
/// whoever fills a buffer of that length.
///
/// # Errors
/// Those of reading the parts.
pub(crate) async fn gather<First, Part>(
    range: ByteRange,
    mut buffer: Buffer,
    first: Option<(u64, impl FnOnce(Buffer) -> First)>,
    parts: impl Iterator<Item = Part>,
) -> Result<Buffer>
where
    First: Future<Output = Result<Buffer>>,
    Part: Future<Output = Result<Filled>>,
{
    let mut parts = stream::iter(parts).buffer_unordered(SIDE_BY_SIDE);
    let Some((length, first)) = first else {
        // Each has a buffer of its own, most of it unused: there can be one for every 512 bytes.
        while let Some(part) = parts.try_next().await? {
            part.copy_to(range, &mut buffer);
        }
        return Ok(buffer);
    };
    let whole = buffer.len();
    buffer.set_len(length as usize);
    let (mut buffer, filled) = try_join(first(buffer), parts.try_collect::<Vec<_>>()).await?;
    buffer.set_len(whole);
    for part in filled {
        part.copy_to(range, &mut buffer);
    }
    Ok(buffer)
}
