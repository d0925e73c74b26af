//! Images that somebody made to hurt: built here, byte by byte, from one that is sound.
//!
//! Each case has one lie and the one line that it ends in. The tests of the command line take some of them as well.

/// The size of a cluster of the sound image, as a power of two, and in bytes.
const CLUSTER_BITS: u32 = 12;
const CLUSTER: usize = 1 << CLUSTER_BITS;
/// The size of its disk, in bytes: two L2 tables.
pub(crate) const DISK: u64 = 4 << 20;

/// Where its parts are, in clusters.
const REFCOUNT_TABLE: usize = 1;
const REFCOUNTS: usize = 2;
const L1: usize = 3;
const L2: usize = 4;
const DATA: usize = 5;
/// Of no use until something is put there.
const SPARE: usize = 6;
const CLUSTERS: usize = 8;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const DATA_FILE: u32 = 0x4441_5441;

/// Where a lie is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// When the image is opened.
    Open,
    /// When this snapshot of it is opened.
    Snapshot(&'static str),
    /// When its disk is read.
    Read,
    /// When this bitmap is read.
    Bitmap(&'static str),
    /// Nowhere: it only looks like one.
    Nowhere,
}

/// A hostile image.
pub(crate) struct Case {
    /// What is wrong with it.
    pub(crate) name: &'static str,
    /// The file.
    pub(crate) image: Vec<u8>,
    /// Where that is found out.
    pub(crate) found: Found,
    /// What is said then.
    pub(crate) error: &'static str,
}

/// An image in the making.
#[derive(Clone)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
    /// Where the next header extension goes.
    extensions: usize,
}

impl Builder {
    /// A sound image of version 3 whose first cluster is full of `0x77`, all else unallocated.
    pub(crate) fn sound() -> Self {
        let image = Self {
            bytes: vec![0; CLUSTERS * CLUSTER],
            extensions: 112,
        };
        let mut image = image
            .put(0, b"QFI\xfb")
            .put32(4, 3)
            .put32(20, CLUSTER_BITS)
            .put64(24, DISK)
            .put32(36, 2)
            .put64(40, at(L1))
            .put64(48, at(REFCOUNT_TABLE))
            .put32(56, 1)
            .put32(96, 4)
            .put32(100, 112)
            .put64(REFCOUNT_TABLE * CLUSTER, at(REFCOUNTS))
            .put64(L1 * CLUSTER, at(L2) | COPIED)
            .put(DATA * CLUSTER, &[0x77; CLUSTER])
            .entry(0, at(DATA) | COPIED);
        for cluster in 0..CLUSTERS {
            image = image.put(REFCOUNTS * CLUSTER + 2 * cluster, &[0, 1]);
        }
        image
    }

    /// The same with all that an image can have in it: a snapshot, a bitmap, a compressed cluster, one of zeroes.
    pub(crate) fn rich(self) -> Self {
        let mut image = self.bitmap("b");
        let bitmaps = image.bytes[SPARE * CLUSTER..][..64].to_vec();
        // The directory goes behind the snapshot table.
        image = image.snapshot("s").put(SPARE * CLUSTER + 512, &bitmaps);
        image = image.put64(136, at(SPARE) + 512);
        let stream = deflated_run();
        let place = at(SPARE) + 1024;
        image
            .put(SPARE * CLUSTER + 1024, &stream)
            .entry(1, COMPRESSED | place)
            .entry(2, 1)
    }

    /// A sound image of nothing, 64 KiB of file for a disk of 8 TiB.
    pub(crate) fn huge() -> Self {
        let mut image = Self::sound().put32(20, 16).put64(24, 1 << 43);
        let entries = (1_u64 << 43) / (512 << 20);
        image.bytes = image.bytes[..256].to_vec();
        image.bytes.resize(4 << 16, 0);
        image
            .put32(36, entries as u32)
            .put64(40, 3 << 16)
            .put64(48, 1 << 16)
            .put64(1 << 16, 2 << 16)
    }

    /// The file.
    pub(crate) fn build(self) -> Vec<u8> {
        self.bytes
    }

