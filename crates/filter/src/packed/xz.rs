//! xz: the .xz file format, version 1.2.1. Streams of blocks, each stream with an index of its blocks at its end.

use blockferry_block::{ByteRange, HumanSize, Result, read_exact_at};
use liblzma::stream::{Action, Error as XzError, Status, Stream};

use super::{
    index::{Builder, Damage, Finding, MOST_BLOCKS, Packed, Unfit, damaged, foreign},
    window::{Window, u32_at},
};

const FORMAT: &str = "xz";

const HOW: &str = "xz --block-size=16MiB makes one that can be read anywhere";

const MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];

const FOOTER_MAGIC: [u8; 2] = *b"YZ";

/// The length of a stream's header, and of its footer.
const HEADER: u64 = 12;

/// The most padding behind all streams that is looked at, in bytes.
const MOST_PADDING: u64 = 64 << 20;

/// The most streams of one file: `xz` makes one at a time.
const MOST_STREAMS: usize = 1 << 16;

/// The most bytes of one index; a record of real sizes takes 5 to 8.
const LONGEST_INDEX: u64 = 9 * MOST_BLOCKS as u64;

/// The most memory of one decoder beside its result, in bytes: a dictionary of 512 MiB, eight times that of `xz -9`.
const MEMORY: u64 = (512 << 20) + (1 << 20);

/// Finds the blocks of an xz file.
pub(super) async fn find(window: &mut Window<'_>, max_block: u64) -> Result<Finding> {
    if !window.up_to(0, HEADER).await?.starts_with(&MAGIC) {
        return Err(foreign(FORMAT));
    }
    let mut streams = Vec::new();
    let mut blocks = 0;
    let mut padding = MOST_PADDING;
    let mut end = window.size();
    while end > 0 {
        end = skip_padding(window, end, &mut padding).await?;
        let stream = Found::read(window, end).await?;
        end = stream.start;
        blocks += stream.records.len();
        streams.push(stream);
        if blocks > MOST_BLOCKS || streams.len() > MOST_STREAMS {
            return Unfit::TooMany.into_finding(0, HOW);
        }
    }
    let mut builder = Builder::new(FORMAT, unpack, max_block);
    for stream in streams.iter().rev() {
        let mut at = stream.start + HEADER;
        for record in &stream.records {
            let packed = ByteRange::between(at, at + record.packed());
            let tag = u32::from(stream.check);
            match builder.push(packed, record.unpacked, tag) {
                Ok(()) => at = packed.end(),
                Err(Unfit::TooLarge(size)) if blocks == 1 => {
                    let size = HumanSize(size);
                    return Ok(Finding::Whole(format!("it is one block of {size}; {HOW}")));
                }
                Err(unfit) => return unfit.into_finding(builder.len(), HOW),
            }
        }
    }
    Ok(Finding::Blocks(builder.finish()))
}

/// Where the stream before `end` ends: padding is zeroes, four at a time.
async fn skip_padding(window: &mut Window<'_>, mut end: u64, most: &mut u64) -> Result<u64> {
    loop {
        let word = match end.checked_sub(4) {
            Some(start) => window.backward(start, 4).await?,
            None => None,
        };
        match word.and_then(|word| u32_at(word, 0)) {
            Some(0) if *most < 4 => return Err(damaged("it ends in too many zeroes")),
            Some(0) => {
                *most -= 4;
                end -= 4;
            }
            Some(_) => return Ok(end),
            None => return Err(damaged("there is no stream at its beginning")),
        }
    }
}

/// A stream that was found.
struct Found {
    /// Where its header lies.
    start: u64,
    /// Which checksum its blocks have.
    check: u8,
    records: Vec<Record>,
}

impl Found {
    /// The stream that ends at `end`.
    async fn read(window: &mut Window<'_>, end: u64) -> Result<Self> {
        let damaged =
            |what: &str| damaged(format!("{what} of the stream that ends at offset {end}"));
        let footer = match end.checked_sub(HEADER) {
            Some(start) => window.backward(start, HEADER).await?,
            None => None,
        };
        let footer = footer.and_then(Footer::parse);
        let footer = footer.ok_or_else(|| damaged("a wrong footer"))?;
        if !is_known(footer.check) {
            return Err(damaged("unknown checksums"));
        }
        if footer.index > LONGEST_INDEX {
            return Err(damaged("too long an index"));
        }
        let index = (end - HEADER).checked_sub(footer.index);
        let index = index.ok_or_else(|| damaged("too long an index"))?;
        let range = ByteRange::between(index, index + footer.index);
        let bytes = read_exact_at(window.device(), range).await?;
        let records = parse_index(&bytes).ok_or_else(|| damaged("a wrong index"))?;
        let packed = records.iter().map(Record::packed);
        let packed = packed.fold(HEADER, u64::saturating_add);
        let start = index.checked_sub(packed);
        let start = start.ok_or_else(|| damaged("blocks that have no room before the index"))?;
        let header = window.backward(start, HEADER).await?;
        if header != Some(&stream_header(footer.check)) {
            return Err(damaged("a wrong header"));
        }
        Ok(Self {
            start,
            check: footer.check,
            records,
        })
    }
}

