//! The header of an image and its extensions (specification, "Header", "Header extensions"): parsed from bytes that
//! may be anything, and written.

use bitflags::bitflags;
use blockferry_block::{
    BlockDevice, ByteRange, Error, ErrorKind, Operation, Result, printable, read_exact_at,
};

use super::geometry::{CLUSTER_BITS, Geometry, corrupt, table_range};
pub(crate) use crate::be::{be16, be32, be64};

pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// The length of a version 2 header, and of the part that every version 3 header has.
const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;
/// The length of the header that is written here: with the compression type and its padding.
const OUR_LENGTH: usize = 112;

/// The longest names that an image can have (specification: 1023 bytes).
pub(crate) const LONGEST_NAME: u32 = 1023;
/// qemu's bounds on tables: an L1 table of 32 MiB, a refcount table of 8 MiB, 65536 snapshots.
pub(crate) const LARGEST_L1: u64 = 32 << 20;
pub(crate) const LARGEST_REFCOUNT_TABLE: u64 = 8 << 20;
pub(crate) const MOST_SNAPSHOTS: u32 = 65536;

pub(crate) const BACKING_FORMAT: u32 = 0xe279_2aca;
pub(crate) const FEATURE_NAMES: u32 = 0x6803_f857;
pub(crate) const BITMAPS: u32 = 0x2385_2875;
const ENCRYPTION: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

bitflags! {
    /// Features that must be understood to open an image at all.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Incompatible: u64 {
        /// Refcounts may be wrong.
        const DIRTY = 1 << 0;
        /// The image was found to be damaged: it must not be written.
        const CORRUPT = 1 << 1;
        /// The data lies in a file of its own.
        const DATA_FILE = 1 << 2;
        /// Clusters are compressed by something else than zlib.
        const COMPRESSION = 1 << 3;
        /// L2 entries have 16 bytes.
        const EXTENDED_L2 = 1 << 4;
    }

    /// Features that may be ignored.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Compatible: u64 {
        /// Refcounts may be written later, with the dirty bit set meanwhile.
        const LAZY_REFCOUNTS = 1 << 0;
    }

    /// Features whose bits are to be cleared by whoever writes the image and does not know them.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Autoclear: u64 {
        /// The bitmaps are consistent with the image.
        const BITMAPS = 1 << 0;
        /// The data file can be read as a raw image.
        const RAW_DATA_FILE = 1 << 1;
    }
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Raw deflate (RFC 1951).
    #[default]
    Zlib,
    /// One Zstandard frame for each cluster.
    Zstd,
}

impl Compression {
    /// What qemu calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// Where the bitmaps are (specification, "Bitmaps extension").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitmapsExtension {
    pub(crate) count: u32,
    pub(crate) directory: ByteRange,
}

impl BitmapsExtension {
    /// The body of the extension.
    pub(crate) fn encode(self) -> [u8; 24] {
        let mut body = [0; 24];
        body[..4].copy_from_slice(&self.count.to_be_bytes());
        body[8..16].copy_from_slice(&self.directory.len().to_be_bytes());
        body[16..].copy_from_slice(&self.directory.start().to_be_bytes());
        body
    }
}

/// The header of an image, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Everything is computed with it; the sizes and versions are in here.
    pub(crate) geometry: Geometry,
    /// The name of the backing file.
    pub(crate) backing: Option<Vec<u8>>,
    /// Its format, where the image says so.
    pub(crate) backing_format: Option<String>,
    /// The L1 table: as many entries as it has, at least as many as the virtual disk needs.
    pub(crate) l1: ByteRange,
    /// The refcount table: whole clusters.
    pub(crate) refcount_table: ByteRange,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: Incompatible,
    pub(crate) compatible: Compatible,
    pub(crate) autoclear: Autoclear,
    pub(crate) compression: Compression,
    /// The name of the data file; without one in the image `Some` and empty.
    pub(crate) data_file: Option<Vec<u8>>,
    pub(crate) bitmaps: Option<BitmapsExtension>,
    /// The length of the header without its extensions.
    pub(crate) length: u32,
    /// Extensions that are not understood here, kept for who rewrites the header.
    pub(crate) unknown: Vec<(u32, Vec<u8>)>,
}

