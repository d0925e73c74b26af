//! Bytes that arrive in pieces of any size, laid down in slices of any size.

use std::io::IoSliceMut;

/// Fills slices from the first to the last.
pub(crate) struct Scatter<'a, 'b> {
    slices: &'a mut [IoSliceMut<'b>],
    /// The slice that is being filled, and how far.
    index: usize,
    filled: usize,
    count: usize,
}

impl<'a, 'b> Scatter<'a, 'b> {
    pub(crate) fn new(slices: &'a mut [IoSliceMut<'b>]) -> Self {
        Self {
            slices,
            index: 0,
            filled: 0,
            count: 0,
        }
    }

    /// How many bytes were laid down.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Whether there is no room left.
    pub(crate) fn is_full(&self) -> bool {
        let rest = &self.slices[self.index..];
        let room: usize = rest.iter().map(|slice| slice.len()).sum();
        room == self.filled
    }

    /// Lays down the start of `bytes` as far as there is room, and says how many that were.
    pub(crate) fn put(&mut self, mut bytes: &[u8]) -> usize {
        let before = self.count;
        while let Some(slice) = self.slices.get_mut(self.index) {
            let room = &mut slice[self.filled..];
            let length = room.len().min(bytes.len());
            room[..length].copy_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            self.count += length;
            self.filled += length;
            if self.filled < slice.len() {
                break;
            }
            (self.index, self.filled) = (self.index + 1, 0);
        }
        self.count - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_fill_slices_of_any_size() {
        for piece in 1..12 {
            let (mut a, mut b, mut c) = ([0; 3], [0; 0], [0; 6]);
            let mut slices = [&mut a[..], &mut b, &mut c].map(IoSliceMut::new);
            let mut scatter = Scatter::new(&mut slices);
            let bytes = *b"abcdefghijk";
            let taken: usize = bytes.chunks(piece).map(|part| scatter.put(part)).sum();
            assert_eq!((taken, scatter.count()), (9, 9));
            assert!(scatter.is_full());
            assert_eq!(scatter.put(b"x"), 0);
            assert_eq!([&a[..], &c].concat(), b"abcdefghi");
        }
    }

    #[test]
    fn nothing_is_full_at_once() {
        assert!(Scatter::new(&mut []).is_full());
        let mut room = [0; 2];
        let mut slices = [IoSliceMut::new(&mut room)];
        assert!(!Scatter::new(&mut slices).is_full());
    }
}
