//! The footer of a VHD image: the last 512 bytes of the file, 511 in images of old Virtual PCs (specification, "Hard Disk
//! Footer Format"). Images that are no fixed ones begin with a copy of it. All numbers are big-endian.

use blockferry_block::{BlockDevice, ByteRange, Error, ErrorKind, Result, read_exact_at};

use super::{Kind, geometry::Geometry};
use crate::{
    be::{be16, be32, be64},
    corrupt::corrupt,
};

/// The length of a footer in bytes, and that in old images.
pub(super) const LENGTH: u64 = 512;
const OLD_LENGTH: u64 = 511;

pub(super) const COOKIE: &[u8; 8] = b"conectix";
/// The only version that there is.
pub(super) const VERSION: u32 = 0x0001_0000;

/// The unit of disks in bytes.
pub(super) const SECTOR: u64 = 512;

/// The largest disk in bytes: 2040 GiB, as qemu, Hyper-V and Azure have it.
pub(super) const LARGEST: u64 = 2040 << 30;

/// A footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// Where the header of a dynamic image lies; [`u64::MAX`] in fixed ones.
    pub(super) data_offset: u64,
    /// In seconds since the year 2000.
    pub(super) timestamp: u32,
    /// The program that made it.
    pub(super) creator: [u8; 4],
    /// The size of the disk in bytes, unless the [geometry](Self::size) says it.
    pub(super) current_size: u64,
    pub(super) geometry: Geometry,
    pub(super) kind: Kind,
    pub(super) uuid: [u8; 16],
    pub(super) has_saved_state: bool,
}

/// A footer that was found in a file.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) footer: Footer,
    /// The end of what may be data: where the footer at the end begins.
    pub(super) end: u64,
    /// It is the copy at the beginning, because what stands at the end is no footer.
    pub(super) is_copy: bool,
}

impl Footer {
    /// Finds the footer of the image in `below`. What stands at the end counts: of a fixed image no guest can write
    /// it, as it could the beginning.
    ///
    /// # Errors
    /// `Corrupt` where there is none that is whole; `Unsupported`; what reading failed with.
    pub(super) async fn find(below: &dyn BlockDevice) -> Result<Found> {
        let size = below.info().size;
        if size < OLD_LENGTH {
            return Err(corrupt("it is too short to be a VHD image"));
        }
        let tail = size.saturating_sub(LENGTH);
        let tail_bytes = read_exact_at(below, ByteRange::between(tail, size)).await?;
        let mut damage = None;
        for length in [LENGTH, OLD_LENGTH] {
            let start = size.saturating_sub(length);
            let Some(bytes) = tail_bytes.get((start - tail) as usize..) else {
                continue;
            };
            if size < length || !bytes.starts_with(COOKIE) {
                continue;
            }
            match Self::parse(bytes) {
                Ok(footer) => {
                    let (end, is_copy) = (start, false);
                    return Ok(Found {
                        footer,
                        end,
                        is_copy,
                    });
                }
                Err(error) => damage = Some(error),
            }
        }
        let start = ByteRange::between(0, LENGTH.min(size));
        let start = read_exact_at(below, start).await?;
        if !start.starts_with(COOKIE) {
            let none = || corrupt("it is not a VHD image: it ends with something else");
            return Err(damage.unwrap_or_else(none));
        }
        let footer = Self::parse(&start)?;
        if footer.kind == Kind::Fixed {
            return Err(damage.unwrap_or_else(|| {
                corrupt("the footer of a fixed image stands at its beginning, and not at its end")
            }));
        }
        let (end, is_copy) = (size, true);
        Ok(Found {
            footer,
            end,
            is_copy,
        })
    }

    /// Reads a footer that begins with the cookie and has 511 bytes at least.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let (stored, expected) = (be32(bytes, 64), checksum(bytes, 64));
        if stored != expected {
            return Err(corrupt(format!(
                "the footer's checksum is {stored:#010x}, and its bytes have {expected:#010x}"
            )));
        }
        let version = be32(bytes, 12);
        if version >> 16 != VERSION >> 16 {
            let message = format!("VHD version {version:#x} is not supported");
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        let kind = match be32(bytes, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => return Err(corrupt(format!("image type {other} is not known"))),
        };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[68..84]);
        let mut creator = [0; 4];
        creator.copy_from_slice(&bytes[28..32]);
        Ok(Self {
            data_offset: be64(bytes, 16),
            timestamp: be32(bytes, 24),
            creator,
            current_size: be64(bytes, 48),
            geometry: Geometry {
                cylinders: be16(bytes, 56),
                heads: bytes[58],
                sectors: bytes[59],
            },
            kind,
            uuid,
            has_saved_state: bytes[84] != 0,
        })
    }

    /// The size of the disk in bytes.
    ///
    /// Virtual PC takes it from the geometry, and the size in its footers is often larger than what is there. All
    /// others take the size: Hyper-V (`win `), Azure (`wa`), VirtualBox (`vbox`), XenServer (`tap`), XenConverter
    /// (`CTXS`), Disk2vhd (`d2v `), and qemu where it was told to (`qem2`). Where qemu was not told, it takes the
    /// geometry, and calls itself `qemu`. A geometry that can be no larger says nothing of the size. This is how qemu
    /// decides since version 10.0 (`vpc_ignore_current_size` in its `block/vpc.c`); before, it cut images of makers
    /// that it did not know to their geometry.
    ///
    /// # Errors
    /// `Corrupt` for a disk that is too large.
    pub(super) fn size(&self) -> Result<u64> {
        let by_geometry = matches!(&self.creator, b"vpc " | b"qemu");
        let size = match by_geometry && self.geometry != Geometry::LARGEST {
            true => self.geometry.size(),
            // What is no whole sector at the end is no part of a disk.
            false => self.current_size - self.current_size % SECTOR,
        };
        if size > LARGEST {
            return Err(corrupt(format!(
                "the disk has {size} bytes, more than the largest VHD, {LARGEST}"
            )));
        }
        Ok(size)
    }

    /// The footer as it stands in a file.
    pub(super) fn encode(&self) -> [u8; LENGTH as usize] {
        let mut bytes = [0; LENGTH as usize];
        bytes[..8].copy_from_slice(COOKIE);
        // Reserved, and always set.
        bytes[8..12].copy_from_slice(&2_u32.to_be_bytes());
        bytes[12..16].copy_from_slice(&VERSION.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.data_offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.timestamp.to_be_bytes());
        bytes[28..32].copy_from_slice(&self.creator);
        // The version that goes with the creator, and the system, as qemu has them: some readers look.
        bytes[32..36].copy_from_slice(&[0, 5, 0, 3]);
        bytes[36..40].copy_from_slice(b"Wi2k");
        bytes[40..48].copy_from_slice(&self.current_size.to_be_bytes());
        bytes[48..56].copy_from_slice(&self.current_size.to_be_bytes());
        bytes[56..58].copy_from_slice(&self.geometry.cylinders.to_be_bytes());
        bytes[58] = self.geometry.heads;
        bytes[59] = self.geometry.sectors;
        let kind: u32 = match self.kind {
            Kind::Fixed => 2,
            Kind::Dynamic => 3,
            Kind::Differencing => 4,
        };
        bytes[60..64].copy_from_slice(&kind.to_be_bytes());
        bytes[68..84].copy_from_slice(&self.uuid);
        bytes[84] = self.has_saved_state.into();
        let sum = checksum(&bytes, 64);
        bytes[64..68].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// The checksum of a footer or header without the four bytes at `at`, where it stands.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let others = bytes[..at].iter().chain(&bytes[at + 4..]);
    !others.fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}
