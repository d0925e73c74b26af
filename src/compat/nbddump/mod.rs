//! The command line of `nbddump`: the bytes of an export as people read them.
//!
//! | file | what it does |
//! |---|---|
//! | `options` | the options, and what they ask for |
//! | `hexdump` | bytes as text |

mod hexdump;
mod options;

use std::{
    ffi::OsString,
    io::{self, BufWriter, Write},
    ops::Range,
    process::ExitCode,
};

use crate::{
    block::{ByteRange, Context, Error, ErrorKind, Extent, Status},
    cli::{
        commands::info::{Asked, ask_server},
        failure::Failure,
        options::Timeouts,
        output::unprinted,
    },
    client::blocking::Client,
};

use super::ending::end;
use hexdump::Hexdump;
use options::{Job, USAGE};

/// Bytes that are read at once: more than the largest block of any server, and a multiple of it.
const PIECE: u64 = 1 << 20;

/// The longest range whose extents are asked for at once, in bytes.
const ASKED: u64 = 1 << 30;

/// Runs `nbddump`.
pub(super) fn main(words: Vec<OsString>) -> ExitCode {
    match Job::parse(words) {
        Ok(job) => dump(&job).map_or_else(end, |()| ExitCode::SUCCESS),
        Err(early) => early.end(USAGE),
    }
}

fn dump(job: &Job) -> Result<(), Failure> {
    let output = BufWriter::new(io::stdout().lock());
    match ask_server(&job.endpoint, Timeouts::PATIENT, |server| {
        dump_from(server, job, output)
    })? {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::reader_gone()),
        Err(error) => Err(unprinted(&error)),
        Ok(()) => Ok(()),
    }
}

/// The outer failure is the server's, the inner one the output's.
fn dump_from(server: &Asked<'_>, job: &Job, output: impl Write) -> Result<io::Result<()>, Error> {
    let client = Client::connect_with(server.uri, &server.options)?;
    let size = client.size();
    if job.offset > size {
        let message = format!("offset {} lies past the end, {size}", job.offset);
        return Err(Error::with_message(ErrorKind::OutOfBounds, message));
    }
    let end = job
        .length
        .map_or(size, |length| job.offset.saturating_add(length).min(size));
    let mut dump = Hexdump::new(output, job.colour, job.offset..end, size);
    let mut disk = Disk::new(client);
    let mut failure = None;
    let mut offset = job.offset;
    while offset < end && failure.is_none() {
        let extents = disk.extents(offset..end);
        for extent in extents {
            let part = extent.range.start().max(offset)..extent.range.end().min(end);
            if part.is_empty() {
                continue;
            }
            offset = part.end;
            let written = match extent.status.is_zero() {
                true => dump.zeroes(part.end - part.start),
                false => match disk.read(part, &mut dump) {
                    Ok(written) => written,
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                },
            };
            if written.is_err() {
                return Ok(written);
            }
        }
    }
    // What was read before the failure is worth seeing.
    let flushed = dump.flush();
    match failure {
        Some(error) => Err(error),
        None => Ok(flushed),
    }
}

/// The export, which is asked in blocks of its own size.
struct Disk {
    client: Client,
    buffer: Vec<u8>,
    /// Whether it is of use to ask for extents.
    has_extents: bool,
}

impl Disk {
    fn new(client: Client) -> Self {
        Self {
            has_extents: client.info().knows_allocation(),
            client,
            buffer: Vec::new(),
        }
    }

    /// What is known of `range`, from its start on; at least one extent. A server that does not know, or
    /// fails to tell, is read.
    fn extents(&mut self, range: Range<u64>) -> Vec<Extent> {
        let asked = self.blocks(range.start..range.end.min(range.start.saturating_add(ASKED)));
        if self.has_extents {
            let extents = self.client.extents(asked, &Context::Allocation);
            match extents {
                Ok(extents) if extents.last().is_some_and(|e| e.range.end() > range.start) => {
                    return extents;
                }
                _ => self.has_extents = false,
            }
        }
        vec![Extent {
            range: asked,
            status: Status::DATA,
        }]
    }

    /// Reads `range` and dumps it.
    fn read(
        &mut self,
        range: Range<u64>,
        dump: &mut Hexdump<impl Write>,
    ) -> Result<io::Result<()>, Error> {
        let mut offset = range.start;
        while offset < range.end {
            let blocks = self.blocks(offset..range.end);
            let (blocks, _) = blocks.split_at(PIECE);
            self.buffer.resize(blocks.len() as usize, 0);
            self.client.read(blocks.start(), &mut self.buffer)?;
            let end = blocks.end().min(range.end);
            let wanted = (offset - blocks.start()) as usize..(end - blocks.start()) as usize;
            if let Err(error) = dump.bytes(&self.buffer[wanted]) {
                return Ok(Err(error));
            }
            offset = end;
        }
        Ok(Ok(()))
    }

    /// The blocks that `range` touches.
    fn blocks(&self, range: Range<u64>) -> ByteRange {
        let minimum = u64::from(self.client.info().limits.minimum);
        let start = range.start - range.start % minimum;
        let end = range.end.next_multiple_of(minimum);
        ByteRange::between(start, end.min(self.client.size()))
    }
}
