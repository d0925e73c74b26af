//! The header of a VDI image, version 1.1, as VirtualBox writes it. All numbers are little-endian.
//!
//! ```text
//!   0x000 text: what program made it       0x15c geometry, which nobody needs    0x184 blocks that are allocated
//!   0x040 signature                        0x170 size of the disk                0x188 identity of the image
//!   0x044 version                          0x178 size of a block                 0x198 identity of its last change
//!   0x048 length of the header, from here  0x17c what lies before each block     0x1a8 identity of the parent
//!   0x04c type   0x050 flags               0x180 blocks of the disk              0x1b8 that of its last change
//!   0x054 comment                          0x154 where the block map lies        0x158 where blocks lie
//! ```

use blockferry_block::{BlockDevice, ByteRange, Error, ErrorKind, Result, read_exact_at};

use crate::{
    corrupt::corrupt,
    le::{le32, le64},
};

/// The length of a header with everything up to its end, as it is written here, in bytes.
pub(super) const LENGTH: u64 = 512;

/// What is needed of it: up to the end of the parent's identity.
const NEEDED: u64 = 0x1c8;

const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;

/// The smallest and the largest block that is read, in bytes. VirtualBox makes blocks of 1 MiB.
const BLOCKS: std::ops::RangeInclusive<u64> = 512..=1 << 30;

/// The unit of a disk in bytes.
pub(super) const SECTOR: u64 = 512;

/// What the text before the signature says.
const TEXT: &[u8] = b"<<< Oracle VM VirtualBox Disk Image >>>\n";

/// The header of an image that is read or made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) is_static: bool,
    /// Where the block map begins, in bytes.
    pub(super) map: u64,
    /// Where the first block begins, in bytes.
    pub(super) data: u64,
    /// The size of the disk in bytes.
    pub(super) size: u64,
    /// The size of a block in bytes: a power of two.
    pub(super) block: u64,
    /// How many bytes lie before the data of each block.
    pub(super) extra: u64,
    /// How many blocks the map has.
    pub(super) blocks: u64,
    /// How many of them are allocated.
    pub(super) allocated: u64,
    pub(super) uuid: [u8; 16],
    /// The identity of its last change.
    pub(super) modified: [u8; 16],
}

impl Header {
    /// Reads the header of the image in `below`.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` for an image that needs another one, and other versions; what reading failed with.
    pub(super) async fn read(below: &dyn BlockDevice) -> Result<Self> {
        if below.info().size < NEEDED {
            return Err(corrupt("it is too short to be a VDI image"));
        }
        let bytes = read_exact_at(below, ByteRange::between(0, NEEDED)).await?;
        Self::parse(&bytes)
    }

    /// Reads the first [`NEEDED`] bytes of an image.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        if le32(bytes, 0x40) != SIGNATURE {
            return Err(corrupt(
                "it is not a VDI image: it begins with something else",
            ));
        }
        let version = le32(bytes, 0x44);
        if version != VERSION {
            let (major, minor) = (version >> 16, version & 0xffff);
            let message = format!("VDI version {major}.{minor} is not supported: only 1.1 is");
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        // That of VirtualBox before it knew the geometry that a guest sees, and after.
        let length = le32(bytes, 0x48);
        if u64::from(length) < NEEDED - 0x48 {
            return Err(corrupt(format!("a header of {length} bytes is too short")));
        }
        let is_static = match le32(bytes, 0x4c) {
            1 => false,
            2 => true,
            3 => return Err(of_a_chain("an undo image")),
            4 => return Err(of_a_chain("a differencing image")),
            other => return Err(corrupt(format!("image type {other} is not known"))),
        };
        // Base images have none: qemu and VirtualBox leave both empty.
        if bytes[0x1a8..0x1c8].iter().any(|byte| *byte != 0) {
            return Err(of_a_chain("an image with a parent"));
        }
        let uuid = |at: usize| {
            let mut uuid = [0; 16];
            uuid.copy_from_slice(&bytes[at..at + 16]);
            uuid
        };
        let number = |at: usize| u64::from(le32(bytes, at));
        let header = Self {
            is_static,
            map: number(0x154),
            data: number(0x158),
            size: le64(bytes, 0x170),
            block: number(0x178),
            extra: number(0x17c),
            blocks: number(0x180),
            allocated: number(0x184),
            uuid: uuid(0x188),
            modified: uuid(0x198),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<()> {
        if !self.block.is_power_of_two() || !BLOCKS.contains(&self.block) {
            return Err(corrupt(format!(
                "there are no blocks of {} bytes",
                self.block
            )));
        }
        // 2^32 blocks of 1 GiB each end before 2^63.
        if self.size > self.blocks * self.block {
            return Err(corrupt(format!(
                "the disk has {} bytes, and its {} blocks of {} bytes have fewer",
                self.size, self.blocks, self.block
            )));
        }
        if self.map < NEEDED {
            return Err(corrupt(format!(
                "the block map lies at {:#x}, in the header",
                self.map
            )));
        }
        Ok(())
    }

    /// The header as it stands at the beginning of an image.
    pub(super) fn encode(&self) -> [u8; LENGTH as usize] {
        let mut bytes = [0; LENGTH as usize];
        bytes[..TEXT.len()].copy_from_slice(TEXT);
        let mut put = |at: usize, value: u64| {
            // What is made here is checked to fit before.
            bytes[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
        };
        put(0x40, SIGNATURE.into());
        put(0x44, VERSION.into());
        // With the geometry that a guest sees, which is left to whoever runs it.
        put(0x48, 0x190);
        put(0x4c, if self.is_static { 2 } else { 1 });
        put(0x154, self.map);
        put(0x158, self.data);
        put(0x168, SECTOR);
        put(0x170, self.size & 0xffff_ffff);
        put(0x174, self.size >> 32);
        put(0x178, self.block);
        put(0x17c, self.extra);
        put(0x180, self.blocks);
        put(0x184, self.allocated);
        bytes[0x188..0x198].copy_from_slice(&self.uuid);
        bytes[0x198..0x1a8].copy_from_slice(&self.modified);
        bytes
    }
}

fn of_a_chain(what: &str) -> Error {
    let message =
        format!("it is {what}, whose parent VirtualBox alone knows: that is not supported");
    Error::with_message(ErrorKind::Unsupported, message)
}
