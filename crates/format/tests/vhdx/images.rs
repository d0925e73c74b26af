//! VHDX images of any kind, also of those that nothing else makes, from what is to be in them.
//!
//! Other tests take this file as it is, so it stands alone, and knows the format by itself.

use std::{collections::BTreeMap, fmt};

pub(crate) const MIB: usize = 1 << 20;

/// The log of every image, and what identifies its entries.
pub(crate) const LOG: usize = MIB;
pub(crate) const LOG_GUID: Guid = Guid::new(0x1111_2222_3333_4444_5555_6666_7777_8888);
pub(crate) const DATA_WRITE: Guid = Guid::new(0x0a0b_0c0d_0102_0304_0506_0708_090a_0b0c);

const PAGE: usize = 4096;

/// What a block is to be.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// These bytes, all of them here. What is missing to a block is zero.
    Data(Vec<u8>),
    /// These bytes, of which the sectors are here that the function says so of.
    Partly(Vec<u8>, fn(u64) -> bool),
    /// Nothing, in this state.
    State(u64),
    /// This entry, which nothing else in the image knows of.
    Entry(u64),
}

/// An image to be. The log comes first, then the metadata, the block allocation table, blocks in their order, and each
/// bitmap before the first block that needs it.
#[derive(Clone, Debug)]
pub(crate) struct ImageBuilder {
    pub(crate) size: u64,
    pub(crate) block_size: u32,
    pub(crate) sector_size: u32,
    pub(crate) log_size: usize,
    pub(crate) is_fixed: bool,
    /// The keys and values of the parent's locator.
    pub(crate) parent: Option<Vec<(String, String)>>,
    pub(crate) blocks: BTreeMap<u64, Content>,
}

impl ImageBuilder {
    /// An empty image with blocks of 1 MiB.
    pub(crate) fn new(size: u64) -> Self {
        Self {
            size,
            block_size: 1 << 20,
            sector_size: 512,
            log_size: MIB,
            is_fixed: false,
            parent: None,
            blocks: BTreeMap::new(),
        }
    }

    pub(crate) fn with(mut self, block: u64, content: Content) -> Self {
        self.blocks.insert(block, content);
        self
    }

    /// A child of an image with `linkage` that is called `name`.
    pub(crate) fn child_of(mut self, linkage: Guid, name: &str) -> Self {
        let pairs = [
            ("parent_linkage", format!("{{{linkage}}}")),
            ("relative_path", name.replace('/', "\\")),
        ];
        self.parent = Some(pairs.map(|(key, value)| (key.to_owned(), value)).into());
        self
    }

    pub(crate) fn chunk(&self) -> u64 {
        (u64::from(self.sector_size) << 23) / u64::from(self.block_size)
    }

    /// Where the block allocation table lies.
    pub(crate) fn bat(&self) -> usize {
        2 * MIB + self.log_size
    }

    /// Where the entry of a block lies.
    pub(crate) fn entry(&self, block: u64) -> usize {
        self.bat() + 8 * (block + block / self.chunk()) as usize
    }

    /// Where the entry of the bitmap lies that a block has a part of.
    pub(crate) fn bitmap_entry(&self, block: u64) -> usize {
        let chunk = block / self.chunk();
        self.bat() + 8 * ((chunk + 1) * self.chunk() + chunk) as usize
    }

