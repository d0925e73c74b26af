//! Taking bytes over from another file: sharing its blocks, or having the kernel copy them.

use std::{
    io,
    sync::{MutexGuard, PoisonError},
};

use blockferry_sys::{self as sys, FileKind};

use super::Handle;
use crate::{ByteRange, CopyFlags, Error, ErrorKind, FileRange, Result};

/// How bytes can come from a file, as far as is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// The number of the source's file system.
    file_system: u64,
    sharing: Sharing,
}

/// Whether blocks are shared with the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// Not, or it was refused before.
    Never,
    /// Where that is possible.
    Try,
    /// Or nothing comes over.
    Need,
}

/// The file systems that refused, each by its number: few, for each has a source of this device in it.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    to_copying: Vec<u64>,
    to_sharing: Vec<u64>,
}

impl Handle {
    /// How the bytes of `source` can come here, or `Unsupported` when it is known that they cannot.
    pub(super) fn way_from(&self, source: &FileRange, flags: CopyFlags) -> Result<Way> {
        let facts = sys::inspect(source)?;
        let allocate = flags.contains(CopyFlags::ALLOCATE);
        let strangers = self.strangers();
        let sharing = if allocate || strangers.to_sharing.contains(&facts.file_system) {
            Sharing::Never
        } else if flags.contains(CopyFlags::SHARE) {
            Sharing::Need
        } else {
            Sharing::Try
        };
        let refused = self.is_block_device
            || facts.kind != FileKind::Regular
            || strangers.to_copying.contains(&facts.file_system)
            || sharing == Sharing::Never && flags.contains(CopyFlags::SHARE)
            || allocate && !sys::never_shares_blocks(&self.file);
        if refused {
            return Err(Error::new(ErrorKind::Unsupported));
        }
        Ok(Way {
            file_system: facts.file_system,
            sharing,
        })
    }

    /// Makes the bytes from `offset` on those of `source`.
    pub(super) fn copy_from(&self, offset: u64, source: &FileRange, way: Way) -> Result<()> {
        self.begin_change()?;
        let range = ByteRange::between(offset, offset.saturating_add(source.range().len()));
        let nothing = ByteRange::between(offset, offset);
        let shared = match way.sharing {
            Sharing::Never => nothing,
            Sharing::Try => self.share(range, source, way)?.unwrap_or(nothing),
            Sharing::Need => {
                let shared = self.share(range, source, way)?;
                shared.ok_or_else(|| Error::new(ErrorKind::Unsupported))?
            }
        };
        let (head, _) = range.split_at(shared.start() - offset);
        let (_, tail) = range.split_at(shared.end() - offset);
        let done = self
            .copy(range, head, source, way)
            .and_then(|()| self.copy(range, tail, source, way));
        // Holes of the source may have come over.
        self.forget_data();
        done
    }

    /// Shares all the whole blocks of `range` and says where they are; `None` when they cannot be
    /// shared, and nothing has changed then.
    fn share(&self, range: ByteRange, source: &FileRange, way: Way) -> Result<Option<ByteRange>> {
        let block = sys::file_system_block(&self.file)?;
        let from = source.range().start();
        if block == 0 || range.start() % block != from % block {
            return Ok(None);
        }
        let inside = range.aligned_within(block);
        if inside.is_empty() {
            return Ok(None);
        }
        let from = from + (inside.start() - range.start());
        match sys::clone_range(source, from, &self.file, inside.start(), inside.len()) {
            Ok(()) => {
                self.grown_to(inside.end());
                Ok(Some(inside))
            }
            // Only these blocks: the source shrank, or something lies in the way.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                remember(&mut self.strangers().to_sharing, way.file_system);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Copies `part` of `range`, which `source` is to become.
    fn copy(&self, range: ByteRange, part: ByteRange, source: &FileRange, way: Way) -> Result<()> {
        let mut rest = part;
        while !rest.is_empty() {
            let from = source.range().start() + (rest.start() - range.start());
            match sys::copy_range(source, from, &self.file, rest.start(), rest.len()) {
                Ok(0) => return Err(self.ended(source, from, way)),
                Ok(count) => {
                    (_, rest) = rest.split_at(count);
                    self.grown_to(rest.start());
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    return Err(self.refused(way));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What it means that nothing came from `offset` of `source`.
    fn ended(&self, source: &FileRange, offset: u64, way: Way) -> Error {
        match sys::inspect(source) {
            // Files that the kernel makes up as they are read, and file systems with errors.
            Ok(facts) if facts.size > offset => self.refused(way),
            Ok(facts) => Error::with_message(
                ErrorKind::UnexpectedEnd,
                format!("the source shrank: it ends at offset {}", facts.size),
            ),
            Err(error) => error.into(),
        }
    }

    fn refused(&self, way: Way) -> Error {
        remember(&mut self.strangers().to_copying, way.file_system);
        Error::new(ErrorKind::Unsupported)
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn remember(list: &mut Vec<u64>, file_system: u64) {
    if !list.contains(&file_system) {
        list.push(file_system);
    }
}
