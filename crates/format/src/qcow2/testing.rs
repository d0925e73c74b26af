//! For this crate's tests: small images, sound ones unless told otherwise, from what is to be in them.

use std::collections::BTreeMap;

use blockferry_block::ByteRange;

use super::{
    Details, Image,
    codec::{CompressionSettings, Compressor},
    entry::{COPIED, Cluster, Compressed, Entry, SECTOR},
    geometry::Geometry,
    header::{Autoclear, Compatible, Compression, Header, Incompatible},
    refcounts::set_refcount,
};

/// What an image says of itself.
pub(crate) fn details(image: &Image) -> Details {
    let details = crate::Image::details(image);
    details.as_qcow2().expect("a qcow2 image").clone()
}

/// What a cluster of the disk is to be.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// These bytes as they are: all of a cluster.
    Data(Vec<u8>),
    /// These bytes, compressed: all of a cluster, compressible.
    Compressed(Vec<u8>),
    /// Zeroes.
    Zero,
    /// Zeroes, with a cluster of the file behind them.
    ZeroKept,
    /// Subclusters: those of the first mask lie in the file, those of the second are zeroes.
    Mixed(u32, u32, Vec<u8>),
    /// This entry, which nothing else in the image knows of.
    Entry(Entry),
}

/// An image to be: a header, the tables, clusters in the order of the disk, compressed ones after those, refcounts.
#[derive(Clone, Debug)]
pub(crate) struct ImageBuilder {
    pub(crate) geometry: Geometry,
    pub(crate) compression: Compression,
    /// The name and the format of the backing file.
    pub(crate) backing: Option<(Vec<u8>, String)>,
    pub(crate) clusters: BTreeMap<u64, Content>,
}

impl ImageBuilder {
    /// An empty version 3 image of `size` bytes.
    pub(crate) fn new(cluster_bits: u32, size: u64) -> Self {
        Self {
            geometry: Geometry {
                cluster_bits,
                size,
                refcount_order: 4,
                extended: false,
                data_file: false,
                version: 3,
            },
            compression: Compression::Zlib,
            backing: None,
            clusters: BTreeMap::new(),
        }
    }

    /// With `content` in cluster `number` of the disk.
    pub(crate) fn with(mut self, number: u64, content: Content) -> Self {
        self.clusters.insert(number, content);
        self
    }

    /// The bytes of the image.
    pub(crate) fn build(&self) -> Vec<u8> {
        Layout::new(self).build()
    }
}

struct Layout<'a> {
    image: &'a ImageBuilder,
    bytes: Vec<u8>,
    /// How often each cluster of the file is used.
    refcounts: Vec<u64>,
}

impl<'a> Layout<'a> {
    fn new(image: &'a ImageBuilder) -> Self {
        Self {
            image,
            bytes: Vec::new(),
            refcounts: Vec::new(),
        }
    }

    fn build(mut self) -> Vec<u8> {
        let geometry = self.image.geometry;
        let header = self.allocate(1);
        let l1_length = geometry.l1_entries().max(1) * 8;
        let l1 = self.allocate(l1_length.div_ceil(geometry.cluster_size()));
        let entries = self.place_clusters();
        for (number, entry) in entries {
            let (table, index) = geometry.indices(number << geometry.cluster_bits);
            let at = (l1 + table * 8) as usize;
            let mut l2 = self.word(at) & !COPIED;
            if l2 == 0 {
                l2 = self.allocate(1);
                self.put(at, l2 | COPIED);
            }
            let at = (l2 + index as u64 * geometry.entry_size()) as usize;
            self.put(at, entry.word);
            if geometry.extended {
                self.put(at + 8, entry.subclusters);
            }
        }
        let refcount_table = self.place_refcounts();
        let header_bytes = self.header(ByteRange::between(l1, l1 + l1_length), refcount_table);
        self.bytes[header as usize..][..header_bytes.len()].copy_from_slice(&header_bytes);
        self.bytes
    }