    pub(crate) fn bat_length(&self) -> usize {
        let blocks = self.size.div_ceil(self.block_size.into()).max(1);
        let end = self.bitmap_entry(blocks - 1) + 8;
        (end - self.bat()).next_multiple_of(MIB)
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bat() + self.bat_length()];
        bytes[..8].copy_from_slice(b"vhdxfile");
        let header = Header::sound(self.log_size);
        header.write(&mut bytes, 0, 7);
        header.write(&mut bytes, 1, 6);
        let metadata = MIB + self.log_size;
        let regions = [
            (BAT, self.bat(), self.bat_length(), 1),
            (METADATA, metadata, MIB, 1),
        ];
        write_regions(&mut bytes, &regions);
        self.write_metadata(&mut bytes[metadata..][..MIB]);
        for (&block, content) in &self.blocks {
            self.write_block(&mut bytes, block, content);
        }
        bytes
    }

    fn write_metadata(&self, bytes: &mut [u8]) {
        let flags = u32::from(self.is_fixed) | u32::from(self.parent.is_some()) << 1;
        let mut parameters = self.block_size.to_le_bytes().to_vec();
        parameters.extend(flags.to_le_bytes());
        let sector = self.sector_size.to_le_bytes().to_vec();
        let mut items = vec![
            (FILE_PARAMETERS, parameters),
            (DISK_SIZE, self.size.to_le_bytes().to_vec()),
            (DISK_ID, vec![0xd1; 16]),
            (LOGICAL, sector.clone()),
            (PHYSICAL, sector),
        ];
        if let Some(pairs) = &self.parent {
            let pairs: Vec<_> = pairs
                .iter()
                .map(|(key, value)| (&**key, &**value))
                .collect();
            items.push((LOCATOR, locator(&pairs)));
        }
        bytes[..8].copy_from_slice(b"metadata");
        bytes[10..12].copy_from_slice(&(items.len() as u16).to_le_bytes());
        let mut at = 64 << 10;
        for (number, (guid, item)) in items.iter().enumerate() {
            bytes[at..at + item.len()].copy_from_slice(item);
            let entry = &mut bytes[32 + 32 * number..][..32];
            entry[..16].copy_from_slice(&guid.0);
            entry[16..20].copy_from_slice(&(at as u32).to_le_bytes());
            entry[20..24].copy_from_slice(&(item.len() as u32).to_le_bytes());
            entry[24] = 0x4;
            at += item.len().next_multiple_of(8);
        }
    }

    fn write_block(&self, bytes: &mut Vec<u8>, block: u64, content: &Content) {
        let entry = match content {
            Content::State(entry) | Content::Entry(entry) => *entry,
            Content::Data(data) => append(bytes, data, self.block_size as usize) | 6,
            Content::Partly(data, is_here) => {
                let place = self.bitmap_entry(block);
                if bytes[place..place + 8] == [0; 8] {
                    let bitmap = append(bytes, &[], MIB) | 6;
                    bytes[place..place + 8].copy_from_slice(&bitmap.to_le_bytes());
                }
                let host = le64(bytes, place) & !7;
                let sectors = u64::from(self.block_size / self.sector_size);
                let first = block % self.chunk() * sectors;
                for sector in (0..sectors).filter(|sector| is_here(*sector)) {
                    let bit = first + sector;
                    bytes[(host + bit / 8) as usize] |= 1 << (bit % 8);
                }
                append(bytes, data, self.block_size as usize) | 7
            }
        };
        let place = self.entry(block);
        bytes[place..place + 8].copy_from_slice(&entry.to_le_bytes());
    }
}

/// Adds `data` to the end, and zeroes up to `length`; says where.
fn append(bytes: &mut Vec<u8>, data: &[u8], length: usize) -> u64 {
    let place = bytes.len();
    bytes.extend(data);
    bytes.resize(place + length, 0);
    place as u64
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// CRC-32C of each byte by itself.
const CRCS: [u32; 256] = {
    let mut crcs = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78);
            bit += 1;
        }
        crcs[byte] = crc;
        byte += 1;
    }
    crcs
};

/// CRC-32C, byte by byte.
fn checksum(bytes: &[u8]) -> u32 {
    let next = |crc: u32, byte: &u8| (crc >> 8) ^ CRCS[usize::from(crc as u8 ^ *byte)];
    !bytes.iter().fold(u32::MAX, next)
}

/// A GUID as it is stored: its first three groups are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guid(pub(crate) [u8; 16]);

impl Guid {
    pub(crate) const ZERO: Self = Self([0; 16]);

