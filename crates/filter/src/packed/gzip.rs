//! gzip: RFC 1952, with the blocks of BGZF (the SAM/BAM specification, section 4.1: what bgzip makes) and the
//! chunks of dictzip (an "RA" field in the header).

use blockferry_block::{ByteRange, Result};
use flate2::{Decompress, FlushDecompress, Status};

use super::{
    index::{Builder, Damage, Finding, Packed, damaged, foreign},
    window::{PIECE, Window, u16_at, u32_at},
};

const FORMAT: &str = "gzip";

const HOW: &str = "bgzip makes one that can be read anywhere";

const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// What stands in front of the extra field, its length included.
const FIXED: u64 = 12;

/// CRC-32 and size, behind the compressed bytes.
const TRAILER: usize = 8;

/// The longest header: 64 KiB of extra field, and names that are given the room that flate2 gives them.
const LONGEST_HEADER: u64 = FIXED + (1 << 16) * 3;

/// The bits of the flags byte.
const HEADER_CRC: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;

/// Finds the blocks of a gzip file.
pub(super) async fn find(window: &mut Window<'_>, max_block: u64) -> Result<Finding> {
    let head = window.up_to(0, LONGEST_HEADER).await?;
    if !head.starts_with(&MAGIC) {
        return Err(foreign(FORMAT));
    }
    let extra = extra_of(head).unwrap_or_default();
    if subfield(extra, *b"BC").is_some() {
        return find_blocks(window, max_block).await;
    }
    match subfield(extra, *b"RA").map(Chunks::parse) {
        Some(Some(chunks)) => find_chunks(window, &chunks, max_block).await,
        Some(None) => Err(damaged("the table of chunks in its header is none")),
        None => Ok(Finding::Whole(format!(
            "it can only be read from its beginning, as what gzip and pigz make; {HOW}"
        ))),
    }
}

/// Follows the members of BGZF, each of which says how long it is.
async fn find_blocks(window: &mut Window<'_>, max_block: u64) -> Result<Finding> {
    let mut builder = Builder::new(FORMAT, unpack_member, max_block);
    let mut at = 0;
    let mut is_ended = false;
    while at < window.size() {
        let damaged = |what: &str| damaged(format!("{what} at offset {at}"));
        let head = window.up_to(at, FIXED + (1 << 16)).await?;
        if !head.starts_with(&MAGIC) {
            return Err(damaged("there is no block"));
        }
        let extra = extra_of(head).and_then(|extra| subfield(extra, *b"BC"));
        let Some(last) = extra.and_then(|size| u16_at(size, 0)) else {
            return Ok(Finding::Whole(format!(
                "its member at offset {at} does not say where it ends; {HOW}"
            )));
        };
        let length = u64::from(last) + 1;
        let Some(block) = window.forward(at, length).await? else {
            return Err(damaged("the file ends in the middle of the block"));
        };
        let size = block
            .len()
            .checked_sub(4)
            .and_then(|end| u32_at(block, end));
        let size = size.ok_or_else(|| damaged("there is no room for the end of the block"))?;
        is_ended = size == 0;
        let packed = ByteRange::between(at, at + length);
        if let Err(unfit) = builder.push(packed, size.into(), 0) {
            return unfit.into_finding(builder.len(), HOW);
        }
        at += length;
    }
    if !is_ended {
        let what = "the empty block that marks the end is missing";
        return Err(damaged(what));
    }
    Ok(Finding::Blocks(builder.finish()))
}

/// The chunks of dictzip: one member, whose window is forgotten at the end of each chunk.
struct Chunks {
    /// The size of all but the last, unpacked, in bytes.
    unpacked: u64,
    /// Their sizes packed.
    packed: Vec<u16>,
}

impl Chunks {
    /// Of the "RA" field: version, size, number, and the packed sizes, of 2 bytes each.
    fn parse(field: &[u8]) -> Option<Self> {
        let unpacked = u64::from(u16_at(field, 2)?);
        let count = usize::from(u16_at(field, 4)?);
        let sizes = field.get(6..)?.get(..count * 2)?;
        let (sizes, _) = sizes.as_chunks::<2>();
        let is_known = u16_at(field, 0)? == 1 && unpacked > 0 && count > 0;
        is_known.then(|| Self {
            unpacked,
            packed: sizes.iter().map(|size| u16::from_le_bytes(*size)).collect(),
        })
    }
}

