//! Mends what a check finds: refcounts become what the uses say, and the marks of what may be written in place follow.
//!
//! Nothing is mended of an image in which there may be uses that were not found: where something cannot be read or
//! understood, or lies where something else does. What is changed is right in any mix of old and new sectors, so that a
//! crash leaves an image that is no worse than before.

use std::{collections::BTreeSet, sync::Arc};

use blockferry_block::{BlockDevice, Buffer, ByteRange, Capabilities, Operation, Result};

use super::{
    CheckReport, check_within,
    counts::{Counted, Counts},
    rebuild::rebuild,
    walk::{Walk, Walked},
};
use crate::{
    host::HostFile,
    qcow2::{
        allocate::Allocator,
        entry::{COMPRESSED, COPIED, OFFSET},
        geometry::Geometry,
        header::{Header, Incompatible, be64},
        refcounts::largest,
    },
};

/// Where the incompatible features stand in the header.
const INCOMPATIBLE_IN_HEADER: u64 = 72;

/// Changed blocks of refcounts are written when they take so many bytes.
const MOST_CHANGED: u64 = 4 << 20;

/// Tables are read in pieces of so many bytes.
const PIECE: u64 = 1 << 20;

/// What a repair may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RepairMode {
    /// Refcounts are lowered to what they should be: lost space comes back.
    Leaks,
    /// All that can be mended without losing data: also refcounts that are too low or not there at all, and marks of
    /// what may be written in place.
    All,
}

/// Mends the image in `below` as far as `mode` allows, and checks it again: the report says what is wrong after that, and
/// what was mended. An image in which nothing is wrong then but leaks is not marked as dirty or damaged any more.
///
/// Nobody else uses the image meanwhile. Other files that it names are not looked at. A crash at any point leaves it no
/// worse than it was.
///
/// # Errors
/// As [`check`](super::check); `ReadOnly` where `below` cannot be written; `NoSpace`, what writing failed with.
pub async fn repair(below: Arc<dyn BlockDevice>, mode: RepairMode) -> Result<CheckReport> {
    let file = HostFile::new(below);
    let repaired = repair_in(&file, mode).await;
    repaired.map_err(|error| error.during(Operation::Write))
}

/// Mends an image that was not closed by who wrote it, before it is written: its refcounts may be wrong. Gives the
/// header as it is then. What cannot be mended or written is left as it is, and stays marked.
///
/// # Errors
/// As those of [`repair`].
pub(crate) async fn mend_dirty(file: &HostFile, header: Header) -> Result<Header> {
    let is_dirty = header.incompatible.contains(Incompatible::DIRTY);
    if !is_dirty || header.is_corrupt() || !file.device().info().can(Capabilities::WRITE) {
        return Ok(header);
    }
    repair_in(file, RepairMode::All).await?;
    Header::read(&**file.device()).await
}

/// As [`repair`], of an image in `file`, which may have grown.
pub(crate) async fn repair_in(file: &HostFile, mode: RepairMode) -> Result<CheckReport> {
    let below = Arc::clone(file.device());
    let header = Header::read(&*below).await?;
    let mut walk = Walk::new(&*below, file.end(), &header)?;
    walk.run().await?;
    let walked = walk.finish();
    let mut report = walked.report.clone();
    let (mut leaks, mut corruptions) = (0, 0);
    if !report.is_clean() && !walked.damage.uses {
        let mender = Mender {
            file,
            header: &header,
            walked,
        };
        (leaks, corruptions) = mender.mend(mode).await?;
        let before = std::mem::take(&mut report.findings);
        report = check_within(&*below, file.end()).await?;
        report.repaired = before;
    }
    report.leaks_fixed = leaks;
    report.corruptions_fixed = corruptions;
    if report.is_consistent() {
        mark_sound(file, &header).await?;
    }
    Ok(report)
}

/// Takes the marks away that say that the image may be damaged, durably.
async fn mark_sound(file: &HostFile, header: &Header) -> Result<()> {
    let marks = Incompatible::DIRTY | Incompatible::CORRUPT;
    if header.geometry.version < 3 || !header.incompatible.intersects(marks) {
        return Ok(());
    }
    let features = header.incompatible - marks;
    // What was mended is there before.
    file.device().flush().await?;
    let word = features.bits().to_be_bytes();
    file.patch(INCOMPATIBLE_IN_HEADER, &word).await?;
    file.device().flush().await
}

struct Mender<'a> {
    file: &'a HostFile,
    header: &'a Header,
    walked: Walked,
}

