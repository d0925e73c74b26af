//! The arithmetic of blocks, chunks and the block allocation table (specification, sections 2.4 and 2.5).

use blockferry_block::ByteRange;

/// How many sectors one bitmap block has bits for, as a power of two.
const CHUNK_SECTORS_BITS: u32 = 23;

/// The size of an entry of the block allocation table.
pub(crate) const ENTRY: u64 = 8;

/// The numbers that everything in an image is computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// The size of a block as a power of two: 20 to 28.
    pub(crate) block_bits: u32,
    /// The size of a logical sector as a power of two: 9 or 12.
    pub(crate) sector_bits: u32,
    /// The size of the virtual disk: 64 TiB at most.
    pub(crate) size: u64,
    /// Whether it is a differencing image.
    pub(crate) has_parent: bool,
    /// Where the block allocation table lies: long enough.
    pub(crate) bat: ByteRange,
}

impl Geometry {
    /// The size of a block: 1 MiB to 256 MiB.
    pub(crate) fn block_size(self) -> u64 {
        1 << self.block_bits
    }

    /// How many blocks share a bitmap block, as a power of two: 4 to 15.
    fn chunk_bits(self) -> u32 {
        CHUNK_SECTORS_BITS + self.sector_bits - self.block_bits
    }

    /// How many bytes of a bitmap block are one block's: 32 to 64 KiB.
    pub(crate) fn bitmap_size(self) -> u64 {
        1 << (self.block_bits - self.sector_bits - 3)
    }

    /// Where the entry of `block` lies in the file. After those of a chunk comes the entry of its bitmap.
    pub(crate) fn entry_of(self, block: u64) -> u64 {
        self.bat.start() + (block + (block >> self.chunk_bits())) * ENTRY
    }

    /// How many blocks there are from `block` to the end of its chunk.
    pub(crate) fn blocks_in_chunk_from(self, block: u64) -> u64 {
        (1 << self.chunk_bits()) - (block & ((1 << self.chunk_bits()) - 1))
    }

    /// Where the entry of the bitmap lies that `block` has a part of.
    pub(crate) fn bitmap_entry_of(self, block: u64) -> u64 {
        let chunk = block >> self.chunk_bits();
        self.bat.start() + (((chunk + 1) << self.chunk_bits()) + chunk) * ENTRY
    }

    /// Where the part of `block` begins in its bitmap.
    pub(crate) fn place_in_bitmap(self, block: u64) -> u64 {
        (block & ((1 << self.chunk_bits()) - 1)) * self.bitmap_size()
    }

    /// How many bytes of entries the disk needs.
    pub(crate) fn bat_length(self) -> u64 {
        let blocks = self.size.div_ceil(self.block_size());
        let last = match (blocks.checked_sub(1), self.has_parent) {
            (None, _) => return 0,
            (Some(last), false) => self.entry_of(last),
            (Some(last), true) => self.bitmap_entry_of(last),
        };
        last + ENTRY - self.bat.start()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(block_bits: u32, sector_bits: u32, size: u64) -> Geometry {
        Geometry {
            block_bits,
            sector_bits,
            size,
            has_parent: false,
            bat: ByteRange::between(3 << 20, 1 << 30),
        }
    }

    #[test]
    fn entries_of_bitmaps_come_after_those_of_their_chunks() {
        // 2^23 sectors of 512 bytes are 4 GiB: 128 blocks of 32 MiB.
        let geometry = geometry(25, 9, 1 << 40);
        let index = |place: u64| (place - (3 << 20)) / ENTRY;
        assert_eq!(index(geometry.entry_of(0)), 0);
        assert_eq!(index(geometry.entry_of(127)), 127);
        assert_eq!(index(geometry.bitmap_entry_of(127)), 128);
        assert_eq!(index(geometry.entry_of(128)), 129);
        assert_eq!(index(geometry.bitmap_entry_of(128)), 257);
        assert_eq!(geometry.bitmap_size(), 8192);
        assert_eq!(geometry.place_in_bitmap(129), 8192);
        assert_eq!(geometry.place_in_bitmap(127) + 8192, 1 << 20);
    }

    #[test]
    fn the_table_is_as_long_as_the_disk_needs() {
        let mut small = geometry(20, 9, (1 << 20) + 512);
        assert_eq!(small.bat_length(), 2 * ENTRY);
        small.has_parent = true;
        assert_eq!(small.bat_length(), 4097 * ENTRY);
        small.size = 0;
        assert_eq!(small.bat_length(), 0);
        // 64 TiB in blocks of 1 MiB.
        let largest = geometry(20, 9, 64 << 40);
        assert_eq!(largest.bat_length(), ((64 << 20) + (16 << 10) - 1) * ENTRY);
        assert_eq!(
            geometry(28, 12, 64 << 40).bat_length(),
            262_144 * 8 + 2047 * 8
        );
    }
}
