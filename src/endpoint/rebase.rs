//! Another backing file for an image that is there.

use std::{ffi::OsString, os::unix::ffi::OsStrExt, sync::Arc};

use crate::{
    block::{Access, BlockDevice, Error, ErrorKind, Result},
    format::{
        Format, Stop,
        qcow2::{self, Backing, Common, Details, RebaseOptions},
    },
};

use super::{
    BackingName, Connection, Endpoint, FormatKind, Layers, OpenDevice, OpenOptions,
    destination_format::{directory_of, open_backing},
    formats::{first_layer, growable},
    guess::told,
    identity::identities,
    in_use::claim_below,
    open::{open_device, opening},
    related::{Relatives, identity_of},
};

/// Told how many bytes of the disk are done, and how many there are.
type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// How an image gets another backing file.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Rebase {
    /// The new one; `None`: nothing is behind the image any more.
    pub onto: Option<RebaseOnto>,
    /// The image's disk need not stay what it is: neither the old backing file nor the new one is looked at.
    pub is_unsafe: bool,
    /// What is written into the image is compressed.
    pub compress: bool,
    /// Asks for the end: the image has its old backing file then.
    pub stop: Stop,
    /// Told how far it is; nobody unless set.
    pub progress: Option<Progress>,
}

/// The new backing file of an image.
#[derive(Clone, Debug)]
pub struct RebaseOnto {
    /// Its name, as the image will have it: relative to the image's directory.
    pub name: OsString,
    /// The name of its format, as the image will have it.
    pub format: String,
}

/// Gives the image that `endpoint` is another backing file, durably: a qcow2 image in a file or on a block device. Its
/// disk stays what it is, unless that is not wanted.
///
/// # Errors
/// `Unsupported` for an image in a format that names no backing file here; those of
/// [`set_backing`](qcow2::set_backing()) and [`rebase`](qcow2::rebase()); what opening the image, the old chain or the new
/// backing file failed with.
pub async fn rebase_image(
    endpoint: &Endpoint,
    rebase: &Rebase,
    options: &OpenOptions,
) -> Result<()> {
    let bytes = endpoint.clone().interpreted(FormatKind::Raw);
    let OpenDevice { device, connection } = open_device(&bytes, Access::ReadWrite, options).await?;
    let rebased = rebase_opened(endpoint, &device, rebase, options).await;
    let rebased = rebased.map_err(|error| match error.endpoint() {
        Some(_) => error,
        None => error.on(endpoint.name()),
    });
    drop(device);
    let closed = connection.close().await;
    rebased.and(closed)
}

async fn rebase_opened(
    endpoint: &Endpoint,
    device: &Arc<dyn BlockDevice>,
    rebase: &Rebase,
    options: &OpenOptions,
) -> Result<()> {
    let kind = told(endpoint, options, &**device).await?;
    if kind != FormatKind::Image(Format::Qcow2) {
        let message = format!("the backing file of an image in the format {kind} is not changed");
        return Err(Error::with_message(ErrorKind::Unsupported, message));
    }
    claim_below(&**device).map_err(opening(endpoint))?;
    let below = growable(endpoint, device)?;
    let named = rebase.onto.as_ref().map(|onto| Backing {
        name: onto.name.as_bytes().to_vec(),
        format: Some(onto.format.clone()),
        device: None,
    });
    if rebase.is_unsafe {
        rebase.stop.check()?;
        if let Some(progress) = &rebase.progress {
            progress(0, 0);
        }
        return qcow2::set_backing(below, named.as_ref()).await;
    }
    let size = Details::read(&below).await?.virtual_size;
    let opened = open_new(endpoint, rebase.onto.as_ref(), options).await?;
    let mut how = RebaseOptions::default();
    how.stop = rebase.stop.clone();
    how.compress = rebase.compress;
    how.progress = rebase.progress.clone().map(|progress| {
        progress(0, size);
        Arc::new(move |done| progress(done, size)) as Arc<dyn Fn(u64) + Send + Sync>
    });
    let rebased = async {
        let layers = old_chain(endpoint, device, options).await?;
        let new = opened
            .as_ref()
            .map(|(path, opened)| (path, &opened.connection));
        how.common = new.and_then(|(path, new)| common(&layers, path, new));
        drop(layers);
        let named = named.map(|named| Backing {
            device: opened
                .as_ref()
                .map(|(_, opened)| Arc::clone(&opened.device)),
            ..named
        });
        let relatives = Relatives::of(endpoint, device, options);
        qcow2::rebase(below, &relatives, named.as_ref(), &how).await
    };
    let rebased = rebased.await;
    if let Some((_, opened)) = opened {
        drop(opened.device);
        opened.connection.abandon().await;
    }
    rebased
}

/// Opens the new backing file, and says where it is found.
async fn open_new(
    endpoint: &Endpoint,
    onto: Option<&RebaseOnto>,
    options: &OpenOptions,
) -> Result<Option<(Endpoint, OpenDevice)>> {
    let Some(onto) = onto else {
        return Ok(None);
    };
    let format = onto
        .format
        .parse()
        .map_err(|message: String| Error::with_message(ErrorKind::Unsupported, message))?;
    let directory = directory_of(endpoint);
    let path = Endpoint::from(directory.join(&onto.name));
    let name = BackingName {
        name: onto.name.clone(),
        format,
    };
    let opened = open_backing(&name, &directory, endpoint, options).await?;
    Ok(Some((path, opened)))
}

/// The files of the image and of all behind it now.
async fn old_chain(
    endpoint: &Endpoint,
    device: &Arc<dyn BlockDevice>,
    options: &OpenOptions,
) -> Result<Layers> {
    let relatives = Relatives::of(endpoint, device, options);
    let opening = relatives.options();
    let image = Format::Qcow2
        .open(Arc::clone(device), &relatives, &opening)
        .await?;
    let first = first_layer(endpoint, device, &image);
    Ok(relatives.into_opened(first).1)
}

/// What the old chain and the file at `path`, which `new` opened, have in common.
fn common(layers: &Layers, path: &Endpoint, new: &Connection) -> Option<Common> {
    let files = identities(path, &std::io::stdin());
    let mut size = u64::MAX;
    for (depth, layer) in (0..).zip(layers.chain()).skip(1) {
        let disk = layer.image.as_ref();
        let here = disk.map_or(layer.bytes.info().size, |image| image.info().size);
        size = size.min(here);
        let kind = disk.map_or(FormatKind::Raw, |it| {
            FormatKind::Image(it.details().format())
        });
        let is_it = identity_of(&*layer.bytes).is_some_and(|it| files.contains(&it));
        if is_it && kind == new.format() {
            return Some(Common { depth, size });
        }
    }
    None
}
