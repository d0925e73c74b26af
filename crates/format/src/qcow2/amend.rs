//! The version of an image that is there, whether it writes refcounts late, and whether its data file is a raw image.
//!
//! The header changes in one write of one sector, so that a crash leaves it as it was or as it is to be.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Buffer, Error, ErrorKind, Operation, Result};

use super::{
    bitmaps::read_directory,
    check::mend_dirty,
    entry::Cluster,
    header::{Autoclear, Compatible, Compression, Header, Incompatible, be64, walk_extensions},
    host::HostFile,
    snapshots::{SnapshotTable, complete_table},
    tables::Tables,
    write::check_writable,
};

/// Where the compatible features stand in the header, with the autoclear features behind them.
const COMPATIBLE_IN_HEADER: u64 = 80;
/// What a disk writes as a whole, in bytes.
const SECTOR: u64 = 512;
/// The width of refcounts in version 2, as a power of two.
const OLD_REFCOUNTS: u32 = 4;
/// The memory for tables that are looked through, in bytes.
const TABLE_MEMORY: usize = 1 << 20;

/// What changes of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AmendOptions {
    /// The version of the format: 2, or 3, which has more features. As it is unless set.
    pub version: Option<u32>,
    /// Whether refcounts may be written late; version 3 only. As it is unless set; version 2 never does.
    pub lazy_refcounts: Option<bool>,
    /// The data file is no raw image any more, whatever it was.
    pub data_file_not_raw: bool,
}

/// Changes the image in `below`, durably. Nobody else uses it meanwhile. No other file that it names is opened, and no
/// data moves.
///
/// A crash at any point leaves it as it was, or as it is to be; or as it was with a snapshot table that says more.
///
/// # Errors
/// `InvalidInput` for what contradicts itself; `Unsupported` for version 2 of an image that has what only version 3
/// knows: features, refcounts of other widths, bitmaps, clusters that read as zeroes without data; as those of opening
/// the image for writing; `NoSpace` where the header has no room, what reading and writing failed with.
pub async fn amend(below: Arc<dyn BlockDevice>, options: &AmendOptions) -> Result<()> {
    let amended = amend_inside(HostFile::new(below), options).await;
    amended.map_err(|error| error.during(Operation::Write))
}

async fn amend_inside(file: HostFile, options: &AmendOptions) -> Result<()> {
    let old = Header::read(&**file.device()).await?;
    let version = options.version.unwrap_or(old.geometry.version);
    if !matches!(version, 2 | 3) {
        let message = format!("there is no version {version} of qcow2: 2 and 3 are");
        return Err(Error::with_message(ErrorKind::InvalidInput, message));
    }
    if version < 3 && options.lazy_refcounts == Some(true) {
        let message = "version 2 (compat=0.10) always writes refcounts at once";
        return Err(Error::with_message(ErrorKind::InvalidInput, message));
    }
    let mut old = mend_dirty(&file, old).await?;
    check_writable(&old, [&file, &file]).map_err(|error| error.during(Operation::Open))?;
    if version > old.geometry.version && complete_table(&file, &old).await? {
        old = Header::read(&**file.device()).await?;
    }
    let lazy = Compatible::LAZY_REFCOUNTS;
    let mut new = old.clone();
    new.geometry.version = version;
    if let Some(is_lazy) = options.lazy_refcounts {
        new.compatible.set(lazy, is_lazy);
    }
    if options.data_file_not_raw {
        new.autoclear.remove(Autoclear::RAW_DATA_FILE);
    }
    match (old.geometry.version, version) {
        (3, 3) if (old.compatible, old.autoclear) != (new.compatible, new.autoclear) => {
            set_features(&file, &new).await
        }
        (2, 3) => {
            // Whoever wrote version 2 did not keep them.
            new.bitmaps = None;
            replace_header(&file, &old, &new).await
        }
        (3, 2) => {
            check_downgrade(&file, &old).await?;
            new.compatible = Compatible::empty();
            new.autoclear = Autoclear::empty();
            new.bitmaps = None;
            replace_header(&file, &old, &new).await
        }
        _ => Ok(()),
    }
}

