//! An image that is made: a fixed one is the disk and a footer, a dynamic one has the layout that qemu gives it.
//!
//! ```text
//!   footer | header | table of blocks | bitmap, block | bitmap, block | ... | footer
//! ```

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use blockferry_block::{BlockDevice, ByteRange, Error, ErrorKind, Operation, Result};

use super::{
    CreateOptions, Kind,
    footer::{Footer, LARGEST, LENGTH, SECTOR},
    geometry::Geometry,
    header::{self, Header},
    table::{UNUSED, bitmap_length},
};
use crate::{
    NewImage,
    blocks::making::{Complete, Ending, Layout, Making},
    uuid,
};

/// The size of a block in bytes: everybody's.
const BLOCK: u64 = 2 << 20;

/// Where the table lies.
const TABLE: u64 = LENGTH + header::LENGTH;

/// What Azure wants disks to be multiples of, in bytes.
const AZURE: u64 = 1 << 20;

/// The beginning of the year 2000, from which footers count seconds, after that of 1970.
const EPOCH: u64 = 946_684_800;

/// Begins an image in `below`, which can grow or is large enough. There is no valid image in it before it is
/// [finished](NewImage::finish).
///
/// Its disk may be larger than was asked for: as large as the next geometry, unless [`CreateOptions::force_size`] says
/// otherwise, or as Azure wants it. What is more is zero.
///
/// # Errors
/// `InvalidInput` for a disk that is too large, and for a fixed image on a device of another size; what writing failed
/// with.
pub async fn create(
    below: Arc<dyn BlockDevice>,
    options: CreateOptions,
) -> Result<Arc<dyn NewImage>> {
    let failed = |error: Error| error.during(Operation::Open);
    let ending = NewFooter::new(&options).map_err(failed)?;
    ending.check(options.size.unwrap_or(0)).map_err(failed)?;
    let layout = match ending.is_fixed() {
        true => {
            ending.check_end(&*below, options.size).map_err(failed)?;
            Layout {
                first: 0,
                block: None,
                bitmap: 0,
                has_footer: true,
            }
        }
        false => Layout {
            first: ending.first,
            block: Some(BLOCK),
            bitmap: bitmap_length(BLOCK),
            has_footer: true,
        },
    };
    let making = Making::begin(below, options.size, layout, Box::new(ending)).await?;
    Ok(Arc::new(making))
}

/// The footer to be, and the table and the header of a dynamic image.
pub(super) struct NewFooter {
    kind: Kind,
    sizing: Sizing,
    /// Where the first block begins.
    first: u64,
    uuid: [u8; 16],
    timestamp: u32,
}

/// How large a disk becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sizing {
    /// As the next geometry has it.
    Geometry,
    /// As was asked for, in whole sectors.
    Exact,
    /// As Azure wants it.
    Azure,
}

