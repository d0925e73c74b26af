//! Where the bytes of a disk lie: what one image has of it, and at which offset of which file.

use blockferry_block::{BlockDevice, ByteRange, Context, Result};

/// A part of an image's disk, as the image itself has it: nothing that shows through from behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The part of the disk.
    pub range: ByteRange,
    /// What the image has of it.
    pub contents: Contents,
    /// Whether it is compressed.
    pub compressed: bool,
    /// Where its first byte lies, and all others behind it; also where there is room for what is not data. `None`
    /// for what lies nowhere, or not as it is.
    pub place: Option<Place>,
}

/// What an image has of a part of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Contents {
    /// Nothing: what is behind the image shows, or zeroes.
    Absent,
    /// It says that there are zeroes.
    Zero,
    /// Data.
    Data,
    /// Data to the image, and a hole of the file that it lies in: space that was allocated in advance.
    Sparse,
}

/// An offset in one of the files that an image is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Which file.
    pub file: PlaceFile,
    /// The offset in it, in bytes.
    pub offset: u64,
}

/// One of the files that an image is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlaceFile {
    /// The image itself.
    Image,
    /// Its data file.
    Data,
    /// That of the extent with this number, from 0 on.
    Extent(usize),
}

impl Placed {
    /// Appends `next` to `list`, or to its last member where it goes on with that.
    pub(crate) fn push(list: &mut Vec<Self>, next: Self) {
        if next.range.is_empty() {
            return;
        }
        if let Some(last) = list.last_mut()
            && last.is_continued_by(&next)
        {
            last.range = ByteRange::between(last.range.start(), next.range.end());
            return;
        }
        list.push(next);
    }

    /// Whether `next` begins where it ends, with the same in a row.
    fn is_continued_by(&self, next: &Self) -> bool {
        let goes_on = match (self.place, next.place) {
            (None, None) => true,
            (Some(place), Some(next)) => place.after(self.range.len()) == next,
            _ => false,
        };
        goes_on
            && self.range.end() == next.range.start()
            && (self.contents, self.compressed) == (next.contents, next.compressed)
    }

    /// The part of it from `at` on to `end`, both within it.
    pub(crate) fn part(&self, at: u64, end: u64) -> Self {
        let passed = at.saturating_sub(self.range.start());
        Self {
            range: ByteRange::between(at, end),
            place: self.place.map(|place| place.after(passed)),
            ..*self
        }
    }
}

impl Place {
    fn after(self, length: u64) -> Self {
        Self {
            offset: self.offset.saturating_add(length),
            ..self
        }
    }
}

/// What an image without anything behind it has of `range`, by its extents alone.
pub(crate) async fn by_extents(
    image: &(impl BlockDevice + ?Sized),
    range: ByteRange,
) -> Result<Vec<Placed>> {
    let whole = |range, contents| Placed {
        range,
        contents,
        compressed: false,
        place: None,
    };
    if !image.info().knows_allocation() {
        return Ok(vec![whole(range, Contents::Data)]);
    }
    let extents = image.extents(range, &Context::Allocation).await?;
    let mut list = Vec::new();
    for extent in extents {
        let contents = match extent.status.is_zero() {
            true => Contents::Zero,
            false => Contents::Data,
        };
        Placed::push(&mut list, whole(extent.range, contents));
    }
    Ok(list)
}

/// The parts of `data`, which lies in the file `device` as it is, that are holes there become
/// [`Contents::Sparse`]. A file that does not say where it has holes has none.
///
/// # Errors
/// What asking the file failed with.
pub(crate) async fn with_holes(
    data: Placed,
    device: &dyn BlockDevice,
    list: &mut Vec<Placed>,
) -> Result<()> {
    let is_data = data.contents == Contents::Data;
    let Some(place) = data
        .place
        .filter(|_| is_data && device.info().knows_allocation())
    else {
        Placed::push(list, data);
        return Ok(());
    };
    let end = place.offset.saturating_add(data.range.len());
    let in_file = end.min(device.info().size).max(place.offset);
    let guest = |host: u64| data.range.start() + (host - place.offset);
    let mut at = place.offset;
    while at < in_file {
        let rest = ByteRange::between(at, in_file);
        let before = at;
        for extent in device.extents(rest, &Context::Allocation).await? {
            // An answer that leaves the range, or a part of it out, is not believed.
            if extent.range.start() != at || !rest.contains(extent.range) {
                break;
            }
            let mut part = data.part(guest(at), guest(extent.range.end()));
            if extent.status.is_zero() {
                part.contents = Contents::Sparse;
            }
            Placed::push(list, part);
            at = extent.range.end();
        }
        if at == before {
            Placed::push(list, data.part(guest(at), guest(in_file)));
            at = in_file;
        }
    }
    // What lies behind the end of the file reads as zeroes.
    let mut behind = data.part(guest(in_file), data.range.end());
    behind.contents = Contents::Sparse;
    Placed::push(list, behind);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: u64, end: u64, offset: Option<u64>) -> Placed {
        Placed {
            range: ByteRange::between(start, end),
            contents: Contents::Data,
            compressed: false,
            place: offset.map(|offset| Place {
                file: PlaceFile::Image,
                offset,
            }),
        }
    }

    #[test]
    fn what_lies_in_a_row_is_one_part() {
        let mut list = Vec::new();
        for part in [
            at(0, 10, Some(100)),
            at(10, 20, Some(110)),
            at(20, 30, Some(200)),
            at(30, 30, None),
            at(30, 40, None),
            at(40, 50, None),
        ] {
            Placed::push(&mut list, part);
        }
        let expected = [
            at(0, 20, Some(100)),
            at(20, 30, Some(200)),
            at(30, 50, None),
        ];
        assert_eq!(list, expected);
    }
}
