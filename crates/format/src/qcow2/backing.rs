//! What an image says of its backing file, changed in place.
//!
//! All of it stands in the first cluster: the place of the name in the header, the format in an extension, and the name
//! itself. A crash may leave any sector of 512 bytes old or new, so only the first one ever changes what the image says,
//! and it does that at once; before that, what it is going to name is durable, where nothing else was:
//!
//! 1. the names of features, which nobody needs, are left out of the extensions: all others stand in the first sector;
//! 2. the new name is written behind the first sector, where the old one is not;
//! 3. the first sector names it, with its format;
//! 4. the names of features come back, first what lies behind the first sector of them.

use std::{ops::Range, sync::Arc};

use blockferry_block::{BlockDevice, Buffer, Error, ErrorKind, Operation, Result};

use super::{
    Backing,
    check::mend_dirty,
    header::{
        Autoclear, BACKING_FORMAT, FEATURE_NAMES, Header, LONGEST_NAME, be32, be64, extension,
        walk_extensions,
    },
    host::HostFile,
};

/// So much is written as a whole, or not at all.
const SECTOR: usize = 512;

/// Where the name's place stands in the header, in bytes, then its length, and the features that are cleared by who does
/// not know them.
const NAME: Range<usize> = 8..16;
const NAME_LENGTH: Range<usize> = 16..20;
const AUTOCLEAR: Range<usize> = 88..96;

/// Lets the image in `below` say that `backing` is behind it, or nothing; no such file is looked at, and nothing else
/// changes. What the image shows where it has nothing of its own is what is there: [`rebase`](super::rebase()) keeps that.
/// Nobody else uses the image meanwhile.
///
/// A crash at any point leaves the old backing file or the new one.
///
/// # Errors
/// `InvalidInput` for a name that is too long for the first cluster or has no room there; `Unsupported` for an image
/// whose data file can be read as a raw image, too, and for one with so many extensions that it could not be changed in one
/// step; `ReadOnly` for an image that is damaged; as those of opening the image for writing, what writing failed with.
pub async fn set_backing(below: Arc<dyn BlockDevice>, backing: Option<&Backing>) -> Result<()> {
    let file = HostFile::new(below);
    let set = async {
        let header = Header::read(&**file.device()).await?;
        let header = mend_dirty(&file, header).await?;
        let steps = steps(&file, &header, backing).await?;
        write(&file, &steps).await
    };
    set.await.map_err(|error| error.during(Operation::Write))
}

/// Refuses what [`set_backing`] would refuse, and changes nothing.
///
/// # Errors
/// As those, but what writing fails with.
pub(crate) async fn check_backing(
    file: &HostFile,
    header: &Header,
    backing: Option<&Backing>,
) -> Result<()> {
    steps(file, header, backing).await.map(drop)
}

/// What the first cluster becomes, from what it is on: each step is right in any mix of old and new sectors.
async fn steps(
    file: &HostFile,
    header: &Header,
    backing: Option<&Backing>,
) -> Result<Vec<Vec<u8>>> {
    if header.is_corrupt() {
        let message = "the image is marked as corrupt and can only be read";
        return Err(Error::with_message(ErrorKind::ReadOnly, message));
    }
    if backing.is_some() && header.autoclear.contains(Autoclear::RAW_DATA_FILE) {
        let message =
            "its data file can be read as a raw image, which would show nothing of a backing file";
        return Err(Error::with_message(ErrorKind::Unsupported, message));
    }
    let cluster = Buffer::zeroed(header.geometry.cluster_size() as usize);
    let name = || "the header".to_owned();
    let bytes = file.read_padded(0, cluster, name).await?;
    Rewriting::new(&bytes, header, backing)?.steps()
}

/// Writes each step durably before the next one: the sectors that differ.
async fn write(file: &HostFile, steps: &[Vec<u8>]) -> Result<()> {
    for pair in steps.windows(2) {
        let [old, new] = pair else { continue };
        let sectors = old.chunks(SECTOR).zip(new.chunks(SECTOR));
        let mut is_changed = false;
        for (number, (old, new)) in sectors.enumerate() {
            if old != new {
                file.patch((number * SECTOR) as u64, new).await?;
                is_changed = true;
            }
        }
        if is_changed {
            file.device().flush().await?;
        }
    }
    Ok(())
}

/// A first cluster, and what is to become of it.
struct Rewriting<'a> {
    old: &'a [u8],
    /// The length of the header without its extensions.
    length: usize,
    version: u32,
    extensions: Vec<(u32, &'a [u8])>,
    old_name: Range<usize>,
    name: &'a [u8],
    format: Option<&'a str>,
}

/// Where the new name goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At this offset behind the first sector, or nowhere, with the names of features before it.
    Behind(usize),
    /// The same, and there is no room for them.
    Alone(usize),
    /// In the first sector, behind the extensions.
    First,
}

