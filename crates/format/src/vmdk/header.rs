//! What a sparse extent begins with: the header of a hosted one (`KDMV`; "Virtual Disk Format 5.0", "Hosted Sparse
//! Extents"), or that of an ESX one (`COWD`; "ESXi Host Sparse Extents"). Numbers are little-endian, and places are
//! counted in sectors.

use bitflags::bitflags;
use blockferry_block::{ByteRange, Error, ErrorKind, Result};

use crate::{
    corrupt::corrupt,
    le::{le16, le32, le64},
};

/// The unit that the format counts in, in bytes.
pub(crate) const SECTOR: u64 = 512;

/// What a hosted sparse extent begins with.
pub(crate) const MAGIC: &[u8; 4] = b"KDMV";
/// What an ESX sparse extent begins with.
pub(crate) const ESX_MAGIC: &[u8; 4] = b"COWD";

/// In the place of the grain directory: the footer says where it is.
pub(crate) const AT_END: u64 = u64::MAX;

/// Bytes that a transfer as text changes.
const NEWLINES: &[u8; 4] = b"\n \r\n";

/// The largest grain that is read, in bytes, and the most entries of a grain table of a hosted extent.
const LARGEST_GRAIN: u64 = 4 << 20;
const MOST_ENTRIES: u32 = 512;
/// How many entries a grain table of an ESX extent has.
const ESX_ENTRIES: u32 = 4096;
/// The most entries of a grain directory: 64 MiB of them, which is 512 TiB of disk in the usual grains.
const LONGEST_DIRECTORY: u64 = 16 << 20;

bitflags! {
    /// What a hosted extent is like.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Flags: u32 {
        /// The header has bytes that a transfer as text would change.
        const NEWLINE_TEST = 1 << 0;
        /// There is a second grain directory, with tables of its own.
        const REDUNDANT = 1 << 1;
        /// An entry of 1 says that the grain is zero.
        const ZERO_GRAINS = 1 << 2;
        /// Grains are compressed.
        const COMPRESSED = 1 << 16;
        /// A marker stands in front of each grain and table.
        const MARKERS = 1 << 17;
    }
}

/// The header of a hosted sparse extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// 1 to 3.
    pub(crate) version: u32,
    pub(crate) flags: Flags,
    /// The size of the disk in sectors.
    pub(crate) capacity: u64,
    /// The size of a grain in sectors: a power of two.
    pub(crate) grain: u64,
    /// Where the descriptor is, and how long, in sectors; 0 where there is none.
    pub(crate) descriptor: u64,
    pub(crate) descriptor_length: u64,
    /// How many entries a grain table has.
    pub(crate) entries: u32,
    /// Where the redundant grain directory is.
    pub(crate) redundant: u64,
    /// Where the grain directory is, or [`AT_END`].
    pub(crate) directory: u64,
    /// Where grains begin.
    pub(crate) overhead: u64,
    /// Grains are compressed by deflate.
    pub(crate) is_compressed: bool,
}

impl Header {
    /// The header that `bytes`, a sector, hold.
    ///
    /// # Errors
    /// `Incompatible` for a version or a compression that is not known, `Unsupported` for grains that are too large,
    /// `Corrupt`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let Some(bytes) = bytes.get(..SECTOR as usize) else {
            return Err(corrupt("it is too short to be a VMDK image"));
        };
        if !bytes.starts_with(MAGIC) {
            return Err(corrupt(
                "a sparse extent begins with KDMV, and this does not",
            ));
        }
        let flags = Flags::from_bits_truncate(le32(bytes, 8));
        let header = Self {
            version: le32(bytes, 4),
            flags,
            capacity: le64(bytes, 12),
            grain: le64(bytes, 20),
            descriptor: le64(bytes, 28),
            descriptor_length: le64(bytes, 36),
            entries: le32(bytes, 44),
            redundant: le64(bytes, 48),
            directory: le64(bytes, 56),
            overhead: le64(bytes, 64),
            is_compressed: le16(bytes, 77) == 1,
        };
        if !(1..=3).contains(&header.version) {
            let message = format!("VMDK version {} is not supported", header.version);
            return Err(Error::with_message(ErrorKind::Incompatible, message));
        }
        if le16(bytes, 77) > 1 {
            let message = format!("the compression {} is not supported", le16(bytes, 77));
            return Err(Error::with_message(ErrorKind::Incompatible, message));
        }
        if flags.contains(Flags::NEWLINE_TEST) && bytes[73..77] != *NEWLINES {
            return Err(corrupt("it was changed by a transfer as text"));
        }
        check_grain(header.grain)?;
        if !(1..=MOST_ENTRIES).contains(&header.entries) {
            return Err(corrupt(format!(
                "a grain table has 1 to {MOST_ENTRIES} entries, not {}",
                header.entries
            )));
        }
        header.layout().check()?;
        Ok(header)
    }

    /// The sector that a file begins with.
    pub(crate) fn encode(&self) -> [u8; SECTOR as usize] {
        let mut bytes = [0; SECTOR as usize];
        let mut put =
            |at: usize, number: &[u8]| bytes[at..][..number.len()].copy_from_slice(number);
        put(0, MAGIC);
        put(4, &self.version.to_le_bytes());
        put(8, &self.flags.bits().to_le_bytes());
        put(12, &self.capacity.to_le_bytes());
        put(20, &self.grain.to_le_bytes());
        put(28, &self.descriptor.to_le_bytes());
        put(36, &self.descriptor_length.to_le_bytes());
        put(44, &self.entries.to_le_bytes());
        put(48, &self.redundant.to_le_bytes());
        put(56, &self.directory.to_le_bytes());
        put(64, &self.overhead.to_le_bytes());
        put(73, NEWLINES);
        put(77, &u16::from(self.is_compressed).to_le_bytes());
        bytes
    }

    /// How it is laid out, once it is known where the grain directory is.
    pub(crate) fn layout(&self) -> Layout {
        Layout {
            capacity: self.capacity,
            grain: self.grain,
            entries: self.entries,
            directory: self.directory,
            has_zero_grains: self.flags.contains(Flags::ZERO_GRAINS),
            packed: self
                .is_compressed
                .then_some(match self.flags.contains(Flags::MARKERS) {
                    true => Packed::Marked,
                    false => Packed::Bare,
                }),
        }
    }
}