impl Header {
    /// Reads the header of the image in `below`.
    ///
    /// # Errors
    /// `Corrupt` for what breaks the rules, `Unsupported` for what is understood and cannot be done (encryption),
    /// `Incompatible` for features that nobody here knows, what reading failed with.
    pub(crate) async fn read(below: &dyn BlockDevice) -> Result<Self> {
        let size = below.info().size;
        let first = ByteRange::between(0, size.min(V3_LENGTH as u64));
        let start = read_exact_at(below, first).await?;
        let bits = Self::cluster_bits(&start)?;
        let cluster = ByteRange::between(0, size.min(1 << bits));
        let bytes = read_exact_at(below, cluster).await?;
        Self::parse(&bytes).map_err(|error| error.during(Operation::Open))
    }

    /// The size of clusters that a header says, enough of which is in `bytes`.
    fn cluster_bits(bytes: &[u8]) -> Result<u32> {
        if bytes.len() < V2_LENGTH {
            return Err(corrupt("it is too short to be a qcow2 image"));
        }
        if bytes[..4] != MAGIC {
            return Err(corrupt(
                "it is not a qcow2 image: it begins with something else",
            ));
        }
        let bits = be32(bytes, 20);
        if !CLUSTER_BITS.contains(&bits) {
            return Err(corrupt(format!(
                "clusters of 2^{bits} bytes: qcow2 has 2^9 to 2^21"
            )));
        }
        Ok(bits)
    }

