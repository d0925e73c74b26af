//! Answers about extents that break the rules of [`BlockDevice::extents`](crate::BlockDevice::extents),
//! or lie, or tire.

use crate::{ByteRange, Extent, Status};

fn extent(start: u64, end: u64, status: Status) -> Extent {
    let range = ByteRange::between(start, end);
    Extent { range, status }
}

/// True and allowed, but only of the first 512 bytes.
#[must_use]
pub fn short(range: ByteRange) -> Vec<Extent> {
    let end = range.end().min(range.start() + 512);
    vec![extent(range.start(), end, Status::DATA)]
}

/// Nothing at all.
#[must_use]
pub fn empty(_: ByteRange) -> Vec<Extent> {
    Vec::new()
}

/// Extents without a byte: whoever goes on behind them never gets anywhere.
#[must_use]
pub fn of_no_length(range: ByteRange) -> Vec<Extent> {
    vec![extent(range.start(), range.start(), Status::HOLE_ZERO); 3]
}

/// One extent a byte, as many as there are bytes, up to a million.
#[must_use]
pub fn endless(range: ByteRange) -> Vec<Extent> {
    (range.start()..range.end())
        .take(1_000_000)
        .map(|at| extent(at, at + 1, Status(at & 3)))
        .collect()
}

/// The second extent begins inside the first and says something else.
#[must_use]
pub fn overlapping(range: ByteRange) -> Vec<Extent> {
    let middle = range.start() + range.len() / 2;
    vec![
        extent(range.start(), range.end(), Status::DATA),
        extent(middle, range.end(), Status::HOLE_ZERO),
    ]
}

/// Bytes in the middle are not spoken of.
#[must_use]
pub fn with_gap(range: ByteRange) -> Vec<Extent> {
    let third = range.len() / 3;
    vec![
        extent(range.start(), range.start() + third, Status::DATA),
        extent(range.end() - third, range.end(), Status::HOLE_ZERO),
    ]
}

/// In the wrong order.
#[must_use]
pub fn backwards(range: ByteRange) -> Vec<Extent> {
    let middle = range.start() + range.len() / 2;
    vec![
        extent(middle, range.end(), Status::DATA),
        extent(range.start(), middle, Status::HOLE_ZERO),
    ]
}

/// About what was not asked: all before the range, and all to the end of the largest device.
#[must_use]
pub fn outside(_: ByteRange) -> Vec<Extent> {
    vec![extent(0, u64::MAX, Status::HOLE_ZERO)]
}

/// Well-formed, and wrong wherever there is data: all of it is a hole.
#[must_use]
pub fn all_holes(range: ByteRange) -> Vec<Extent> {
    vec![extent(range.start(), range.end(), Status::HOLE_ZERO)]
}
