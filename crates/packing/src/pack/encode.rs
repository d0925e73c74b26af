//! How one piece is compressed, and what stands behind the last one.

use std::io;

use blockferry_block::{Error, ErrorKind, Result};
use libdeflater::{CompressionLvl, Compressor as Deflater};
use zstd::{bulk::Compressor as Framer, zstd_safe};

use super::PackOptions;
use crate::Packing;

/// How much of the stream is in a member of BGZF, in bytes: what cannot be compressed still fits in 64 KiB.
const MEMBER: usize = 0xff00;

/// How many members are compressed at a time.
const MEMBERS: usize = 16;

/// How much of the stream is in a frame of zstd, in bytes: as much as its window at level 3, so that it costs 1 or 2
/// percent.
const FRAME: usize = 2 << 20;

/// The same at levels that look back further, and take their time.
const LONG_FRAME: usize = 8 << 20;

/// The first level of those.
const LONG: i32 = 16;

/// What stands in front of the compressed bytes of a member: magic, deflate, an extra field of 6 bytes with the
/// subfield "BC" of 2, which will hold the length of the member.
const MEMBER_HEADER: [u8; 16] = [
    0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 6, 0, b'B', b'C', 2, 0,
];

/// The length of that with the length of the member.
const HEADER_LENGTH: usize = MEMBER_HEADER.len() + 2;

/// CRC-32 and size, behind the compressed bytes.
const TRAILER_LENGTH: usize = 8;

/// The member that marks the end: nothing, compressed.
const LAST_BODY: [u8; 2] = [3, 0];

/// The magic of the frame that the seek table is in, and of the table's end.
const TABLE_MAGIC: u32 = 0x184d_2a5e;
const TABLE_END_MAGIC: u32 = 0x8f92_eab1;

/// The most frames that a table can have.
const MOST_FRAMES: usize = 0x0800_0000;

/// A piece, compressed.
pub(super) struct Piece {
    pub(super) packed: Vec<u8>,
    /// Its length before, in bytes.
    pub(super) length: u32,
}

/// How pieces are compressed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Encoding {
    Gzip(i32),
    Zstd(i32),
}

impl Encoding {
    /// # Errors
    /// `InvalidInput` for what is not made.
    pub(super) fn new(options: &PackOptions) -> Result<Self> {
        let (least, usual, most) = match options.packing {
            Packing::Gzip => (1, 6, 9),
            Packing::Zstd => (1, 3, 22),
            packing => {
                let message = format!("{packing} is only read here, not made");
                return Err(Error::with_message(ErrorKind::InvalidInput, message));
            }
        };
        let level = options.level.unwrap_or(usual);
        if !(least..=most).contains(&level) {
            let message = format!("the levels of {} are {least} to {most}", options.packing);
            return Err(Error::with_message(ErrorKind::InvalidInput, message));
        }
        let level = level as i32;
        Ok(match options.packing {
            Packing::Gzip => Self::Gzip(level),
            _ => Self::Zstd(level),
        })
    }

    /// The length of a piece, in bytes, but that of the last one.
    pub(super) fn piece_length(self) -> usize {
        match self {
            Self::Gzip(_) => MEMBER * MEMBERS,
            Self::Zstd(LONG..) => LONG_FRAME,
            Self::Zstd(_) => FRAME,
        }
    }

    /// Whether the end has a table of all pieces.
    pub(super) fn has_table(self) -> bool {
        matches!(self, Self::Zstd(_))
    }

    /// What one thread compresses with.
    pub(super) fn encoder(self) -> io::Result<Encoder> {
        Ok(match self {
            Self::Gzip(level) => {
                let level = CompressionLvl::new(level).unwrap_or_default();
                Encoder::Gzip(Box::new(Deflater::new(level)))
            }
            Self::Zstd(level) => {
                let mut framer = Framer::new(level)?;
                framer.include_checksum(true)?;
                Encoder::Zstd(Box::new(framer))
            }
        })
    }

    /// What stands behind the last piece. `frames` are the lengths of all, packed and unpacked.
    pub(super) fn end(self, frames: &[(u32, u32)]) -> Vec<u8> {
        match self {
            Self::Gzip(_) => member(&LAST_BODY, &[]),
            // Without a table it is read from its beginning.
            Self::Zstd(_) if frames.len() > MOST_FRAMES => Vec::new(),
            Self::Zstd(_) => seek_table(frames),
        }
    }
}

/// Compresses pieces.
pub(super) enum Encoder {
    Gzip(Box<Deflater>),
    Zstd(Box<Framer<'static>>),
}

impl Encoder {
    /// # Errors
    /// What the library failed with: memory, that is.
    pub(super) fn encode(&mut self, bytes: &[u8]) -> Result<Piece> {
        let failed = |error: String| Error::with_message(ErrorKind::Io, error);
        let packed = match self {
            Self::Gzip(deflater) => {
                let mut packed = Vec::with_capacity(bytes.len() / 2);
                let mut body = vec![0; deflater.deflate_compress_bound(MEMBER)];
                for part in bytes.chunks(MEMBER) {
                    let length = deflater.deflate_compress(part, &mut body);
                    let length = length.map_err(|error| failed(error.to_string()))?;
                    packed.extend(member(&body[..length], part));
                }
                packed
            }
            Self::Zstd(framer) => {
                let mut packed = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
                let done = framer.compress_to_buffer(bytes, &mut packed);
                done.map_err(|error| failed(error.to_string()))?;
                packed.shrink_to_fit();
                packed
            }
        };
        let length = bytes.len() as u32;
        Ok(Piece { packed, length })
    }
}

/// A member of BGZF with `body`, which is `part` compressed.
fn member(body: &[u8], part: &[u8]) -> Vec<u8> {
    let length = HEADER_LENGTH + body.len() + TRAILER_LENGTH;
    let mut member = Vec::with_capacity(length);
    member.extend_from_slice(&MEMBER_HEADER);
    // Less one. What is stored as it is takes 5 bytes more.
    member.extend_from_slice(&((length - 1) as u16).to_le_bytes());
    member.extend_from_slice(body);
    member.extend_from_slice(&crc32fast::hash(part).to_le_bytes());
    member.extend_from_slice(&(part.len() as u32).to_le_bytes());
    member
}

/// The table of frames, in a frame that decoders skip. Checksums are in the frames themselves.
fn seek_table(frames: &[(u32, u32)]) -> Vec<u8> {
    let content = frames.len() * 8 + 9;
    let mut table = Vec::with_capacity(content + 8);
    table.extend_from_slice(&TABLE_MAGIC.to_le_bytes());
    table.extend_from_slice(&(content as u32).to_le_bytes());
    for (packed, unpacked) in frames {
        table.extend_from_slice(&packed.to_le_bytes());
        table.extend_from_slice(&unpacked.to_le_bytes());
    }
    table.extend_from_slice(&(frames.len() as u32).to_le_bytes());
    table.push(0);
    table.extend_from_slice(&TABLE_END_MAGIC.to_le_bytes());
    table
}

const _: () = assert!(HEADER_LENGTH + MEMBER + 10 + TRAILER_LENGTH <= 1 << 16);
