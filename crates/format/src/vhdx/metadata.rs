//! The metadata: how large the disk is, how it is cut, and where its parent is (specification, section 2.6).

use blockferry_block::{Buffer, ByteRange, Result};

use super::{
    geometry::Geometry,
    guid::Guid,
    header::{MOST_ENTRIES, Regions, bytes_at, incompatible},
    locator::Parent,
};
use crate::{
    corrupt::corrupt,
    host::HostFile,
    le::{le16, le32, le64},
};

const SIGNATURE: &[u8] = b"metadata";
/// How long the table of items is, and where the first item can begin.
const TABLE_LENGTH: u64 = 64 << 10;
/// How long an item can be.
const MOST_LENGTH: u32 = 1 << 20;
/// How many items can be a user's.
const MOST_USER_ITEMS: usize = 1024;

/// Bits of an entry.
const IS_USER: u32 = 1 << 0;
const IS_OF_DISK: u32 = 1 << 1;
const IS_REQUIRED: u32 = 1 << 2;

/// Bits of the file parameters.
const LEAVE_ALLOCATED: u32 = 1 << 0;
const HAS_PARENT: u32 = 1 << 1;

/// The largest disk that there is.
pub(super) const MOST_SIZE: u64 = 64 << 40;
pub(super) const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 1 << 20..=256 << 20;

/// How many items of the system are known.
const KNOWN: usize = 6;

/// Those items, in this order.
const ITEMS: [(Guid, &str); KNOWN] = [
    (
        Guid::new(0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b),
        "the file parameters",
    ),
    (
        Guid::new(0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8),
        "the virtual disk's size",
    ),
    (
        Guid::new(0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746),
        "the virtual disk's identifier",
    ),
    (
        Guid::new(0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f),
        "the logical sector size",
    ),
    (
        Guid::new(0xcda3_48c7_445d_4471_9cc9_e988_5251_c556),
        "the physical sector size",
    ),
    (
        Guid::new(0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c),
        "the parent locator",
    ),
];

/// What the metadata say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) geometry: Geometry,
    pub(crate) physical_sector_size: u32,
    /// What identifies the disk: what SCSI calls page 83.
    pub(crate) disk: Guid,
    /// All blocks stay allocated.
    pub(crate) is_fixed: bool,
    /// What shows where the image has nothing of its own.
    pub(crate) parent: Option<Parent>,
}

impl Metadata {
    /// Reads them from `file`, which has been replayed where that is needed.
    ///
    /// # Errors
    /// `Corrupt`, `Incompatible` for items that have to be understood and are not, what reading failed with.
    pub(crate) async fn read(file: &HostFile, regions: Regions) -> Result<Self> {
        let region = regions.metadata;
        if region.end() > file.end() {
            return Err(corrupt("the metadata end past the end of the file"));
        }
        let table = bytes_at(file, region.start(), TABLE_LENGTH).await?;
        let places = places(&table, region.len())?;
        let item = async |number: usize, length: u64| -> Result<Buffer> {
            let name = ITEMS[number].1;
            let Some(place) = places[number] else {
                return Err(corrupt(format!("{name}: not in the metadata")));
            };
            if place.len() != length {
                let found = place.len();
                return Err(corrupt(format!(
                    "{name}: {found} bytes instead of {length}"
                )));
            }
            bytes_at(file, region.start() + place.start(), length).await
        };
        let parameters = item(0, 8).await?;
        let size = le64(&item(1, 8).await?, 0);
        let disk = Guid::at(&item(2, 16).await?, 0);
        let logical = le32(&item(3, 4).await?, 0);
        let physical_sector_size = le32(&item(4, 4).await?, 0);
        let (block_size, flags) = (le32(&parameters, 0), le32(&parameters, 4));
        check(block_size, size, logical, physical_sector_size)?;
        let has_parent = flags & HAS_PARENT != 0;
        let geometry = Geometry {
            block_bits: block_size.trailing_zeros(),
            sector_bits: logical.trailing_zeros(),
            size,
            has_parent,
            bat: regions.bat,
        };
        let needed = geometry.bat_length();
        if needed > regions.bat.len() {
            return Err(corrupt(format!(
                "the block allocation table has {} bytes, and a disk of {size} bytes needs {needed}",
                regions.bat.len()
            )));
        }
        if regions.bat.start() + needed > file.end() {
            return Err(corrupt(
                "the block allocation table ends past the end of the file",
            ));
        }
        let parent = match (has_parent, places[5]) {
            (false, _) => None,
            (true, None) => {
                return Err(corrupt("it has a parent and does not say where that is"));
            }
            (true, Some(place)) => {
                let bytes = bytes_at(file, region.start() + place.start(), place.len()).await?;
                Some(Parent::parse(&bytes)?)
            }
        };
        Ok(Self {
            geometry,
            physical_sector_size,
            disk,
            is_fixed: flags & LEAVE_ALLOCATED != 0 && !has_parent,
            parent,
        })
    }
}

