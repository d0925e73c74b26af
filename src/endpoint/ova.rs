//! The disk in an OVA: the archive says where it lies, its descriptor which one it is.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, sync::Arc};

use crate::{
    block::{
        BlockDevice, ByteRange, Error, ErrorKind, Result, SliceDevice, printable, read_exact_at,
    },
    filter::Tar,
    format::{
        self, Details, Image, NoRelatives,
        ova::{DiskFile, LONGEST_DESCRIPTOR, descriptor_name, disks},
        packed::Packing,
    },
};

use super::{Endpoint, FormatKind, OpenOptions, formats::unpacked, guess::probed};

/// The most files of an archive that are looked at.
const MOST_FILES: usize = 1000;

/// How much of an archive shows the name of its first file, in bytes.
const HEADER: u64 = 512;

/// The file of the disk in the archive that `archive` holds.
///
/// # Errors
/// `Corrupt`, `InvalidInput` for a damaged archive or descriptor, `NotFound` where there is no disk in it, and
/// `InvalidInput` where nothing says which one.
pub(super) async fn disk(
    endpoint: &Endpoint,
    options: &OpenOptions,
    archive: &Arc<dyn BlockDevice>,
) -> Result<Arc<dyn BlockDevice>> {
    let named = named_disks(archive).await?;
    let disk = match named.split_first() {
        Some((disk, others)) => {
            if !others.is_empty() {
                let disks = shown(named.iter().map(|disk| disk.name.as_bytes()));
                options.notice(&format!(
                    "{endpoint}: it has {} disks, {disks}, and the first is read; {}",
                    named.len(),
                    how_to_choose(endpoint)
                ));
            }
            disk.clone()
        }
        None => only_disk(endpoint, archive).await?,
    };
    let range = Tar::new(&disk.name).find(&**archive).await?;
    let slice = SliceDevice::new(Arc::clone(archive), range.start(), Some(range.len()))?;
    let slice: Arc<dyn BlockDevice> = Arc::new(slice);
    match disk.compression.as_deref() {
        None => Ok(slice),
        Some("gzip") => unpacked(endpoint, Packing::Gzip, options, slice).await,
        Some(other) => {
            let other = printable(OsStr::new(other));
            let message = format!("its disk is compressed by {other}, which is not supported");
            Err(Error::with_message(ErrorKind::Unsupported, message))
        }
    }
}

/// Opens the image that the disk's file is, for reading; `None` where it is the disk itself. No file that it names is
/// opened.
///
/// # Errors
/// As those of opening an image.
pub(super) async fn open(
    disk: &Arc<dyn BlockDevice>,
    options: &OpenOptions,
) -> Result<Option<Arc<dyn Image>>> {
    let FormatKind::Image(format) = probed(&**disk).await? else {
        return Ok(None);
    };
    let mut opening = format::OpenOptions::default();
    opening.max_size = options.max_size;
    let image = format.open(Arc::clone(disk), &NoRelatives, &opening);
    image.await.map(Some)
}

/// What the image says of itself that the disk's file is; `None` where it is none.
///
/// # Errors
/// As those of [`disk`], and of reading the image.
pub(super) async fn details(
    endpoint: &Endpoint,
    options: &OpenOptions,
    archive: &Arc<dyn BlockDevice>,
) -> Result<Option<Details>> {
    let disk = disk(endpoint, options, archive).await?;
    match probed(&*disk).await? {
        FormatKind::Image(format) => format.details(&disk).await.map(Some),
        _ => Ok(None),
    }
}

/// The disks that the descriptor names.
async fn named_disks(archive: &Arc<dyn BlockDevice>) -> Result<Vec<DiskFile>> {
    let length = archive.info().size.min(HEADER);
    let start = read_exact_at(&**archive, ByteRange::between(0, length)).await?;
    let Some(name) = descriptor_name(&start) else {
        let message =
            "it is not an OVA: no archive that begins with the descriptor of a virtual machine";
        return Err(Error::with_message(ErrorKind::InvalidInput, message));
    };
    let name = OsStr::from_bytes(name);
    let range = Tar::new(name).find(&**archive).await?;
    if range.len() > LONGEST_DESCRIPTOR {
        let message = format!("its descriptor is {} bytes long", range.len());
        return Err(Error::with_message(ErrorKind::Corrupt, message));
    }
    disks(&read_exact_at(&**archive, range).await?)
}

/// The only disk of the archive, where its descriptor names none.
async fn only_disk(endpoint: &Endpoint, archive: &Arc<dyn BlockDevice>) -> Result<DiskFile> {
    let files = Tar::files(&**archive, MOST_FILES).await?;
    let is_disk = |name: &[u8]| name.to_ascii_lowercase().ends_with(b".vmdk");
    let found: Vec<_> = files.iter().filter(|file| is_disk(&file.name)).collect();
    match found[..] {
        [only] => Ok(DiskFile::new(String::from_utf8_lossy(&only.name))),
        [] => {
            let message =
                "there is no disk in it: its descriptor names none, and no file is a .vmdk";
            Err(Error::with_message(ErrorKind::NotFound, message))
        }
        _ => {
            let names = shown(found.iter().map(|file| &*file.name));
            let message = format!(
                "its descriptor does not say which of {names} is the disk; {}",
                how_to_choose(endpoint)
            );
            Err(Error::with_message(ErrorKind::InvalidInput, message))
        }
    }
}

fn how_to_choose(endpoint: &Endpoint) -> String {
    format!("[ serve -f raw --filter tar:NAME {endpoint} ] with -f vmdk is another one")
}

/// Names for a message, not too many.
fn shown<'a>(names: impl Iterator<Item = &'a [u8]>) -> String {
    const MOST_SHOWN: usize = 8;
    let names: Vec<_> = names
        .map(|name| format!("'{}'", printable(OsStr::from_bytes(name))))
        .collect();
    let mut list = names[..names.len().min(MOST_SHOWN)].join(", ");
    if names.len() > MOST_SHOWN {
        list.push_str(", ...");
    }
    list
}
