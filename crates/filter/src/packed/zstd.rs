//! Zstandard: RFC 8878, with the seek table of the seekable format (contrib/seekable_format in zstd's sources).

use blockferry_block::{ByteRange, HumanSize, Result, read_exact_at};
use twox_hash::XxHash64;
use zstd::bulk::Decompressor;

use super::{
    index::{Builder, Damage, Finding, MOST_BLOCKS, Packed, Unfit, damaged, foreign},
    window::{Window, u32_at},
};

const FORMAT: &str = "zstd";

const HOW: &str = "t2sz -r -s 4M, or zeekstd --frame-size 4M, makes one that can be read anywhere";

const MAGIC: u32 = 0xfd2f_b528;

/// The magics of frames that hold nothing, in whose last four bits they differ.
const SKIPPABLE: u32 = 0x184d_2a50;

/// The magic of the skippable frame that a seek table is in.
const TABLE: u32 = 0x184d_2a5e;

/// What a seek table ends with.
const SEEKABLE: u32 = 0x8f92_eab1;

/// The number of frames, flags, and the magic, at the end of a seek table.
const FOOTER: u64 = 9;

/// Magic and length of a skippable frame.
const SKIPPABLE_HEADER: u64 = 8;

/// The longest header of a frame, magic included.
const LONGEST_HEADER: u64 = 18;

/// Finds the frames of a zstd file.
pub(super) async fn find(window: &mut Window<'_>, max_block: u64) -> Result<Finding> {
    let magic = window
        .forward(0, 4)
        .await?
        .and_then(|bytes| u32_at(bytes, 0));
    if !magic.is_some_and(|magic| magic == MAGIC || magic & !0xf == SKIPPABLE) {
        return Err(foreign(FORMAT));
    }
    match find_table(window).await? {
        Some(table) => table.find(window, max_block).await,
        None => find_frames(window, max_block).await,
    }
}

/// The end of a seek table.
struct Table {
    frames: u64,
    has_checksums: bool,
}

/// Reads the end of the seek table, if there is one.
async fn find_table(window: &mut Window<'_>) -> Result<Option<Table>> {
    let end = window.size().saturating_sub(FOOTER);
    let footer = window.backward(end, FOOTER).await?;
    Ok(footer.and_then(Table::parse))
}

impl Table {
    fn parse(footer: &[u8]) -> Option<Self> {
        if u32_at(footer, 5)? != SEEKABLE {
            return None;
        }
        Some(Self {
            frames: u32_at(footer, 0)?.into(),
            has_checksums: footer[4] & 0x80 != 0,
        })
    }

    /// The size of one entry: packed and unpacked size, and maybe a checksum.
    fn entry(&self) -> u64 {
        if self.has_checksums { 12 } else { 8 }
    }

    async fn find(self, window: &mut Window<'_>, max_block: u64) -> Result<Finding> {
        // As many empty frames are no disk.
        if self.frames > 2 * MOST_BLOCKS as u64 {
            return Unfit::TooMany.into_finding(0, HOW);
        }
        let content = self.frames * self.entry() + FOOTER;
        let start = window.size().checked_sub(SKIPPABLE_HEADER + content);
        let start = start.ok_or_else(|| damaged("its seek table is longer than the file"))?;
        let table = ByteRange::between(start, window.size());
        let table = read_exact_at(window.device(), table).await?;
        let is_frame = u32_at(&table, 0) == Some(TABLE)
            && u32_at(&table, 4).is_some_and(|length| u64::from(length) == content);
        if !is_frame {
            return Err(damaged("its seek table has no frame around it"));
        }
        let unpack = match self.has_checksums {
            true => unpack_checked,
            false => unpack_frame,
        };
        let mut builder = Builder::new(FORMAT, unpack, max_block);
        let mut at = 0;
        let entries = &table[SKIPPABLE_HEADER as usize..table.len() - FOOTER as usize];
        for entry in entries.chunks_exact(self.entry() as usize) {
            let number = |at| u32_at(entry, at).unwrap_or(0);
            let packed = ByteRange::between(at, at + u64::from(number(0)));
            if packed.end() > start {
                break;
            }
            if let Err(unfit) = builder.push(packed, number(4).into(), number(8)) {
                return unfit.into_finding(builder.len(), HOW);
            }
            at = packed.end();
        }
        if at != start {
            return Err(damaged("its seek table does not fit its size"));
        }
        Ok(Finding::Blocks(builder.finish()))
    }
}

