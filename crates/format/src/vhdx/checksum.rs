//! CRC-32C, which guards headers, region tables and entries of the log (specification, section 2).

use crc::{CRC_32_ISCSI, Crc, Digest, Table};

static CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// A checksum that is being computed.
pub(crate) struct Checksum(Digest<'static, u32, Table<16>>);

impl Checksum {
    pub(crate) fn new() -> Self {
        Self(CRC.digest())
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds the beginning of a structure, whose own checksum in its bytes 4 to 7 counts as zero.
    pub(crate) fn add_first(&mut self, bytes: &[u8]) {
        self.add(&bytes[..4]);
        self.add(&[0; 4]);
        self.add(&bytes[8..]);
    }

    pub(crate) fn finish(self) -> u32 {
        self.0.finalize()
    }
}

/// The checksum of a whole structure that has it in its bytes 4 to 7.
pub(crate) fn checksum(structure: &[u8]) -> u32 {
    let mut checksum = Checksum::new();
    checksum.add_first(structure);
    checksum.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_castagnolis() {
        let mut checksum = Checksum::new();
        checksum.add(b"1234");
        checksum.add(b"56789");
        assert_eq!(checksum.finish(), 0xe306_9283);
    }
}
