//! The end of a new image: tables, and the header when all else is durable.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::atomic::Ordering,
};

use blockferry_block::{Buffer, ByteRange, Capabilities, Error, ErrorKind, Result, is_zero};

use super::{
    DATA_START, GRAIN, Kind, NewImage,
    map::{ENTRIES, tables_of},
    packer::GrainPacker,
    sectors,
};
use crate::{
    pipeline::Pipeline,
    vmdk::{
        Subformat,
        descriptor::{NO_PARENT, NewDescriptor},
        header::{AT_END, Flags, Header, SECTOR},
    },
};

/// How much of the tables is written in one request, in bytes, about, and how many of them are gathered before that.
const WRITTEN_AT_ONCE: u64 = 1 << 20;
const TABLES_AT_ONCE: usize = 512;

/// The room for the descriptor, in sectors: that of everyone.
const DESCRIPTOR: u64 = 20;

/// The CID of a disk that was never opened since it was made, as VMware has it.
const FRESH: u32 = 0xffff_fffe;

/// How long a grain table is, in bytes.
const TABLE: u64 = ENTRIES * 4;

/// Where the tables of an image lie that is not compressed: the redundant directory, its tables, the directory, its
/// tables, and all tables of the disk are there, as VMware has it.
pub(super) struct Tables {
    start: u64,
    count: u64,
}

impl Tables {
    /// Those of a disk of `size` bytes, from `start` of the file on.
    pub(super) fn at(start: u64, size: u64) -> Self {
        let count = tables_of(size);
        Self { start, count }
    }

    /// Where grains can begin behind them, in bytes.
    pub(super) fn end(&self) -> u64 {
        (self.start + 2 * self.copy()).next_multiple_of(GRAIN)
    }

    /// Where the redundant directory and the other one lie, in bytes.
    fn directories(&self) -> [u64; 2] {
        [self.start, self.start + self.copy()]
    }

    /// How long a directory is, in bytes.
    fn directory(&self) -> u64 {
        (self.count * 4).next_multiple_of(SECTOR)
    }

    /// How long a directory and its tables are, in bytes.
    fn copy(&self) -> u64 {
        self.directory() + self.count * TABLE
    }
}

impl NewImage {
    /// Writes everything but the beginning, makes it durable, then the beginning, durably.
    pub(super) async fn write_end(&self) -> Result<()> {
        self.drain().await?;
        self.progress.doubt.check(self.size())?;
        match &self.kind {
            Kind::Stream(pipeline) => self.complete_stream(pipeline).await,
            Kind::Sparse(next) => self.complete_sparse(next.load(Ordering::Acquire)).await,
        }
    }

    async fn complete_stream(&self, pipeline: &Pipeline<GrainPacker>) -> Result<()> {
        let mut number = 0;
        while let Some((first, _)) = self.map.next(number) {
            number = first;
            pipeline.with_packer(|packer| {
                for _ in 0..TABLES_AT_ONCE {
                    let Some((next, table)) = self.map.next(number) else {
                        break;
                    };
                    packer.add_table(&table)?;
                    number = next + 1;
                }
                Ok::<_, Error>(())
            })??;
            pipeline.drain(&self.file).await?;
        }
        let tables = tables_of(self.size());
        let (directory, end, sum) = pipeline.with_packer(|packer| {
            let directory = packer.add_end(tables, self.header(AT_END, 0, DATA_START))?;
            Ok::<_, Error>((directory, packer.end(), packer.sum()))
        })??;
        pipeline.drain(&self.file).await?;
        self.file.set_size(end).await?;
        self.file.flush().await?;
        if self.is_streamed {
            return Ok(());
        }
        // The footer is looked for at the end of what it lies in, which may be longer than the stream.
        let ends_there =
            self.file.can(Capabilities::RESIZE) || self.file.device().info().size == end;
        let directory = if ends_there { AT_END } else { directory };
        let header = self.header(directory, 0, DATA_START);
        self.write_header(&header, sum.min(FRESH)).await
    }

    async fn complete_sparse(&self, end: u64) -> Result<()> {
        let size = self.size();
        let tables = match self.options.size {
            Some(size) => Tables::at(DATA_START, size),
            None => Tables::at(end, size),
        };
        let end = end.max(tables.end());
        if end / SECTOR > u32::MAX.into() {
            let message = "a file of this format has 2 TiB at most";
            return Err(Error::with_message(ErrorKind::NoSpace, message));
        }
        self.file.check_room(end)?;
        for directory in tables.directories() {
            self.write_tables(directory, &tables).await?;
        }
        self.file.set_size(end).await?;
        self.file.flush().await?;
        let [redundant, directory] = tables.directories().map(|place| place / SECTOR);
        let overhead = match self.options.size {
            Some(_) => tables.end(),
            None => DATA_START,
        };
        let header = self.header(directory, redundant, overhead);
        let random = RandomState::new().build_hasher().finish() as u32;
        self.write_header(&header, random.min(FRESH)).await
    }

