//! Where the bytes of the disk lie: in the image itself, or in the files of its extents.

use blockferry_block::{ByteRange, Result};

use super::read::{PartKind, Reader, Run, Source};
use crate::{Contents, Place, PlaceFile, Placed, placed::with_holes};

/// How much of the disk is looked at for one answer, in bytes, where anything is allocated.
const LOOKED_AT: u64 = 1 << 30;

impl Reader {
    /// What the image itself has of the beginning of `range`, which lies on the disk. Where it `has_extents` they are
    /// files of their own.
    ///
    /// # Errors
    /// `Corrupt`, what reading tables failed with.
    pub(crate) async fn placed(&self, range: ByteRange, has_extents: bool) -> Result<Vec<Placed>> {
        let mut list = Vec::new();
        if let Some(run) = self.known_run(range)
            && run.range.len() > LOOKED_AT
        {
            self.push_run(run, has_extents, &mut list).await?;
            return Ok(list);
        }
        for run in self.runs(range.split_at(LOOKED_AT).0).await? {
            self.push_run(run, has_extents, &mut list).await?;
        }
        Ok(list)
    }

    async fn push_run(&self, run: Run, has_extents: bool, list: &mut Vec<Placed>) -> Result<()> {
        let (contents, place) = match run.source {
            Source::Behind => (Contents::Absent, None),
            Source::Zero => (Contents::Zero, None),
            Source::Packed(..) => (Contents::Data, None),
            Source::File(part, offset) => {
                let file = match has_extents {
                    true => PlaceFile::Extent(part),
                    false => PlaceFile::Image,
                };
                (Contents::Data, Some((part, Place { file, offset })))
            }
        };
        let placed = Placed {
            range: run.range,
            contents,
            compressed: matches!(run.source, Source::Packed(..)),
            place: place.map(|(_, place)| place),
        };
        match place {
            // As qemu has it, only flat extents are looked through.
            Some((part, _)) if matches!(self.parts[part].kind, PartKind::Flat(_)) => {
                with_holes(placed, &**self.files[part].device(), list).await
            }
            _ => {
                Placed::push(list, placed);
                Ok(())
            }
        }
    }
}