struct Footer {
    /// The length of the index before it, in bytes.
    index: u64,
    check: u8,
}

impl Footer {
    /// Section 2.1.2 of the format.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (crc, rest) = bytes.split_first_chunk()?;
        let flags = rest.get(4..6)?;
        let is_right = rest.get(6..)? == FOOTER_MAGIC
            && u32::from_le_bytes(*crc) == crc32fast::hash(&rest[..6])
            && flags[0] == 0
            && flags[1] < 16;
        is_right.then_some(Self {
            index: (u64::from(u32_at(rest, 0)?) + 1) * 4,
            check: flags[1],
        })
    }
}

/// The header of a stream whose blocks have checksums of kind `check` (section 2.1.1).
fn stream_header(check: u8) -> [u8; HEADER as usize] {
    let mut header = [0; HEADER as usize];
    let flags = [0, check];
    header[..6].copy_from_slice(&MAGIC);
    header[6..8].copy_from_slice(&flags);
    header[8..].copy_from_slice(&crc32fast::hash(&flags).to_le_bytes());
    header
}

/// Whether there is something that verifies checksums of that kind: none, CRC32, CRC64, SHA-256.
fn is_known(check: u8) -> bool {
    matches!(check, 0 | 1 | 4 | 10)
}

/// A block as an index has it, in bytes.
struct Record {
    /// Packed, without the padding to a multiple of four.
    unpadded: u64,
    unpacked: u64,
}

impl Record {
    /// The whole of it in the file.
    fn packed(&self) -> u64 {
        // The largest number of the format is 2^63 - 1.
        self.unpadded.next_multiple_of(4)
    }
}

/// The records of an index (section 4 of the format).
fn parse_index(bytes: &[u8]) -> Option<Vec<Record>> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
        return None;
    }
    let (0, mut rest) = body.split_first().map(|(first, rest)| (*first, rest))? else {
        return None;
    };
    let count = take_number(&mut rest)?;
    // Two bytes at least for each: nothing is allocated for what is not there.
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= rest.len() / 2)?;
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        let unpadded = take_number(&mut rest).filter(|length| *length >= 5)?;
        let unpacked = take_number(&mut rest)?;
        records.push(Record { unpadded, unpacked });
    }
    (rest.len() < 4 && rest.iter().all(|byte| *byte == 0)).then_some(records)
}

/// Takes a number of up to nine bytes, seven bits in each, the low ones first (section 1.2).
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for index in 0..9 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << (index * 7);
        if byte & 0x80 == 0 {
            // Only the number zero ends in a zero byte.
            return (*byte != 0 || index == 0).then_some(number);
        }
    }
    None
}

/// Unpacks a block as the only one of a stream: all filters and checksums are the library's work.
fn unpack(packed: &Packed<'_>) -> Result<Vec<u8>, Damage> {
    let mut stream = Stream::new_stream_decoder(MEMORY, 0).map_err(|error| error.to_string())?;
    let check = (packed.tag & 0xf) as u8;
    // One byte more shows that there is more.
    let mut unpacked = vec![0; packed.unpacked + 1];
    let mut is_taken = true;
    for input in [&stream_header(check)[..], packed.bytes] {
        let first = stream.total_in();
        loop {
            let (read, written) = (stream.total_in(), stream.total_out());
            let input = &input[(read - first) as usize..];
            let output = &mut unpacked[written as usize..];
            if input.is_empty() {
                break;
            }
            let status = stream.process(input, output, Action::Run);
            let status = status.map_err(|error| explain(error, check))?;
            let is_stuck = (stream.total_in(), stream.total_out()) == (read, written);
            if is_stuck || status == Status::StreamEnd {
                is_taken = false;
                break;
            }
        }
    }
    // A checksum is verified with the last byte of a block; where that is, the index says, which has one of its own.
    let size = packed.unpacked;
    match stream.total_out() as usize {
        found if found > size => Err(format!("it holds more than {size} bytes")),
        found if found < size => Err(format!("it holds {found} bytes, not {size}")),
        _ if !is_taken => Err("there is something after its end".to_owned()),
        _ => {
            unpacked.truncate(size);
            Ok(unpacked)
        }
    }
}

fn explain(error: XzError, check: u8) -> Damage {
    match error {
        XzError::MemLimit => "it needs too much memory to be unpacked".to_owned(),
        XzError::Options => "it was packed in a way that is not supported".to_owned(),
        XzError::Data => match check {
            1 => "wrong contents, or a wrong CRC32".to_owned(),
            4 => "wrong contents, or a wrong CRC64".to_owned(),
            10 => "wrong contents, or a wrong SHA-256".to_owned(),
            _ => "wrong contents".to_owned(),
        },
        error => error.to_string(),
    }
}
