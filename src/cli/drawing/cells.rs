//! An image as a row of equal cells, each with how much of it is what: what pictures are drawn from.

use crate::block::{ByteRange, Extent};

/// The smallest cell, in bytes.
const SMALLEST: u64 = 512;

/// The cells of an image whose size is not known begin with so many bytes.
const FIRST: u64 = 64 << 10;

/// What a part of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Data,
    /// Zeroes that have space, or that were found in data.
    Zero,
    /// What has no space.
    Hole,
    /// What was there before.
    Before,
    /// What is not there.
    Missing,
}

impl Kind {
    /// All of them, those that hide others last: a little data is to be seen.
    pub(crate) const ALL: [Self; 5] = [
        Self::Missing,
        Self::Hole,
        Self::Before,
        Self::Zero,
        Self::Data,
    ];
}

/// How much of a part is what, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell([u64; Kind::ALL.len()]);

/// An image in equal parts.
#[derive(Clone, Debug)]
pub(crate) struct Cells {
    /// In bytes; what is known of it so far where it grows.
    size: u64,
    /// What all cells together stand for: the size, or more where it grows.
    span: u64,
    grows: bool,
    cells: Vec<Cell>,
    total: Cell,
}

/// What a cell is shown as where there are few shades.
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
            span: size,
            grows: false,
            cells: vec![Cell::default(); count],
            total: Cell::default(),
        }
    }

    /// An image whose size is not known yet, in `count` parts at most: they become larger as it does.
    pub(crate) fn growing(count: usize) -> Self {
        let count = count.max(2).next_multiple_of(2);
        Self {
            size: 0,
            span: FIRST * count as u64,
            grows: true,
            cells: vec![Cell::default(); count],
            total: Cell::default(),
        }
    }

    /// Adds what is known of a range, in `base:allocation`.
    pub(crate) fn add_extent(&mut self, extent: Extent) {
        let kind = match (extent.status.is_hole(), extent.status.is_zero()) {
            (true, _) => Kind::Hole,
            (false, true) => Kind::Zero,
            (false, false) => Kind::Data,
        };
        self.add(extent.range, kind);
    }

    /// Adds a range of one kind.
    pub(crate) fn add(&mut self, range: ByteRange, kind: Kind) {
        self.add_mixed(range, kind, 0, kind);
    }

    /// Adds a range of one kind, of which `part` bytes are of another, wherever in it they are.
    pub(crate) fn add_mixed(&mut self, range: ByteRange, kind: Kind, part: u64, other: Kind) {
        while self.grows && range.end() > self.span && self.span < 1 << 62 {
            self.double();
        }
        if self.grows {
            self.size = self.size.max(range.end());
        }
        let range = range.intersection(ByteRange::between(0, self.size));
        if range.is_empty() {
            return;
        }
        let part = part.min(range.len());
        // So much of the part lies before an offset when it is spread evenly: no byte is lost to rounding.
        let before = |offset: u64| {
            let passed = u128::from(offset - range.start());
            (u128::from(part) * passed / u128::from(range.len())) as u64
        };
        let add = |cell: &mut Cell, within: ByteRange| {
            let others = before(within.end()) - before(within.start());
            cell.0[other as usize] += others;
            cell.0[kind as usize] += within.len() - others;
        };
        add(&mut self.total, range);
        let (first, last) = (self.index_of(range.start()), self.index_of(range.end() - 1));
        for index in first..=last {
            let within = self.range_of(index).intersection(range);
            add(&mut self.cells[index], within);
        }
    }

    /// The image has come to its end, and has this size.
    pub(crate) fn end_at(&mut self, size: u64) {
        if !self.grows || size > self.span {
            return;
        }
        let unit = self.span / self.cells.len() as u64;
        self.cells.truncate(size.div_ceil(unit).max(1) as usize);
        (self.size, self.span) = (size, unit * self.cells.len() as u64);
        self.grows = false;
    }

    /// What is of no kind yet is missing.
    pub(crate) fn fill_missing(&mut self) {
        for index in 0..self.cells.len() {
            let missing = self.range_of(index).len();
            let cell = &mut self.cells[index];
            let missing = missing.saturating_sub(cell.total());
            cell.0[Kind::Missing as usize] += missing;
            self.total.0[Kind::Missing as usize] += missing;
        }
    }

    /// Splits `kind` in each cell into holes and zeroes as `known` has them there; what `known` has neither of is holes.
    /// Both are of the same image, in the same number of cells.
    pub(crate) fn split_zeroes(&mut self, known: &Self) {
        for (cell, known) in self.cells.iter_mut().zip(&known.cells) {
            let holes = cell.of(Kind::Hole);
            let (zero, hole) = (known.of(Kind::Zero), known.of(Kind::Hole));
            let whole = u128::from(zero) + u128::from(hole);
            let zeroes = (u128::from(holes) * u128::from(zero) / whole.max(1)) as u64;
            cell.0[Kind::Hole as usize] -= zeroes;
            cell.0[Kind::Zero as usize] += zeroes;
            self.total.0[Kind::Hole as usize] -= zeroes;
            self.total.0[Kind::Zero as usize] += zeroes;
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
            (u128::from(self.span) * index as u128 / count) as u64
        };
        let range = ByteRange::between(border(index), border(index + 1));
        range.intersection(ByteRange::between(0, self.size))
    }

    /// The cell that an offset lies in.
    pub(crate) fn index_of(&self, offset: u64) -> usize {
        let count = self.cells.len();
        let guess = (u128::from(offset) * count as u128 / u128::from(self.span.max(1))) as usize;
        let guess = guess.min(count - 1);
        // Borders are rounded down, so it may be the next one.
        match self.range_of(guess).end() <= offset && guess + 1 < count {
            true => guess + 1,
            false => guess,
        }
    }

    /// Makes each cell stand for twice as much.
    fn double(&mut self) {
        let half = self.cells.len() / 2;
        for index in 0..half {
            let (mut first, second) = (self.cells[2 * index], self.cells[2 * index + 1]);
            for (sum, part) in first.0.iter_mut().zip(second.0) {
                *sum += part;
            }
            self.cells[index] = first;
        }
        self.cells[half..].fill(Cell::default());
        self.span *= 2;
    }
}

