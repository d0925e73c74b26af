//! Another size of the virtual disk.
//!
//! The header's size changes in one write, and whatever it says at any time is what the image is: a disk that grows has
//! all its tables, zeroes and places before the header says so; one that shrinks gives up what lies behind its end
//! afterwards. A crash in between loses space at worst, and the bitmaps' word ([`bitmaps`]); what it leaves behind the end of the disk is cleared before
//! the disk grows over it.

mod bitmaps;

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, ByteRange, Capabilities, Error, ErrorKind, Operation, Result, ZeroFlags,
};

use self::bitmaps::Resized;
use super::{
    OpenOptions, Preallocation,
    bitmaps::{Bitmap, read_directory},
    check::mend_dirty,
    geometry::Geometry,
    header::{Autoclear, Header, LARGEST_L1},
    host::HostFile,
    image::open_reader,
    new::stored_size,
    snapshots::SnapshotTable,
    write::{Writer, fill},
};
use crate::{Related, Stop};

/// Where the virtual size stands in the header.
const SIZE_IN_HEADER: u64 = 24;

/// How an image gets another size.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ResizeOptions {
    /// What is allocated of what is new. Default nothing; not for a disk that becomes smaller.
    pub preallocation: Preallocation,
    /// The disk may become smaller: what lies behind its new end is lost. Default false.
    pub shrink: bool,
    /// Asks for the end: the disk has its old size then. Nothing unless set.
    pub stop: Stop,
}

/// Gives the virtual disk of the image in `below` the size `size` in bytes, rounded up to whole sectors of 512 bytes.
/// What is new reads as zeroes, whatever a backing file has there. Nobody else uses the image meanwhile; `below` can
/// grow ([`Capabilities::RESIZE`]) where the image needs room. A backing file is opened by `related` only for a disk
/// that grows, a data file always, and it gets the disk's size where it can.
///
/// A crash at any point loses space at worst, and the disk has its old size or the new one. Bitmaps may be marked as in
/// use then.
///
/// # Errors
/// `InvalidInput` for a disk that would become smaller and must not, and for a size that the image's tables cannot
/// have, or one of its bitmaps; `Unsupported` for an image with bitmaps that were in use, and one with snapshots that do
/// not say their sizes (version 2); as those of opening the image for writing; `NoSpace`, what reading and writing failed with.
pub async fn resize(
    below: Arc<dyn BlockDevice>,
    related: &dyn Related,
    size: u64,
    options: &ResizeOptions,
) -> Result<()> {
    let resized = resize_inside(below, related, stored_size(size), options).await;
    resized.map_err(|error| error.during(Operation::Resize))
}

async fn resize_inside(
    below: Arc<dyn BlockDevice>,
    related: &dyn Related,
    size: u64,
    options: &ResizeOptions,
) -> Result<()> {
    let header = Header::read(&*below).await?;
    let old = header.geometry.size;
    check(&*below, &header, size, options).await?;
    let file = HostFile::new(below);
    let header = mend_dirty(&file, header).await?;
    let image = Resizing { file, related };
    if size > old {
        image.grow(header, size, options).await
    } else if size < old {
        image.shrink(header, size, &options.stop).await
    } else {
        Ok(())
    }
}

/// Refuses what cannot be done, before anything is changed.
async fn check(
    below: &dyn BlockDevice,
    header: &Header,
    size: u64,
    options: &ResizeOptions,
) -> Result<()> {
    let refuse = |kind, message: &str| Err(Error::with_message(kind, message));
    let geometry = header.geometry;
    if size < geometry.size {
        if !options.shrink {
            let message =
                "the disk would become smaller, and what lies past its new end would be lost";
            return refuse(ErrorKind::InvalidInput, message);
        }
        if options.preallocation != Preallocation::Off {
            let message = "nothing is allocated in advance of a disk that becomes smaller";
            return refuse(ErrorKind::InvalidInput, message);
        }
    }
    let is_too_large = i64::try_from(size).is_err()
        || geometry.l1_entries_for(size).saturating_mul(8) > LARGEST_L1;
    if is_too_large {
        let message = format!(
            "a virtual size of {size} bytes is too large for clusters of {} bytes",
            geometry.cluster_size()
        );
        return refuse(ErrorKind::InvalidInput, &message);
    }
    let snapshots = SnapshotTable::read(below, header).await?.snapshots;
    if !snapshots.is_empty() && geometry.version < 3 {
        let message =
            "the image has snapshots, which do not say their sizes in version 2 (compat=0.10)";
        return refuse(ErrorKind::Unsupported, message);
    }
    if snapshots.iter().any(|snapshot| !snapshot.says_size) {
        let message = "the image has a snapshot that does not say its size";
        return refuse(ErrorKind::Unsupported, message);
    }
    let bitmaps = read_directory(below, header).await?;
    bitmaps::check(&bitmaps, Geometry { size, ..geometry })
}

/// An image whose size is changed.
struct Resizing<'a> {
    file: HostFile,
    related: &'a dyn Related,
}

