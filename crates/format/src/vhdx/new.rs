//! An image that is made:
//!
//! ```text
//!   header section | log, empty | metadata | block allocation table | blocks, in whole MiB
//! ```

use std::sync::Arc;

use blockferry_block::{BlockDevice, ByteRange, Error, ErrorKind, Operation, Result};

use super::{
    CreateOptions,
    bat::{self, NOT_PRESENT, ZERO},
    geometry::{ENTRY, Geometry},
    guid::Guid,
    header::{self, MIB, Regions},
    metadata::{BLOCK_SIZES, MOST_SIZE, Metadata},
};
use crate::{
    NewImage,
    blocks::making::{Complete, Ending, Layout, Making},
    uuid,
};

/// The size of a logical sector, as a power of two, and in bytes.
const SECTOR_BITS: u32 = 9;
const SECTOR: u64 = 1 << SECTOR_BITS;

/// The size of a physical sector in bytes: what qemu says it is.
const PHYSICAL_SECTOR: u32 = 512;

/// The length of a log unless told otherwise, in bytes: the shortest.
const LOG: u64 = MIB;

/// Begins an image in `below`, which can grow or is large enough. There is no valid image in it before it is
/// [finished](NewImage::finish). Its disk is rounded up to whole sectors of 512 bytes.
///
/// # Errors
/// `InvalidInput` for options that make no sense; what writing failed with.
pub async fn create(
    below: Arc<dyn BlockDevice>,
    options: CreateOptions,
) -> Result<Arc<dyn NewImage>> {
    let failed = |error: Error| error.during(Operation::Open);
    let ending = NewParts::new(&options).map_err(failed)?;
    let layout = Layout {
        first: ending.data(),
        block: (!options.is_fixed).then(|| ending.room.block_size()),
        bitmap: 0,
        has_footer: false,
    };
    let making = Making::begin(below, options.size, layout, Box::new(ending)).await?;
    Ok(Arc::new(making))
}

/// What is in the image beside blocks.
struct NewParts {
    is_fixed: bool,
    /// The state of a block that has no place.
    absent: u64,
    /// That of the largest disk that the table has room for.
    room: Geometry,
    log: ByteRange,
    metadata: ByteRange,
    file_write: Guid,
    data_write: Guid,
    disk: Guid,
}

impl NewParts {
    fn new(options: &CreateOptions) -> Result<Self> {
        let size = options.size.unwrap_or(MOST_SIZE);
        let block_size = options.block_size.unwrap_or(usual_block(size));
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            return Err(invalid(format!(
                "blocks of {block_size} bytes: they have 1 MiB to 256 MiB, a power of two"
            )));
        }
        let log = options.log_size.map_or(LOG, u64::from);
        if log == 0 || !log.is_multiple_of(MIB) {
            return Err(invalid(format!(
                "a log of {log} bytes: it has whole MiB, and one at least"
            )));
        }
        let log = ByteRange::between(MIB, MIB + log);
        let metadata = ByteRange::between(log.end(), log.end() + MIB);
        let mut room = Geometry {
            block_bits: block_size.trailing_zeros(),
            sector_bits: SECTOR_BITS,
            size: size.min(MOST_SIZE),
            has_parent: false,
            bat: ByteRange::between(metadata.end(), metadata.end()),
        };
        let table = room.bat_length().next_multiple_of(MIB).max(MIB);
        room.bat = ByteRange::between(metadata.end(), metadata.end() + table);
        let guid = || uuid::random().map(|bytes| Guid::new(u128::from_be_bytes(bytes)));
        Ok(Self {
            is_fixed: options.is_fixed,
            absent: match options.leaves_undefined {
                true => NOT_PRESENT,
                false => ZERO,
            },
            room,
            log,
            metadata,
            file_write: guid()?,
            data_write: guid()?,
            disk: guid()?,
        })
    }

    /// Where the first block can lie.
    fn data(&self) -> u64 {
        self.room.bat.end()
    }

    /// The numbers for a disk of `size` bytes before it is rounded.
    fn geometry(&self, size: u64) -> Geometry {
        Geometry {
            size: size.next_multiple_of(SECTOR),
            ..self.room
        }
    }

    /// The block allocation table, and how many places it uses.
    fn table(&self, geometry: Geometry, places: &[Option<u32>]) -> (Vec<u8>, u64) {
        let blocks = geometry.size.div_ceil(geometry.block_size());
        let mut table = vec![0; geometry.bat_length() as usize];
        let mut used = 0;
        for block in 0..blocks {
            let place = match self.is_fixed {
                true => Some(block),
                false => places.get(block as usize).copied().flatten().map(u64::from),
            };
            let word = match place {
                Some(place) => {
                    used = used.max(place + 1);
                    bat::present(self.data() + place * geometry.block_size())
                }
                None => self.absent,
            };
            let at = (geometry.entry_of(block) - geometry.bat.start()) as usize;
            table[at..at + ENTRY as usize].copy_from_slice(&word.to_le_bytes());
        }
        (table, used)
    }
}

