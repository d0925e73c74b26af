//! A stream of compressed grains, each behind its marker, and grain tables between them
//! ("Stream-Optimized Compressed Sparse Extents").

use std::{collections::VecDeque, sync::Arc};

use blockferry_block::{Error, ErrorKind, Result};

use super::map::{Map, PENDING, Table, place_of};
use super::{DATA_START, GRAIN};
use crate::{
    chunks::{Chunk, Chunks},
    pipeline::{Packed, Packer},
    vmdk::{
        header::{Header, SECTOR},
        sparse::{MARKER_DIRECTORY, MARKER_END, MARKER_FOOTER, MARKER_TABLE},
    },
};

/// Gives grains and tables their places, one behind the other.
pub(super) struct GrainPacker {
    map: Arc<Map>,
    /// Where the next one goes.
    position: u64,
    /// The last table of the disk that a grain came for.
    last: u64,
    open: Option<Chunk>,
    chunks: Chunks,
    /// What tells these contents from others.
    sum: libdeflater::Crc,
}

/// A grain that was handed in.
pub(super) struct Place {
    /// Where on the disk it begins.
    pub(super) offset: u64,
    /// Its table, which says that it is pending.
    pub(super) table: Arc<Table>,
}

impl GrainPacker {
    /// Packs into a file that is written in multiples of `block` bytes.
    pub(super) fn new(map: Arc<Map>, block: u64) -> Self {
        Self {
            map,
            position: DATA_START,
            last: 0,
            open: None,
            chunks: Chunks::new(block.max(SECTOR), GRAIN),
            sum: libdeflater::Crc::new(),
        }
    }

    /// Where what was packed ends, in bytes.
    pub(super) fn end(&self) -> u64 {
        self.position
    }

    /// A number that follows from all that was packed.
    pub(super) fn sum(&self) -> u32 {
        self.sum.sum()
    }

    /// Adds a table, unless it stands there already or has nothing.
    pub(super) fn add_table(&mut self, table: &Table) -> Result<()> {
        if table.place() != 0 || table.is_empty() {
            return Ok(());
        }
        let Some(bytes) = table.bytes() else {
            return Ok(());
        };
        self.add_marker(bytes.len() as u64 / SECTOR, MARKER_TABLE)?;
        let place = self.sector()?;
        self.append(&bytes);
        table.written_at(place);
        Ok(())
    }

    /// Adds the grain directory of `tables` tables, the footer, which `header` becomes, and the end of the stream. Says
    /// where the directory is, in sectors.
    pub(super) fn add_end(&mut self, tables: u64, mut header: Header) -> Result<u64> {
        let sectors = (tables * 4).div_ceil(SECTOR);
        self.add_marker(sectors, MARKER_DIRECTORY)?;
        header.directory = self.sector()?.into();
        let mut bytes = Vec::new();
        for number in 0..tables {
            let table = self.map.existing(number);
            let place = table.map_or(0, |table| table.place());
            bytes.extend(place.to_le_bytes());
        }
        bytes.resize((sectors * SECTOR) as usize, 0);
        self.append(&bytes);
        self.add_marker(1, MARKER_FOOTER)?;
        self.append(&header.encode());
        self.add_marker(0, MARKER_END)?;
        Ok(header.directory)
    }

    /// Adds a marker in front of so many sectors.
    fn add_marker(&mut self, sectors: u64, kind: u32) -> Result<()> {
        self.sector()?;
        let mut marker = [0; SECTOR as usize];
        marker[..8].copy_from_slice(&sectors.to_le_bytes());
        marker[12..16].copy_from_slice(&kind.to_le_bytes());
        self.append(&marker);
        Ok(())
    }

    fn add_grain(&mut self, offset: u64, stream: &[u8]) -> Result<u32> {
        let place = self.sector()?;
        let mut marker = [0; 12];
        marker[..8].copy_from_slice(&(offset / SECTOR).to_le_bytes());
        marker[8..].copy_from_slice(&(stream.len() as u32).to_le_bytes());
        self.append(&marker);
        self.append(stream);
        let padding = self.position.next_multiple_of(SECTOR) - self.position;
        self.append(&[0; SECTOR as usize][..padding as usize]);
        self.sum.update(&marker);
        self.sum.update(stream);
        Ok(place)
    }

    /// Where the next one goes, in sectors.
    fn sector(&self) -> Result<u32> {
        let sector = u32::try_from(self.position / SECTOR).ok();
        sector.filter(|sector| *sector != PENDING).ok_or_else(|| {
            let message = "a file of this format has 2 TiB at most";
            Error::with_message(ErrorKind::NoSpace, message)
        })
    }

    fn append(&mut self, bytes: &[u8]) {
        self.chunks.append(&mut self.open, self.position, bytes);
        self.position += bytes.len() as u64;
    }
}

impl Packer for GrainPacker {
    type Place = Place;

    fn pack(&mut self, packed: &Packed<Place>) -> Result<()> {
        let Place { offset, table } = packed.place();
        let (number, index) = place_of(*offset);
        // Readers that go from front to back want a table behind its grains.
        // Once: where grains come in another order the tables come at the end.
        if number > self.last {
            if let Some(before) = self.map.existing(self.last) {
                self.add_table(&before)?;
            }
            self.last = number;
        }
        for (_, stream) in packed.blocks() {
            let Some(stream) = stream else {
                let message = "a grain could not be compressed";
                return Err(Error::with_message(ErrorKind::Io, message));
            };
            let place = self.add_grain(*offset, stream)?;
            table.set(index, place);
        }
        Ok(())
    }

    fn full(&self) -> usize {
        self.chunks.full()
    }

    fn take_full(&mut self) -> VecDeque<Chunk> {
        self.chunks.take_full()
    }

    fn take_all(&mut self) -> VecDeque<Chunk> {
        self.chunks.close_so_far(&mut self.open);
        self.chunks.take_full()
    }

    fn is_empty(&self) -> bool {
        self.chunks.full() == 0 && self.open.as_ref().is_none_or(Chunk::is_written)
    }
}
