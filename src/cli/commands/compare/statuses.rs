//! Whether two images have the same parts allocated, as `qemu-img compare -s` wants it.

use crate::{
    block::{ByteRange, Result},
    inspect::{MapEntry, Places},
};

/// What is known of the disk of an image from some offset on.
struct Side {
    places: Places,
    run: Option<MapEntry>,
}

impl Side {
    /// What holds `offset`, which lies on the disk.
    async fn at(&mut self, offset: u64) -> Result<&MapEntry> {
        let run = match self.run.take() {
            Some(run) if run.range.end() > offset => run,
            _ => {
                let rest = ByteRange::between(offset, self.places.size());
                self.places.run(rest).await?
            }
        };
        Ok(self.run.insert(run))
    }

    /// What qemu says of what holds `offset`: where it lies counts only for whether that is known, and who reaches the
    /// end of the disk says so.
    async fn status(&mut self, offset: u64) -> Result<([bool; 6], u64)> {
        let end = self.places.size();
        let run = self.at(offset).await?;
        let status = [
            run.present,
            run.zero,
            run.data,
            run.compressed,
            run.offset.is_some(),
            run.range.end() == end,
        ];
        Ok((status, run.range.end()))
    }
}

/// Where two disks of one size begin to differ in what they have allocated; `None` where they do not.
///
/// # Errors
/// What asking failed with.
pub(super) async fn first_mismatch(sides: [Places; 2]) -> Result<Option<u64>> {
    let [mut one, mut other] = sides.map(|places| Side { places, run: None });
    let size = one.places.size().min(other.places.size());
    let mut offset = 0;
    while offset < size {
        let (status, end) = one.status(offset).await?;
        let (other_status, other_end) = other.status(offset).await?;
        if status != other_status {
            return Ok(Some(offset));
        }
        offset = end.min(other_end);
    }
    Ok(None)
}
