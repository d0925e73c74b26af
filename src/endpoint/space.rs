//! How much room there is for a destination file.

use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use blockferry_sys as sys;

use crate::block::Result;

/// What a regular file that is to be written can hold.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Space {
    /// The bytes that its file system has free for it, with those that it occupies already.
    pub available: u64,
    /// A place in that file system, for messages: a directory, or the file itself.
    pub place: PathBuf,
    /// Whether data may take less space than it has bytes: the file system compresses.
    pub may_compress: bool,
    /// The number of the file system, where its files may share their blocks.
    shares_within: Option<u64>,
}

impl Space {
    /// The space for `file`, which lies at or in `place`.
    pub(super) fn of(file: &File, place: &Path) -> Result<Option<Self>> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let Some(free) = sys::free_space(place)? else {
            return Ok(None);
        };
        let occupied = metadata.blocks().saturating_mul(512);
        Ok(Some(Self {
            available: free.saturating_add(occupied),
            place: place.to_owned(),
            may_compress: sys::may_compress(file),
            shares_within: (!sys::never_shares_blocks(file)).then_some(metadata.dev()),
        }))
    }

    /// Whether a copy of the file at `source` may share its blocks, and so take no space.
    #[must_use]
    pub fn may_share_with(&self, source: &Path) -> bool {
        let source = source.metadata().map(|metadata| metadata.dev());
        self.shares_within.is_some() && source.ok() == self.shares_within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_occupies_is_there_for_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), vec![1; 1 << 20]).expect("written");
        file.as_file().sync_all().expect("on disk");
        let directory = file.path().parent().expect("a directory");
        let Some(space) = Space::of(file.as_file(), directory).expect("an answer") else {
            return;
        };
        assert!(space.available >= 1 << 20);
        assert!(!space.may_share_with(Path::new("/proc/version")));
    }

    #[test]
    fn a_device_has_the_size_it_has() {
        let null = File::open("/dev/null").expect("opened");
        let space = Space::of(&null, Path::new("/dev")).expect("an answer");
        assert!(space.is_none());
    }
}