/// How compressed grains lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packed {
    /// Behind a marker, which says how long they are.
    Marked,
    /// As they are.
    Bare,
}

/// Where everything is in a sparse extent of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The size of its part of the disk in sectors.
    pub(crate) capacity: u64,
    /// The size of a grain in sectors: a power of two.
    pub(crate) grain: u64,
    /// How many entries a grain table has.
    pub(crate) entries: u32,
    /// Where the grain directory is, in sectors.
    pub(crate) directory: u64,
    /// An entry of 1 says that the grain is zero.
    pub(crate) has_zero_grains: bool,
    /// Grains are compressed, like this.
    pub(crate) packed: Option<Packed>,
}

impl Layout {
    /// That of an ESX sparse extent, whose header `bytes` begin with.
    ///
    /// # Errors
    /// As those of [`Header::parse`].
    pub(crate) fn parse_esx(bytes: &[u8]) -> Result<Self> {
        if bytes.len() < SECTOR as usize || !bytes.starts_with(ESX_MAGIC) {
            return Err(corrupt(
                "an ESX sparse extent begins with COWD, and this does not",
            ));
        }
        if le32(bytes, 4) != 1 {
            let message = format!(
                "version {} of ESX sparse extents is not supported",
                le32(bytes, 4)
            );
            return Err(Error::with_message(ErrorKind::Incompatible, message));
        }
        let layout = Self {
            capacity: le32(bytes, 12).into(),
            grain: le32(bytes, 16).into(),
            entries: ESX_ENTRIES,
            directory: le32(bytes, 20).into(),
            has_zero_grains: false,
            packed: None,
        };
        check_grain(layout.grain)?;
        layout.check()?;
        if u64::from(le32(bytes, 24)) < layout.tables() {
            return Err(corrupt(format!(
                "its grain directory has {} entries and needs {}",
                le32(bytes, 24),
                layout.tables()
            )));
        }
        Ok(layout)
    }

    /// The size of its part of the disk in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.capacity * SECTOR
    }

    /// The size of a grain in bytes.
    pub(crate) fn grain_size(&self) -> u64 {
        self.grain * SECTOR
    }

    /// How much of the disk a grain table is for, in bytes.
    pub(crate) fn table_span(&self) -> u64 {
        self.grain_size() * u64::from(self.entries)
    }

    /// How long a grain table is, in bytes.
    pub(crate) fn table_size(&self) -> u64 {
        u64::from(self.entries) * 4
    }

    /// How many grain tables there can be.
    pub(crate) fn tables(&self) -> u64 {
        self.size().div_ceil(self.table_span())
    }

    /// Where the grain directory lies in a file of `end` bytes.
    ///
    /// # Errors
    /// `Corrupt` where it does not lie inside of the file.
    pub(crate) fn directory_range(&self, end: u64) -> Result<ByteRange> {
        let length = self.tables() * 4;
        let range = self.directory.checked_mul(SECTOR);
        let range = range.and_then(|start| ByteRange::new(start, length).ok());
        range.filter(|range| range.end() <= end).ok_or_else(|| {
            corrupt(format!(
                "the grain directory of {length} bytes at sector {:#x} lies past the end of the file",
                self.directory
            ))
        })
    }

    fn check(&self) -> Result<()> {
        let most = i64::MAX as u64 / SECTOR;
        if self.capacity > most {
            return Err(corrupt(format!(
                "there are no disks of {} sectors",
                self.capacity
            )));
        }
        if self.tables() > LONGEST_DIRECTORY {
            return Err(corrupt(format!(
                "its grain directory has {} entries, which is too much",
                self.tables()
            )));
        }
        Ok(())
    }
}

fn check_grain(grain: u64) -> Result<()> {
    if !grain.is_power_of_two() {
        let message = format!("grains of {grain} sectors are not a power of two");
        return Err(corrupt(message));
    }
    if grain > LARGEST_GRAIN / SECTOR {
        let message = format!("grains of {grain} sectors are too large");
        return Err(Error::with_message(ErrorKind::Unsupported, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            version: 3,
            flags: Flags::NEWLINE_TEST | Flags::COMPRESSED | Flags::MARKERS,
            capacity: 1 << 22,
            grain: 128,
            descriptor: 1,
            descriptor_length: 20,
            entries: 512,
            redundant: 0,
            directory: AT_END,
            overhead: 128,
            is_compressed: true,
        }
    }

    #[test]
    fn a_header_comes_back_as_it_was_written() {
        assert_eq!(Header::parse(&header().encode()).expect("sound"), header());
    }

    #[test]
    fn a_layout_follows_from_a_header() {
        let layout = header().layout();
        assert_eq!(layout.table_span(), 32 << 20);
        assert_eq!((layout.tables(), layout.table_size()), (64, 2048));
        let layout = Layout {
            directory: 21,
            ..layout
        };
        let range = layout.directory_range(1 << 20).expect("inside");
        assert_eq!(range, ByteRange::between(21 * 512, 21 * 512 + 256));
        layout.directory_range(21 * 512 + 255).expect_err("outside");
    }
}
