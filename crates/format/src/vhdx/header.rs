//! The header section: what the file is, the two headers, of which one is current, and the two copies of the region
//! table (specification, section 2.2).

use blockferry_block::{Buffer, ByteRange, Error, ErrorKind, Result, read_exact_at};

use super::{checksum::checksum, guid::Guid};
use crate::{
    corrupt::corrupt,
    host::HostFile,
    le::{le16, le32, le64},
};

/// The alignment of everything that lies behind the header section, which is as long.
pub(crate) const MIB: u64 = 1 << 20;

const SIGNATURE: &[u8] = b"vhdxfile";
const HEADER_SIGNATURE: &[u8] = b"head";
const REGIONS_SIGNATURE: &[u8] = b"regi";

/// Where the two headers lie, and how long each is.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_LENGTH: u64 = 4 << 10;
/// Where the two region tables lie, and how long each is.
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE_LENGTH: u64 = 64 << 10;
/// How many entries a region table or a metadata table has at most.
pub(crate) const MOST_ENTRIES: usize = 2047;

const BAT: Guid = Guid::new(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
const METADATA: Guid = Guid::new(0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e);

/// The current header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// What identifies the contents: children name it.
    pub(crate) data_write: Guid,
    /// The log, where it has to be replayed.
    pub(crate) log: Option<LogPlace>,
}

/// A log that was not emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogPlace {
    /// Entries with another one are old.
    pub(crate) guid: Guid,
    /// Whole MiB, inside the file.
    pub(crate) place: ByteRange,
}

/// Where the regions lie: each in whole MiB, apart from each other and from the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Regions {
    pub(crate) bat: ByteRange,
    pub(crate) metadata: ByteRange,
}

impl Header {
    /// Reads the current header of `file`, which has not been replayed: a log says nothing about headers.
    ///
    /// # Errors
    /// `Corrupt`, `Incompatible` for versions that are not known, what reading failed with.
    pub(crate) async fn read(file: &HostFile) -> Result<Self> {
        if file.end() < MIB {
            return Err(corrupt("it is too short to be a VHDX image"));
        }
        let start = bytes_at(file, 0, SIGNATURE.len() as u64).await?;
        if start[..] != *SIGNATURE {
            return Err(corrupt(
                "it is not a VHDX image: it begins with something else",
            ));
        }
        let first = bytes_at(file, HEADERS[0], HEADER_LENGTH).await?;
        let second = bytes_at(file, HEADERS[1], HEADER_LENGTH).await?;
        Self::parse(current(&first, &second)?, file.end())
    }

    fn parse(bytes: &[u8], file_end: u64) -> Result<Self> {
        let version = le16(bytes, 66);
        if version != 1 {
            return Err(incompatible(format!(
                "VHDX version {version} is not supported"
            )));
        }
        let data_write = Guid::at(bytes, 32);
        let guid = Guid::at(bytes, 48);
        if guid == Guid::ZERO {
            let log = None;
            return Ok(Self { data_write, log });
        }
        let log_version = le16(bytes, 64);
        if log_version != 0 {
            return Err(incompatible(format!(
                "version {log_version} of the log is not supported"
            )));
        }
        let place = placed("the log", le64(bytes, 72), le32(bytes, 68).into())?;
        if place.end() > file_end {
            return Err(corrupt("the log ends past the end of the file"));
        }
        let log = Some(LogPlace { guid, place });
        Ok(Self { data_write, log })
    }
}

/// What the file is, and who has made it: the first bytes of a new image.
pub(crate) fn identify() -> Vec<u8> {
    let creator = "blockferry".encode_utf16();
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend(creator.flat_map(u16::to_le_bytes));
    bytes
}

/// The headers and the region tables of a new image, whose log is empty, and where they lie in a row.
pub(crate) fn encode(
    file_write: Guid,
    data_write: Guid,
    log: ByteRange,
    regions: Regions,
) -> (u64, Vec<u8>) {
    let start = HEADERS[0];
    let end = REGION_TABLES[1] + REGION_TABLE_LENGTH;
    let mut bytes = vec![0; (end - start) as usize];
    let mut put = |place: u64, length: u64, structure: &[u8]| {
        let at = (place - start) as usize;
        let part = &mut bytes[at..at + length as usize];
        part[..structure.len()].copy_from_slice(structure);
        let sum = checksum(part);
        part[4..8].copy_from_slice(&sum.to_le_bytes());
    };
    for (place, sequence) in HEADERS.into_iter().zip(0_u64..) {
        let mut header = [HEADER_SIGNATURE, &[0; 4], &sequence.to_le_bytes()].concat();
        header.extend(file_write.0);
        header.extend(data_write.0);
        header.extend(Guid::ZERO.0);
        // The versions of the log and of the format.
        header.extend([0, 0, 1, 0]);
        header.extend((log.len() as u32).to_le_bytes());
        header.extend(log.start().to_le_bytes());
        put(place, HEADER_LENGTH, &header);
    }
    let entries = [(BAT, regions.bat), (METADATA, regions.metadata)];
    let mut table = [REGIONS_SIGNATURE, &[0; 4], &2_u32.to_le_bytes(), &[0; 4]].concat();
    for (guid, place) in entries {
        table.extend(guid.0);
        table.extend(place.start().to_le_bytes());
        table.extend((place.len() as u32).to_le_bytes());
        // It has to be understood.
        table.extend(1_u32.to_le_bytes());
    }
    for place in REGION_TABLES {
        put(place, REGION_TABLE_LENGTH, &table);
    }
    (start, bytes)
}

