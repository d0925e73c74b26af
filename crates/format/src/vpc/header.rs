//! The header of a dynamic or differencing image (specification, "Dynamic Disk Header Format"): where the table of
//! blocks lies, and who the parent is.

use blockferry_block::{BlockDevice, ByteRange, Error, ErrorKind, Result, read_exact_at};

use super::footer::{Footer, SECTOR, VERSION, checksum};
use crate::{
    be::{be32, be64},
    corrupt::corrupt,
};

/// Its length in bytes.
pub(super) const LENGTH: u64 = 1024;

const COOKIE: &[u8; 8] = b"cxsparse";

/// Where the parent's locators stand, and how long each is.
const LOCATORS: std::ops::Range<usize> = 576..768;
const LOCATOR: usize = 24;

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Where it lies.
    pub(super) place: ByteRange,
    /// Where the table lies, in bytes.
    pub(super) table: u64,
    /// How many entries it has.
    pub(super) entries: u64,
    /// The size of a block in bytes: a power of two.
    pub(super) block: u64,
    /// The identity of the parent.
    pub(super) parent_uuid: [u8; 16],
    /// The parent's name in UTF-16, big-endian, up to its end.
    pub(super) parent_name: Vec<u8>,
    pub(super) locators: Vec<Locator>,
}

/// A place where a name of the parent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Locator {
    /// What kind of name it is.
    pub(super) platform: [u8; 4],
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Header {
    /// Reads the header of the image in `below`, which has this footer and a disk of `size` bytes.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, what reading failed with.
    pub(super) async fn read(below: &dyn BlockDevice, footer: &Footer, size: u64) -> Result<Self> {
        let end = below.info().size;
        let at = footer.data_offset;
        let place = ByteRange::new(at, LENGTH).ok();
        let Some(place) = place.filter(|place| place.end() <= end) else {
            return Err(corrupt(format!(
                "the header lies at {at:#x}, past the end of the file"
            )));
        };
        let bytes = read_exact_at(below, place).await?;
        let header = Self::parse(&bytes, place)?;
        let room = header.entries * header.block;
        if size > room {
            return Err(corrupt(format!(
                "the disk has {size} bytes, and its {} blocks of {} bytes have fewer",
                header.entries, header.block
            )));
        }
        Ok(header)
    }

    fn parse(bytes: &[u8], place: ByteRange) -> Result<Self> {
        if !bytes.starts_with(COOKIE) {
            let at = place.start();
            return Err(corrupt(format!("there is no header at {at:#x}")));
        }
        let (stored, expected) = (be32(bytes, 36), checksum(bytes, 36));
        if stored != expected {
            return Err(corrupt(format!(
                "the header's checksum is {stored:#010x}, and its bytes have {expected:#010x}"
            )));
        }
        let version = be32(bytes, 24);
        if version >> 16 != VERSION >> 16 {
            let message = format!("VHD header version {version:#x} is not supported");
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        let block = u64::from(be32(bytes, 32));
        if !block.is_power_of_two() || block < SECTOR {
            return Err(corrupt(format!("there are no blocks of {block} bytes")));
        }
        let mut parent_uuid = [0; 16];
        parent_uuid.copy_from_slice(&bytes[40..56]);
        let name = bytes[64..576].chunks_exact(2);
        let name = name.take_while(|unit| *unit != [0, 0]).flatten();
        let locators = bytes[LOCATORS].chunks_exact(LOCATOR).filter_map(|bytes| {
            let mut platform = [0; 4];
            platform.copy_from_slice(&bytes[..4]);
            let locator = Locator {
                platform,
                offset: be64(bytes, 16),
                length: u64::from(be32(bytes, 8)),
            };
            (platform != [0; 4] && locator.length > 0).then_some(locator)
        });
        Ok(Self {
            place,
            table: be64(bytes, 16),
            entries: u64::from(be32(bytes, 28)),
            block,
            parent_uuid,
            parent_name: name.copied().collect(),
            locators: locators.collect(),
        })
    }

    /// The header of an image without a parent as it stands in a file.
    pub(super) fn encode(&self) -> [u8; LENGTH as usize] {
        let mut bytes = [0; LENGTH as usize];
        bytes[..8].copy_from_slice(COOKIE);
        // There is no next structure.
        bytes[8..16].fill(0xff);
        bytes[16..24].copy_from_slice(&self.table.to_be_bytes());
        bytes[24..28].copy_from_slice(&VERSION.to_be_bytes());
        // What is made here is checked to fit before.
        bytes[28..32].copy_from_slice(&(self.entries as u32).to_be_bytes());
        bytes[32..36].copy_from_slice(&(self.block as u32).to_be_bytes());
        let sum = checksum(&bytes, 36);
        bytes[36..40].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}
