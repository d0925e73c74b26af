//! An image as a row of equal cells, each with what shares of it are data, zeroes and holes: what pictures are
//! drawn from.

use crate::block::{ByteRange, Extent};

/// The smallest cell, in bytes.
const SMALLEST: u64 = 512;

/// An image in equal parts.
#[derive(Clone, Debug)]
pub(crate) struct Cells {
    size: u64,
    cells: Vec<Cell>,
    total: Cell,
}

/// How much of a part is what, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) data: u64,
    /// Zeroes that have space.
    pub(crate) zero: u64,
    /// What has none.
    pub(crate) hole: u64,
}

/// What a cell is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shade {
    Hole,
    Zero,
    /// There is data, in less than half of it.
    Some,
    /// In half of it or more.
    Most,
    Data,
}

impl Cells {
    /// An image of `size` bytes in `count` parts, or fewer where they would be too small.
    pub(crate) fn new(size: u64, count: usize) -> Self {
        let most = size.div_ceil(SMALLEST).max(1);
        let count = most.min(count.max(1) as u64) as usize;
        Self {
            size,
            cells: vec![Cell::default(); count],
            total: Cell::default(),
        }
    }

    /// Adds what is known of a range, in `base:allocation`.
    pub(crate) fn add(&mut self, extent: Extent) {
        let range = extent.range.intersection(ByteRange::between(0, self.size));
        if range.is_empty() {
            return;
        }
        let add = |cell: &mut Cell, bytes: u64| match (
            extent.status.is_hole(),
            extent.status.is_zero(),
        ) {
            (true, _) => cell.hole += bytes,
            (false, true) => cell.zero += bytes,
            (false, false) => cell.data += bytes,
        };
        add(&mut self.total, range.len());
        let (first, last) = (self.index_of(range.start()), self.index_of(range.end() - 1));
        for index in first..=last {
            let bytes = self.range_of(index).intersection(range).len();
            add(&mut self.cells[index], bytes);
        }
    }

    pub(crate) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    pub(crate) fn total(&self) -> Cell {
        self.total
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The part of the image that a cell stands for.
    pub(crate) fn range_of(&self, index: usize) -> ByteRange {
        let border = |index: usize| {
            let count = self.cells.len() as u128;
            (u128::from(self.size) * index as u128 / count) as u64
        };
        ByteRange::between(border(index), border(index + 1))
    }

    fn index_of(&self, offset: u64) -> usize {
        let count = self.cells.len();
        let guess = (u128::from(offset) * count as u128 / u128::from(self.size.max(1))) as usize;
        let guess = guess.min(count - 1);
        // Borders are rounded down, so it may be the next one.
        match self.range_of(guess).end() <= offset && guess + 1 < count {
            true => guess + 1,
            false => guess,
        }
    }
}

impl Cell {
    pub(crate) fn total(self) -> u64 {
        self.data + self.zero + self.hole
    }

    pub(crate) fn shade(self) -> Shade {
        match self {
            Self {
                data: 0,
                zero,
                hole,
            } if zero > hole => Shade::Zero,
            Self { data: 0, .. } => Shade::Hole,
            Self {
                zero: 0, hole: 0, ..
            } => Shade::Data,
            Self { data, .. } if data >= self.total() / 2 => Shade::Most,
            _ => Shade::Some,
        }
    }

    /// The percentages of data, zeroes and holes.
    pub(crate) fn percentages(self) -> [f64; 3] {
        let whole = self.total().max(1) as f64;
        [self.data, self.zero, self.hole].map(|part| 100.0 * part as f64 / whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Status;

    fn extent(start: u64, end: u64, status: Status) -> Extent {
        Extent {
            range: ByteRange::between(start, end),
            status,
        }
    }

    #[test]
    fn each_byte_is_in_one_cell() {
        for (size, count) in [
            (1, 10),
            (5000, 7),
            (1 << 20, 64),
            (i64::MAX as u64, 4096),
            (513, 2),
        ] {
            let mut cells = Cells::new(size, count);
            let half = size / 2;
            cells.add(extent(0, half, Status::DATA));
            cells.add(extent(half, size, Status::HOLE_ZERO));
            let sum: u64 = cells.cells().iter().map(|cell| cell.total()).sum();
            assert_eq!(sum, size, "{size} {count}");
            assert_eq!(
                cells.total(),
                Cell {
                    data: half,
                    zero: 0,
                    hole: size - half
                }
            );
            for index in 0..cells.cells().len() {
                assert_eq!(cells.cells()[index].total(), cells.range_of(index).len());
            }
        }
    }

    #[test]
    fn an_empty_image_has_an_empty_cell() {
        let cells = Cells::new(0, 64);
        assert_eq!(cells.cells(), [Cell::default()]);
        assert_eq!(cells.total().percentages(), [0.0; 3]);
    }

    #[test]
    fn a_little_data_among_holes_is_seen() {
        let mut cells = Cells::new(1 << 20, 1);
        cells.add(extent(0, 1, Status::DATA));
        cells.add(extent(1, 1 << 20, Status::HOLE_ZERO));
        assert_eq!(cells.cells()[0].shade(), Shade::Some);
    }
}
