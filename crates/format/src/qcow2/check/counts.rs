//! For each cluster of the file: how often it is used, what its refcount is, and for what it is used.

use std::collections::HashMap;

use blockferry_block::{Error, ErrorKind, Result};

/// How many clusters there are in a page. Pages exist from their first use on.
const PAGE: u64 = 16 << 10;

/// How many pages there can be: with 64 KiB each, 1 GiB, which is 16 TiB of clusters of 64 KiB.
const MOST_PAGES: usize = 16 << 10;

/// Most clusters that a file can have: the list of pages would be too long otherwise.
const MOST_CLUSTERS: u64 = 1 << 38;

/// A number that does not fit is kept elsewhere; so many of them, which no sound image has.
const MOST_LARGE: usize = 1 << 20;

/// The width of the numbers in a word; all ones stands for one that is kept elsewhere.
const BITS: u32 = 14;
const LARGE: u32 = (1 << BITS) - 1;
const STORED_SHIFT: u32 = BITS;

/// What a cluster is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Use {
    /// An L2 table, which states of the disk can share.
    Table = 1 << 28,
    /// Data, which they can share, too.
    Data = 1 << 29,
    /// What one thing alone can lie in: the header, an L1 table, what bitmaps and snapshots have.
    Sole = 1 << 30,
    /// Refcounts, and the table of them.
    Refcounts = 1 << 31,
}

/// What is known of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) cluster: u64,
    /// The refcount that the image has for it.
    pub(super) stored: u64,
    /// How many uses were found.
    pub(super) uses: u64,
    /// What for.
    word: u32,
}

impl Counted {
    /// Whether it is used for this, among others.
    pub(super) fn is(&self, of: Use) -> bool {
        self.word & of as u32 != 0
    }

    /// Whether both data and something else are in it.
    pub(super) fn is_mixed(&self) -> bool {
        self.is(Use::Data)
            && [Use::Table, Use::Sole, Use::Refcounts]
                .iter()
                .any(|of| self.is(*of))
    }

    /// Whether it has uses that exclude each other, those as refcounts left out.
    pub(super) fn is_contested(&self) -> bool {
        let kinds = [Use::Table, Use::Data, Use::Sole];
        let kinds = kinds.iter().filter(|of| self.is(**of)).count();
        let own = u64::from(self.is(Use::Refcounts));
        kinds > 1 || self.is(Use::Sole) && self.uses - own > 1
    }

    /// Whether refcounts lie where something else does, or other refcounts.
    pub(super) fn is_refcounts_twice(&self) -> bool {
        self.is(Use::Refcounts) && self.uses > 1
    }
}

/// Two numbers for each cluster, in 4 bytes.
pub(super) struct Counts {
    pages: Vec<Option<Box<[u32]>>>,
    taken: usize,
    /// Numbers that do not fit, by cluster: uses, and refcounts.
    large: [HashMap<u64, u64>; 2],
}

impl Counts {
    /// For a file of `clusters` clusters.
    ///
    /// # Errors
    /// `Unsupported` where there are too many.
    pub(super) fn new(clusters: u64) -> Result<Self> {
        if clusters > MOST_CLUSTERS {
            return Err(too_large());
        }
        Ok(Self {
            pages: vec![None; clusters.div_ceil(PAGE) as usize],
            taken: 0,
            large: Default::default(),
        })
    }

    /// Notes `times` more uses of a cluster of the file.
    pub(super) fn count(&mut self, cluster: u64, times: u64, of: Use) -> Result<()> {
        let uses = self.uses(cluster).saturating_add(times);
        self.set(cluster, 0, uses)?;
        *self.word(cluster)? |= of as u32;
        Ok(())
    }

    /// Notes the refcount that the image has for a cluster of the file.
    pub(super) fn store(&mut self, cluster: u64, refcount: u64) -> Result<()> {
        self.set(cluster, 1, refcount)
    }

    /// The refcount that the image has for it; 0 outside of the file.
    pub(super) fn stored(&self, cluster: u64) -> u64 {
        self.number(cluster, 1)
    }

    /// How many uses of it were found.
    pub(super) fn uses(&self, cluster: u64) -> u64 {
        self.number(cluster, 0)
    }

    /// All clusters that are used or counted, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Counted> + '_ {
        let pages = (0..).zip(&self.pages);
        let pages = pages.filter_map(|(index, page)| Some((index, page.as_ref()?)));
        pages.flat_map(move |(index, page)| {
            let words = (index * PAGE..).zip(page.iter());
            let used = words.filter(|(_, word)| **word != 0);
            used.map(|(cluster, word)| Counted {
                cluster,
                stored: self.stored(cluster),
                uses: self.uses(cluster),
                word: *word,
            })
        })
    }

    fn number(&self, cluster: u64, which: u32) -> u64 {
        let page = usize::try_from(cluster / PAGE)
            .ok()
            .and_then(|page| self.pages.get(page)?.as_ref());
        let word = page.map_or(0, |page| page[(cluster % PAGE) as usize]);
        match word >> (which * STORED_SHIFT) & LARGE {
            LARGE => self.large[which as usize]
                .get(&cluster)
                .copied()
                .unwrap_or(0),
            small => small.into(),
        }
    }

    fn set(&mut self, cluster: u64, which: u32, number: u64) -> Result<()> {
        let small = match u32::try_from(number) {
            Ok(small) if small < LARGE => small,
            _ => {
                let large = &mut self.large[which as usize];
                large.insert(cluster, number);
                if large.len() > MOST_LARGE {
                    return Err(too_large());
                }
                LARGE
            }
        };
        let shift = which * STORED_SHIFT;
        let word = self.word(cluster)?;
        *word = *word & !(LARGE << shift) | small << shift;
        Ok(())
    }

    fn word(&mut self, cluster: u64) -> Result<&mut u32> {
        let (page, index) = ((cluster / PAGE) as usize, (cluster % PAGE) as usize);
        let page = &mut self.pages[page];
        if page.is_none() {
            if self.taken == MOST_PAGES {
                return Err(too_large());
            }
            self.taken += 1;
        }
        let page = page.get_or_insert_with(|| vec![0; PAGE as usize].into());
        Ok(&mut page[index])
    }
}

fn too_large() -> Error {
    let message = "the image has more clusters than can be checked in memory";
    Error::with_message(ErrorKind::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_numbers_are_kept_beside_each_other() {
        let mut counts = Counts::new(100_000).expect("few");
        let large = u64::from(LARGE);
        counts.store(5, large - 1).expect("room");
        counts.store(99_999, u64::MAX).expect("room");
        counts.count(5, large, Use::Data).expect("room");
        counts.count(5, 3, Use::Table).expect("room");
        counts.count(7, 1, Use::Data).expect("room");
        assert_eq!((counts.uses(5), counts.stored(5)), (large + 3, large - 1));
        assert_eq!((counts.uses(6), counts.stored(1 << 40)), (0, 0));
        let all: Vec<_> = counts
            .iter()
            .map(|it| (it.cluster, it.is_mixed()))
            .collect();
        assert_eq!(all, [(5, true), (7, false), (99_999, false)]);
        assert_eq!(counts.stored(99_999), u64::MAX);
        assert!(Counts::new(u64::MAX).is_err());
    }
}
