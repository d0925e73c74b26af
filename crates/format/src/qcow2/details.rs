//! What there is to be told of an image: for `info`, and for those who make another one like it.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Result};

use super::{
    Compression,
    bitmaps::{Bitmap, BitmapDetails, read_directory},
    header::{Autoclear, Compatible, Header, Incompatible},
    snapshots::{Snapshot, SnapshotTable},
};
use crate::{RelatedFile, Role};

/// What an image says of itself. Texts are the image's: escape them before printing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// The version of the format: 2 or 3.
    pub version: u32,
    /// The size of the virtual disk in bytes.
    pub virtual_size: u64,
    /// The size of a cluster in bytes.
    pub cluster_size: u64,
    /// The width of a refcount in bits.
    pub refcount_bits: u32,
    /// How its compressed clusters are compressed.
    pub compression: Compression,
    /// Refcounts may be written late.
    pub lazy_refcounts: bool,
    /// Clusters have subclusters.
    pub extended_l2: bool,
    /// It was not closed: refcounts may be wrong. What is in it is right.
    pub is_dirty: bool,
    /// It was found to be damaged.
    pub is_corrupt: bool,
    /// What shows through where it has nothing of its own.
    pub backing: Option<RelatedFile>,
    /// Where its data lies, if not in itself.
    pub data_file: Option<RelatedFile>,
    /// The data file can be read as a raw image, too.
    pub data_file_raw: bool,
    /// The snapshots in it, in the order of its table.
    pub snapshots: Vec<Snapshot>,
    /// The bitmaps in it, in the order of its directory.
    pub bitmaps: Vec<BitmapDetails>,
}

impl Details {
    /// Reads them from the image in `below`, without any other file that it may be made of.
    ///
    /// # Errors
    /// As those of opening the image.
    pub async fn read(below: &Arc<dyn BlockDevice>) -> Result<Self> {
        let below = &**below;
        let header = Header::read(below).await?;
        let snapshots = SnapshotTable::read(below, &header).await?;
        let bitmaps = read_directory(below, &header).await?;
        Ok(Self::new(&header, &snapshots.snapshots, &bitmaps))
    }

    pub(crate) fn new(header: &Header, snapshots: &[Snapshot], bitmaps: &[Bitmap]) -> Self {
        let geometry = header.geometry;
        Self {
            version: geometry.version,
            virtual_size: geometry.size,
            cluster_size: geometry.cluster_size(),
            refcount_bits: 1 << geometry.refcount_order,
            compression: header.compression,
            lazy_refcounts: header.compatible.contains(Compatible::LAZY_REFCOUNTS),
            extended_l2: geometry.extended,
            is_dirty: header.incompatible.contains(Incompatible::DIRTY),
            is_corrupt: header.is_corrupt(),
            backing: header.backing_file(),
            data_file: header.external_data(),
            data_file_raw: header.autoclear.contains(Autoclear::RAW_DATA_FILE),
            snapshots: snapshots.to_vec(),
            bitmaps: bitmaps
                .iter()
                .map(|bitmap| bitmap.details.clone())
                .collect(),
        }
    }

    /// The version as qemu-img calls it: `0.10` or `1.1`.
    #[must_use]
    pub fn compat(&self) -> &'static str {
        if self.version < 3 { "0.10" } else { "1.1" }
    }
}

impl Header {
    /// The backing file, where there is one.
    pub(crate) fn backing_file(&self) -> Option<RelatedFile> {
        self.backing.as_ref().map(|name| RelatedFile {
            role: Role::Backing,
            name: name.clone(),
            format: self.backing_format.clone(),
        })
    }

    /// The file that the data lies in, where it does not lie in the image: always raw.
    pub(crate) fn external_data(&self) -> Option<RelatedFile> {
        self.data_file.as_ref().map(|name| RelatedFile {
            role: Role::Data,
            name: name.clone(),
            format: Some("raw".to_owned()),
        })
    }
}