    fn place_clusters(&mut self) -> Vec<(u64, Entry)> {
        let geometry = self.image.geometry;
        let mut entries = Vec::new();
        for (number, content) in &self.image.clusters {
            let cluster = match content {
                Content::Compressed(_) => continue,
                Content::Entry(entry) => {
                    entries.push((*number, *entry));
                    continue;
                }
                Content::Data(bytes) => Cluster::Data {
                    host: self.place(bytes),
                },
                Content::Zero => Cluster::Zero { host: None },
                Content::ZeroKept => Cluster::Zero {
                    host: Some(self.allocate(1)),
                },
                Content::Mixed(allocated, zero, bytes) => Cluster::Mixed {
                    host: Some(self.place(bytes)),
                    allocated: *allocated,
                    zero: *zero,
                },
            };
            entries.push((*number, Entry::encode(cluster, geometry)));
        }
        let mut compressor = Compressor::new(&CompressionSettings {
            kind: self.image.compression,
            level: None,
            window: 4096,
        });
        let mut end = self.bytes.len() as u64;
        for (number, content) in &self.image.clusters {
            let Content::Compressed(bytes) = content else {
                continue;
            };
            let mut stream = vec![0; bytes.len()];
            let length = compressor.compress(bytes, &mut stream).expect("it shrinks");
            let place = ByteRange::between(end, end + length as u64);
            while (self.bytes.len() as u64) < place.end() {
                let fresh = self.allocate(1) >> geometry.cluster_bits;
                self.refcounts[fresh as usize] = 0;
            }
            self.bytes[end as usize..][..length].copy_from_slice(&stream[..length]);
            let sectors_end = place.end().next_multiple_of(SECTOR);
            for used in place.start() >> geometry.cluster_bits
                ..sectors_end.div_ceil(geometry.cluster_size())
            {
                self.refcounts[used as usize] += 1;
            }
            let compressed = Compressed {
                offset: place.start(),
                length: sectors_end - place.start(),
            };
            let entry = Entry::encode(Cluster::Compressed(compressed), geometry);
            entries.push((*number, entry));
            end = place.end();
        }
        entries
    }

    /// Writes the refcounts of everything, their own blocks included, and says where their table is.
    fn place_refcounts(&mut self) -> ByteRange {
        let geometry = self.image.geometry;
        let table = self.allocate(1);
        let per_block = geometry.refcounts_per_block();
        let mut blocks = Vec::new();
        while (blocks.len() as u64) * per_block < self.refcounts.len() as u64 {
            blocks.push(self.allocate(1));
        }
        for (index, block) in blocks.iter().enumerate() {
            self.put(table as usize + index * 8, *block);
        }
        for (cluster, count) in self.refcounts.clone().into_iter().enumerate() {
            let block = blocks[cluster / per_block as usize] as usize;
            let block = &mut self.bytes[block..][..geometry.cluster_size() as usize];
            let index = cluster % per_block as usize;
            set_refcount(block, geometry.refcount_order, index, count);
        }
        ByteRange::between(table, table + geometry.cluster_size())
    }

    fn header(&self, l1: ByteRange, refcount_table: ByteRange) -> Vec<u8> {
        let geometry = self.image.geometry;
        let mut incompatible = Incompatible::empty();
        incompatible.set(
            Incompatible::COMPRESSION,
            self.image.compression == Compression::Zstd,
        );
        incompatible.set(Incompatible::EXTENDED_L2, geometry.extended);
        incompatible.set(Incompatible::DATA_FILE, geometry.data_file);
        let (backing, backing_format) = self.image.backing.clone().unzip();
        let header = Header {
            geometry,
            backing,
            backing_format,
            l1,
            refcount_table,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible,
            compatible: Compatible::empty(),
            autoclear: Autoclear::empty(),
            compression: self.image.compression,
            data_file: geometry.data_file.then(|| b"data".to_vec()),
            bitmaps: None,
            length: 112,
            unknown: Vec::new(),
        };
        header.encode().expect("short names")
    }

    /// The place of as many new clusters.
    fn allocate(&mut self, clusters: u64) -> u64 {
        let place = self.bytes.len() as u64;
        let clusters = clusters as usize;
        let size = clusters << self.image.geometry.cluster_bits;
        self.bytes.resize(place as usize + size, 0);
        self.refcounts.resize(self.refcounts.len() + clusters, 1);
        place
    }

    fn place(&mut self, bytes: &[u8]) -> u64 {
        let place = self.allocate(1);
        self.bytes[place as usize..][..bytes.len()].copy_from_slice(bytes);
        place
    }

    fn word(&self, at: usize) -> u64 {
        super::header::be64(&self.bytes, at)
    }

    fn put(&mut self, at: usize, word: u64) {
        self.bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
    }
}