    fn put(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn put32(self, offset: usize, value: u32) -> Self {
        self.put(offset, &value.to_be_bytes())
    }

    fn put64(self, offset: usize, value: u64) -> Self {
        self.put(offset, &value.to_be_bytes())
    }

    /// Entry `index` of the L2 table.
    fn entry(self, index: usize, word: u64) -> Self {
        self.put64(L2 * CLUSTER + 8 * index, word)
    }

    fn extension(mut self, kind: u32, body: &[u8]) -> Self {
        let start = self.extensions;
        self.extensions += 8 + body.len().next_multiple_of(8);
        self.put32(start, kind)
            .put32(start + 4, body.len() as u32)
            .put(start + 8, body)
    }

    /// With a backing file of that name.
    pub(crate) fn backing(self, name: &[u8], format: Option<&str>) -> Self {
        let image = match format {
            Some(format) => self.extension(BACKING_FORMAT, format.as_bytes()),
            None => self,
        };
        image
            .put64(8, 2048)
            .put32(16, name.len() as u32)
            .put(2048, name)
    }

    /// With its data in a file of that name, from whose beginning on it lies.
    pub(crate) fn data_file(self, name: &[u8]) -> Self {
        let image = self.extension(DATA_FILE, name);
        image.put64(72, 1 << 2).entry(0, COPIED)
    }

    /// With a name for an incompatible feature that nobody knows.
    fn unknown_feature(self, bit: u8, name: &[u8]) -> Self {
        let mut row = vec![0; 48];
        row[1] = bit;
        row[2..2 + name.len()].copy_from_slice(name);
        self.extension(FEATURE_NAMES, &row).put64(72, 1 << bit)
    }

    /// With one snapshot, whose table is in the spare cluster; its state is the present one's.
    fn snapshot(self, name: &str) -> Self {
        let start = SPARE * CLUSTER;
        self.put32(60, 1)
            .put64(64, at(SPARE))
            .put64(start, at(L1))
            .put32(start + 8, 2)
            .put(start + 12, &1_u16.to_be_bytes())
            .put(start + 14, &(name.len() as u16).to_be_bytes())
            .put32(start + 36, 16)
            .put64(start + 48, DISK)
            .put(start + 56, b"1")
            .put(start + 57, name.as_bytes())
    }

    /// With one bitmap of 64 KiB a bit: its directory is in the spare cluster, its table and its bits behind that.
    fn bitmap(self, name: &str) -> Self {
        let start = SPARE * CLUSTER;
        let mut body = 1_u32.to_be_bytes().to_vec();
        body.extend(0_u32.to_be_bytes());
        let length = (24 + name.len()).next_multiple_of(8);
        body.extend((length as u64).to_be_bytes());
        body.extend(at(SPARE).to_be_bytes());
        self.extension(BITMAPS, &body)
            .put64(88, 1)
            .put64(start, at(SPARE + 1))
            .put32(start + 8, 1)
            .put(start + 16, &[1, 16])
            .put(start + 18, &(name.len() as u16).to_be_bytes())
            .put(start + 24, name.as_bytes())
            .put64((SPARE + 1) * CLUSTER, at(DATA))
    }

    /// With `stream` as its first cluster, compressed, whose descriptor speaks of so many sectors behind the first.
    fn compressed(self, stream: &[u8], sectors: u64) -> Self {
        let bits = 62 - (CLUSTER_BITS - 8);
        self.put(DATA * CLUSTER, stream)
            .entry(0, COMPRESSED | sectors << bits | at(DATA))
    }

    /// As an image whose clusters are compressed by zstd.
    fn zstd(self) -> Self {
        self.put64(72, 1 << 3).put(104, &[1])
    }
}

/// The offset of a cluster.
const fn at(cluster: usize) -> u64 {
    (cluster * CLUSTER) as u64
}

/// A cluster of zeroes as one fixed block of deflate: a literal, 15 matches of 258 bytes and one of 225, the end.
fn deflated_run() -> Vec<u8> {
    let mut bits = vec![1, 1, 0];
    bits.extend([0, 0, 1, 1, 0, 0, 0, 0]);
    for _ in 0..15 {
        bits.extend([1, 1, 0, 0, 0, 1, 0, 1]);
        bits.extend([0; 5]);
    }
    // 225 bytes: code 283 (11000011) begins at 195 and has 5 bits more, which hold 30, the lowest first.
    bits.extend([1, 1, 0, 0, 0, 0, 1, 1]);
    bits.extend([0, 1, 1, 1, 1]);
    bits.extend([0; 5]);
    bits.extend([0; 7]);
    pack(&bits)
}

fn pack(bits: &[u8]) -> Vec<u8> {
    let byte = |bits: &[u8]| (0..).zip(bits).fold(0, |byte, (at, bit)| byte | bit << at);
    bits.chunks(8).map(byte).collect()
}

/// A cluster's worth and much more, compressed to very little: blocks of a run of zeroes.
fn deflate_bomb() -> Vec<u8> {
    // A fixed block: a literal 0, then matches of 258 bytes at distance 1 (code 285 is 11000101, distance code 0 is
    // 00000) for as long as there is room, and no end.
    let mut bits = vec![1, 1, 0];
    bits.extend([0, 0, 1, 1, 0, 0, 0, 0]);
    while bits.len() < 8 * 2000 {
        bits.extend([1, 1, 0, 0, 0, 1, 0, 1]);
        bits.extend([0; 5]);
    }
    pack(&bits)
}

/// A zstd frame of one segment that says it holds `size` bytes, and holds blocks of one byte repeated.
fn zstd_bomb(size: u64, blocks: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    frame.extend(size.to_le_bytes());
    for _ in 0..blocks {
        // Run-length blocks of 128 KiB.
        let header: u32 = 131_072 << 3 | 1 << 1;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(b'x');
    }
    frame
}

/// A zstd frame whose window is as large as can be said.
fn zstd_window() -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff];
    let header: u32 = 4096 << 3 | 1 << 1 | 1;
    frame.extend(&header.to_le_bytes()[..3]);
    frame.push(b'x');
    frame
}