async fn find_chunks(window: &mut Window<'_>, chunks: &Chunks, max_block: u64) -> Result<Finding> {
    let head = window.up_to(0, LONGEST_HEADER).await?;
    let header = header_length(head).ok_or_else(|| damaged("its header has no end"))?;
    let end = window.size().saturating_sub(TRAILER as u64);
    let trailer = window.forward(end, TRAILER as u64).await?;
    let size = trailer.and_then(|trailer| u32_at(trailer, 4));
    let mut left = u64::from(size.ok_or_else(|| damaged("it has no end"))?);
    let mut builder = Builder::new(FORMAT, unpack_chunk, max_block);
    let mut at = header as u64;
    for (index, packed) in chunks.packed.iter().enumerate() {
        let is_last = index + 1 == chunks.packed.len();
        let packed = ByteRange::between(at, at + u64::from(*packed));
        let unpacked = left.min(chunks.unpacked);
        if packed.end() > end || unpacked == 0 || is_last != (left <= chunks.unpacked) {
            return Err(damaged(
                "the table of chunks in its header does not fit its size",
            ));
        }
        if let Err(unfit) = builder.push(packed, unpacked, 0) {
            return unfit.into_finding(builder.len(), HOW);
        }
        left -= unpacked;
        at = packed.end();
    }
    Ok(Finding::Blocks(builder.finish()))
}

/// The extra field of the member that begins with `head`, if it has one and all of it is there.
fn extra_of(head: &[u8]) -> Option<&[u8]> {
    if head.get(3)? & EXTRA == 0 {
        return None;
    }
    let length = usize::from(u16_at(head, 10)?);
    head.get(FIXED as usize..)?.get(..length)
}

/// The contents of the part of an extra field that is called `id`.
fn subfield(mut extra: &[u8], id: [u8; 2]) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(extra, 2)?);
        let field = extra.get(4..)?.get(..length)?;
        if extra.starts_with(&id) {
            return Some(field);
        }
        extra = &extra[4 + length..];
    }
}

/// The length of the header of the member that begins with `head`, if all of it is there.
fn header_length(head: &[u8]) -> Option<usize> {
    let flags = *head.get(3)?;
    let mut length = 10;
    if flags & EXTRA != 0 {
        length = FIXED as usize + extra_of(head)?.len();
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let text = head.get(length..)?;
            length += 1 + text.iter().position(|byte| *byte == 0)?;
        }
    }
    if flags & HEADER_CRC != 0 {
        length += 2;
    }
    (length <= head.len()).then_some(length)
}

/// Unpacks a whole member.
fn unpack_member(packed: &Packed<'_>) -> Result<Vec<u8>, Damage> {
    let bytes = packed.bytes;
    let end = bytes.len().checked_sub(TRAILER);
    let body = end.and_then(|end| bytes[..end].get(header_length(bytes)?..));
    let (Some(body), Some(end)) = (body, end) else {
        return Err("its header is longer than the block".to_owned());
    };
    let unpacked = inflate(body, packed.unpacked, true)?;
    if u32_at(bytes, end) != Some(crc32fast::hash(&unpacked)) {
        return Err("wrong CRC32".to_owned());
    }
    Ok(unpacked)
}

/// Unpacks a chunk of dictzip, which has no checksum.
fn unpack_chunk(packed: &Packed<'_>) -> Result<Vec<u8>, Damage> {
    inflate(packed.bytes, packed.unpacked, false)
}

/// Inflates all of `packed` to exactly `size` bytes. `to_end` says that the stream must end then.
fn inflate(packed: &[u8], size: usize, to_end: bool) -> Result<Vec<u8>, Damage> {
    let mut inflater = Decompress::new(false);
    // One byte more shows that there is more.
    let mut unpacked = vec![0; size + 1];
    loop {
        let (read, written) = (inflater.total_in(), inflater.total_out());
        let (input, output) = (&packed[read as usize..], &mut unpacked[written as usize..]);
        let status = inflater.decompress(input, output, FlushDecompress::None);
        let status = status.map_err(|_| "it cannot be inflated")?;
        let is_ended = status == Status::StreamEnd;
        let is_stuck = (inflater.total_in(), inflater.total_out()) == (read, written);
        if !is_ended && !is_stuck {
            continue;
        }
        return match inflater.total_out() as usize {
            found if found > size => Err(format!("it holds more than {size} bytes")),
            found if found < size => Err(format!("it holds {found} bytes, not {size}")),
            _ if to_end && !is_ended => Err("it has no end".to_owned()),
            _ if inflater.total_in() as usize != packed.len() => {
                Err("there is something after its end".to_owned())
            }
            _ => {
                unpacked.truncate(size);
                Ok(unpacked)
            }
        };
    }
}

const _: () = assert!(LONGEST_HEADER <= PIECE);
