//! VHD images as a specification has them, some of which no tool at hand makes.

use std::collections::BTreeMap;

use crate::vpc::{
    Kind,
    footer::{Footer, checksum},
    geometry::Geometry,
    table::{UNUSED, bitmap_length},
};

/// An image to be: the copy of the footer, the header, names of the parent, the table, blocks, the footer.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    size: u64,
    block: u64,
    footer: Footer,
    /// What blocks are filled with, and which of their sectors are there.
    blocks: BTreeMap<u64, (u8, Vec<bool>)>,
    parent_uuid: [u8; 16],
    parent_name: String,
    locators: Vec<([u8; 4], Vec<u8>)>,
}

impl Builder {
    fn new(size: u64, block: u64, kind: Kind) -> Self {
        Self {
            size,
            block,
            footer: Footer {
                data_offset: 512,
                timestamp: 1000,
                creator: *b"win ",
                current_size: size,
                geometry: Geometry {
                    cylinders: 1,
                    heads: 4,
                    sectors: 17,
                },
                kind,
                uuid: [0x11; 16],
                has_saved_state: false,
            },
            blocks: BTreeMap::new(),
            parent_uuid: [0; 16],
            parent_name: String::new(),
            locators: Vec::new(),
        }
    }

    pub(crate) fn dynamic(size: u64, block: u64) -> Self {
        Self::new(size, block, Kind::Dynamic)
    }

    pub(crate) fn fixed(size: u64) -> Self {
        let mut fixed = Self::new(size, 512, Kind::Fixed);
        fixed.footer.data_offset = u64::MAX;
        fixed
    }

    /// On top of the image with the identity `uuid`.
    pub(crate) fn differencing(size: u64, block: u64, uuid: [u8; 16]) -> Self {
        let mut built = Self::new(size, block, Kind::Differencing);
        built.parent_uuid = uuid;
        built
    }

    /// With block `index`, all of it.
    pub(crate) fn with(self, index: u64, value: u8) -> Self {
        let sectors = (self.block / 512) as usize;
        self.with_sectors(index, value, vec![true; sectors])
    }

    /// With those sectors of block `index`.
    pub(crate) fn with_sectors(mut self, index: u64, value: u8, sectors: Vec<bool>) -> Self {
        self.blocks.insert(index, (value, sectors));
        self
    }

    pub(crate) fn creator(mut self, creator: [u8; 4]) -> Self {
        self.footer.creator = creator;
        self
    }

    pub(crate) fn uuid(mut self, uuid: [u8; 16]) -> Self {
        self.footer.uuid = uuid;
        self
    }

    pub(crate) fn largest_geometry(mut self) -> Self {
        self.footer.geometry = Geometry::LARGEST;
        self
    }

    pub(crate) fn saved_state(mut self) -> Self {
        self.footer.has_saved_state = true;
        self
    }

    pub(crate) fn parent_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.parent_name);
        self
    }

    pub(crate) fn locator(mut self, platform: [u8; 4], bytes: Vec<u8>) -> Self {
        self.locators.push((platform, bytes));
        self
    }

    pub(crate) fn utf16_locator(self, platform: [u8; 4], name: &str) -> Self {
        let units = name.encode_utf16().flat_map(u16::to_le_bytes);
        self.locator(platform, units.collect())
    }

    pub(crate) fn footer(&self) -> [u8; 512] {
        self.footer.encode()
    }

    /// The bytes of a sector that is there.
    fn sector(index: u64, sector: u64, value: u8) -> [u8; 512] {
        let mut bytes = [value; 512];
        bytes[..8].copy_from_slice(&index.to_be_bytes());
        bytes[8..16].copy_from_slice(&sector.to_be_bytes());
        bytes
    }

    /// Where the table of blocks lies.
    pub(crate) fn table(&self) -> u64 {
        1536 + 512 * self.locators.len() as u64
    }

    /// The bytes of the image.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut bytes = self.footer().to_vec();
        let entries = self.size.div_ceil(self.block);
        bytes.extend(self.header(entries));
        for (_, name) in &self.locators {
            let start = bytes.len();
            bytes.extend(name);
            bytes.resize(start + 512, 0);
        }
        let table = bytes.len();
        bytes.resize(table + (entries as usize * 4).next_multiple_of(512), 0xff);
        // In another order than the disk's.
        for (index, (value, sectors)) in self.blocks.iter().rev() {
            let place = (bytes.len() / 512) as u32;
            let entry = table + *index as usize * 4;
            bytes[entry..entry + 4].copy_from_slice(&place.to_be_bytes());
            let bitmap = bytes.len();
            bytes.resize(bitmap + bitmap_length(self.block) as usize, 0);
            for (sector, is_there) in sectors.iter().enumerate() {
                if *is_there {
                    bytes[bitmap + sector / 8] |= 0x80 >> (sector % 8);
                    bytes.extend(Self::sector(*index, sector as u64, *value));
                } else {
                    // Nobody is to see this.
                    bytes.extend([if self.is_differencing() { 0xee } else { 0 }; 512]);
                }
            }
        }
        assert_eq!(UNUSED, u32::MAX);
        bytes.extend(self.footer());
        bytes
    }

    fn is_differencing(&self) -> bool {
        self.footer.kind == Kind::Differencing
    }

    fn header(&self, entries: u64) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[..8].copy_from_slice(b"cxsparse");
        bytes[8..16].fill(0xff);
        bytes[16..24].copy_from_slice(&self.table().to_be_bytes());
        bytes[24..28].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
        bytes[28..32].copy_from_slice(&(entries as u32).to_be_bytes());
        bytes[32..36].copy_from_slice(&(self.block as u32).to_be_bytes());
        bytes[40..56].copy_from_slice(&self.parent_uuid);
        let units = self.parent_name.encode_utf16().flat_map(u16::to_be_bytes);
        for (byte, unit) in bytes[64..576].iter_mut().zip(units) {
            *byte = unit;
        }
        for (number, (platform, name)) in self.locators.iter().enumerate() {
            let locator = &mut bytes[576 + number * 24..][..24];
            locator[..4].copy_from_slice(platform);
            locator[4..8].copy_from_slice(&1_u32.to_be_bytes());
            locator[8..12].copy_from_slice(&(name.len() as u32).to_be_bytes());
            locator[16..24].copy_from_slice(&(1536 + 512 * number as u64).to_be_bytes());
        }
        let sum = checksum(&bytes, 36);
        bytes[36..40].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// What is on the disk of an image without a parent.
    pub(crate) fn disk(&self) -> Vec<u8> {
        self.disk_on(&[])
    }

    /// What is on the disk in front of `parent`.
    pub(crate) fn disk_on(&self, parent: &[u8]) -> Vec<u8> {
        let mut disk = parent.to_vec();
        disk.resize(self.size as usize, 0);
        for (index, (value, sectors)) in &self.blocks {
            for (sector, is_there) in sectors.iter().enumerate() {
                let start = index * self.block + sector as u64 * 512;
                if *is_there && start < self.size {
                    let bytes = Self::sector(*index, sector as u64, *value);
                    disk[start as usize..][..512].copy_from_slice(&bytes);
                }
            }
        }
        disk
    }
}