    /// Writes a directory at `directory`, and the tables behind it.
    async fn write_tables(&self, directory: u64, tables: &Tables) -> Result<()> {
        let first = directory + tables.directory();
        let place = |number: u64| ((first + number * TABLE) / SECTOR) as u32;
        let range = ByteRange::between(directory, directory + tables.copy());
        let mut bytes = Vec::new();
        for number in 0..tables.count {
            bytes.extend(place(number).to_le_bytes());
        }
        bytes.resize(tables.directory() as usize, 0);
        let mut at = range.start();
        for number in 0..tables.count {
            match self.map.existing(number).map(|table| table.bytes()) {
                Some(Some(table)) => bytes.extend(table),
                Some(None) => return Err(Error::new(ErrorKind::InvalidInput)),
                None => bytes.resize(bytes.len() + TABLE as usize, 0),
            }
            if bytes.len() as u64 >= WRITTEN_AT_ONCE {
                at = self.write_piece(at, &mut bytes, false).await?;
            }
        }
        self.write_piece(at, &mut bytes, true).await.map(drop)
    }

    /// Writes whole blocks of `bytes` at `at`, or all of them, and says where the rest goes.
    async fn write_piece(&self, at: u64, bytes: &mut Vec<u8>, all: bool) -> Result<u64> {
        let block = self.file.block();
        // Where a directory begins inside of a block, what lies before it was written just now.
        let before = at % block;
        let mut whole = Vec::new();
        if before > 0 {
            let start = Buffer::zeroed(block as usize);
            let start = self.file.read(at - before, start).await?;
            whole.extend(&start[..before as usize]);
        }
        whole.append(bytes);
        let length = whole.len() as u64;
        let written = match all {
            true => length.next_multiple_of(block),
            false => length - length % block,
        };
        let rest = whole.split_off(written.min(length) as usize);
        whole.resize(written as usize, 0);
        let start = at - before;
        if !(self.file.is_fresh() && is_zero(&whole)) {
            self.file
                .write_blocks(start, Buffer::from(&whole[..]))
                .await?;
        }
        *bytes = rest;
        Ok(start + written)
    }

    fn header(&self, directory: u64, redundant: u64, overhead: u64) -> Header {
        let is_compressed = self.options.subformat == Subformat::StreamOptimized;
        let (version, flags) = match is_compressed {
            true => (3, Flags::NEWLINE_TEST | Flags::COMPRESSED | Flags::MARKERS),
            false => (1, Flags::NEWLINE_TEST | Flags::REDUNDANT),
        };
        Header {
            version,
            flags,
            capacity: sectors(self.size()),
            grain: GRAIN / SECTOR,
            descriptor: 1,
            descriptor_length: DESCRIPTOR,
            entries: ENTRIES as u32,
            redundant,
            directory,
            overhead: overhead / SECTOR,
            is_compressed,
        }
    }

    /// Writes what a stream begins with.
    pub(super) async fn write_beginning(&self) -> Result<()> {
        let header = self.header(AT_END, 0, DATA_START);
        let mut bytes = self.beginning(&header, FRESH);
        bytes.resize(DATA_START as usize, 0);
        let written = self.file.write_blocks(0, Buffer::from(&bytes[..]));
        written.await.map(drop)
    }

    async fn write_header(&self, header: &Header, cid: u32) -> Result<()> {
        let mut bytes = self.beginning(header, cid);
        let length = (bytes.len() as u64).next_multiple_of(self.file.block());
        bytes.resize(length as usize, 0);
        self.file.write_blocks(0, Buffer::from(&bytes[..])).await?;
        self.file.flush().await
    }

    /// The header and the descriptor.
    fn beginning(&self, header: &Header, cid: u32) -> Vec<u8> {
        debug_assert_ne!(cid, NO_PARENT);
        let descriptor = NewDescriptor {
            cid,
            create_type: match self.options.subformat {
                Subformat::StreamOptimized => "streamOptimized",
                Subformat::MonolithicSparse => "monolithicSparse",
            },
            capacity: header.capacity,
            file: &self.file.device().info().name,
            adapter_type: self.options.adapter_type.as_deref().unwrap_or("ide"),
            hardware_version: self.options.hardware_version.as_deref().unwrap_or("4"),
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend(descriptor.text().as_bytes());
        bytes.resize(((1 + DESCRIPTOR) * SECTOR) as usize, 0);
        bytes
    }
}