macro_rules! cases {
    ($($name:literal: $image:expr => $found:expr, $error:literal;)*) => {
        vec![$(Case { name: $name, image: $image.build(), found: $found, error: $error }),*]
    };
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    let sound = Builder::sound;
    let mut cases = headers();
    cases.extend(names());
    cases.extend(lists());
    cases.extend(mappings());
    cases.extend(streams());
    let empty = Case {
        name: "an empty file",
        image: Vec::new(),
        found: Found::Open,
        error: "open: it is too short to be a qcow2 image",
    };
    cases.push(empty);
    cases.extend(cases! {
        "nothing wrong": sound() => Found::Nowhere, "";
    });
    cases
}

fn headers() -> Vec<Case> {
    use Found::Open;
    let sound = Builder::sound;
    cases! {
        "another magic": sound().put(0, b"QFI\xfa") => Open,
            "open: it is not a qcow2 image: it begins with something else";
        "version 0": sound().put32(4, 0) => Open,
            "open: qcow version 0 is not supported: 2 and 3 are";
        "a version to come": sound().put32(4, u32::MAX) => Open,
            "open: qcow version 4294967295 is not supported: 2 and 3 are";
        "clusters of 1 byte": sound().put32(20, 0) => Open,
            "open: clusters of 2^0 bytes: qcow2 has 2^9 to 2^21";
        "clusters of 256 bytes": sound().put32(20, 8) => Open,
            "open: clusters of 2^8 bytes: qcow2 has 2^9 to 2^21";
        "clusters of 4 MiB": sound().put32(20, 22) => Open,
            "open: clusters of 2^22 bytes: qcow2 has 2^9 to 2^21";
        "clusters whose size overflows": sound().put32(20, 64) => Open,
            "open: clusters of 2^64 bytes: qcow2 has 2^9 to 2^21";
        "clusters of absurd size": sound().put32(20, u32::MAX) => Open,
            "open: clusters of 2^4294967295 bytes: qcow2 has 2^9 to 2^21";
        "no header": sound().put32(100, 0) => Open,
            "open: a header of 0 bytes: it has 104 at least, a multiple of 8, within a cluster";
        "a header that is too short": sound().put32(100, 103) => Open,
            "open: a header of 103 bytes: it has 104 at least, a multiple of 8, within a cluster";
        "a header that is not a multiple of 8": sound().put32(100, 108) => Open,
            "open: a header of 108 bytes: it has 104 at least, a multiple of 8, within a cluster";
        "a header longer than its cluster": sound().put32(100, 8192) => Open,
            "open: a header of 8192 bytes: it has 104 at least, a multiple of 8, within a cluster";
        "a header of absurd length": sound().put32(100, u32::MAX - 7) => Open,
            "open: a header of 4294967288 bytes: it has 104 at least, a multiple of 8, within a cluster";
        // CVE-2014-0223: the size of the L1 table follows from that of the disk.
        "a disk of 2^64 bytes": sound().put64(24, u64::MAX) => Open,
            "open: a virtual size of 18446744073709551615 bytes is larger than an image can be";
        "a disk of 2^63 bytes": sound().put64(24, 1 << 63) => Open,
            "open: a virtual size of 9223372036854775808 bytes is larger than an image can be";
        "a disk too large for its clusters": sound().put64(24, i64::MAX as u64) => Open,
            "open: a virtual size of 9223372036854775807 bytes is too large for clusters of 4096 bytes";
        "a disk larger than its L1 table": sound().put64(24, 1 << 30) => Open,
            "open: the L1 table has 2 entries and the virtual size needs 512";
        // CVE-2015-5162: tables that ask for gigabytes.
        "an L1 table of 32 GiB": sound().put32(36, u32::MAX) => Open,
            "open: the L1 table has 4294967295 entries, which is too much";
        "an L1 table outside of the file": sound().put64(24, 1 << 40).put32(36, 1 << 19) => Open,
            "open: the L1 table lies at 0x100000, past the end of the file";
        "an L1 table that is not there": sound().put32(36, 0).put64(40, 0) => Open,
            "open: the L1 table has 0 entries and the virtual size needs 2";
        "an L1 table between clusters": sound().put64(40, at(L1) + 8) => Open,
            "open: the L1 table at 0x3008 is not on a cluster's boundary";
        "an L1 table whose end overflows": sound().put64(40, u64::MAX << CLUSTER_BITS) => Open,
            "open: the L1 table of 16 bytes at 0xfffffffffffff000 lies outside of any file";
        "an L1 table far behind the end": sound().put64(40, 1 << 50) => Open,
            "open: the L1 table lies at 0x4000000000000, past the end of the file";
        "a refcount table of 16 TiB": sound().put32(56, u32::MAX) => Open,
            "open: the refcount table has 17592186040320 bytes, which is too much";
        "a refcount table between clusters": sound().put64(48, 1) => Open,
            "open: the refcount table at 0x1 is not on a cluster's boundary";
        "a refcount table whose end overflows": sound().put64(48, u64::MAX << CLUSTER_BITS) => Open,
            "open: the refcount table of 4096 bytes at 0xfffffffffffff000 lies outside of any file";
        "refcounts of 128 bits": sound().put32(96, 7) => Open,
            "open: refcounts of 2^7 bits: qcow2 has 64 at most";
        "refcounts of absurd width": sound().put32(96, u32::MAX) => Open,
            "open: refcounts of 2^4294967295 bits: qcow2 has 64 at most";
        "AES": sound().put32(32, 1) => Open,
            "open: the image is encrypted (AES), which is not supported: decrypt it first";
        "LUKS": sound().put32(32, 2) => Open,
            "open: the image is encrypted (LUKS), which is not supported: decrypt it first";
        "a cipher to come": sound().put32(32, 77) => Open,
            "open: the image is encrypted (method 77), which is not supported: decrypt it first";
        "features to come": sound().put64(72, 1 << 63 | 1 << 5) => Open,
            "open: the image has features that are not supported: incompatible feature 5, incompatible feature 63";
        "a feature with a name that writes to the terminal":
            sound().unknown_feature(9, b"\x1b]0;owned\x07\n\xff") => Open,
            "open: the image has features that are not supported: \\u{1b}]0;owned\\u{7}\\n\u{fffd}";
        "zstd without its feature": sound().put(104, &[1]) => Open,
            "open: the compression type and its feature bit contradict each other";
        "a compression to come": sound().put(104, &[9]).put64(72, 1 << 3) => Open,
            "open: clusters are compressed in a way that is not supported: type 9";
        "subclusters of 128 bytes": sound().put64(72, 1 << 4) => Open,
            "open: subclusters need clusters of 16 KiB at least";
        "an extension longer than the header": sound().put32(112, 0x1234).put32(116, u32::MAX) => Open,
            "open: a header extension is longer than the header";
        "an extension up to behind the header": sound().put32(112, 0x1234).put32(116, 3977) => Open,
            "open: a header extension is longer than the header";
    }
}

