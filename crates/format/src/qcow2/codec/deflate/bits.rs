//! Where bits go: the lowest first, into bytes.

/// Bits written into a slice.
pub(super) struct Bits<'a> {
    out: &'a mut [u8],
    /// How many bytes of `out` are written.
    length: usize,
    /// What is not written yet, from the lowest bit on.
    pending: u64,
    /// How many bits that is: 7 at most after a [`flush`](Self::flush).
    count: u32,
    overrun: bool,
}

impl<'a> Bits<'a> {
    pub(super) fn new(out: &'a mut [u8]) -> Self {
        Self {
            out,
            length: 0,
            pending: 0,
            count: 0,
            overrun: false,
        }
    }

    /// How many more bits there is room for.
    pub(super) fn room(&self) -> usize {
        let bytes = self.out.len().saturating_sub(self.length);
        (bytes * 8).saturating_sub(self.count as usize)
    }

    /// Puts the low `count` bits of `value`, whose others are 0. There may be 63 bits between two flushes.
    #[inline(always)]
    pub(super) fn put(&mut self, value: u64, count: u32) {
        self.pending |= value << self.count;
        self.count += count;
    }

    /// Writes whole bytes; fewer than eight bits stay.
    #[inline(always)]
    pub(super) fn flush(&mut self) {
        let rest = self.out.get_mut(self.length..);
        let Some(place) = rest.and_then(<[u8]>::first_chunk_mut::<8>) else {
            return self.flush_at_the_end();
        };
        *place = self.pending.to_le_bytes();
        self.length += (self.count / 8) as usize;
        self.pending >>= self.count & !7;
        self.count &= 7;
    }

    #[cold]
    fn flush_at_the_end(&mut self) {
        while self.count >= 8 {
            match self.out.get_mut(self.length) {
                Some(byte) => *byte = self.pending as u8,
                None => self.overrun = true,
            }
            self.length += 1;
            self.pending >>= 8;
            self.count -= 8;
        }
    }

    /// Fills the byte that is begun with zeroes.
    pub(super) fn align(&mut self) {
        self.count = self.count.next_multiple_of(8);
        self.flush();
    }

    /// Writes whole bytes, on a byte's boundary.
    pub(super) fn copy(&mut self, bytes: &[u8]) {
        debug_assert_eq!(self.count, 0);
        match self.out.get_mut(self.length..) {
            Some(rest) if rest.len() >= bytes.len() => rest[..bytes.len()].copy_from_slice(bytes),
            _ => self.overrun = true,
        }
        self.length += bytes.len();
    }

    /// How many bytes were written; `None` when there was not room for them.
    pub(super) fn finish(mut self) -> Option<usize> {
        self.align();
        (!self.overrun).then_some(self.length)
    }
}
