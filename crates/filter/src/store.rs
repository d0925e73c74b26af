//! Where filters keep blocks: in memory, or in a temporary file that nobody else sees.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use blockferry_block::{
    Buffer, ByteRange, Error, ErrorKind, Mapping, Result, Values, printable, run_blocking,
};
use blockferry_sys::{self as sys, ZeroMethod};

use crate::aligned::within;

/// Where a filter keeps blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorePlace {
    /// In the process's memory.
    Memory,
    /// In a temporary file without a name, whose space is given back when it is closed, however the process ends.
    File {
        /// The directory whose file system has the space; by default `$TMPDIR`, or `/tmp`.
        directory: Option<PathBuf>,
    },
}

impl StorePlace {
    /// What the parameters `store` and `dir` say.
    pub(crate) fn from_values(values: &Values) -> Result<Self, String> {
        let directory = values.path("dir");
        match values.word("store").as_deref() {
            Some("memory") if directory.is_some() => {
                Err("dir is where a file is kept: it goes with store=file".to_owned())
            }
            Some("memory") => Ok(Self::Memory),
            _ => Ok(Self::File { directory }),
        }
    }
}

/// The number of locks that pages in memory are spread over.
const SHARDS: u64 = 16;

/// From so many pages on, those that exist are looked through to find some.
const MANY_PAGES: u64 = 1 << 14;

/// Bytes at offsets. What was not written takes no space.
pub(crate) enum Store {
    Memory(Pages),
    File(Temporary),
}

/// Pages of memory that exist from their first write on.
pub(crate) struct Pages {
    /// The length of each in bytes.
    page: u64,
    shards: Vec<Shard>,
}

type Shard = Mutex<HashMap<u64, Box<[u8]>>>;

/// A file without a name.
pub(crate) struct Temporary {
    file: Arc<File>,
    /// Reads never wait for a disk.
    in_memory: bool,
}

impl Store {
    /// An empty one at `place`. Memory is taken `page` bytes at a time.
    ///
    /// # Errors
    /// When there can be no temporary file.
    pub(crate) fn new(place: &StorePlace, page: u64) -> Result<Self> {
        Ok(match place {
            StorePlace::Memory => Self::Memory(Pages {
                page,
                shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            }),
            StorePlace::File { directory } => Self::File(Temporary::new(directory.as_deref())?),
        })
    }

    /// A file system without any room.
    #[cfg(test)]
    pub(crate) fn full() -> Self {
        let full = File::options().read(true).write(true).open("/dev/full");
        Self::File(Temporary {
            file: Arc::new(full.expect("Linux has it")),
            in_memory: false,
        })
    }

    /// Fills `bytes` from `offset` on, if nothing has to be waited for. All of that was written before.
    pub(crate) fn read_now(&self, offset: u64, bytes: &mut [u8]) -> Result<bool> {
        match self {
            Self::Memory(pages) => {
                pages.read(offset, bytes);
                Ok(true)
            }
            Self::File(temporary) => temporary.read_now(offset, bytes),
        }
    }