    /// The header at the beginning of `bytes`: the first cluster of the image, or all of a shorter file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let cluster_bits = Self::cluster_bits(bytes)?;
        let version = be32(bytes, 4);
        if !matches!(version, 2 | 3) {
            let message = format!("qcow version {version} is not supported: 2 and 3 are");
            return Err(Error::with_message(ErrorKind::Incompatible, message));
        }
        let length = match version {
            2 => V2_LENGTH as u32,
            _ if bytes.len() < V3_LENGTH => return Err(corrupt("the header is cut short")),
            _ => be32(bytes, 100),
        };
        let cut = bytes.len().min(1 << cluster_bits);
        let bytes = &bytes[..cut];
        if version == 3 && (length < V3_LENGTH as u32 || length % 8 != 0) || length as usize > cut {
            return Err(corrupt(format!(
                "a header of {length} bytes: it has 104 at least, a multiple of 8, within a cluster"
            )));
        }
        let (features, compatible, autoclear, refcount_order) = match version {
            2 => (0, 0, 0, 4),
            _ => (
                be64(bytes, 72),
                be64(bytes, 80),
                be64(bytes, 88),
                be32(bytes, 96),
            ),
        };
        let extensions = Extensions::parse(bytes, length as usize)?;
        let incompatible = Incompatible::from_bits(features)
            .ok_or_else(|| unknown_features(features, extensions.feature_names.as_deref()))?;
        match be32(bytes, 32) {
            0 => {}
            method => return Err(encrypted(method)),
        }
        if refcount_order > 6 {
            return Err(corrupt(format!(
                "refcounts of 2^{refcount_order} bits: qcow2 has 64 at most"
            )));
        }
        let size = be64(bytes, 24);
        if i64::try_from(size).is_err() {
            return Err(corrupt(format!(
                "a virtual size of {size} bytes is larger than an image can be"
            )));
        }
        let compression = compression(bytes, length, incompatible)?;
        let geometry = Geometry {
            cluster_bits,
            size,
            refcount_order,
            extended: incompatible.contains(Incompatible::EXTENDED_L2),
            data_file: incompatible.contains(Incompatible::DATA_FILE),
            version,
        };
        if geometry.extended && cluster_bits < 14 {
            return Err(corrupt("subclusters need clusters of 16 KiB at least"));
        }
        let (l1, refcount_table) = tables(bytes, geometry)?;
        let snapshots = be32(bytes, 60);
        if snapshots > MOST_SNAPSHOTS {
            return Err(corrupt(format!(
                "{snapshots} snapshots: there can be at most {MOST_SNAPSHOTS}"
            )));
        }
        let snapshots_offset = be64(bytes, 64);
        if snapshots > 0 && !geometry.is_aligned(snapshots_offset) {
            return Err(corrupt("the snapshot table is not on a cluster's boundary"));
        }
        Ok(Self {
            geometry,
            backing: backing(bytes)?,
            backing_format: extensions.backing_format,
            l1,
            refcount_table,
            snapshots,
            snapshots_offset,
            incompatible,
            compatible: Compatible::from_bits_truncate(compatible),
            autoclear: Autoclear::from_bits_truncate(autoclear),
            compression,
            data_file: geometry
                .data_file
                .then(|| extensions.data_file.unwrap_or_default()),
            bitmaps: extensions.bitmaps,
            length,
            unknown: extensions.unknown,
        })
    }

    /// The header with its extensions and the backing file's name, which fit in one cluster.
    ///
    /// Version 3 headers are written with the names of the features that are used, version 2 without any feature.
    ///
    /// # Errors
    /// `InvalidInput` when names are too long for the cluster.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        self.encode_within(self.geometry.cluster_size())
    }

    /// The same, without the names of features where it would be longer than `most` bytes with them.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub(crate) fn encode_within(&self, most: u64) -> Result<Vec<u8>> {
        let geometry = self.geometry;
        let mut bytes = Vec::with_capacity(512);
        bytes.extend(MAGIC);
        put32(&mut bytes, geometry.version);
        // The name's place comes when it is known.
        put64(&mut bytes, 0);
        put32(&mut bytes, 0);
        put32(&mut bytes, geometry.cluster_bits);
        put64(&mut bytes, geometry.size);
        put32(&mut bytes, 0);
        put32(&mut bytes, (self.l1.len() / 8) as u32);
        put64(&mut bytes, self.l1.start());
        put64(&mut bytes, self.refcount_table.start());
        put32(
            &mut bytes,
            (self.refcount_table.len() >> geometry.cluster_bits) as u32,
        );
        put32(&mut bytes, self.snapshots);
        put64(&mut bytes, self.snapshots_offset);
        if geometry.version >= 3 {
            put64(&mut bytes, self.incompatible.bits());
            put64(&mut bytes, self.compatible.bits());
            put64(&mut bytes, self.autoclear.bits());
            put32(&mut bytes, geometry.refcount_order);
            put32(&mut bytes, OUR_LENGTH as u32);
            bytes.push(match self.compression {
                Compression::Zlib => 0,
                Compression::Zstd => 1,
            });
            bytes.resize(OUR_LENGTH, 0);
        }
        if let Some(format) = &self.backing_format {
            extension(&mut bytes, BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = self.data_file.as_ref().filter(|name| !name.is_empty()) {
            extension(&mut bytes, DATA_FILE, name);
        }
        if let Some(bitmaps) = self.bitmaps {
            extension(&mut bytes, BITMAPS, &bitmaps.encode());
        }
        for (kind, body) in &self.unknown {
            extension(&mut bytes, *kind, body);
        }
        // Names for those who do not know a feature: where clusters are small there may be no room for them.
        let names = feature_names();
        let others = bytes.len() + 16 + self.backing.as_ref().map_or(0, Vec::len);
        if geometry.version >= 3 && (others + names.len()) as u64 <= most {
            extension(&mut bytes, FEATURE_NAMES, &names);
        }
        put64(&mut bytes, 0);
        if let Some(name) = &self.backing {
            let offset = bytes.len() as u64;
            bytes[8..16].copy_from_slice(&offset.to_be_bytes());
            bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            bytes.extend(name);
        }
        let too_long = self
            .backing
            .as_ref()
            .is_some_and(|name| name.len() > LONGEST_NAME as usize);
        if too_long || bytes.len() as u64 > geometry.cluster_size() {
            let message = "the names of other files are too long for the header of an image";
            return Err(Error::with_message(ErrorKind::InvalidInput, message));
        }
        Ok(bytes)
    }

    /// Whether the tables can be trusted enough to be changed: not when the image is marked as damaged.
    pub(crate) fn is_corrupt(&self) -> bool {
        self.incompatible.contains(Incompatible::CORRUPT)
    }
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    feature_names: Option<Vec<u8>>,
    bitmaps: Option<BitmapsExtension>,
    data_file: Option<Vec<u8>>,
    unknown: Vec<(u32, Vec<u8>)>,
}

impl Extensions {
    fn parse(bytes: &[u8], start: usize) -> Result<Self> {
        let mut found = Self::default();
        walk_extensions(bytes, start, |_, kind, body| found.add(kind, body))?;
        Ok(found)
    }

    fn add(&mut self, kind: u32, body: &[u8]) -> Result<()> {
        match kind {
            BACKING_FORMAT => {
                self.backing_format = Some(String::from_utf8_lossy(body).into_owned());
            }
            FEATURE_NAMES => self.feature_names = Some(body.to_vec()),
            DATA_FILE => self.data_file = Some(body.to_vec()),
            BITMAPS => {
                if body.len() != 24 {
                    return Err(corrupt("the bitmaps extension has the wrong length"));
                }
                let directory =
                    table_range("the directory of bitmaps", be64(body, 16), be64(body, 8))?;
                let count = be32(body, 0);
                self.bitmaps = Some(BitmapsExtension { count, directory });
            }
            // Encrypted images are refused by the header itself.
            ENCRYPTION => {}
            _ => self.unknown.push((kind, body.to_vec())),
        }
        Ok(())
    }
}