/// The header that counts: the newer one of those that are sound.
fn current<'a>(first: &'a [u8], second: &'a [u8]) -> Result<&'a [u8]> {
    let is_sound = |bytes: &&[u8]| is_sound(bytes, HEADER_SIGNATURE);
    let sequence = |bytes: &[u8]| le64(bytes, 8);
    match (Some(first).filter(is_sound), Some(second).filter(is_sound)) {
        (Some(first), Some(second)) if sequence(first) > sequence(second) => Ok(first),
        (Some(first), Some(second)) if sequence(first) < sequence(second) => Ok(second),
        (Some(first), Some(second)) if first != second => {
            Err(corrupt("both headers claim to be the current one"))
        }
        (Some(header), _) | (None, Some(header)) => Ok(header),
        (None, None) => Err(corrupt("both headers are damaged")),
    }
}

impl Regions {
    /// Reads the region table of `file`, which has been replayed where that is needed.
    ///
    /// # Errors
    /// `Corrupt`, `Incompatible` for regions that have to be understood and are not, what reading failed with.
    pub(crate) async fn read(file: &HostFile, log: Option<LogPlace>) -> Result<Self> {
        for place in REGION_TABLES {
            let table = bytes_at(file, place, REGION_TABLE_LENGTH).await?;
            if is_sound(&table, REGIONS_SIGNATURE) {
                return Self::parse(&table, log);
            }
        }
        Err(corrupt("both region tables are damaged"))
    }

    fn parse(table: &[u8], log: Option<LogPlace>) -> Result<Self> {
        let count = le32(table, 8);
        if count as usize > MOST_ENTRIES {
            return Err(corrupt(format!(
                "{count} regions: there can be at most {MOST_ENTRIES}"
            )));
        }
        let (mut bat, mut metadata) = (None, None);
        for entry in table[16..].chunks_exact(32).take(count as usize) {
            let guid = Guid::at(entry, 0);
            let (slot, name) = match guid {
                BAT => (&mut bat, "the block allocation table"),
                METADATA => (&mut metadata, "the metadata"),
                _ if le32(entry, 28) & 1 != 0 => {
                    return Err(incompatible(format!(
                        "the region {guid} is required and not supported"
                    )));
                }
                _ => continue,
            };
            let place = placed(name, le64(entry, 16), le32(entry, 24).into())?;
            if slot.replace(place).is_some() {
                return Err(corrupt(format!("{name} is there twice")));
            }
        }
        let bat = bat.ok_or_else(|| corrupt("there is no block allocation table"))?;
        let metadata = metadata.ok_or_else(|| corrupt("there is no metadata"))?;
        let log = log.map_or(ByteRange::default(), |log| log.place);
        let overlap = |a: ByteRange, b: ByteRange| !a.intersection(b).is_empty();
        if overlap(bat, metadata) || overlap(bat, log) || overlap(metadata, log) {
            return Err(corrupt(
                "the block allocation table, the metadata and the log overlap",
            ));
        }
        Ok(Self { bat, metadata })
    }
}

/// Whether a structure begins with `signature` and has the checksum that it should.
fn is_sound(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.starts_with(signature) && le32(bytes, 4) == checksum(bytes)
}

/// The range of something that lies in whole MiB behind the header section.
fn placed(what: &str, offset: u64, length: u64) -> Result<ByteRange> {
    let is_aligned = offset.is_multiple_of(MIB) && length.is_multiple_of(MIB);
    match ByteRange::new(offset, length) {
        Ok(range) if is_aligned && offset >= MIB && length > 0 => Ok(range),
        _ => Err(corrupt(format!(
            "{what} has {length} bytes at {offset:#x}: those are not whole MiB behind the headers"
        ))),
    }
}

/// The `length` bytes at `offset` of `file`.
pub(crate) async fn bytes_at(file: &HostFile, offset: u64, length: u64) -> Result<Buffer> {
    let range = ByteRange::between(offset, offset.saturating_add(length));
    read_exact_at(&**file.device(), range).await
}

/// What is not known here and cannot be passed over.
pub(crate) fn incompatible(message: String) -> Error {
    Error::with_message(ErrorKind::Incompatible, message)
}