    pub(crate) const fn new(number: u128) -> Self {
        let mut bytes = number.to_be_bytes();
        (bytes[0], bytes[3]) = (bytes[3], bytes[0]);
        (bytes[1], bytes[2]) = (bytes[2], bytes[1]);
        (bytes[4], bytes[5]) = (bytes[5], bytes[4]);
        (bytes[6], bytes[7]) = (bytes[7], bytes[6]);
        Self(bytes)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(b) = self;
        let first = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let second = u16::from_le_bytes([b[4], b[5]]);
        let third = u16::from_le_bytes([b[6], b[7]]);
        write!(
            f,
            "{first:08x}-{second:04x}-{third:04x}-{:02x}{:02x}-",
            b[8], b[9]
        )?;
        b[10..].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

pub(crate) const BAT: Guid = Guid::new(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
pub(crate) const METADATA: Guid = Guid::new(0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e);
const FILE_PARAMETERS: Guid = Guid::new(0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b);
const DISK_SIZE: Guid = Guid::new(0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8);
const DISK_ID: Guid = Guid::new(0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746);
const LOGICAL: Guid = Guid::new(0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f);
const PHYSICAL: Guid = Guid::new(0xcda3_48c7_445d_4471_9cc9_e988_5251_c556);
const LOCATOR: Guid = Guid::new(0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c);

/// A header to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) data_write: Guid,
    pub(crate) log: Guid,
    pub(crate) log_version: u16,
    pub(crate) version: u16,
    pub(crate) log_place: (u64, u32),
}

impl Header {
    pub(crate) fn sound(log_size: usize) -> Self {
        Self {
            data_write: DATA_WRITE,
            log: Guid::ZERO,
            log_version: 0,
            version: 1,
            log_place: (LOG as u64, log_size as u32),
        }
    }

    /// Makes header `number`, 0 or 1, of an image this one.
    pub(crate) fn write(self, bytes: &mut [u8], number: usize, sequence: u64) {
        let header = &mut bytes[(64 << 10) * (number + 1)..][..PAGE];
        header.fill(0);
        header[..4].copy_from_slice(b"head");
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        header[16..32].fill(0xf1);
        header[32..48].copy_from_slice(&self.data_write.0);
        header[48..64].copy_from_slice(&self.log.0);
        header[64..66].copy_from_slice(&self.log_version.to_le_bytes());
        header[66..68].copy_from_slice(&self.version.to_le_bytes());
        header[68..72].copy_from_slice(&self.log_place.1.to_le_bytes());
        header[72..80].copy_from_slice(&self.log_place.0.to_le_bytes());
        seal(header);
    }
}

/// Gives a structure the checksum that it should have.
pub(crate) fn seal(structure: &mut [u8]) {
    structure[4..8].fill(0);
    let sum = checksum(structure);
    structure[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Makes both region tables of an image say this: the identifier, the place, the length, and whether it is needed.
pub(crate) fn write_regions(bytes: &mut [u8], regions: &[(Guid, usize, usize, u32)]) {
    for place in [192 << 10, 256 << 10] {
        let table = &mut bytes[place..][..64 << 10];
        table.fill(0);
        table[..4].copy_from_slice(b"regi");
        table[8..12].copy_from_slice(&(regions.len() as u32).to_le_bytes());
        for (number, (guid, offset, length, needed)) in regions.iter().enumerate() {
            let entry = &mut table[16 + 32 * number..][..32];
            entry[..16].copy_from_slice(&guid.0);
            entry[16..24].copy_from_slice(&(*offset as u64).to_le_bytes());
            entry[24..28].copy_from_slice(&(*length as u32).to_le_bytes());
            entry[28..32].copy_from_slice(&needed.to_le_bytes());
        }
        seal(table);
    }
}

/// A locator of a VHDX parent with these keys and values.
pub(crate) fn locator(pairs: &[(&str, &str)]) -> Vec<u8> {
    let kind = Guid::new(0xb04a_efb7_d19e_4a81_b789_25b8_e944_5913);
    let mut item = kind.0.to_vec();
    item.extend([0; 2]);
    item.extend((pairs.len() as u16).to_le_bytes());
    let mut texts = Vec::new();
    let start = 20 + 12 * pairs.len();
    for (key, value) in pairs {
        let mut places = Vec::new();
        for text in [key, value] {
            let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            places.push(((start + texts.len()) as u32, units.len() as u16));
            texts.extend(units);
        }
        item.extend(places.iter().flat_map(|(offset, _)| offset.to_le_bytes()));
        item.extend(places.iter().flat_map(|(_, length)| length.to_le_bytes()));
    }
    item.extend(texts);
    item
}

/// What an entry of a log writes.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// 4 KiB, at this place.
    Page(u64, Vec<u8>),
    /// Zeroes, from there on, so many bytes.
    Zero(u64, u64),
}

/// An entry of a log to be.
#[derive(Clone, Debug)]
pub(crate) struct LogEntry {
    pub(crate) guid: Guid,
    pub(crate) sequence: u64,
    /// Where the first entry of its sequence is in the log.
    pub(crate) tail: u32,
    pub(crate) flushed_end: u64,
    pub(crate) last_end: u64,
    pub(crate) writes: Vec<Write>,
}

impl LogEntry {
    /// An entry with these writes, of a file that has `end` bytes.
    pub(crate) fn new(sequence: u64, tail: u32, end: u64, writes: Vec<Write>) -> Self {
        Self {
            guid: LOG_GUID,
            sequence,
            tail,
            flushed_end: end,
            last_end: end,
            writes,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let descriptors = (64 + 32 * self.writes.len()).next_multiple_of(PAGE);
        let mut bytes = vec![0; descriptors];
        bytes[..4].copy_from_slice(b"loge");
        bytes[12..16].copy_from_slice(&self.tail.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..28].copy_from_slice(&(self.writes.len() as u32).to_le_bytes());
        bytes[32..48].copy_from_slice(&self.guid.0);
        bytes[48..56].copy_from_slice(&self.flushed_end.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.last_end.to_le_bytes());
        for (number, write) in self.writes.iter().enumerate() {
            let place = 64 + 32 * number;
            let (signature, middle, offset) = match write {
                Write::Zero(offset, length) => {
                    let mut middle = [0; 12];
                    middle[4..].copy_from_slice(&length.to_le_bytes());
                    (b"zero", middle, *offset)
                }
                Write::Page(offset, data) => {
                    let mut middle = [0; 12];
                    middle[..4].copy_from_slice(&data[PAGE - 4..]);
                    middle[4..].copy_from_slice(&data[..8]);
                    let mut sector = b"data".to_vec();
                    sector.extend(((self.sequence >> 32) as u32).to_le_bytes());
                    sector.extend(&data[8..PAGE - 4]);
                    sector.extend((self.sequence as u32).to_le_bytes());
                    bytes.extend(sector);
                    (b"desc", middle, *offset)
                }
            };
            bytes[place..place + 4].copy_from_slice(signature);
            bytes[place + 4..place + 16].copy_from_slice(&middle);
            bytes[place + 16..place + 24].copy_from_slice(&offset.to_le_bytes());
            bytes[place + 24..place + 32].copy_from_slice(&self.sequence.to_le_bytes());
        }
        let length = bytes.len() as u32;
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        seal(&mut bytes);
        bytes
    }
}

/// Puts entries into the log of `image`, which is a ring of `log_size` bytes, each behind the one before it, from `at`
/// on; gives where the next one would be. The image is one that was not closed, then.
pub(crate) fn write_log(
    image: &mut [u8],
    log_size: usize,
    at: usize,
    entries: &[LogEntry],
) -> usize {
    let mut header = Header::sound(log_size);
    header.log = LOG_GUID;
    header.write(image, 0, 8);
    let mut at = at;
    for entry in entries {
        for byte in entry.encode() {
            image[LOG + at % log_size] = byte;
            at += 1;
        }
    }
    at % log_size
}
