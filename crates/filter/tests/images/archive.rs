//! Tar archives, header by header.

/// The bytes of an archive.
#[derive(Clone, Default)]
pub struct Archive {
    pub bytes: Vec<u8>,
}

/// What a header says, right or wrong.
#[derive(Clone)]
pub struct Entry {
    block: [u8; 512],
}

impl Entry {
    /// A header of the format `ustar` for `size` bytes.
    pub fn new(name: &[u8], flag: u8, size: u64) -> Self {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..108].copy_from_slice(b"0000644\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        Self { block }.sealed()
    }

    /// The same with other bytes somewhere, and a checksum that is right.
    pub fn with(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.block[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.sealed()
    }

    fn sealed(mut self) -> Self {
        self.block[148..156].fill(b' ');
        let sum: u32 = self.block.iter().map(|byte| u32::from(*byte)).sum();
        self.block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self
    }
}

impl Archive {
    /// Adds a header, and nothing behind it.
    pub fn header(&mut self, entry: &Entry) -> &mut Self {
        self.bytes.extend_from_slice(&entry.block);
        self
    }

    /// Adds bytes, and what fills their last block.
    pub fn data(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        let whole = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(whole, 0);
        self
    }

    /// Adds a plain file.
    pub fn file(&mut self, name: &str, contents: &[u8]) -> &mut Self {
        let size = contents.len() as u64;
        self.header(&Entry::new(name.as_bytes(), b'0', size))
            .data(contents)
    }

    /// Adds an extended header.
    pub fn pax(&mut self, records: &[(&str, &str)]) -> &mut Self {
        let mut text = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            // The number counts itself.
            let length =
                (rest.len()..).find(|length| length.to_string().len() + rest.len() == *length);
            text.push_str(&format!("{}{rest}", length.expect("a length")));
        }
        self.header(&Entry::new(b"PaxHeaders/x", b'x', text.len() as u64))
            .data(text.as_bytes())
    }

    /// Adds the end.
    pub fn end(&mut self) -> &mut Self {
        self.bytes.extend_from_slice(&[0; 1024]);
        self
    }
}