/// Names of other files. CVE-2015-5163, CVE-2024-40767 (host files), CVE-2024-4467 (`json:`), CVE-2024-32498 (data
/// files).
fn names() -> Vec<Case> {
    use Found::Open;
    let sound = Builder::sound;
    cases! {
        "a backing file of the host": sound().backing(b"/etc/passwd", Some("raw")) => Open,
            "open: it needs the backing file \"/etc/passwd\", which nobody allowed to be opened";
        "a backing file of a format to come": sound().backing(b"base", Some("vmdk")) => Open,
            "open: it needs the backing file \"base\", which nobody allowed to be opened";
        "a backing file on a server": sound().backing(b"nbd://10.0.0.1/secret", None) => Open,
            "open: it needs the backing file \"nbd://10.0.0.1/secret\", which nobody allowed to be opened";
        "a description in JSON":
            sound().backing(b"json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}", None) => Open,
            "open: it needs the backing file \"json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}\", which nobody allowed to be opened";
        "a name that writes to the terminal": sound().backing(b"a\0b\x1b[2J\r\n\xff", None) => Open,
            "open: it needs the backing file \"a\\u{0}b\\u{1b}[2J\\r\\n\u{fffd}\", which nobody allowed to be opened";
        "a name of 1024 bytes": sound().put64(8, 2048).put32(16, 1024) => Open,
            "open: the backing file's name lies outside of the header or is too long";
        "a name behind the first cluster": sound().put64(8, 4090).put32(16, 10) => Open,
            "open: the backing file's name lies outside of the header or is too long";
        "a name at an absurd place": sound().put64(8, u64::MAX - 3).put32(16, 10) => Open,
            "open: the backing file's name lies outside of the header or is too long";
        "a data file of the host": sound().data_file(b"/etc/shadow") => Open,
            "open: it needs the data file \"/etc/shadow\", which nobody allowed to be opened";
        "a data file without a name": sound().put64(72, 1 << 2) => Open,
            "open: it needs the data file \"\", which nobody allowed to be opened";
    }
}

