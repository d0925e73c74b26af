//! Numbers as they stand in the files of some formats: little-endian.

/// The number of 2 bytes at `at` of `bytes`, which are long enough.
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The number of 4 bytes at `at` of `bytes`, which are long enough.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

/// The number of 8 bytes at `at` of `bytes`, which are long enough.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}
