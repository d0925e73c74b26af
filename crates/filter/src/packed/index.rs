//! Where the blocks of a packed file are, packed and unpacked.

use std::ops::Range;

use blockferry_block::{ByteRange, Error, ErrorKind, HumanSize, Result};

/// The most blocks of one file: their index takes 100 MiB.
pub(super) const MOST_BLOCKS: usize = 1 << 22;

/// What is found in a packed file that is as it should be.
pub(super) enum Finding {
    /// Blocks that can be unpacked each by itself.
    Blocks(Index),
    /// No such blocks, or too large ones: it can only be read from its beginning. Says why, and how to make one
    /// that can be read anywhere.
    Whole(String),
}

/// Unpacks one block.
pub(super) type UnpackBlock = fn(&Packed<'_>) -> Result<Vec<u8>, Damage>;

/// A block that is to be unpacked.
pub(super) struct Packed<'a> {
    /// As it lies in the file.
    pub(super) bytes: &'a [u8],
    /// How many bytes it must become.
    pub(super) unpacked: usize,
    /// What the index of the format has noted, see [`Builder::push`].
    pub(super) tag: u32,
}

/// What is wrong with a block, in words that follow "block 7 at offset 512: ".
pub(super) type Damage = String;

/// The blocks of a file in order, without a gap between them once they are unpacked.
pub(super) struct Index {
    /// The name of the format, for messages.
    pub(super) format: &'static str,
    pub(super) unpack: UnpackBlock,
    blocks: Vec<Block>,
    size: u64,
}

#[derive(Clone, Copy)]
struct Block {
    /// Where it lies in the file.
    packed: u64,
    /// Where its first byte lies when it is unpacked; the next block begins behind its last.
    unpacked: u64,
    packed_length: u32,
    tag: u32,
}

impl Index {
    /// The size of all blocks unpacked, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The number of blocks.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The numbers of the blocks that hold the bytes of `range`, which lies inside the size.
    pub(super) fn touched(&self, range: ByteRange) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        let starts_by = |offset| {
            self.blocks
                .partition_point(|block| block.unpacked <= offset)
        };
        starts_by(range.start()) - 1..starts_by(range.end() - 1)
    }

    /// Where block `number` lies in the file.
    pub(super) fn packed(&self, number: usize) -> ByteRange {
        let block = self.blocks[number];
        ByteRange::between(block.packed, block.packed + u64::from(block.packed_length))
    }

    /// Where block `number` lies when it is unpacked.
    pub(super) fn unpacked(&self, number: usize) -> ByteRange {
        let end = self
            .blocks
            .get(number + 1)
            .map_or(self.size, |next| next.unpacked);
        ByteRange::between(self.blocks[number].unpacked, end)
    }

    /// Unpacks block `number` from its packed `bytes`.
    pub(super) fn unpack(&self, number: usize, bytes: &[u8]) -> Result<Vec<u8>> {
        let packed = Packed {
            bytes,
            unpacked: self.unpacked(number).len() as usize,
            tag: self.blocks[number].tag,
        };
        (self.unpack)(&packed).map_err(|damage| {
            let at = self.blocks[number].packed;
            let block = format!("{}: block {number} at offset {at}", self.format);
            Error::with_message(
                ErrorKind::Io,
                format!("{block}: {damage}: the file is damaged"),
            )
        })
    }
}

/// Makes an [`Index`], block by block.
pub(super) struct Builder {
    index: Index,
    max_block: u64,
}

/// A block that cannot be in an index.
pub(super) enum Unfit {
    /// It is larger than blocks may be: so many bytes.
    TooLarge(u64),
    /// There are too many.
    TooMany,
    /// Its sizes make no sense.
    Damaged(&'static str),
}

impl Builder {
    pub(super) fn new(format: &'static str, unpack: UnpackBlock, max_block: u64) -> Self {
        Self {
            index: Index {
                format,
                unpack,
                blocks: Vec::new(),
                size: 0,
            },
            max_block,
        }
    }

    /// Adds the next block: `packed` in the file, `unpacked` bytes long then. The caller has checked that it lies in
    /// the file. `tag` is for [`Packed::tag`]. A block without a byte is left out.
    pub(super) fn push(&mut self, packed: ByteRange, unpacked: u64, tag: u32) -> Result<(), Unfit> {
        let index = &mut self.index;
        let size = index.size.checked_add(unpacked);
        let size = size.filter(|size| i64::try_from(*size).is_ok());
        let size = size.ok_or(Unfit::Damaged(
            "its blocks are said to hold more than 8 EiB",
        ))?;
        if unpacked == 0 {
            return Ok(());
        }
        if unpacked > self.max_block {
            return Err(Unfit::TooLarge(unpacked));
        }
        if index.blocks.len() == MOST_BLOCKS {
            return Err(Unfit::TooMany);
        }
        // What cannot be made smaller grows by a few bytes in a thousand.
        let plausible = packed.len() <= unpacked + unpacked / 8 + (64 << 10);
        let packed_length = u32::try_from(packed.len()).ok().filter(|_| plausible);
        let Some(packed_length) = packed_length else {
            return Err(Unfit::Damaged(
                "a block is said to be much larger packed than unpacked",
            ));
        };
        index.blocks.push(Block {
            packed: packed.start(),
            unpacked: index.size,
            packed_length,
            tag,
        });
        index.size = size;
        Ok(())
    }

    pub(super) fn finish(self) -> Index {
        self.index
    }

    /// How many blocks there are.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }
}

impl Unfit {
    /// What comes of a file with such a block as its number `number`; `how` says how to make a better one.
    pub(super) fn into_finding(self, number: usize, how: &str) -> Result<Finding> {
        Ok(Finding::Whole(match self {
            Self::Damaged(what) => return Err(damaged(what)),
            Self::TooLarge(size) => format!(
                "its block {number} is {} long, which is more than max-block; {how}",
                HumanSize(size)
            ),
            Self::TooMany => {
                format!("it has more than {MOST_BLOCKS} blocks; {how}, of larger blocks")
            }
        }))
    }
}

/// The failure of opening a file whose index or headers cannot be right.
pub(super) fn damaged(what: impl std::fmt::Display) -> Error {
    Error::with_message(ErrorKind::Io, format!("{what}: the file is damaged"))
}

/// The failure of opening a file that is something else.
pub(super) fn foreign(format: &'static str) -> Error {
    let message = format!("it is not in the format {format}");
    Error::with_message(ErrorKind::InvalidInput, message)
}