/// Snapshots and bitmaps.
fn lists() -> Vec<Case> {
    use Found::{Bitmap, Open, Snapshot};
    let start = SPARE * CLUSTER;
    let snapshot = || Builder::sound().snapshot("s");
    let bitmap = || Builder::sound().bitmap("b");
    cases! {
        "too many snapshots": snapshot().put32(60, u32::MAX) => Open,
            "open: 4294967295 snapshots: there can be at most 65536";
        "more snapshots than there is room for": snapshot().put32(60, 65536) => Open,
            "open: the snapshot table lies past the end of the file";
        "a snapshot table between clusters": snapshot().put64(64, 1) => Open,
            "open: the snapshot table is not on a cluster's boundary";
        "a snapshot table whose end overflows": snapshot().put64(64, u64::MAX << CLUSTER_BITS) => Open,
            "open: the snapshot table of 40 bytes at 0xfffffffffffff000 lies outside of any file";
        "a snapshot with extra data of 4 GiB": snapshot().put32(start + 36, u32::MAX) => Open,
            "open: a snapshot has 4294967295 bytes of extra data, which is too much";
        "a snapshot with an absurd name": snapshot().put(start + 14, &[0xff; 2]) => Open,
            "open: the snapshot table ends within one of its entries";
        "a snapshot with an L1 table of 32 GiB": snapshot().put32(start + 8, u32::MAX) => Open,
            "open: the L1 table of the snapshot \"1\" has 4294967295 entries, which is too much";
        "a snapshot with an L1 table between clusters": snapshot().put64(start, 17) => Open,
            "open: the L1 table of the snapshot \"1\" is not on a cluster's boundary";
        "a snapshot with an L1 table whose end overflows":
            snapshot().put64(start, u64::MAX << CLUSTER_BITS) => Open,
            "open: a snapshot's L1 table of 16 bytes at 0xfffffffffffff000 lies outside of any file";
        "a snapshot of 2^64 bytes": snapshot().put64(start + 48, u64::MAX) => Open,
            "open: the snapshot \"1\" has a virtual size of 18446744073709551615 bytes, more than an image can have";
        "a snapshot larger than its L1 table": snapshot().put64(start + 48, 1 << 62) => Snapshot("1"),
            "open: the L1 table of the snapshot \"1\" has 2 entries and its size needs 2199023255552";
        "a snapshot behind the end": snapshot().put64(start, 1 << 40) => Snapshot("s"),
            "open: the L1 table lies at 0x10000000000, past the end of the file";
        "a snapshot that is not there": snapshot() => Snapshot("none\n"),
            "open: there is no snapshot of the ID or name \"none\\n\"";
        "an extension of bitmaps that is cut short": Builder::sound().extension(BITMAPS, &[0; 16]) => Open,
            "open: the bitmaps extension has the wrong length";
        "too many bitmaps": bitmap().put32(120, u32::MAX) => Open,
            "open: 4294967295 bitmaps in a directory of 32 bytes, which is too much";
        "a directory of bitmaps of 1 GiB": bitmap().put64(128, 1 << 30) => Open,
            "open: 1 bitmaps in a directory of 1073741824 bytes, which is too much";
        "a directory of bitmaps whose end overflows": bitmap().put64(136, u64::MAX) => Open,
            "open: the directory of bitmaps of 32 bytes at 0xffffffffffffffff lies outside of any file";
        "a directory of bitmaps behind the end": bitmap().put64(136, 1 << 40) => Open,
            "open: the directory of bitmaps lies past the end of the file";
        "a bitmap without a name": bitmap().put(start + 18, &[0, 0]) => Open,
            "open: a bitmap has a name of 0 bytes and 0 of extra data";
        "a bitmap with an absurd name": bitmap().put(start + 18, &[4, 0]) => Open,
            "open: a bitmap has a name of 1024 bytes and 0 of extra data";
        "a bitmap with extra data of 4 GiB": bitmap().put32(start + 20, u32::MAX) => Open,
            "open: a bitmap has a name of 1 bytes and 4294967295 of extra data";
        "a bit for 2^63 bytes": bitmap().put(start + 17, &[63]) => Open,
            "open: a bit of the bitmap \"b\" stands for 2^63 bytes, not 2^9 to 2^31";
        "a bitmap with a table of 32 GiB": bitmap().put32(start + 8, u32::MAX) => Open,
            "open: the bitmap \"b\" has a table of 4294967295 entries at 0x7000";
        "a bitmap with a table that overflows": bitmap().put64(start, u64::MAX << CLUSTER_BITS) => Open,
            "open: the table of a bitmap of 8 bytes at 0xfffffffffffff000 lies outside of any file";
        "a bitmap with a table of nothing": bitmap().put32(start + 8, 0) => Bitmap("b"),
            "block status of 4194304 bytes at offset 0: the table of the bitmap \"b\" is too short for the disk";
        "a bitmap with a table behind the end": bitmap().put64(start, 1 << 40) => Bitmap("b"),
            "block status of 4194304 bytes at offset 0: the bitmap \"b\" lies past the end of the file";
        "a bitmap behind the end": bitmap().put64((SPARE + 1) * CLUSTER, 1 << 40) => Bitmap("b"),
            "block status of 4194304 bytes at offset 0: the bitmap \"b\" lies past the end of the file";
        "a bitmap with reserved bits": bitmap().put64((SPARE + 1) * CLUSTER, u64::MAX) => Bitmap("b"),
            "block status of 4194304 bytes at offset 0: a cluster of a bitmap cannot be at 0xffffffffffffffff";
        "a bitmap between clusters": bitmap().put64((SPARE + 1) * CLUSTER, 512) => Bitmap("b"),
            "block status of 4194304 bytes at offset 0: a cluster of a bitmap cannot be at 0x200";
    }
}

