//! How new images are made.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Error, ErrorKind, Result};

use super::{
    geometry::{CLUSTER_BITS, Geometry},
    header::Compression,
};

/// What a new image is like.
#[derive(Clone)]
#[non_exhaustive]
pub struct CreateOptions {
    /// The virtual size in bytes; `None`: [`resize`](blockferry_block::BlockDevice::resize) tells.
    pub size: Option<u64>,
    /// The size of clusters in bytes: a power of two from 512 to 2 MiB. Default 64 KiB.
    pub cluster_size: u32,
    /// The version of the format: 2 (`compat=0.10`) or 3 (`compat=1.1`). Default 3.
    pub version: u32,
    /// Clusters are compressed. Default false.
    pub compress: bool,
    /// How. Default zlib; Zstandard needs version 3.
    pub compression: Compression,
    /// How hard: 1 to 9 for zlib, 1 to 22 for Zstandard; `None`: what pays.
    pub compression_level: Option<u32>,
    /// How far back a zlib stream may refer, in bytes: 4096, which every reader takes, or 32768. Default 4096.
    pub compression_window: u32,
    /// Compressed clusters lie in the order in which they were handed in, whatever takes longer, so that equal
    /// sources make equal files. Default true.
    pub in_order: bool,
    /// How many clusters are compressed at a time; 0: as many as there are processors.
    pub threads: usize,
    /// The width of refcounts in bits: 1, 2, 4, 8, 16, 32 or 64. Default 16; version 2 has no other.
    pub refcount_bits: u32,
    /// Clusters have 32 subclusters each. Default false; needs version 3 and clusters of 16 KiB at least.
    pub extended_l2: bool,
    /// Says in the header that refcounts may be written late by who writes the image later. Default false; needs
    /// version 3.
    pub lazy_refcounts: bool,
    /// What is allocated in advance. Default nothing.
    pub preallocation: Preallocation,
    /// What shows through where the image has nothing of its own.
    pub backing: Option<Backing>,
    /// Where the data lies, if not in the image.
    pub data_file: Option<DataFile>,
}

/// What a new image allocates in advance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The tables: every cluster has its place, and the file is sparse there.
    Metadata,
    /// The tables, and the file's blocks without writing them.
    Falloc,
    /// The tables, and the file's blocks, by writing zeroes.
    Full,
}

/// The backing file of a new image.
#[derive(Clone)]
pub struct Backing {
    /// The name that the image gives it.
    pub name: Vec<u8>,
    /// Its format, as the image says it.
    pub format: Option<String>,
    /// What is in it: what equals it is not written. `None`: everything that is written is.
    pub device: Option<Arc<dyn BlockDevice>>,
}

/// The data file of a new image.
#[derive(Clone)]
pub struct DataFile {
    /// The name that the image gives it.
    pub name: Vec<u8>,
    /// It can be read as a raw image, too (`data_file_raw`): zeroes are written there as well.
    pub raw: bool,
    /// Where the data goes, at the offsets that it has in the virtual disk.
    pub device: Arc<dyn BlockDevice>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            size: None,
            cluster_size: 64 << 10,
            version: 3,
            compress: false,
            compression: Compression::Zlib,
            compression_level: None,
            compression_window: 4096,
            in_order: true,
            threads: 0,
            refcount_bits: 16,
            extended_l2: false,
            lazy_refcounts: false,
            preallocation: Preallocation::Off,
            backing: None,
            data_file: None,
        }
    }
}

impl CreateOptions {
    /// Checks that the options make sense, alone and together.
    ///
    /// # Errors
    /// `InvalidInput`, with what does not and what would.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::with_message(ErrorKind::InvalidInput, message));
        let is_cluster = self.cluster_size.is_power_of_two()
            && CLUSTER_BITS.contains(&self.cluster_size.ilog2());
        if !is_cluster {
            return refuse("the cluster size is a power of two from 512 to 2M".to_owned());
        }
        if !(self.refcount_bits.is_power_of_two() && self.refcount_bits <= 64) {
            return refuse("refcounts have 1, 2, 4, 8, 16, 32 or 64 bits".to_owned());
        }
        if !matches!(self.version, 2 | 3) {
            return refuse("the version is 2 or 3".to_owned());
        }
        let features = [
            (self.refcount_bits != 16, "refcounts of other than 16 bits"),
            (self.extended_l2, "subclusters"),
            (self.lazy_refcounts, "lazy refcounts"),
            (self.compression == Compression::Zstd, "compression by zstd"),
            (self.data_file.is_some(), "a data file"),
        ];
        if let (2, Some((_, what))) = (self.version, features.iter().find(|(used, _)| *used)) {
            return refuse(format!("version 2 (compat=0.10) knows no {what}"));
        }
        if self.extended_l2 && self.cluster_size < 16 << 10 {
            return refuse("subclusters need clusters of 16K at least".to_owned());
        }
        if !matches!(self.compression_window, 4096 | 32768) {
            return refuse("the compression window is 4k or 32k".to_owned());
        }
        let most = match self.compression {
            Compression::Zlib => 9,
            Compression::Zstd => 22,
        };
        if self
            .compression_level
            .is_some_and(|level| !(1..=most).contains(&level))
        {
            return refuse(format!("the compression level is 1 to {most}"));
        }
        if self.compress && self.refcount_bits == 1 {
            return refuse(
                "compressed clusters share a cluster, which refcounts of 1 bit cannot count"
                    .to_owned(),
            );
        }
        if self.compress && self.data_file.is_some() {
            return refuse("a data file holds no compressed clusters".to_owned());
        }
        if self.compress && self.preallocation != Preallocation::Off {
            return refuse("compressed clusters cannot be allocated in advance".to_owned());
        }
        if self.backing.is_some() && self.preallocation != Preallocation::Off && !self.extended_l2 {
            return refuse(
                "with a backing file nothing is allocated in advance: it would hide it".to_owned(),
            );
        }
        if self.backing.is_some() && self.data_file.as_ref().is_some_and(|file| file.raw) {
            return refuse("a raw data file cannot have a backing file".to_owned());
        }
        Ok(())
    }

    /// What everything in an image of `size` bytes is computed with.
    pub(crate) fn geometry(&self, size: u64) -> Geometry {
        Geometry {
            cluster_bits: self.cluster_size.ilog2(),
            size,
            refcount_order: self.refcount_bits.ilog2(),
            extended: self.extended_l2,
            data_file: self.data_file.is_some(),
            version: self.version,
        }
    }
}