/// Follows the frames, and the blocks in each, to their ends.
async fn find_frames(window: &mut Window<'_>, max_block: u64) -> Result<Finding> {
    let mut builder = Builder::new(FORMAT, unpack_frame, max_block);
    let size = window.size();
    let mut at = 0;
    while at < size {
        let damaged = |what: &str| damaged(format!("{what} at offset {at}"));
        let cut_off = || damaged("the file ends in the middle of the frame");
        let head = window.up_to(at, LONGEST_HEADER).await?;
        let header = match Header::parse(head) {
            Some(header) => header,
            None if head.len() < LONGEST_HEADER as usize => return Err(cut_off()),
            None => return Err(damaged("there is no frame")),
        };
        let (header, unpacked) = match header {
            Header::Skippable(length) => {
                let end = at + SKIPPABLE_HEADER + length;
                if end > size {
                    return Err(cut_off());
                }
                if end == size && u32_at(head, 0) == Some(TABLE) {
                    return Err(damaged("there is no end of the seek table"));
                }
                at = end;
                continue;
            }
            Header::Frame(header) => {
                let Some(unpacked) = header.unpacked else {
                    return Ok(Finding::Whole(format!(
                        "its frame at offset {at} does not say how much it holds, as those of pzstd and \
                         of what was piped into zstd; {HOW}"
                    )));
                };
                (header, unpacked)
            }
        };
        if unpacked > max_block {
            // Not worth following to its end.
            let what = match at {
                0 => "it begins with one frame".to_owned(),
                _ => format!("its frame at offset {at} is one"),
            };
            let unpacked = HumanSize(unpacked);
            return Ok(Finding::Whole(format!(
                "{what} of {unpacked}, which is more than max-block; {HOW}"
            )));
        }
        let mut end = at + header.length;
        loop {
            let block = window.forward(end, 3).await?.ok_or_else(cut_off)?;
            let (length, is_last) =
                block_length(block).ok_or_else(|| damaged("a wrong block in the frame"))?;
            end += 3 + length;
            if is_last {
                break;
            }
        }
        if header.has_checksum {
            end += 4;
        }
        if end > size {
            return Err(cut_off());
        }
        let packed = ByteRange::between(at, end);
        if let Err(unfit) = builder.push(packed, unpacked, 0) {
            return unfit.into_finding(builder.len(), HOW);
        }
        at = end;
    }
    Ok(Finding::Blocks(builder.finish()))
}

/// What the beginning of a frame says.
enum Header {
    /// Nothing to unpack: so many bytes follow the header.
    Skippable(u64),
    Frame(FrameHeader),
}

struct FrameHeader {
    /// Of the header, magic included.
    length: u64,
    /// The size of its contents, if it says so.
    unpacked: Option<u64>,
    has_checksum: bool,
}

impl Header {
    /// RFC 8878, sections 3.1.1.1 and 3.1.2.
    fn parse(head: &[u8]) -> Option<Self> {
        let magic = u32_at(head, 0)?;
        if magic & !0xf == SKIPPABLE {
            return Some(Self::Skippable(u32_at(head, 4)?.into()));
        }
        let descriptor = *head.get(4)?;
        if magic != MAGIC || descriptor & 0x08 != 0 {
            return None;
        }
        let is_single_segment = descriptor & 0x20 != 0;
        let window = usize::from(!is_single_segment);
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let at = 5 + window + dictionary;
        let size = match descriptor >> 6 {
            0 if !is_single_segment => 0,
            log => 1 << log,
        };
        let field = head.get(at..at + size)?;
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(field);
        let number = u64::from_le_bytes(bytes);
        Some(Self::Frame(FrameHeader {
            length: (at + size) as u64,
            unpacked: match size {
                0 => None,
                2 => Some(number + 256),
                _ => Some(number),
            },
            has_checksum: descriptor & 4 != 0,
        }))
    }
}

/// The length of the block behind its header of 3 bytes, and whether it is the last of its frame.
fn block_length(header: &[u8]) -> Option<(u64, bool)> {
    let bits = u32::from_le_bytes([*header.first()?, *header.get(1)?, *header.get(2)?, 0]);
    let length = match bits >> 1 & 3 {
        // One byte, repeated.
        1 => 1,
        3 => return None,
        _ => u64::from(bits >> 3),
    };
    Some((length, bits & 1 != 0))
}

/// Unpacks a frame in one go, which needs no window beside the result.
fn unpack_frame(packed: &Packed<'_>) -> Result<Vec<u8>, Damage> {
    let mut unpacked = vec![0; packed.unpacked];
    let mut decompressor = Decompressor::new().map_err(|error| error.to_string())?;
    let count = decompressor.decompress_to_buffer(packed.bytes, &mut unpacked[..]);
    match count.map_err(|error| error.to_string())? {
        count if count == packed.unpacked => Ok(unpacked),
        count => Err(format!("it holds {count} bytes, not {}", packed.unpacked)),
    }
}

/// The same, where the seek table has checksums: the low half of the hash.
fn unpack_checked(packed: &Packed<'_>) -> Result<Vec<u8>, Damage> {
    let unpacked = unpack_frame(packed)?;
    if XxHash64::oneshot(0, &unpacked) as u32 != packed.tag {
        return Err("wrong XXH64".to_owned());
    }
    Ok(unpacked)
}