/// L1 and L2 entries.
fn mappings() -> Vec<Case> {
    use Found::{Nowhere, Read};
    let sound = Builder::sound;
    let l1 = L1 * CLUSTER;
    cases! {
        "an L2 table between clusters": sound().put64(l1, COPIED | 512) => Read,
            "read of 65536 bytes at offset 0: the L2 table 0 for guest offset 0x0 at 0x200 is not on a cluster's boundary";
        "an L2 table behind the end": sound().put64(l1, COPIED | 1 << 40) => Read,
            "read of 65536 bytes at offset 0: the L2 table 0 for guest offset 0x0 lies at 0x10000000000, past the end of the file";
        "an L2 table at the last possible offset": sound().put64(l1, 0x00ff_ffff_ffff_f000) => Read,
            "read of 65536 bytes at offset 0: the L2 table 0 for guest offset 0x0 lies at 0xfffffffffff000, past the end of the file";
        "the refcount table as an L2 table": sound().put64(l1 + 8, COPIED | at(REFCOUNT_TABLE)) => Nowhere, "";
        "the L1 table as an L2 table": sound().put64(l1, COPIED | at(L1)) => Nowhere, "";
        "an L2 table that maps itself": sound().entry(1, COPIED | at(L2)) => Nowhere, "";
        "one L2 table for all": sound().put64(l1 + 8, COPIED | at(L2)) => Nowhere, "";
        "data between clusters": sound().entry(1, COPIED | at(DATA) | 512) => Read,
            "read of 65536 bytes at offset 0: at guest offset 0x1000: a cluster at 0x5200 is not on a cluster's boundary";
        "data behind the end": sound().entry(1, COPIED | 1 << 40) => Read,
            "read of 65536 bytes at offset 0: the cluster for guest offset 0x1000 lies at 0x10000000000, past the end of the file";
        "data at the last possible offset": sound().entry(1, 0x00ff_ffff_ffff_f000) => Read,
            "read of 65536 bytes at offset 0: the cluster for guest offset 0x1000 lies at 0xfffffffffff000, past the end of the file";
        "a compressed cluster behind the end": sound().entry(1, COMPRESSED | 1 << 40) => Read,
            "read of 65536 bytes at offset 0: the compressed cluster for guest offset 0x1000 lies at 0x10000000000, past the end of the file";
        "a compressed cluster at the last possible offset":
            sound().entry(1, COMPRESSED | ((1 << 58) - 1)) => Read,
            "read of 65536 bytes at offset 0: the compressed cluster for guest offset 0x1000 lies at 0x3ffffffffffffff, past the end of the file";
        "a compressed cluster that ends behind the end":
            sound().entry(1, COMPRESSED | 0xf << 58 | at(CLUSTERS - 1) | 4000) => Read,
            "read of 65536 bytes at offset 0: at guest offset 0x1000, from 0x7fa0: a compressed cluster cannot be decompressed";
        "the header as a compressed cluster": sound().entry(1, COMPRESSED) => Read,
            "read of 65536 bytes at offset 0: at guest offset 0x1000, from 0x0: a compressed cluster cannot be decompressed";
    }
}