impl Metadata {
    /// The region's bytes up to the end of the last item, of an image without a parent.
    pub(super) fn encode(&self) -> Vec<u8> {
        let geometry = self.geometry;
        let flags = match self.is_fixed {
            true => LEAVE_ALLOCATED,
            false => 0,
        };
        let parameters = [1 << geometry.block_bits, flags].map(u32::to_le_bytes);
        let logical = 1_u32 << geometry.sector_bits;
        let items: [(u32, &[u8]); KNOWN - 1] = [
            (IS_REQUIRED, parameters.as_flattened()),
            (IS_REQUIRED | IS_OF_DISK, &geometry.size.to_le_bytes()),
            (IS_REQUIRED | IS_OF_DISK, &self.disk.0),
            (IS_REQUIRED | IS_OF_DISK, &logical.to_le_bytes()),
            (
                IS_REQUIRED | IS_OF_DISK,
                &self.physical_sector_size.to_le_bytes(),
            ),
        ];
        let mut table = SIGNATURE.to_vec();
        table.extend([0, 0, items.len() as u8, 0]);
        table.resize(32, 0);
        let mut values: Vec<u8> = Vec::new();
        for ((guid, _), (flags, value)) in ITEMS.iter().zip(items) {
            let place = TABLE_LENGTH as u32 + values.len() as u32;
            table.extend(guid.0);
            for number in [place, value.len() as u32, flags, 0] {
                table.extend(number.to_le_bytes());
            }
            values.extend(value);
        }
        table.resize(TABLE_LENGTH as usize, 0);
        table.extend(values);
        table
    }
}

/// Where the items that are known lie, from the beginning of the region on, which has `region_length` bytes.
fn places(table: &[u8], region_length: u64) -> Result<[Option<ByteRange>; KNOWN]> {
    if !table.starts_with(SIGNATURE) {
        return Err(corrupt("the metadata begin with something else"));
    }
    let count = usize::from(le16(table, 10));
    if count > MOST_ENTRIES {
        return Err(corrupt(format!(
            "{count} items of metadata: there can be at most {MOST_ENTRIES}"
        )));
    }
    let mut places = [None; KNOWN];
    let mut of_users = 0;
    for entry in table[32..].chunks_exact(32).take(count) {
        let (guid, flags) = (Guid::at(entry, 0), le32(entry, 24));
        let is_user = flags & IS_USER != 0;
        of_users += usize::from(is_user);
        let known = ITEMS.iter().position(|(item, _)| *item == guid);
        let Some(known) = known.filter(|_| !is_user) else {
            if flags & IS_REQUIRED != 0 {
                return Err(incompatible(format!(
                    "the item {guid} of the metadata is required and not supported"
                )));
            }
            continue;
        };
        let name = ITEMS[known].1;
        let (offset, length) = (le32(entry, 16), le32(entry, 20));
        let end = u64::from(offset) + u64::from(length);
        let is_inside = u64::from(offset) >= TABLE_LENGTH && end <= region_length;
        if length > MOST_LENGTH || (length > 0 && !is_inside) {
            return Err(corrupt(format!(
                "{name}: {length} bytes at {offset:#x} of the metadata, where nothing can lie"
            )));
        }
        let place = ByteRange::between(offset.into(), end);
        if places[known].replace(place).is_some() {
            return Err(corrupt(format!("{name}: twice in the metadata")));
        }
    }
    if of_users > MOST_USER_ITEMS {
        return Err(corrupt(format!(
            "{of_users} items of metadata are a user's: there can be at most {MOST_USER_ITEMS}"
        )));
    }
    Ok(places)
}

fn check(block_size: u32, size: u64, logical: u32, physical: u32) -> Result<()> {
    if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
        return Err(corrupt(format!(
            "blocks of {block_size} bytes: VHDX has 1 MiB to 256 MiB, a power of two"
        )));
    }
    for (sector, kind) in [(logical, "logical"), (physical, "physical")] {
        if !matches!(sector, 512 | 4096) {
            return Err(corrupt(format!(
                "{kind} sectors of {sector} bytes: VHDX has 512 or 4096"
            )));
        }
    }
    if size > MOST_SIZE || !size.is_multiple_of(logical.into()) {
        return Err(corrupt(format!(
            "a virtual size of {size} bytes: it is 64 TiB at most, in whole sectors of {logical} bytes"
        )));
    }
    Ok(())
}
