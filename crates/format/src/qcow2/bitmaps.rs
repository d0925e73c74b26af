//! Bitmaps of what was written (specification, "Bitmaps"): their directory, and which ranges of the disk are dirty.

mod change;
mod cluster;
mod directory;
mod merge;
mod room;
mod switch;

use std::{collections::HashSet, ffi::OsStr};

use blockferry_block::{
    BlockDevice, ByteRange, Extent, Operation, Result, Status, printable, push_merged,
    read_exact_at,
};

use super::{
    entries::{EntryReader, padding, text},
    entry::OFFSET,
    geometry::{Geometry, corrupt, table_range},
    header::{Autoclear, Header, LONGEST_NAME, be16, be32, be64},
};

pub use change::{BitmapChange, change_bitmap};
pub(crate) use cluster::{BitCluster, Dirty};

/// How long the directory can be: 256 bytes for each of as many bitmaps as there can be.
const LONGEST_DIRECTORY: u64 = 16 << 20;
/// How many bitmaps there can be (qemu's bound).
const MOST_BITMAPS: u32 = 65535;
/// How many entries a bitmap's table can have (qemu's bound).
pub(crate) const MOST_ENTRIES: u64 = 0x800_0000;
/// How large the bits of one bitmap can be together, in bytes (qemu's bound).
pub(crate) const LARGEST_BITS: u64 = 512 << 20;
/// How long the extra data of an entry can be. Nobody has defined any.
const LONGEST_EXTRA: usize = 1024;
/// The length of what every entry of the directory begins with.
const FIXED: usize = 24;
/// Where the flags stand in it.
const FLAGS_IN_ENTRY: u64 = 12;
/// How many bytes one bit can stand for, as powers of two (qemu's bounds).
const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;

const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
const EXTRA_COMPATIBLE: u32 = 1 << 2;
/// The type of a bitmap that tracks what is written.
const DIRTY_TRACKING: u8 = 1;
/// An entry of a table without a place: its cluster is all ones, not all zeroes.
const ONES: u64 = 1;

/// How many entries of a table are read at a time.
const TABLE_PIECE: u64 = 4096;
/// How much of a bitmap's data is read at a time, in bytes.
const DATA_PIECE: u64 = 64 << 10;
/// How many pieces of either are looked at for one answer.
const MOST_PIECES: usize = 64;

/// A bitmap in an image, for those who show it or make it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapDetails {
    /// Its name: the image's, escape it before printing.
    pub name: String,
    /// How many bytes of the disk one bit stands for: a power of two.
    pub granularity: u64,
    /// It was not stored as it should have been, so it may not say all that was written (`in_use`).
    pub in_use: bool,
    /// Whoever writes the image is to track it there (`auto`: the bitmap is enabled).
    pub auto: bool,
}

/// A bitmap, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bitmap {
    pub(crate) details: BitmapDetails,
    /// It is of a kind that is understood here.
    pub(crate) is_known: bool,
    /// Where the places of its clusters are: 8 bytes each.
    pub(crate) table: ByteRange,
    /// Where its flags stand in the file, and what they are; nowhere in one that is being made.
    pub(crate) flags: Option<(u64, u32)>,
    /// Where its entry of the directory begins in the file.
    pub(crate) entry: u64,
}

/// Where a cluster of a bitmap is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    /// Nowhere: nothing of it is dirty.
    Zeroes,
    /// Nowhere: all of it is dirty.
    Ones,
    /// In the file.
    Host(u64),
}

impl Bits {
    /// What the entry of a table says, in the byte order of this machine.
    ///
    /// # Errors
    /// `Corrupt` for what is no place of a cluster.
    pub(crate) fn decode(word: u64, geometry: Geometry) -> Result<Self> {
        match word & OFFSET {
            _ if word & !(OFFSET | ONES) != 0 => {}
            0 if word & ONES != 0 => return Ok(Self::Ones),
            0 => return Ok(Self::Zeroes),
            host if word & ONES == 0 && geometry.is_aligned(host) => return Ok(Self::Host(host)),
            _ => {}
        }
        Err(corrupt(format!(
            "a cluster of a bitmap cannot be at {word:#x}"
        )))
    }

