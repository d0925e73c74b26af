//! Whether an image is sound: every use of every cluster is counted, and compared with the refcounts that the image
//! has (specification, "Host cluster management").
//!
//! The whole image is walked: the tables of the present state and of all snapshots, the bitmaps, the refcounts
//! themselves. What is counted takes 4 bytes for each cluster of the file that is used or has a refcount. A table that
//! many entries point at is read once.

mod counts;
mod mend;
mod rebuild;
#[cfg(test)]
mod tests;
mod walk;

use blockferry_block::{BlockDevice, Result};

use super::header::Header;
pub use mend::{RepairMode, repair};
pub(crate) use mend::{mend_dirty, repair_in};
use walk::Walk;

/// How many findings are described; all are counted.
const MOST_FINDINGS: usize = 100;

/// What a check of an image found, with the numbers that `qemu-img check` has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// What could not be looked at, because reading it failed.
    pub check_errors: u64,
    /// What can lose data, or has: clusters that are used more often than their refcounts say, entries that point
    /// nowhere or contradict the rules.
    pub corruptions: u64,
    /// Clusters whose refcounts are higher than their uses: space that is lost, and nothing worse.
    pub leaks: u64,
    /// How many clusters the virtual disk has.
    pub total_clusters: u64,
    /// How many of them lie in the file.
    pub allocated_clusters: u64,
    /// How many of those do not follow the one before; compressed ones are all counted.
    pub fragmented_clusters: u64,
    /// How many of those are compressed.
    pub compressed_clusters: u64,
    /// Where the last cluster of the file ends that has a refcount or a use, in bytes.
    pub image_end: u64,
    /// How many corruptions a repair has mended, which are not counted above.
    pub corruptions_fixed: u64,
    /// How many leaks it has.
    pub leaks_fixed: u64,
    /// What was found, in words, as far as it is not too much.
    pub findings: Vec<String>,
    /// What a repair has found before, in the same way.
    pub repaired: Vec<String>,
}

impl CheckReport {
    /// Whether nothing is wrong, not even a leak.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.is_consistent() && self.leaks == 0
    }

    /// Whether nothing is wrong but leaks.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.check_errors == 0 && self.corruptions == 0
    }

    fn say(&mut self, finding: String) {
        if self.findings.len() < MOST_FINDINGS {
            self.findings.push(finding);
        }
    }

    fn corruption(&mut self, finding: String) {
        self.corruptions += 1;
        self.say(finding);
    }

    fn leak(&mut self, finding: String) {
        self.leaks += 1;
        self.say(finding);
    }

    fn unreadable(&mut self, finding: String) {
        self.check_errors += 1;
        self.say(finding);
    }
}

/// Checks the image in `below`, which nobody writes meanwhile. Nothing is changed.
///
/// Damage is in the report. Other files that the image names are not looked at.
///
/// # Errors
/// As opening it where the header cannot be understood or read; what reading the refcounts failed with; `Unsupported`
/// where there are more clusters than can be counted.
pub async fn check(below: &dyn BlockDevice) -> Result<CheckReport> {
    check_within(below, below.info().size).await
}

/// As [`check`], of an image in `size` bytes.
async fn check_within(below: &dyn BlockDevice, size: u64) -> Result<CheckReport> {
    let header = Header::read(below).await?;
    let mut walk = Walk::new(below, size, &header)?;
    walk.run().await?;
    Ok(walk.finish().report)
}
