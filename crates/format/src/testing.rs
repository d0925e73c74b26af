//! For this crate's tests: what the formats are tried with.

use blockferry_block::{BlockDevice, Buffer, ByteRange, Result};

/// How much of a disk is [looked at](look), in bytes.
const BEGINNING: u64 = 1 << 20;

/// Bytes with holes.
pub(crate) fn pattern(size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..size)
        .map(|at| (at / 512 * 3 + at % 11) as u8 | 1)
        .collect();
    for start in (0..size).step_by(3 << 20) {
        let end = (start + (1 << 20) + 77).min(size);
        bytes[start..end].fill(0);
    }
    bytes
}

/// Reads the beginning of a disk, and asks for its extents; the first thing that is wrong with it.
pub(crate) async fn look(disk: &dyn BlockDevice) -> Result<()> {
    let size = disk.info().size;
    for context in &disk.info().contexts {
        let mut at = 0;
        while at < size.min(BEGINNING) {
            let rest = ByteRange::between(at, size);
            let extents = disk.extents(rest, context).await?;
            at = extents.last().expect("an answer").range.end();
        }
    }
    for piece in ByteRange::between(0, size.min(BEGINNING)).pieces(100_000) {
        let buffer = Buffer::zeroed(piece.len() as usize);
        disk.read(piece.start(), buffer).await?;
    }
    Ok(())
}
