//! One cluster of a bitmap, whose bits are set.

use blockferry_block::ByteRange;

/// One cluster of a bitmap.
pub(crate) struct BitCluster {
    /// The part of the disk that it tells of.
    range: ByteRange,
    granularity: u64,
    cluster_size: u64,
    dirty: Dirty,
}

/// Which of its bits are set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dirty {
    Nothing,
    Everything,
    /// As they are stored: the first one is the lowest of the first byte.
    Some(Vec<u8>),
}

impl BitCluster {
    /// The cluster of `cluster_size` bytes that tells of `range`, a bit for each `granularity` bytes of it.
    pub(crate) fn new(range: ByteRange, granularity: u64, cluster_size: u64, dirty: Dirty) -> Self {
        Self {
            range,
            granularity,
            cluster_size,
            dirty,
        }
    }

    /// The part of the disk that it tells of.
    pub(crate) fn range(&self) -> ByteRange {
        self.range
    }

    /// Which bits are set.
    pub(crate) fn into_dirty(self) -> Dirty {
        self.dirty
    }

    /// Sets the bits that tell of anything in `range`, which lies in the part that it tells of.
    pub(crate) fn set(&mut self, range: ByteRange) {
        if range == self.range {
            self.dirty = Dirty::Everything;
            return;
        }
        if self.dirty == Dirty::Nothing {
            self.dirty = Dirty::Some(vec![0; self.cluster_size as usize]);
        }
        let Dirty::Some(bytes) = &mut self.dirty else {
            return;
        };
        let first = (range.start() - self.range.start()) / self.granularity;
        let end = (range.end() - self.range.start()).div_ceil(self.granularity);
        let mut bit = first;
        while bit < end {
            let at = (bit / 8) as usize;
            if bit.is_multiple_of(8) && end - bit >= 8 {
                bytes[at] = u8::MAX;
                bit += 8;
            } else {
                bytes[at] |= 1 << (bit % 8);
                bit += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_begin_at_the_lowest_of_the_first_byte() {
        let range = ByteRange::between(1 << 20, 2 << 20);
        let mut cluster = BitCluster::new(range, 512, 512, Dirty::Nothing);
        let at = |start: u64, end: u64| ByteRange::between((1 << 20) + start, (1 << 20) + end);
        cluster.set(at(512, 1024));
        cluster.set(at(4095, 4097));
        cluster.set(at(8192, 16384 + 1));
        let Dirty::Some(bytes) = &cluster.dirty else {
            panic!("some are set");
        };
        assert_eq!(bytes[..6], [0b1000_0010, 1, 0xff, 0xff, 1, 0]);
        cluster.set(range);
        assert_eq!(cluster.into_dirty(), Dirty::Everything);
    }
}