/// Changes features that may be ignored, of which others may be set that are not known here. Autoclear features that are
/// not known here are cleared, as by whoever writes (specification, "Header", `autoclear_features`).
async fn set_features(file: &HostFile, new: &Header) -> Result<()> {
    let name = || "the header".to_owned();
    let word = file
        .read_padded(COMPATIBLE_IN_HEADER, Buffer::zeroed(8), name)
        .await?;
    let known = Compatible::all().bits();
    let compatible = be64(&word, 0) & !known | new.compatible.bits();
    let words = [compatible, new.autoclear.bits()].map(u64::to_be_bytes);
    file.patch(COMPATIBLE_IN_HEADER, words.as_flattened())
        .await?;
    file.device().flush().await
}

/// Refuses version 2 for an image that has what only version 3 knows.
async fn check_downgrade(file: &HostFile, header: &Header) -> Result<()> {
    let refuse = |message: &str| Err(Error::with_message(ErrorKind::Unsupported, message));
    let geometry = header.geometry;
    if geometry.data_file {
        return refuse("the data lies in a file of its own, which version 2 does not know");
    }
    if header.compression != Compression::Zlib {
        return refuse(
            "clusters are compressed by something else than zlib, which version 2 does not know",
        );
    }
    if header.incompatible != Incompatible::empty() {
        return refuse("the image has subclusters, which version 2 does not know");
    }
    if geometry.refcount_order != OLD_REFCOUNTS {
        return refuse("refcounts of version 2 have 16 bits");
    }
    let below = &**file.device();
    if !read_directory(below, header).await?.is_empty() {
        return refuse("the image has bitmaps, which version 2 does not know: remove them first");
    }
    let snapshots = SnapshotTable::read(below, header).await?.snapshots;
    let mut tables = vec![(geometry, header.l1)];
    for snapshot in &snapshots {
        if snapshot.size != geometry.size {
            return refuse("a snapshot has a disk of another size, which version 2 does not know");
        }
        tables.push((snapshot.geometry(geometry)?, snapshot.l1));
    }
    for (geometry, l1) in tables {
        let tables = Tables::open(file.clone(), geometry, l1, TABLE_MEMORY).await?;
        let end = tables.l1().len() as u64;
        let mut index = tables.next_table(0, end);
        while index < end {
            if let Some(table) = tables.table(index).await? {
                for at in 0..table.len() {
                    let cluster = table.entry(at).decode(geometry)?;
                    if matches!(cluster, Cluster::Zero { .. } | Cluster::Mixed { .. }) {
                        return refuse(
                            "clusters read as zeroes without data, which version 2 does not know: 'convert -o compat=0.10' makes an image without them",
                        );
                    }
                }
            }
            index = tables.next_table(index + 1, end);
        }
    }
    Ok(())
}

/// Writes another header, durably: in one sector, with the backing file's name behind it where there is no room.
async fn replace_header(file: &HostFile, old: &Header, new: &Header) -> Result<()> {
    let cluster = new.geometry.cluster_size();
    let mut bytes = new.encode_within(SECTOR)?;
    if bytes.len() as u64 > SECTOR
        && let Some(name) = &new.backing
    {
        let buffer = Buffer::zeroed(cluster as usize);
        let was = file
            .read_padded(0, buffer, || "the header".to_owned())
            .await?;
        let extensions = walk_extensions(&was, old.length as usize, |_, _, _| Ok(()))? as u64 + 8;
        let (was, length) = (be64(&was, 8), name.len() as u64);
        let first = extensions.max(SECTOR).next_multiple_of(8);
        let place = match first.saturating_add(length) <= was {
            true => first,
            false => was.saturating_add(length).max(first).next_multiple_of(8),
        };
        if place.saturating_add(length) <= cluster {
            // Where the old header has nothing.
            file.patch(place, name).await?;
            file.device().flush().await?;
            bytes.truncate(bytes.len() - name.len());
            bytes[8..16].copy_from_slice(&place.to_be_bytes());
        }
    }
    if bytes.len() as u64 > SECTOR {
        let message = "the header has no room for another version: the names in it are too long";
        return Err(Error::with_message(ErrorKind::NoSpace, message));
    }
    file.patch(0, &bytes).await?;
    file.device().flush().await
}

#[cfg(test)]
mod tests;