    /// The entry for it.
    pub(crate) fn encode(self) -> u64 {
        match self {
            Self::Zeroes => 0,
            Self::Ones => ONES,
            Self::Host(host) => host,
        }
    }
}

/// The bitmaps of the image in `below`: none where a program that does not know them wrote the image since.
///
/// # Errors
/// `Corrupt` for what breaks the rules or is larger than any directory; what reading failed with.
pub(crate) async fn read_directory(
    below: &dyn BlockDevice,
    header: &Header,
) -> Result<Vec<Bitmap>> {
    let read = read_entries(below, header).await;
    read.map_err(|error| error.during(Operation::Open))
}

async fn read_entries(below: &dyn BlockDevice, header: &Header) -> Result<Vec<Bitmap>> {
    let extension = match header.bitmaps {
        Some(extension) if header.autoclear.contains(Autoclear::BITMAPS) => extension,
        _ => return Ok(Vec::new()),
    };
    let (count, directory) = (extension.count, extension.directory);
    if count > MOST_BITMAPS || directory.len() > LONGEST_DIRECTORY {
        return Err(corrupt(format!(
            "{count} bitmaps in a directory of {} bytes, which is too much",
            directory.len()
        )));
    }
    if directory.end() > below.info().size {
        return Err(corrupt(
            "the directory of bitmaps lies past the end of the file",
        ));
    }
    let mut reader = EntryReader::new(below, "the directory of bitmaps", directory);
    let mut bitmaps = Vec::new();
    let mut names = HashSet::new();
    let mut place = directory.start();
    for _ in 0..count {
        let (bitmap, length) = Bitmap::read(&mut reader, header.geometry, place).await?;
        place += length;
        if !names.insert(bitmap.details.name.clone()) {
            let name = bitmap.printable_name();
            return Err(corrupt(format!("two bitmaps have the name \"{name}\"")));
        }
        bitmaps.push(bitmap);
    }
    if !reader.is_empty() {
        return Err(corrupt(
            "the directory of bitmaps is longer than its entries",
        ));
    }
    Ok(bitmaps)
}

/// The directory of `bitmaps`, as it is written.
pub(crate) fn encode_directory(bitmaps: &[Bitmap]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for bitmap in bitmaps {
        bitmap.encode(&mut bytes);
    }
    bytes
}

impl Bitmap {
    /// The next entry of the directory, which lies at `place` of the file, and its length.
    async fn read(
        reader: &mut EntryReader<'_>,
        geometry: Geometry,
        place: u64,
    ) -> Result<(Self, u64)> {
        let fixed: [u8; FIXED] = reader.take(FIXED).await?.try_into().expect("as many");
        let (offset, entries) = (be64(&fixed, 0), u64::from(be32(&fixed, 8)));
        let flags = be32(&fixed, 12);
        let (kind, granularity_bits) = (fixed[16], fixed[17]);
        let (name, extra) = (usize::from(be16(&fixed, 18)), be32(&fixed, 20) as usize);
        if name == 0 || name > LONGEST_NAME as usize || extra > LONGEST_EXTRA {
            return Err(corrupt(format!(
                "a bitmap has a name of {name} bytes and {extra} of extra data"
            )));
        }
        reader.take(extra).await?;
        let name_text = text(reader.take(name).await?);
        reader.take(padding(FIXED + extra + name)).await?;
        let shown = printable(OsStr::new(&name_text));
        if !GRANULARITY_BITS.contains(&granularity_bits) {
            return Err(corrupt(format!(
                "a bit of the bitmap \"{shown}\" stands for 2^{granularity_bits} bytes, not 2^9 to 2^31"
            )));
        }
        if entries > MOST_ENTRIES || !geometry.is_aligned(offset) {
            return Err(corrupt(format!(
                "the bitmap \"{shown}\" has a table of {entries} entries at {offset:#x}"
            )));
        }
        let known_flags = IN_USE | AUTO | EXTRA_COMPATIBLE;
        let is_extra_known = extra == 0 || flags & EXTRA_COMPATIBLE != 0;
        let bitmap = Self {
            details: BitmapDetails {
                name: name_text,
                granularity: 1 << granularity_bits,
                in_use: flags & IN_USE != 0,
                auto: flags & AUTO != 0,
            },
            is_known: kind == DIRTY_TRACKING && flags & !known_flags == 0 && is_extra_known,
            table: table_range("the table of a bitmap", offset, entries * 8)?,
            flags: Some((place + FLAGS_IN_ENTRY, flags)),
            entry: place,
        };
        Ok((bitmap, ((FIXED + extra + name).next_multiple_of(8)) as u64))
    }