impl Ending for NewParts {
    fn check(&self, size: u64) -> Result<()> {
        if size <= self.room.size.next_multiple_of(SECTOR) {
            return Ok(());
        }
        Err(invalid(format!(
            "a VHDX image has {MOST_SIZE} bytes (64 TiB) at most, not {size}"
        )))
    }

    fn complete(&self, size: u64, places: &[Option<u32>]) -> Result<Complete> {
        self.check(size)?;
        let geometry = self.geometry(size);
        let (table, used) = self.table(geometry, places);
        let metadata = Metadata {
            geometry,
            physical_sector_size: PHYSICAL_SECTOR,
            disk: self.disk,
            is_fixed: self.is_fixed,
            parent: None,
        };
        let regions = Regions {
            bat: geometry.bat,
            metadata: self.metadata,
        };
        Ok(Complete {
            tables: vec![
                header::encode(self.file_write, self.data_write, self.log, regions),
                (self.metadata.start(), metadata.encode()),
                (geometry.bat.start(), table),
            ],
            header: (0, header::identify()),
            disk: geometry.size,
            end: self.data() + used * geometry.block_size(),
        })
    }
}

/// The size of a block of a disk of `size` bytes unless told otherwise, in bytes: qemu's.
fn usual_block(size: u64) -> u32 {
    match size {
        size if size > 32 << 40 => 64 << 20,
        size if size > 100 << 30 => 32 << 20,
        size if size > 1 << 30 => 16 << 20,
        _ => 8 << 20,
    }
}

fn invalid(message: String) -> Error {
    Error::with_message(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use blockferry_block::{Buffer, Capabilities, MemoryDevice, WriteFlags, testing::FaultyDevice};

    use super::*;
    use crate::{NoRelatives, OpenOptions, vhdx};

    const SIZE: u64 = (20 << 20) + 700;

    /// The image that options make of three pieces of data, as it is read again.
    async fn made(options: CreateOptions) -> (Arc<dyn BlockDevice>, vhdx::Details) {
        let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(64 << 20));
        let new = create(Arc::clone(&file), options).await.expect("begun");
        for (offset, byte) in [(0, 1), (9 << 20, 2), (SIZE - 700, 3)] {
            let mut data = Buffer::zeroed(512);
            data.fill(byte);
            new.write(offset, data, WriteFlags::empty())
                .await
                .expect("written");
        }
        new.finish().await.expect("finished");
        let details = vhdx::Details::read(&file).await.expect("an image");
        let image = vhdx::open(file, &NoRelatives, &OpenOptions::default()).await;
        (image.expect("an image"), details)
    }

    #[tokio::test]
    async fn what_is_made_is_read_again() {
        let options = |change: fn(&mut CreateOptions)| {
            let mut options = CreateOptions {
                size: Some(SIZE),
                ..CreateOptions::default()
            };
            change(&mut options);
            options
        };
        for (options, block) in [
            (options(|_| ()), 8 << 20),
            (options(|it| it.is_fixed = true), 8 << 20),
            (options(|it| it.leaves_undefined = true), 8 << 20),
            (options(|it| it.block_size = Some(1 << 20)), 1 << 20),
            (options(|it| it.log_size = Some(3 << 20)), 8 << 20),
        ] {
            let (is_fixed, text) = (options.is_fixed, format!("{options:?}"));
            let (image, details) = made(options).await;
            assert_eq!(details.virtual_size, SIZE.next_multiple_of(512), "{text}");
            assert_eq!(details.block_size, block, "{text}");
            assert_eq!((details.is_fixed, details.is_dirty), (is_fixed, false));
            for (offset, byte) in [
                (0, 1),
                (512, 0),
                (9 << 20, 2),
                ((9 << 20) - 512, 0),
                (SIZE - 700, 3),
                (SIZE - 188, 0),
            ] {
                let read = image.read(offset, Buffer::zeroed(512)).await;
                let read = read.expect("read");
                assert!(read.iter().all(|it| *it == byte), "{text}: {offset}");
            }
        }
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused() {
        for change in [
            |it: &mut CreateOptions| it.block_size = Some(3 << 20),
            |it: &mut CreateOptions| it.block_size = Some(512 << 10),
            |it: &mut CreateOptions| it.log_size = Some(512),
            |it: &mut CreateOptions| it.size = Some((64 << 40) + 1),
        ] {
            let mut options = CreateOptions {
                size: Some(SIZE),
                ..CreateOptions::default()
            };
            change(&mut options);
            let file = FaultyDevice::new(Arc::new(MemoryDevice::new(1 << 20)))
                .with_info(|info| info.capabilities |= Capabilities::RESIZE);
            let text = format!("{options:?}");
            let refused = create(Arc::new(file), options).await.expect_err(&text);
            assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{text}");
        }
    }
}
