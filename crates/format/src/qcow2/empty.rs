//! An image that gives up all that it has of its own: what is behind it shows.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Error, ErrorKind, Operation, Result};

use super::{
    OpenOptions,
    check::mend_dirty,
    header::{Autoclear, Header},
    host::HostFile,
    image::open_reader,
    resize::{all_of, cut_file},
    write::Writer,
};
use crate::Related;

/// Makes the image in `below` give up all clusters of its disk, and their space; snapshots keep theirs. Nobody else uses
/// the image meanwhile. A data file is opened by `related`, a backing file is not: who calls this has made sure that what
/// is to be kept is durable there.
///
/// A crash at any point leaves some of the clusters, and lost space at worst.
///
/// # Errors
/// `Unsupported` for an image whose data file can be read as a raw image, too; as those of opening the image for writing,
/// what reading and writing failed with.
pub async fn empty(below: Arc<dyn BlockDevice>, related: &dyn Related) -> Result<()> {
    let emptied = empty_inside(below, related).await;
    emptied.map_err(|error| error.during(Operation::Write))
}

async fn empty_inside(below: Arc<dyn BlockDevice>, related: &dyn Related) -> Result<()> {
    let header = Header::read(&*below).await?;
    if header.autoclear.contains(Autoclear::RAW_DATA_FILE) {
        let message = "its data file can be read as a raw image and has all of the disk";
        return Err(Error::with_message(ErrorKind::Unsupported, message));
    }
    let file = HostFile::new(below);
    let header = mend_dirty(&file, header).await?;
    let whole = all_of(&header);
    let options = OpenOptions {
        writable: true,
        ..OpenOptions::default()
    };
    let reader = open_reader(&file, &whole, related, &options).await?;
    let writer = Writer::open(&file, &reader, &whole, &[]).await?;
    writer.begin().await?;
    writer.drop_behind(0).await?;
    writer.close().await?;
    cut_file(&file, &writer).await
}

#[cfg(test)]
mod tests;