impl Resizing<'_> {
    async fn grow(&self, header: Header, size: u64, options: &ResizeOptions) -> Result<()> {
        let old = header.geometry.size;
        let mut header = header;
        let known = self.bitmaps(&header).await?;
        let mut bitmaps = Resized::new(&self.file, header.geometry, known);
        let entries = header.geometry.l1_entries_for(size);
        if header.l1.len() / 8 < entries {
            let (writer, _) = self.open(&header).await?;
            writer.lengthen_l1(entries).await?;
            header = Header::read(&**self.file.device()).await?;
        }
        header.geometry.size = size;
        let (writer, data) = self.open(&header).await?;
        writer.begin().await?;
        bitmaps.lengthen(size, &writer).await?;
        let filled = async {
            self.fill_new(&header, &writer, &data, old, options).await?;
            options.stop.check()?;
            bitmaps.mark().await
        };
        if let Err(error) = filled.await {
            let is_cancelled = error.kind() == ErrorKind::Cancelled;
            // What fails from here on leaves lost space.
            let is_dropped = is_cancelled && writer.drop_behind(old).await.is_ok();
            bitmaps.give_up(&writer).await;
            if is_dropped && writer.close().await.is_ok() {
                let _ = cut_file(&self.file, &writer).await;
            }
            return Err(error);
        }
        writer.close().await?;
        // All that the disk of that size needs is durable.
        write_size(&self.file, size).await?;
        bitmaps.finish(&writer).await
    }

    /// Makes what is new read as zeroes of the disk that `header` describes, which had `old` bytes.
    async fn fill_new(
        &self,
        header: &Header,
        writer: &Writer,
        data: &HostFile,
        old: u64,
        options: &ResizeOptions,
    ) -> Result<()> {
        let how = options.preallocation;
        let size = header.geometry.size;
        let is_raw = header.autoclear.contains(Autoclear::RAW_DATA_FILE);
        if header.geometry.data_file {
            lengthen_data(data, old, size, is_raw).await?;
        }
        writer
            .zero(ByteRange::between(old, size), ZeroFlags::empty())
            .await?;
        // Whoever reads the data file alone takes part in the disk: it has its places, as qemu has it.
        let how = if is_raw {
            how.max(Preallocation::Metadata)
        } else {
            how
        };
        if how != Preallocation::Off {
            let range = allocated_in_advance(header.geometry, old, header.backing.is_some());
            writer.preallocate(range, how, &options.stop).await?;
        }
        writer.flush().await
    }

    async fn shrink(&self, header: Header, size: u64, stop: &Stop) -> Result<()> {
        let known = self.bitmaps(&header).await?;
        let mut bitmaps = Resized::new(&self.file, header.geometry, known);
        let whole = all_of(&header);
        let (writer, data) = self.open(&whole).await?;
        writer.begin().await?;
        // From here on it goes to its end, which is not far.
        stop.check()?;
        bitmaps.mark().await?;
        write_size(&self.file, size).await?;
        writer.drop_behind(size).await?;
        writer.close().await?;
        bitmaps.shorten(size).await?;
        bitmaps.finish(&writer).await?;
        cut_file(&self.file, &writer).await?;
        if header.geometry.data_file && data.device().info().can(Capabilities::RESIZE) {
            data.device().resize(size).await?;
            data.device().flush().await?;
        }
        Ok(())
    }

    async fn bitmaps(&self, header: &Header) -> Result<Vec<Bitmap>> {
        read_directory(&**self.file.device(), header).await
    }

    /// What writes the image as `header` has it, and what the data lies in.
    async fn open(&self, header: &Header) -> Result<(Writer, HostFile)> {
        let options = OpenOptions {
            writable: true,
            ..OpenOptions::default()
        };
        let reader = open_reader(&self.file, header, self.related, &options).await?;
        let data = reader.data.clone();
        let writer = Writer::open(&self.file, &reader, header, &[]).await?;
        Ok((writer, data))
    }
}

/// What gets its place in advance of a disk that had `old` bytes: the last cluster that it had, too, if only zeroes can
/// be in it where it has no place.
fn allocated_in_advance(geometry: Geometry, old: u64, has_backing: bool) -> ByteRange {
    let cluster = geometry.cluster_size();
    let start = match has_backing {
        true => old.next_multiple_of(cluster),
        false => old - old % cluster,
    };
    ByteRange::between(start.min(geometry.size), geometry.size)
}

/// Lets the data file reach to the new end of the disk; where it can be read as a raw image it reads as zeroes from the
/// old end on.
async fn lengthen_data(data: &HostFile, old: u64, size: u64, is_raw: bool) -> Result<()> {
    let can_resize = data.device().info().can(Capabilities::RESIZE);
    if is_raw && data.end() > old {
        let block = u64::from(data.device().info().limits.minimum.max(1));
        let there = ByteRange::between(old, data.end().min(size));
        let (head, rest) = there.split_at(old.next_multiple_of(block) - old);
        if !head.is_empty() {
            data.patch(old, &vec![0; head.len() as usize]).await?;
        }
        fill(data, rest, Preallocation::Off, &Stop::default()).await?;
    }
    if data.end() < size {
        if !can_resize {
            let message = "the data file cannot grow";
            return Err(Error::with_message(ErrorKind::NoSpace, message));
        }
        data.device().resize(size).await?;
        data.grown_to(size);
    }
    data.device().flush().await
}

/// The image without a backing file, whose disk is all that its tables can name: a crash may have left something behind
/// the end of the disk.
pub(crate) fn all_of(header: &Header) -> Header {
    let mut whole = header.clone();
    whole.backing = None;
    let mapped = (header.l1.len() / 8).saturating_mul(header.geometry.table_span());
    whole.geometry.size = mapped.max(header.geometry.size).min(i64::MAX as u64);
    whole
}

/// Cuts off what is not used at the end of the file. Everything is in its place.
pub(crate) async fn cut_file(file: &HostFile, writer: &Writer) -> Result<()> {
    let end = writer.trim_end().await?;
    if end < file.end() && file.device().info().can(Capabilities::RESIZE) {
        file.device().resize(end).await?;
        file.device().flush().await?;
    }
    Ok(())
}

/// Lets the header say the size, durably.
async fn write_size(file: &HostFile, size: u64) -> Result<()> {
    file.patch(SIZE_IN_HEADER, &size.to_be_bytes()).await?;
    file.device().flush().await
}

#[cfg(test)]
mod tests;