/// Tells `each` of the extensions that begin at `at` of the header's cluster `bytes`: where it lies, its kind and its body.
/// Returns where the list ends.
///
/// # Errors
/// `Corrupt` for one that is longer than the header; those of `each`.
pub(crate) fn walk_extensions<'a>(
    bytes: &'a [u8],
    mut at: usize,
    mut each: impl FnMut(usize, u32, &'a [u8]) -> Result<()>,
) -> Result<usize> {
    // The backing file's name lies behind the extensions, which end there without an end of their own.
    let name = usize::try_from(be64(bytes, 8)).unwrap_or(0);
    let end = if name > at {
        name.min(bytes.len())
    } else {
        bytes.len()
    };
    while at + 8 <= end {
        let kind = be32(bytes, at);
        if kind == 0 {
            break;
        }
        let length = be32(bytes, at + 4) as usize;
        let body = bytes.get(at + 8..).and_then(|rest| rest.get(..length));
        let body = body.ok_or_else(|| corrupt("a header extension is longer than the header"))?;
        each(at, kind, body)?;
        at += 8 + length.next_multiple_of(8);
    }
    Ok(at)
}

fn compression(bytes: &[u8], length: u32, incompatible: Incompatible) -> Result<Compression> {
    let kind = match length as usize {
        longer if longer > V3_LENGTH => bytes[V3_LENGTH],
        _ => 0,
    };
    match (kind, incompatible.contains(Incompatible::COMPRESSION)) {
        (0, false) => Ok(Compression::Zlib),
        (1, true) => Ok(Compression::Zstd),
        (0 | 1, _) => Err(corrupt(
            "the compression type and its feature bit contradict each other",
        )),
        _ => {
            let message =
                format!("clusters are compressed in a way that is not supported: type {kind}");
            Err(Error::with_message(ErrorKind::Incompatible, message))
        }
    }
}

fn tables(bytes: &[u8], geometry: Geometry) -> Result<(ByteRange, ByteRange)> {
    let l1_entries = u64::from(be32(bytes, 36));
    let (l1_offset, refcounts_offset) = (be64(bytes, 40), be64(bytes, 48));
    let needed = geometry.l1_entries();
    if needed * 8 > LARGEST_L1 {
        let size = geometry.size;
        return Err(corrupt(format!(
            "a virtual size of {size} bytes is too large for clusters of {} bytes",
            geometry.cluster_size()
        )));
    }
    if l1_entries * 8 > LARGEST_L1 {
        return Err(corrupt(format!(
            "the L1 table has {l1_entries} entries, which is too much"
        )));
    }
    if l1_entries < needed {
        return Err(corrupt(format!(
            "the L1 table has {l1_entries} entries and the virtual size needs {needed}"
        )));
    }
    let refcounts = u64::from(be32(bytes, 56)) << geometry.cluster_bits;
    if refcounts > LARGEST_REFCOUNT_TABLE.max(geometry.cluster_size()) {
        return Err(corrupt(format!(
            "the refcount table has {refcounts} bytes, which is too much"
        )));
    }
    for (what, offset) in [
        ("L1 table", l1_offset),
        ("refcount table", refcounts_offset),
    ] {
        if !geometry.is_aligned(offset) {
            return Err(corrupt(format!(
                "the {what} at {offset:#x} is not on a cluster's boundary"
            )));
        }
    }
    Ok((
        table_range("the L1 table", l1_offset, l1_entries * 8)?,
        table_range("the refcount table", refcounts_offset, refcounts)?,
    ))
}

fn backing(bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    let (offset, length) = (be64(bytes, 8), be32(bytes, 16));
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    let name = usize::try_from(offset)
        .ok()
        .filter(|_| length <= LONGEST_NAME)
        .and_then(|offset| bytes.get(offset..)?.get(..length as usize));
    let name = name.ok_or_else(|| {
        corrupt("the backing file's name lies outside of the header or is too long")
    })?;
    Ok(Some(name.to_vec()))
}

fn encrypted(method: u32) -> Error {
    let method = match method {
        1 => "AES".to_owned(),
        2 => "LUKS".to_owned(),
        other => format!("method {other}"),
    };
    let message =
        format!("the image is encrypted ({method}), which is not supported: decrypt it first");
    Error::with_message(ErrorKind::Unsupported, message)
}

