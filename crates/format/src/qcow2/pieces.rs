//! Tables are written in parts: which ones, and all of them side by side.

use blockferry_block::{BoxFuture, Buffer, Result};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{geometry::Geometry, host::HostFile};

/// How many pieces are written at a time.
const SIDE_BY_SIDE: usize = 8;

/// Bytes that are to be written to the file.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The size of the parts that tables of one cluster are written in: 64 of them at most, in whole blocks of the file.
pub(crate) fn part_size(geometry: Geometry, file: &HostFile) -> u64 {
    let minimum = u64::from(file.device().info().limits.minimum);
    (geometry.cluster_size() / 64).max(512).max(minimum)
}

/// Bits for each part that `bytes`, a range of a table, touches.
pub(crate) fn parts_of(bytes: std::ops::Range<u64>, part: u64) -> u64 {
    let (first, last) = (bytes.start / part, (bytes.end - 1) / part);
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

/// The ranges of a table, in bytes, that the bits name; neighbours are one.
pub(crate) fn ranges_of(mut parts: u64, part: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    std::iter::from_fn(move || {
        if parts == 0 {
            return None;
        }
        let first = u64::from(parts.trailing_zeros());
        let count = u64::from((parts >> first).trailing_ones());
        let end = first + count;
        parts = if end == 64 { 0 } else { parts >> end << end };
        Some(first * part..end * part)
    })
}

/// Writes pieces, which do not overlap, in any order.
pub(crate) async fn write_pieces(file: &HostFile, pieces: &[Piece]) -> Result<()> {
    let writes: Vec<_> = pieces
        .iter()
        .map(|piece| write_piece(file, piece))
        .collect();
    let writes = stream::iter(writes).buffer_unordered(SIDE_BY_SIDE);
    writes.try_collect().await
}

fn write_piece<'a>(file: &'a HostFile, piece: &'a Piece) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let minimum = u64::from(file.device().info().limits.minimum.max(1));
        // The end of a table that is no multiple of the file's blocks.
        if !(piece.bytes.len() as u64).is_multiple_of(minimum) {
            return file.patch(piece.offset, &piece.bytes).await;
        }
        let buffer = Buffer::from(&piece.bytes[..]);
        file.write(piece.offset, buffer).await.map(drop)
    })
}