/// Compressed clusters. CVE-2013-4463: little that becomes very much.
fn streams() -> Vec<Case> {
    use Found::Read;
    let sound = Builder::sound;
    cases! {
        "a stream that is garbage": sound().compressed(&[0xff; 512], 0) => Read,
            "read of 65536 bytes at offset 0: at guest offset 0x0, from 0x5000: a compressed cluster cannot be decompressed";
        "a stream of nothing": sound().compressed(&[0; 512], 0) => Read,
            "read of 65536 bytes at offset 0: at guest offset 0x0, from 0x5000: a compressed cluster cannot be decompressed";
        "a stream that is shorter than its cluster": sound().compressed(&[0x4b, 0x04, 0x00], 0) => Read,
            "read of 65536 bytes at offset 0: at guest offset 0x0, from 0x5000: a compressed cluster has too few bytes";
        "a stream that becomes very much": sound().compressed(&deflate_bomb(), 3) => Read,
            "read of 65536 bytes at offset 0: at guest offset 0x0, from 0x5000: a compressed cluster cannot be decompressed";
        "a frame that is garbage": sound().zstd().compressed(&[0xff; 512], 0) => Read,
            "read of 65536 bytes at offset 0: at guest offset 0x0, from 0x5000: a compressed cluster cannot be decompressed";
        "a frame that says it is 2^60 bytes": sound().zstd().compressed(&zstd_bomb(1 << 60, 60), 0) => Read,
            "read of 65536 bytes at offset 0: at guest offset 0x0, from 0x5000: a compressed cluster cannot be decompressed";
        "a frame that has more than it says": sound().zstd().compressed(&zstd_bomb(4096, 60), 0) => Read,
            "read of 65536 bytes at offset 0: at guest offset 0x0, from 0x5000: a compressed cluster cannot be decompressed";
        "a frame that wants a window of 2^41 bytes": sound().zstd().compressed(&zstd_window(), 0) => Read,
            "read of 65536 bytes at offset 0: at guest offset 0x0, from 0x5000: a compressed cluster cannot be decompressed";
    }
}