    /// For who writes the disk and does not keep the bitmap: where its flags stand, and what they are to be, if it is to
    /// have all that is written (specification, "Bitmap directory", flags `in_use` and `auto`).
    pub(crate) fn marked_in_use(&self) -> Option<(u64, u32)> {
        let (place, flags) = self.flags?;
        let is_kept = flags & AUTO != 0 && flags & IN_USE == 0;
        is_kept.then_some((place, Self::in_use(flags)))
    }

    /// The flags of a bitmap that nobody may believe, which has these.
    pub(crate) fn in_use(flags: u32) -> u32 {
        flags | IN_USE
    }

    /// The flags of one that has these, which is enabled or not.
    fn enabled(flags: u32, is_enabled: bool) -> u32 {
        match is_enabled {
            true => flags | AUTO,
            false => flags & !AUTO,
        }
    }

    /// Where the first `entries` entries of its table lie, which is inside of `below`.
    ///
    /// # Errors
    /// `Corrupt`
    pub(crate) fn checked_table(&self, entries: u64, below: &dyn BlockDevice) -> Result<ByteRange> {
        let name = self.printable_name();
        if self.table.len() / 8 < entries {
            return Err(corrupt(format!(
                "the table of the bitmap \"{name}\" is too short for the disk"
            )));
        }
        if self.table.end() > below.info().size {
            return Err(corrupt(format!(
                "the bitmap \"{name}\" lies past the end of the file"
            )));
        }
        Ok(self.table.split_at(entries.saturating_mul(8)).0)
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        let details = &self.details;
        let in_use = if details.in_use { IN_USE } else { 0 };
        let auto = if details.auto { AUTO } else { 0 };
        bytes.extend(self.table.start().to_be_bytes());
        bytes.extend(((self.table.len() / 8) as u32).to_be_bytes());
        bytes.extend((in_use | auto).to_be_bytes());
        bytes.extend([DIRTY_TRACKING, details.granularity.ilog2() as u8]);
        bytes.extend((details.name.len() as u16).to_be_bytes());
        bytes.extend(0_u32.to_be_bytes());
        bytes.extend(details.name.as_bytes());
        bytes.resize(bytes.len() + padding(FIXED + details.name.len()), 0);
    }

    /// Whether it says all that was written: the others are shown and not read.
    pub(crate) fn is_consistent(&self) -> bool {
        self.is_known && !self.details.in_use
    }

    /// How much of the disk one cluster of the bitmap tells of.
    pub(crate) fn span(&self, geometry: Geometry) -> u64 {
        (geometry.cluster_size() * 8).saturating_mul(self.details.granularity)
    }

    /// How many entries its table has for a disk of that geometry.
    pub(crate) fn entries_for(&self, geometry: Geometry) -> u64 {
        geometry.size.div_ceil(self.span(geometry))
    }

    /// Which parts of `range`, from its start on, are dirty (bit 0 of the status). An answer as
    /// [`BlockDevice::extents`] gives it: contiguous, not empty unless the range is, perhaps shorter than the range.
    /// At most `most` extents and a bounded part of the bitmap are looked at; no more than a piece is in memory.
    ///
    /// # Errors
    /// `Corrupt`, what reading `below` failed with: at `range`, which is the disk's.
    pub(crate) async fn extents(
        &self,
        below: &dyn BlockDevice,
        geometry: Geometry,
        range: ByteRange,
        most: usize,
    ) -> Result<Vec<Extent>> {
        let mut walk = Walk {
            bitmap: self,
            below,
            geometry,
            found: Vec::new(),
            most: most.max(1),
            pieces: 0,
        };
        let walked = walk.walk(range).await;
        walked.map_err(|error| {
            let error = error.during(Operation::Extents);
            error.moved_to(range.start(), range.len())
        })?;
        Ok(walk.found)
    }

    fn printable_name(&self) -> String {
        printable(OsStr::new(&self.details.name))
    }
}

