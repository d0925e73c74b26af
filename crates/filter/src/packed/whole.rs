//! A file that can only be read from its beginning: unpacked once, into a temporary file without a name.

use std::{
    env,
    fs::File,
    io::{self, BufRead, Read},
    sync::{Arc, Weak},
};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Error, ErrorKind, FileDevice, HumanSize, Result, read_exact_at,
    run_blocking, zero_runs,
};
use blockferry_sys as sys;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::Unpack;
use crate::abilities;

/// How much of the packed file is read at a time, in bytes.
const PIECE: u64 = 4 << 20;

/// Pieces that were read and not unpacked yet.
const READ_AHEAD: usize = 2;

/// How much is unpacked and written at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// The unit in which zeroes are left out of the temporary file, in bytes.
const HOLE: usize = 64 << 10;

/// Unpacks all of `device` and gives the result, which can only be read.
///
/// Reading goes on here, unpacking on a thread for blocking calls. When this future is dropped, both end and
/// nothing is left.
pub(super) async fn unpack(
    device: &dyn BlockDevice,
    options: &Unpack,
    reader: fn(Pieces) -> Box<dyn Read>,
) -> Result<Arc<dyn BlockDevice>> {
    let info = device.info();
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let waiting = Arc::new(());
    let work = Work {
        options: options.clone(),
        pieces: Pieces::new(receiver),
        reader,
        waiting: Arc::downgrade(&waiting),
    };
    let unpacked = run_blocking(move || work.run());
    let (read, unpacked) = futures_util::join!(feed(device, sender), unpacked);
    // What could not be read ends the unpacking too, but is not its fault.
    read?;
    let file = FileDevice::from_file(unpacked??, Arc::clone(&info.name))?;
    Ok(abilities::read_only(Arc::new(file)))
}

/// Reads all of `device`, for as long as somebody wants it.
async fn feed(device: &dyn BlockDevice, sender: Sender<Buffer>) -> Result<()> {
    let whole = ByteRange::between(0, device.info().size);
    for piece in whole.pieces(PIECE) {
        let piece = read_exact_at(device, piece).await?;
        if sender.send(piece).await.is_err() {
            break;
        }
    }
    Ok(())
}

struct Work {
    options: Unpack,
    pieces: Pieces,
    reader: fn(Pieces) -> Box<dyn Read>,
    /// Gone when nobody waits for the result any more.
    waiting: Weak<()>,
}

impl Work {
    fn run(self) -> Result<File> {
        let directory = self.options.dir.clone().unwrap_or_else(env::temp_dir);
        let file = tempfile::tempfile_in(&directory).map_err(|error| {
            let message = format!("no temporary file in {}", directory.display());
            Error::with_message(ErrorKind::from(&error), message).because(error)
        })?;
        let mut reader = (self.reader)(self.pieces);
        let mut chunk = vec![0; CHUNK];
        let mut size = 0;
        loop {
            // A few bytes can become very many.
            if self.waiting.strong_count() == 0 {
                return Err(Error::new(ErrorKind::Cancelled));
            }
            let count = fill(&mut *reader, &mut chunk).map_err(|error| {
                let message =
                    format!("{error}, after {size} bytes were unpacked: the file is damaged");
                Error::with_message(ErrorKind::Io, message)
            })?;
            if count == 0 {
                break;
            }
            if count as u64 > self.options.max_size.saturating_sub(size) {
                let most = HumanSize(self.options.max_size);
                let message = format!("it holds more than {most}; max-size=SIZE allows more");
                return Err(Error::with_message(ErrorKind::Unsupported, message));
            }
            write_data(&file, &chunk[..count], size).map_err(|error| {
                let message = format!("it cannot be unpacked into {}", directory.display());
                Error::with_message(ErrorKind::from(&error), message).because(error)
            })?;
            size += count as u64;
        }
        sys::set_size(&file, size)?;
        Ok(file)
    }
}

/// Reads until `bytes` are full or everything was read.
fn fill(reader: &mut dyn Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < bytes.len() {
        match reader.read(&mut bytes[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// Writes what is not zero of `bytes`: the rest of the file is a hole.
fn write_data(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    for run in zero_runs(bytes, HOLE).filter(|run| !run.is_zero) {
        let start = offset + run.range.start as u64;
        sys::write_all_at(file, &bytes[run.range], start)?;
    }
    Ok(())
}

/// The bytes of the packed file, in order, as they are read elsewhere.
pub(super) struct Pieces {
    pieces: Receiver<Buffer>,
    piece: Buffer,
    at: usize,
    is_at_start: bool,
}

impl Pieces {
    fn new(pieces: Receiver<Buffer>) -> Self {
        Self {
            pieces,
            piece: Buffer::zeroed(0),
            at: 0,
            is_at_start: true,
        }
    }

    /// Whether nothing was taken yet.
    pub(super) fn is_at_start(&self) -> bool {
        self.is_at_start
    }

    /// The next byte, which is not taken.
    pub(super) fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.fill_buf()?.first().copied())
    }

    /// Takes all that is left; says whether it was zeroes.
    pub(super) fn is_zero_to_end(&mut self) -> io::Result<bool> {
        loop {
            let bytes = self.fill_buf()?;
            if bytes.is_empty() {
                return Ok(true);
            }
            if !blockferry_block::is_zero(bytes) {
                return Ok(false);
            }
            let count = bytes.len();
            self.consume(count);
        }
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.piece.len() {
            let Some(piece) = self.pieces.blocking_recv() else {
                return Ok(&[]);
            };
            (self.piece, self.at) = (piece, 0);
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
        self.is_at_start &= count == 0;
    }
}

impl Read for Pieces {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(bytes)?;
        self.consume(count);
        Ok(count)
    }
}

/// The error of bytes that cannot be unpacked.
pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A reader that could not be made.
pub(super) fn failing(error: io::Error) -> Box<dyn Read> {
    struct Failing(Option<io::Error>);

    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.0.take().map_or(Ok(0), Err)
        }
    }

    Box::new(Failing(Some(error)))
}