impl<'a> Rewriting<'a> {
    fn new(old: &'a [u8], header: &Header, backing: Option<&'a Backing>) -> Result<Self> {
        let length = header.length as usize;
        let name = backing.map_or(&[][..], |backing| &backing.name);
        if name.len() > LONGEST_NAME as usize {
            return Err(too_long());
        }
        let start = usize::try_from(be64(old, NAME.start)).unwrap_or(0);
        let old_name = match header.backing {
            Some(_) => start..start.saturating_add(be32(old, NAME_LENGTH.start) as usize),
            None => 0..0,
        };
        let mut extensions = Vec::new();
        walk_extensions(old, length, |_, kind, body| {
            extensions.push((kind, body));
            Ok(())
        })?;
        Ok(Self {
            old,
            length,
            version: header.geometry.version,
            extensions,
            old_name,
            name,
            format: backing.and_then(|backing| backing.format.as_deref()),
        })
    }

    fn steps(&self) -> Result<Vec<Vec<u8>>> {
        let first = self.old.len().min(SECTOR);
        let (before, after) = (self.listed(false), self.listed(true));
        if before.len().max(after.len()) > first {
            let message = "the header has so many extensions that its backing file cannot be changed in one step";
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        let place = self.place(after.len(), self.with_names(&after).len())?;
        let mut steps = vec![self.old.to_vec()];
        let mut next = self.old.to_vec();
        // What is behind the extensions stays: the old name may be there.
        if self.names().is_some() {
            next[..before.len()].copy_from_slice(&before);
            steps.push(next.clone());
        }
        if let Place::Behind(at) | Place::Alone(at) = place {
            next[at..at + self.name.len()].copy_from_slice(self.name);
            steps.push(next.clone());
        }
        let at = match place {
            Place::Behind(at) | Place::Alone(at) => at,
            Place::First => after.len(),
        };
        next[..first].fill(0);
        next[..after.len()].copy_from_slice(&after);
        self.set_name(&mut next, at);
        if place == Place::First {
            next[at..at + self.name.len()].copy_from_slice(self.name);
        }
        steps.push(next.clone());
        // From here on nothing of the old name is needed.
        let mut last = vec![0; next.len()];
        last[..first].copy_from_slice(&next[..first]);
        if let Place::Behind(_) = place {
            let whole = self.with_names(&after);
            last[..whole.len()].copy_from_slice(&whole);
            self.set_name(&mut last, at);
        }
        last[at..at + self.name.len()].copy_from_slice(self.name);
        next[first..].copy_from_slice(&last[first..]);
        steps.push(next);
        steps.push(last);
        Ok(steps)
    }

    /// Where the new name goes: the extensions end at `end`, and with the names of features at `whole_end`.
    fn place(&self, end: usize, whole_end: usize) -> Result<Place> {
        let cluster = self.old.len();
        let length = self.name.len();
        let fits = |at: usize| {
            let is_apart = at + length <= self.old_name.start || at >= self.old_name.end;
            at + length <= cluster && (is_apart || length == 0)
        };
        let behind = [
            whole_end.max(SECTOR),
            self.old_name.end.max(whole_end).max(SECTOR),
        ];
        if length == 0 && whole_end <= cluster {
            return Ok(Place::Behind(0));
        }
        if let Some(at) = behind.into_iter().find(|at| fits(*at)) {
            return Ok(Place::Behind(at));
        }
        if end + length <= cluster.min(SECTOR) {
            return Ok(Place::First);
        }
        let alone = [SECTOR, self.old_name.end.max(SECTOR)];
        let alone = alone.into_iter().find(|at| fits(*at));
        alone.map(Place::Alone).ok_or_else(too_long)
    }

    /// The names of features, where there are any.
    fn names(&self) -> Option<&'a [u8]> {
        let mut found = self.extensions.iter();
        found
            .find(|(kind, _)| *kind == FEATURE_NAMES)
            .map(|(_, body)| *body)
    }

    /// The header with its extensions and their end, without the names of features: as they are, or as they are to be.
    fn listed(&self, is_new: bool) -> Vec<u8> {
        let mut bytes = self.old[..self.length].to_vec();
        let format = self.format.filter(|_| is_new);
        if let Some(format) = format {
            extension(&mut bytes, BACKING_FORMAT, format.as_bytes());
        }
        for (kind, body) in &self.extensions {
            match *kind {
                FEATURE_NAMES => {}
                BACKING_FORMAT if is_new => {}
                kind => extension(&mut bytes, kind, body),
            }
        }
        bytes.resize(bytes.len() + 8, 0);
        bytes
    }

    /// What [`listed`](Self::listed) gave, with the names of features.
    fn with_names(&self, listed: &[u8]) -> Vec<u8> {
        let mut bytes = listed.to_vec();
        if let Some(names) = self.names() {
            bytes.truncate(listed.len() - 8);
            extension(&mut bytes, FEATURE_NAMES, names);
            bytes.resize(bytes.len() + 8, 0);
        }
        bytes
    }

    /// Lets the header in `bytes` name what is at `at`, and nothing that is not known here.
    fn set_name(&self, bytes: &mut [u8], at: usize) {
        let length = self.name.len() as u32;
        let at = if length == 0 { 0 } else { at as u64 };
        bytes[NAME].copy_from_slice(&at.to_be_bytes());
        bytes[NAME_LENGTH].copy_from_slice(&length.to_be_bytes());
        if self.version >= 3 {
            let known = be64(bytes, AUTOCLEAR.start) & Autoclear::all().bits();
            bytes[AUTOCLEAR].copy_from_slice(&known.to_be_bytes());
        }
    }
}

fn too_long() -> Error {
    let message = "the name of the backing file is too long for the header of the image";
    Error::with_message(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests;