impl Cell {
    /// The bytes of one kind.
    pub(crate) fn of(self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    pub(crate) fn total(self) -> u64 {
        self.0.iter().sum()
    }

    /// What most of it is; `None` when there is nothing.
    pub(crate) fn most(self) -> Option<Kind> {
        let kinds = Kind::ALL.into_iter().filter(|kind| self.of(*kind) > 0);
        kinds.max_by_key(|kind| self.of(*kind))
    }

    pub(crate) fn shade(self) -> Shade {
        let [data, zero, hole] = [Kind::Data, Kind::Zero, Kind::Hole].map(|kind| self.of(kind));
        match data {
            0 if zero > hole => Shade::Zero,
            0 => Shade::Hole,
            data if data == self.total() => Shade::Data,
            data if data >= self.total() / 2 => Shade::Most,
            _ => Shade::Some,
        }
    }

    /// How much of it is of one kind, in percent.
    pub(crate) fn percent(self, kind: Kind) -> f64 {
        100.0 * self.of(kind) as f64 / self.total().max(1) as f64
    }

    #[cfg(test)]
    pub(crate) fn with(parts: &[(Kind, u64)]) -> Self {
        let mut cell = Self::default();
        for (kind, bytes) in parts {
            cell.0[*kind as usize] += bytes;
        }
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
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
            cells.add(range(0, half), Kind::Data);
            cells.add(range(half, size), Kind::Hole);
            let sum: u64 = cells.cells().iter().map(|cell| cell.total()).sum();
            assert_eq!(sum, size, "{size} {count}");
            let whole = [(Kind::Data, half), (Kind::Hole, size - half)];
            assert_eq!(cells.total(), Cell::with(&whole));
            for index in 0..cells.cells().len() {
                assert_eq!(cells.cells()[index].total(), cells.range_of(index).len());
            }
        }
    }

    #[test]
    fn an_empty_image_has_an_empty_cell() {
        let cells = Cells::new(0, 64);
        assert_eq!(cells.cells(), [Cell::default()]);
        assert_eq!(cells.total().percent(Kind::Data), 0.0);
        let mut cells = Cells::growing(64);
        cells.end_at(0);
        assert_eq!(cells.cells(), [Cell::default()]);
    }

    #[test]
    fn a_little_data_among_holes_is_seen() {
        let mut cells = Cells::new(1 << 20, 1);
        cells.add(range(0, 1), Kind::Data);
        cells.add(range(1, 1 << 20), Kind::Hole);
        assert_eq!(cells.cells()[0].shade(), Shade::Some);
    }

    #[test]
    fn a_mixed_range_keeps_its_sums() {
        let mut cells = Cells::new(1000 << 10, 7);
        cells.add_mixed(range(5, 999_999), Kind::Data, 12_345, Kind::Zero);
        let zero = |cell: &Cell| cell.of(Kind::Zero);
        assert_eq!(cells.cells().iter().map(zero).sum::<u64>(), 12_345);
        assert_eq!(cells.total().of(Kind::Data), 999_994 - 12_345);
        cells.fill_missing();
        assert_eq!(cells.total().total(), 1000 << 10);
    }

    #[test]
    fn a_stream_of_any_length_has_as_many_cells_and_loses_nothing() {
        let mut cells = Cells::growing(64);
        let (step, size) = (1 << 28, (1_u64 << 36) + 5);
        for start in (0..size).step_by(step as usize) {
            cells.add(range(start, (start + step).min(size)), Kind::Data);
        }
        cells.end_at(size);
        assert!((32..=64).contains(&cells.cells().len()));
        assert_eq!((cells.size(), cells.total().of(Kind::Data)), (size, size));
        for index in 0..cells.cells().len() {
            assert_eq!(cells.cells()[index].total(), cells.range_of(index).len());
        }
    }

    #[test]
    fn holes_are_split_as_the_source_has_them() {
        let (mut cells, mut known) = (Cells::new(4096, 2), Cells::new(4096, 2));
        cells.add(range(0, 4096), Kind::Hole);
        known.add(range(0, 1024), Kind::Zero);
        known.add(range(1024, 2048), Kind::Hole);
        cells.split_zeroes(&known);
        let first = [(Kind::Zero, 1024), (Kind::Hole, 1024)];
        assert_eq!(cells.cells()[0], Cell::with(&first));
        assert_eq!(cells.cells()[1], Cell::with(&[(Kind::Hole, 2048)]));
    }
}
