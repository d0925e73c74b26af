//! Images from strangers, from a sound one in which something was changed: for tests, and for the fuzzer.

/// A small image with everything in it: four grains of 4 KiB, of which the first two are there.
pub(crate) struct Sample(pub(crate) Vec<u8>);

/// How large its disk is, in bytes.
pub(crate) const DISK: u64 = 16 << 10;

impl Sample {
    /// One whose grains lie in the file as they are.
    pub(crate) fn sparse() -> Self {
        let mut sample = Self(vec![0; 16 << 10]);
        sample.header(1, 5, 4);
        // The directory, and the table behind it.
        sample.put32(4 * 512, 5);
        sample.put32(5 * 512, 8);
        sample.put32(5 * 512 + 4, 16);
        // A grain that is zero.
        sample.put32(5 * 512 + 8, 1);
        sample.0[4096..12288].fill(7);
        sample.text("RW 32 SPARSE \"disk.vmdk\"");
        sample
    }

    /// A compressed one, with a footer.
    pub(crate) fn stream() -> Self {
        let mut sample = Self(vec![0; 12 * 512]);
        sample.header(3, 0x30001, u64::MAX);
        sample.0[77] = 1;
        // A grain of 4096 bytes of 7.
        let packed = [
            0x78, 0xda, 0xed, 0xc1, 0x31, 0x0d, 0x00, 0x00, 0x00, 0xc3, 0xa0, 0xb3, 0xfe, 0x1d,
            0xcf, 0xc7, 0x02, 0x14, 0x00, 0x00, 0x00, 0xf0, 0x6e, 0x7c, 0x80, 0x70, 0x01,
        ];
        sample.put32(5 * 512 + 8, packed.len() as u32);
        sample.0[5 * 512 + 12..][..packed.len()].copy_from_slice(&packed);
        // The table, the directory, the footer and the end, each behind its marker.
        sample.marker(6, 1, 1);
        sample.put32(7 * 512, 5);
        sample.marker(8, 1, 2);
        sample.put32(9 * 512, 7);
        sample.marker(10, 1, 3);
        let mut footer = sample.0[..512].to_vec();
        footer[56..64].copy_from_slice(&9_u64.to_le_bytes());
        sample.0.truncate(11 * 512);
        sample.0.extend(footer);
        sample.0.extend([0; 512]);
        sample.text("RW 32 SPARSE \"disk.vmdk\"");
        sample
    }

    /// A descriptor with these lines.
    pub(crate) fn descriptor(lines: &str) -> Self {
        let text = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"custom\"\n";
        Self(format!("{text}{lines}\n").into_bytes())
    }

    /// The same with other bytes at `at`.
    pub(crate) fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The same with this line in its descriptor.
    pub(crate) fn with_line(mut self, line: &str) -> Self {
        self.text(line);
        self
    }

    /// The first so many bytes.
    pub(crate) fn cut(mut self, length: usize) -> Self {
        self.0.truncate(length);
        self
    }

    fn header(&mut self, version: u32, flags: u32, directory: u64) {
        self.0[..4].copy_from_slice(b"KDMV");
        self.put32(4, version);
        self.put32(8, flags);
        self.put32(12, (DISK / 512) as u32);
        self.put32(20, 8);
        // Where the descriptor is, and how long.
        self.put32(28, 1);
        self.put32(36, 3);
        self.put32(44, 4);
        self.0[56..64].copy_from_slice(&directory.to_le_bytes());
        self.put32(64, 8);
        self.0[73..77].copy_from_slice(b"\n \r\n");
    }

    fn marker(&mut self, sector: usize, count: u32, kind: u32) {
        self.put32(sector * 512, count);
        self.put32(sector * 512 + 12, kind);
    }

    fn text(&mut self, line: &str) {
        let text = Self::descriptor(line).0;
        self.0[512..4 * 512].fill(0);
        self.0[512..512 + text.len()].copy_from_slice(&text);
    }

    fn put32(&mut self, at: usize, number: u32) {
        self.0[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
}