impl NewFooter {
    pub(super) fn new(options: &CreateOptions) -> Result<Self> {
        let sizing = match (options.azure, options.force_size) {
            (true, _) => Sizing::Azure,
            (false, true) => Sizing::Exact,
            (false, false) => Sizing::Geometry,
        };
        let kind = match (options.azure, options.kind) {
            (true, _) => Kind::Fixed,
            (false, Kind::Differencing) => {
                let message = "differencing VHD images are not made";
                return Err(Error::with_message(ErrorKind::InvalidInput, message));
            }
            (false, kind) => kind,
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = since.map_or(0, |since| since.as_secs().saturating_sub(EPOCH));
        let mut new = Self {
            kind,
            sizing,
            first: 0,
            uuid: uuid::random()?,
            timestamp: u32::try_from(seconds).unwrap_or(u32::MAX),
        };
        // Where nobody knows how large the disk becomes, the table gets room for the largest one.
        let disk = match options.size {
            Some(size) if size <= LARGEST => new.measure(size).0,
            _ => LARGEST,
        };
        new.first = TABLE + (disk.div_ceil(BLOCK) * 4).next_multiple_of(SECTOR);
        Ok(new)
    }

    pub(super) fn is_fixed(&self) -> bool {
        self.kind == Kind::Fixed
    }

    /// The size of the disk that becomes of `size` bytes, and its geometry. As qemu has it: who takes the size from
    /// the geometry gets all of it; a disk of a size that is no geometry's says the largest one, which nobody takes
    /// it from.
    pub(super) fn measure(&self, size: u64) -> (u64, Geometry) {
        match self.sizing {
            Sizing::Exact => (size.next_multiple_of(SECTOR), Geometry::LARGEST),
            Sizing::Azure => (size.next_multiple_of(AZURE), Geometry::LARGEST),
            Sizing::Geometry => match Geometry::with_room(size.div_ceil(SECTOR)) {
                Geometry::LARGEST => (size.next_multiple_of(SECTOR), Geometry::LARGEST),
                geometry => (geometry.size(), geometry),
            },
        }
    }

    /// Refuses a device that goes on behind a fixed image, whose footer is looked for at its end.
    fn check_end(&self, below: &dyn BlockDevice, size: Option<u64>) -> Result<()> {
        let info = below.info();
        if info.can(blockferry_block::Capabilities::RESIZE) {
            return Ok(());
        }
        let end = size.map(|size| self.measure(size).0 + LENGTH);
        if end == Some(info.size) {
            return Ok(());
        }
        let message = match end {
            Some(end) => format!(
                "a fixed VHD image of {end} bytes ends with its footer, and here are {} bytes",
                info.size
            ),
            None => "a fixed VHD image of unknown size needs a file".to_owned(),
        };
        Err(Error::with_message(ErrorKind::InvalidInput, message))
    }

    /// The footer of a disk of `size` bytes before it is rounded.
    pub(super) fn footer(&self, size: u64) -> Footer {
        let (current_size, geometry) = self.measure(size);
        Footer {
            data_offset: match self.is_fixed() {
                true => u64::MAX,
                false => LENGTH,
            },
            timestamp: self.timestamp,
            creator: match self.sizing {
                Sizing::Geometry => *b"qemu",
                Sizing::Exact | Sizing::Azure => *b"qem2",
            },
            current_size,
            geometry,
            kind: self.kind,
            uuid: self.uuid,
            has_saved_state: false,
        }
    }

    fn table(&self, entries: u64, places: &[Option<u32>]) -> (Vec<u8>, u64) {
        let stride = BLOCK + bitmap_length(BLOCK);
        let mut table = Vec::with_capacity(entries as usize * 4);
        let mut used = 0;
        for index in 0..entries {
            let place = places.get(index as usize).copied().flatten();
            // The last block ends before 2 TiB.
            let entry = place.map(|place| {
                used = used.max(u64::from(place) + 1);
                ((self.first + u64::from(place) * stride) / SECTOR) as u32
            });
            table.extend(entry.unwrap_or(UNUSED).to_be_bytes());
        }
        table.resize(table.len().next_multiple_of(SECTOR as usize), 0xff);
        (table, self.first + used * stride)
    }
}

impl Ending for NewFooter {
    fn check(&self, size: u64) -> Result<()> {
        if size <= LARGEST && self.measure(size).0 <= LARGEST {
            return Ok(());
        }
        let message = format!("a VHD image has {LARGEST} bytes (2040 GiB) at most, not {size}");
        Err(Error::with_message(ErrorKind::InvalidInput, message))
    }

    fn complete(&self, size: u64, places: &[Option<u32>]) -> Result<Complete> {
        self.check(size)?;
        let footer = self.footer(size);
        let disk = footer.current_size;
        let footer = footer.encode().to_vec();
        if self.is_fixed() {
            return Ok(Complete {
                tables: Vec::new(),
                header: (disk, footer),
                disk,
                end: disk + LENGTH,
            });
        }
        let entries = disk.div_ceil(BLOCK);
        let (table, end) = self.table(entries, places);
        let header = Header {
            place: ByteRange::between(LENGTH, TABLE),
            table: TABLE,
            entries,
            block: BLOCK,
            parent_uuid: [0; 16],
            parent_name: Vec::new(),
            locators: Vec::new(),
        };
        let mut head = footer.clone();
        head.extend(header.encode());
        Ok(Complete {
            tables: vec![(TABLE, table), (end, footer)],
            header: (0, head),
            disk,
            end: end + LENGTH,
        })
    }
}
