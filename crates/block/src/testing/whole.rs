//! All of a device at once, as a test wants to see it.

use crate::{BlockDevice, Buffer, ByteRange, Context, Extent, Result, push_merged};

/// All bytes of `device`, read in pieces of `step` bytes into buffers that held something else before.
///
/// # Errors
/// What reading failed with.
pub async fn contents(device: &dyn BlockDevice, step: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for piece in ByteRange::between(0, device.info().size).pieces(step) {
        let unread = vec![0x5a; piece.len() as usize];
        let read = device
            .read(piece.start(), Buffer::from(&unread[..]))
            .await?;
        bytes.extend_from_slice(&read);
    }
    Ok(bytes)
}

/// All extents of `device` in `context`, asked for in steps of `step` bytes; neighbours of one status are joined.
///
/// # Errors
/// What asking failed with.
///
/// # Panics
/// Where an answer is empty, leaves a gap, or has more than was asked for.
pub async fn extents(
    device: &dyn BlockDevice,
    context: &Context,
    step: u64,
) -> Result<Vec<Extent>> {
    let mut list = Vec::new();
    let mut rest = ByteRange::between(0, device.info().size);
    while !rest.is_empty() {
        let asked = rest.split_at(step).0;
        let answer = device.extents(asked, context).await?;
        assert!(!answer.is_empty(), "nothing at {asked}");
        for extent in answer {
            assert_eq!(extent.range.start(), rest.start(), "a gap");
            assert!(asked.contains(extent.range), "not asked for");
            rest = rest.split_at(extent.range.len()).1;
            push_merged(&mut list, extent);
        }
    }
    Ok(list)
}