/// Names the features that are not known here by what the image calls them.
fn unknown_features(features: u64, names: Option<&[u8]>) -> Error {
    let unknown = features & !Incompatible::all().bits();
    let name = |bit: u32| {
        let rows = names.unwrap_or_default().chunks_exact(48);
        let row = rows
            .into_iter()
            .find(|row| row[0] == 0 && u32::from(row[1]) == bit);
        let name = row.map(|row| {
            let name = row[2..].split(|byte| *byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            printable(name.as_ref())
        });
        name.unwrap_or_else(|| format!("incompatible feature {bit}"))
    };
    let bits = (0..u64::BITS).filter(|bit| unknown >> bit & 1 == 1);
    let names: Vec<_> = bits.map(name).collect();
    let message = format!(
        "the image has features that are not supported: {}",
        names.join(", ")
    );
    Error::with_message(ErrorKind::Incompatible, message)
}

/// The names of the features above, for whoever does not know one of them.
fn feature_names() -> Vec<u8> {
    const NAMES: [(u8, u8, &str); 8] = [
        (0, 0, "dirty bit"),
        (0, 1, "corrupt bit"),
        (0, 2, "external data file"),
        (0, 3, "compression type"),
        (0, 4, "extended L2 entries"),
        (1, 0, "lazy refcounts"),
        (2, 0, "bitmaps"),
        (2, 1, "raw external data"),
    ];
    let mut table = Vec::with_capacity(NAMES.len() * 48);
    for (kind, bit, name) in NAMES {
        let row = table.len();
        table.extend([kind, bit]);
        table.extend(name.as_bytes());
        table.resize(row + 48, 0);
    }
    table
}

pub(crate) fn extension(bytes: &mut Vec<u8>, kind: u32, body: &[u8]) {
    put32(bytes, kind);
    put32(bytes, body.len() as u32);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

pub(crate) fn put32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend(value.to_be_bytes());
}

pub(crate) fn put64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend(value.to_be_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn header(version: u32) -> Header {
        Header {
            geometry: Geometry {
                cluster_bits: 16,
                size: 5 << 30,
                refcount_order: 4,
                extended: false,
                data_file: false,
                version,
            },
            backing: Some(b"base.raw".to_vec()),
            backing_format: Some("raw".to_owned()),
            l1: ByteRange::between(3 << 16, (3 << 16) + 80),
            refcount_table: ByteRange::between(1 << 16, 2 << 16),
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: Incompatible::empty(),
            compatible: Compatible::empty(),
            autoclear: Autoclear::empty(),
            compression: Compression::Zlib,
            data_file: None,
            bitmaps: None,
            length: if version == 2 { 72 } else { 112 },
            unknown: vec![(0x1234_5678, vec![1, 2, 3])],
        }
    }

    #[test]
    fn what_is_written_is_parsed() {
        for version in [2, 3] {
            let header = header(version);
            let mut bytes = header.encode().expect("short names");
            bytes.resize(1 << 16, 0);
            assert_eq!(Header::parse(&bytes).expect("valid"), header);
        }
        let mut zstd = header(3);
        zstd.compression = Compression::Zstd;
        zstd.incompatible = Incompatible::COMPRESSION | Incompatible::DATA_FILE;
        zstd.geometry.data_file = true;
        zstd.data_file = Some(b"disk.data".to_vec());
        let directory = ByteRange::between(9 << 16, (9 << 16) + 40);
        zstd.bitmaps = Some(BitmapsExtension {
            count: 1,
            directory,
        });
        let mut bytes = zstd.encode().expect("short names");
        bytes.resize(1 << 16, 0);
        assert_eq!(Header::parse(&bytes).expect("valid"), zstd);
    }

    #[test]
    fn unknown_features_are_named_by_the_image() {
        let mut bytes = header(3).encode().expect("short names");
        bytes[72] = 0x40;
        let error = Header::parse(&bytes).expect_err("unknown").to_string();
        assert!(error.contains("incompatible feature 62"), "{error}");
        bytes[72] = 0;
        bytes[78] = 1;
        let start = bytes
            .windows(9)
            .position(|part| part == b"dirty bit")
            .expect("a name");
        bytes[start - 1] = 8;
        let error = Header::parse(&bytes).expect_err("unknown").to_string();
        assert!(error.contains("not supported: dirty bit"), "{error}");
    }

    #[test]
    fn encryption_is_refused_by_its_name() {
        let mut bytes = header(3).encode().expect("short names");
        bytes[35] = 2;
        let error = Header::parse(&bytes).expect_err("encrypted");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("LUKS"), "{error}");
    }
}