impl Mender<'_> {
    /// Says how many leaks and how many corruptions were mended.
    async fn mend(self, mode: RepairMode) -> Result<(u64, u64)> {
        let geometry = self.header.geometry;
        let most = largest(geometry.refcount_order);
        let counts = &self.walked.counts;
        let mut rebuilt = None;
        let wrong = counts.iter().filter(|it| it.stored != it.uses);
        let (mut low, mut high) = (0, 0);
        for counted in wrong {
            if counted.uses > most {
                // No refcount can say it.
                return Ok((0, 0));
            }
            low += u64::from(counted.stored < counted.uses);
            high += u64::from(counted.stored > counted.uses);
        }
        let mut allocator = match self.walked.damage.refcounts {
            true => None,
            false => Some(Allocator::open(self.file.clone(), self.header).await?),
        };
        let has_blocks = allocator.as_ref().is_some_and(|allocator| {
            let mut raised = counts.iter().filter(|it| it.stored < it.uses);
            raised.all(|it| allocator.counts(it.cluster))
        });
        match (mode, &mut allocator) {
            (RepairMode::Leaks, None) => return Ok((0, 0)),
            (RepairMode::Leaks, Some(allocator)) => {
                let leaked = counts.iter().filter(|it| it.stored > it.uses);
                set_all(allocator, leaked).await?;
                // The others may be used more often than anyone has counted.
                if low > 0 {
                    return Ok((high, 0));
                }
            }
            (RepairMode::All, Some(allocator)) if has_blocks => {
                let wrong = counts.iter().filter(|it| it.stored != it.uses);
                set_all(allocator, wrong).await?;
            }
            (RepairMode::All, _) => {
                drop(allocator);
                let behind = self.walked.report.image_end;
                // Where the old refcounts lay is used once less.
                rebuilt = Some(rebuild(self.file, self.header, behind).await?);
                low += u64::from(low == 0);
            }
        }
        let marks = self.mend_marks(rebuilt.as_ref().unwrap_or(counts)).await?;
        Ok((high, low + marks))
    }

    /// Lets each entry of the present state say that its cluster may be written in place where that has one use, and
    /// only there. Refcounts are what the uses are. Says how many were wrong.
    async fn mend_marks(&self, counts: &Counts) -> Result<u64> {
        let geometry = self.header.geometry;
        let l1 = self.header.l1;
        let mut mended = 0;
        // Many entries may point at one table.
        let mut tables = BTreeSet::new();
        for piece in l1.pieces(PIECE) {
            let bytes = self.read(piece).await?;
            let mut marked = bytes.clone();
            for word in marked.chunks_exact_mut(8) {
                let right = right_mark(be64(word, 0), counts, geometry);
                word.copy_from_slice(&right.to_be_bytes());
            }
            mended += self.replace(piece.start(), &bytes, &marked).await?;
            for word in marked.chunks_exact(8) {
                let place = be64(word, 0) & OFFSET;
                if place != 0 && tables.insert(place) {
                    mended += self.mend_marks_in(place, counts).await?;
                }
            }
        }
        self.file.device().flush().await?;
        Ok(mended)
    }

    /// The same in one L2 table.
    async fn mend_marks_in(&self, place: u64, counts: &Counts) -> Result<u64> {
        let geometry = self.header.geometry;
        if geometry.data_file {
            return Ok(0);
        }
        let table = ByteRange::between(place, place + geometry.cluster_size());
        let bytes = self.read(table).await?;
        let mut marked = bytes.clone();
        for entry in marked.chunks_exact_mut(geometry.entry_size() as usize) {
            let word = be64(entry, 0);
            let right = match word & COMPRESSED {
                0 => right_mark(word, counts, geometry),
                _ => word & !COPIED,
            };
            entry[..8].copy_from_slice(&right.to_be_bytes());
        }
        self.replace(place, &bytes, &marked).await
    }

    async fn read(&self, range: ByteRange) -> Result<Vec<u8>> {
        let buffer = Buffer::zeroed(range.len() as usize);
        let name = || "a table".to_owned();
        let read = self.file.read_padded(range.start(), buffer, name).await?;
        Ok(read.to_vec())
    }

    /// Writes those sectors of `new` at `place` that differ from `old`. Says how many words do.
    async fn replace(&self, place: u64, old: &[u8], new: &[u8]) -> Result<u64> {
        const SECTOR: usize = 512;
        let sectors = old.chunks(SECTOR).zip(new.chunks(SECTOR));
        let mut words = 0;
        for ((old, new), at) in sectors.zip((place..).step_by(SECTOR)) {
            if old != new {
                self.file.patch(at, new).await?;
                let pairs = old.chunks(8).zip(new.chunks(8));
                words += pairs.filter(|(old, new)| old != new).count() as u64;
            }
        }
        Ok(words)
    }
}

/// The entry with the right mark, of what is no compressed cluster.
fn right_mark(word: u64, counts: &Counts, geometry: Geometry) -> u64 {
    let place = word & OFFSET;
    let is_sole = place != 0 && counts.uses(place >> geometry.cluster_bits) == 1;
    match is_sole {
        true => word | COPIED,
        false => word & !COPIED,
    }
}

/// Lets refcounts be what the uses are, durably.
async fn set_all(allocator: &mut Allocator, wrong: impl Iterator<Item = Counted>) -> Result<()> {
    for counted in wrong {
        allocator.correct(counted.cluster, counted.uses).await?;
        if allocator.changed_bytes() > MOST_CHANGED {
            allocator.write_changes().await?;
        }
    }
    allocator.write_changes().await
}