/// Collects what is dirty.
struct Walk<'a> {
    bitmap: &'a Bitmap,
    below: &'a dyn BlockDevice,
    geometry: Geometry,
    found: Vec<Extent>,
    most: usize,
    /// How many were read.
    pieces: usize,
}

impl Walk<'_> {
    /// Whether the answer is as long as it may become. The last extent may still grow before.
    fn is_full(&self) -> bool {
        self.found.len() > self.most || self.pieces >= MOST_PIECES
    }

    async fn walk(&mut self, range: ByteRange) -> Result<()> {
        let (bitmap, geometry) = (self.bitmap, self.geometry);
        let range = range.intersection(ByteRange::between(0, geometry.size));
        let span = bitmap.span(geometry);
        if bitmap.table.len() / 8 < bitmap.entries_for(geometry) {
            let name = bitmap.printable_name();
            return Err(corrupt(format!(
                "the table of the bitmap \"{name}\" is too short for the disk"
            )));
        }
        for part in range.pieces(span.saturating_mul(TABLE_PIECE)) {
            let (first, end) = (part.start() / span, part.end().div_ceil(span));
            let at = bitmap.table.start();
            let table = ByteRange::between(at + first * 8, at + end * 8);
            self.check(table)?;
            let table = read_exact_at(self.below, table).await?;
            self.pieces += 1;
            for cluster in part.pieces(span) {
                let index = (cluster.start() / span - first) as usize;
                match Bits::decode(be64(&table, index * 8), geometry)? {
                    Bits::Zeroes => self.push(cluster, false),
                    Bits::Ones => self.push(cluster, true),
                    Bits::Host(host) => self.walk_data(host, cluster).await?,
                }
                if self.is_full() {
                    break;
                }
            }
            if self.is_full() {
                break;
            }
        }
        self.found.truncate(self.most);
        Ok(())
    }

    /// What the cluster of the bitmap at `host` says of `range`, which it tells of.
    async fn walk_data(&mut self, host: u64, range: ByteRange) -> Result<()> {
        let granularity = self.bitmap.details.granularity;
        let start = range.start() - range.start() % self.bitmap.span(self.geometry);
        for part in range.pieces(DATA_PIECE.saturating_mul(8 * granularity)) {
            let first = (part.start() - start) / granularity / 8;
            let end = (part.end() - start).div_ceil(granularity * 8);
            let data = table_range("the data of a bitmap", host, self.geometry.cluster_size())?;
            self.check(data)?;
            let bytes = ByteRange::between(host + first, host + end);
            let bytes = read_exact_at(self.below, bytes).await?;
            self.pieces += 1;
            self.push_bits(&bytes, start + first * 8 * granularity, part);
            if self.is_full() {
                break;
            }
        }
        Ok(())
    }

    /// What `bytes` say of `range`. Their first bit stands for what begins at `start`.
    fn push_bits(&mut self, bytes: &[u8], start: u64, range: ByteRange) {
        let granularity = self.bitmap.details.granularity;
        let mut at = start;
        for byte in bytes {
            let end = at.saturating_add(8 * granularity);
            match byte {
                0 | 0xff => self.push(ByteRange::between(at, end).intersection(range), *byte != 0),
                _ => {
                    for bit in 0..8 {
                        let at = at.saturating_add(bit * granularity);
                        let one = ByteRange::between(at, at.saturating_add(granularity));
                        self.push(one.intersection(range), byte >> bit & 1 == 1);
                    }
                }
            }
            if self.found.len() > self.most {
                return;
            }
            at = end;
        }
    }

    fn push(&mut self, range: ByteRange, is_dirty: bool) {
        let status = Status(is_dirty.into());
        push_merged(&mut self.found, Extent { range, status });
    }

    /// Refuses what does not lie in the file.
    fn check(&self, range: ByteRange) -> Result<()> {
        if range.end() <= self.below.info().size {
            return Ok(());
        }
        Err(corrupt(format!(
            "the bitmap \"{}\" lies past the end of the file",
            self.bitmap.printable_name()
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blockferry_block::{
        ErrorKind, MemoryDevice,
        testing::{Fault, FaultyDevice, Rule},
    };

    use super::*;
    use crate::qcow2::header::{BitmapsExtension, tests::header};

    fn bitmap(name: &str, granularity: u64, table: ByteRange) -> Bitmap {
        Bitmap {
            table,
            ..Bitmap::new(name, granularity)
        }
    }

    fn directory(count: u32, start: u64, bytes: &[u8]) -> Header {
        let mut header = header(3);
        header.autoclear = Autoclear::BITMAPS;
        header.bitmaps = Some(BitmapsExtension {
            count,
            directory: ByteRange::between(start, start + bytes.len() as u64),
        });
        header
    }

    async fn read(count: u32, bytes: &[u8]) -> Result<Vec<Bitmap>> {
        let header = directory(count, 0, bytes);
        read_directory(&MemoryDevice::from_bytes(bytes), &header).await
    }

    #[tokio::test]
    async fn a_directory_is_read_as_it_was_written() {
        let table = ByteRange::between(7 << 16, (7 << 16) + 24);
        let mut bitmaps = vec![bitmap("b0", 65536, table), bitmap("disk-1", 512, table)];
        bitmaps[1].details.in_use = true;
        bitmaps[1].details.auto = false;
        let bytes = encode_directory(&bitmaps);
        bitmaps[0].flags = Some((12, AUTO));
        bitmaps[1].flags = Some((44, IN_USE));
        bitmaps[1].entry = 32;
        assert_eq!(read(2, &bytes).await.expect("valid"), bitmaps);
        let marked = bitmaps.iter().map(Bitmap::marked_in_use);
        assert_eq!(
            marked.collect::<Vec<_>>(),
            [Some((12, AUTO | IN_USE)), None]
        );
        let below = MemoryDevice::from_bytes(bytes.clone());
        let mut forgotten = directory(2, 0, &bytes);
        forgotten.autoclear = Autoclear::empty();
        let none = read_directory(&below, &forgotten).await;
        assert!(none.expect("none").is_empty());
    }

    #[tokio::test]
    async fn absurd_entries_are_corrupt() {
        let table = ByteRange::between(7 << 16, (7 << 16) + 24);
        let sound = encode_directory(&[bitmap("b0", 65536, table)]);
        let changed = |at: usize, bytes: &[u8]| {
            let mut entry = sound.clone();
            entry[at..at + bytes.len()].copy_from_slice(bytes);
            entry
        };
        let mut longer = sound.clone();
        longer.extend([0; 8]);
        for (count, bytes, part) in [
            (1, changed(17, &[63]), "2^63 bytes"),
            (1, changed(18, &[0, 0]), "name of 0 bytes"),
            (1, changed(18, &[255, 0]), "name of 65280 bytes"),
            (1, changed(18, &[1, 0]), "ends within"),
            (1, changed(20, &[1]), "of extra data"),
            (1, changed(8, &[0xff]), "a table of 42"),
            (1, changed(6, &[1]), "at 0x70100"),
            (1, longer, "longer than its entries"),
            (2, [&sound[..], &sound[..]].concat(), "two bitmaps"),
            (2, sound.clone(), "ends within"),
            (65536, sound.clone(), "65536 bitmaps"),
        ] {
            let error = read(count, &bytes).await.expect_err("absurd");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(part), "{error}");
        }
        let outside = directory(1, 100, &sound);
        let error = read_directory(&MemoryDevice::from_bytes(sound.clone()), &outside).await;
        let error = error.expect_err("outside").to_string();
        assert!(error.contains("past the end of the file"), "{error}");
        let unknown = read(1, &changed(16, &[2])).await.expect("shown");
        assert!(!unknown[0].is_consistent());
    }

    /// A disk of 512-byte clusters whose bitmap has one bit for 512 bytes: 2 MiB for each cluster of bits. The
    /// first is all zeroes, the second lies at 512, the third is all ones, the fourth lies at 1024.
    fn image() -> (MemoryDevice, Geometry, Bitmap) {
        let mut bytes = Vec::new();
        for word in [0_u64, 512, 1, 1024] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.resize(512, 0);
        bytes.extend([0b0000_0110, 0xff]);
        bytes.resize(1024, 0);
        bytes.resize(1536, 0xaa);
        let geometry = Geometry {
            cluster_bits: 9,
            size: (8 << 20) - 100,
            ..header(3).geometry
        };
        let bitmap = bitmap("b", 512, ByteRange::between(0, 32));
        (MemoryDevice::from_bytes(bytes), geometry, bitmap)
    }

    #[tokio::test]
    async fn dirty_ranges_are_those_of_the_bits() {
        let (below, geometry, bitmap) = image();
        let is_dirty = |at: u64| match at >> 21 {
            0 => false,
            1 => {
                let bit = (at - (2 << 20)) / 512;
                matches!(bit, 1 | 2 | 8..16)
            }
            2 => true,
            _ => at / 512 % 2 == 1,
        };
        for most in [1, 2, 7, 10_000] {
            let mut at = 0;
            let mut answers = 0;
            while at < geometry.size {
                let rest = ByteRange::between(at, geometry.size);
                let found = bitmap.extents(&below, geometry, rest, most).await;
                let found = found.expect("sound");
                assert!(!found.is_empty() && found.len() <= most);
                for extent in &found {
                    assert_eq!(extent.range.start(), at);
                    let range = extent.range;
                    let inside = (range.start()..range.end()).step_by(256);
                    for at in inside.chain([range.end() - 1]) {
                        assert_eq!(extent.status, Status(is_dirty(at).into()), "{at}");
                    }
                    at = range.end();
                }
                answers += 1;
            }
            assert_eq!(at, geometry.size);
            assert!(most > 1 || answers > 4000);
        }
        let odd = ByteRange::between((2 << 20) + 1000, (2 << 20) + 1600);
        let found = bitmap.extents(&below, geometry, odd, 9).await;
        let found = found.expect("sound");
        let ends: Vec<_> = found.iter().map(|extent| extent.range.end()).collect();
        assert_eq!(ends, [(2 << 20) + 1536, (2 << 20) + 1600]);
        let none = bitmap.extents(&below, geometry, ByteRange::between(5, 5), 9);
        assert!(none.await.expect("empty").is_empty());
    }

    #[tokio::test]
    async fn tables_that_lie_are_corrupt() {
        let (below, geometry, sound) = image();
        let range = ByteRange::between(0, geometry.size);
        let mut short = sound.clone();
        short.table = ByteRange::between(0, 24);
        let mut outside = sound.clone();
        outside.table = ByteRange::between(1024, 1024 + (1 << 20));
        // The bits of the second cluster, read as places.
        let mut garbage = sound.clone();
        garbage.table = ByteRange::between(1024, 1056);
        for (bitmap, part) in [(short, "too short"), (garbage, "cannot be at 0xaaaaaaaa")] {
            let error = bitmap.extents(&below, geometry, range, 9).await;
            let error = error.expect_err("a lie");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.length(), Some(range.len()));
        }
        let large = Geometry {
            size: 1 << 40,
            ..geometry
        };
        outside.table = ByteRange::between(1024, 1024 + (8 << 20));
        let error = outside.extents(&below, large, ByteRange::between(1 << 39, 1 << 40), 9);
        let error = error.await.expect_err("outside").to_string();
        assert!(error.contains("past the end of the file"), "{error}");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error_at_the_range_that_was_asked_for() {
        let (below, geometry, bitmap) = image();
        let below = FaultyDevice::new(Arc::new(below));
        below.add(
            Rule::on(Operation::Read)
                .within(ByteRange::between(1024, 1536))
                .fault(Fault::Error(ErrorKind::Io)),
        );
        let range = ByteRange::between(1000, geometry.size);
        let error = bitmap.extents(&below, geometry, range, 100).await;
        let error = error.expect_err("a fault");
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(
            (error.offset(), error.operation()),
            (Some(1000), Some(Operation::Read))
        );
    }

    #[tokio::test]
    async fn an_absurd_disk_is_walked_in_bounded_steps() {
        let geometry = Geometry {
            cluster_bits: 9,
            size: 1 << 46,
            ..header(3).geometry
        };
        let below = FaultyDevice::new(Arc::new(MemoryDevice::new(1 << 30)));
        let bitmap = bitmap("b", 512, ByteRange::between(0, 1 << 28));
        let range = ByteRange::between(0, geometry.size);
        let found = bitmap.extents(&below, geometry, range, 1).await;
        let found = found.expect("zeroes");
        assert_eq!(found[0].range.start(), 0);
        assert_eq!(below.calls(Operation::Read), MOST_PIECES as u64);
    }
}