    /// Fills `bytes` from `offset` on. All of that was written before.
    pub(crate) async fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        if self.read_now(offset, bytes)? {
            return Ok(());
        }
        if let Self::File(temporary) = self {
            let mut buffer = Buffer::zeroed(bytes.len());
            let file = Arc::clone(&temporary.file);
            let read = run_blocking(move || {
                read_wholly(&file, offset, &mut buffer)?;
                Ok::<_, Error>(buffer)
            });
            bytes.copy_from_slice(&read.await??);
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`: to memory, or to what the system caches of the file. When it fails a part of
    /// that range may have been written.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Memory(pages) => pages.write(offset, bytes),
            Self::File(temporary) => sys::write_all_at(&*temporary.file, bytes, offset)?,
        }
        Ok(())
    }

    /// Writes `length` zeroes at `offset`.
    pub(crate) fn write_zeroes(&self, mut offset: u64, mut length: usize) -> Result<()> {
        const ZEROES: &[u8] = &[0; 16 << 10];
        while length > 0 {
            let piece = &ZEROES[..length.min(ZEROES.len())];
            self.write(offset, piece)?;
            offset += piece.len() as u64;
            length -= piece.len();
        }
        Ok(())
    }

    /// Gives the space of `range` back, as far as that can be: nothing is wrong without it but the space. What is
    /// read from it then may be anything.
    pub(crate) fn forget(&self, range: ByteRange) {
        match self {
            Self::Memory(pages) => pages.forget(range),
            Self::File(temporary) if !range.is_empty() => {
                let (start, length) = (range.start(), range.len());
                let _ = sys::zero_range(&*temporary.file, start, length, ZeroMethod::PunchHole);
            }
            Self::File(_) => {}
        }
    }

    /// The place of `range`, which was written before, in a file.
    pub(crate) fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        match self {
            Self::Memory(_) => Mapping::Opaque,
            Self::File(temporary) => Mapping::File {
                fd: temporary.file.as_fd(),
                offset: range.start(),
                length: range.len(),
            },
        }
    }
}

impl Temporary {
    fn new(directory: Option<&Path>) -> Result<Self> {
        let made = match directory {
            Some(directory) => tempfile::tempfile_in(directory),
            None => tempfile::tempfile(),
        };
        let file = made.map_err(|error| {
            let temporary = std::env::temp_dir();
            let shown = printable(directory.unwrap_or(&temporary).as_os_str());
            let message = format!("there can be no temporary file in '{shown}'");
            let error = Error::from(error);
            Error::with_message(error.kind(), message).because(error)
        })?;
        Ok(Self {
            in_memory: sys::lives_in_memory(&file),
            file: Arc::new(file),
        })
    }

    fn read_now(&self, offset: u64, bytes: &mut [u8]) -> Result<bool> {
        if self.in_memory {
            return read_wholly(&self.file, offset, bytes).map(|()| true);
        }
        match sys::read_cached_at(&*self.file, bytes, offset) {
            Ok(count) => Ok(count == bytes.len()),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn read_wholly(file: &File, offset: u64, bytes: &mut [u8]) -> Result<()> {
    if sys::read_at(file, bytes, offset)? == bytes.len() {
        return Ok(());
    }
    let message = "somebody made the temporary file shorter";
    Err(Error::with_message(ErrorKind::UnexpectedEnd, message))
}

impl Pages {
    fn shard(&self, index: u64) -> MutexGuard<'_, HashMap<u64, Box<[u8]>>> {
        let shard = &self.shards[(index % SHARDS) as usize];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let whole = ByteRange::between(offset, offset.saturating_add(bytes.len() as u64));
        for piece in whole.pieces(self.page) {
            let index = piece.start() / self.page;
            let part = &mut bytes[within(piece, whole)];
            match self.shard(index).get(&index) {
                Some(page) => part.copy_from_slice(&page[self.in_page(piece)]),
                None => part.fill(0),
            }
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let whole = ByteRange::between(offset, offset.saturating_add(bytes.len() as u64));
        for piece in whole.pieces(self.page) {
            let index = piece.start() / self.page;
            let part = &bytes[within(piece, whole)];
            let mut shard = self.shard(index);
            if let Some(page) = shard.get_mut(&index) {
                page[self.in_page(piece)].copy_from_slice(part);
            } else if piece.len() == self.page {
                shard.insert(index, part.into());
            } else {
                let mut page = vec![0; self.page as usize].into_boxed_slice();
                page[self.in_page(piece)].copy_from_slice(part);
                shard.insert(index, page);
            }
        }
    }

    fn forget(&self, range: ByteRange) {
        let whole = range.aligned_within(self.page);
        let pages = whole.start() / self.page..whole.end() / self.page;
        // Not one lookup for each possible page, where there may be far more of those than pages.
        if pages.end - pages.start > MANY_PAGES {
            for index in 0..SHARDS {
                self.shard(index).retain(|page, _| !pages.contains(page));
            }
            return;
        }
        for index in pages {
            self.shard(index).remove(&index);
        }
    }

    /// Where `piece`, which lies within one page, lies in that page.
    fn in_page(&self, piece: ByteRange) -> std::ops::Range<usize> {
        let start = (piece.start() % self.page) as usize;
        start..start + piece.len() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_is_read_and_what_is_forgotten_takes_no_space() {
        for place in [StorePlace::Memory, StorePlace::File { directory: None }] {
            let store = Store::new(&place, 4096).expect("a store");
            let bytes: Vec<u8> = (0..20_000_u32).map(|at| (at % 251) as u8).collect();
            store.write(1000, &bytes).expect("written");
            store.write_zeroes(1000, 17_000).expect("written");
            let mut read = vec![1; 20_000];
            store.read(1000, &mut read).await.expect("read");
            assert!(read[..17_000].iter().all(|byte| *byte == 0));
            assert_eq!(read[17_000..], bytes[17_000..]);
            store.forget(ByteRange::between(0, 1 << 40));
            match &store {
                Store::Memory(pages) => assert!((0..SHARDS).all(|at| pages.shard(at).is_empty())),
                Store::File(temporary) => {
                    let next = sys::next_data(&*temporary.file, 0).expect("an answer");
                    assert_eq!(next, None, "only holes are left");
                }
            }
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let directory = Some(PathBuf::from("/nothing/here"));
        let made = Store::new(&StorePlace::File { directory }, 4096).map(|_| ());
        let error = made.expect_err("no such directory");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("/nothing/here"), "{error}");
    }
}
