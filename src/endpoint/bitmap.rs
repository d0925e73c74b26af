//! Bitmaps of an image that is there.

use crate::{
    block::{Access, Error, ErrorKind, Operation, Result},
    format::{
        Format,
        qcow2::{self, BitmapChange},
    },
};

use super::{
    Endpoint, FormatKind, OpenDevice, OpenOptions,
    formats::growable,
    guess::told,
    in_use::claim_below,
    open::{open_device, opening},
};

/// Changes the bitmap `name` of the qcow2 image that `endpoint` is, without its filters, durably. What is merged comes
/// from the image that `source` is, where there is one. No other file that either names is opened.
///
/// # Errors
/// `Unsupported` for images in other formats; `NotPermitted` where another program uses it; those of
/// [`qcow2::change_bitmap`]; as those of opening the images.
pub async fn change_image_bitmap(
    endpoint: &Endpoint,
    name: &str,
    change: &BitmapChange,
    source: Option<&Endpoint>,
    options: &OpenOptions,
) -> Result<()> {
    let mut change = change.clone();
    let mut opened = None;
    if let (BitmapChange::Merge { image, .. }, Some(source)) = (&mut change, source) {
        let other = open_qcow2(source, Access::ReadOnly, options).await?;
        *image = Some(other.device.clone());
        opened = Some(other.connection);
    }
    let OpenDevice { device, connection } =
        open_qcow2(endpoint, Access::ReadWrite, options).await?;
    let changed = async {
        claim_below(&*device)?;
        let below = growable(endpoint, &device)?;
        qcow2::change_bitmap(below, name, &change).await
    };
    let changed = changed.await.map_err(opening(endpoint));
    drop((device, change));
    let mut closed = connection.close().await;
    if let Some(other) = opened {
        closed = closed.and(other.close().await);
    }
    changed?;
    closed
}

/// The bytes of a qcow2 image.
pub(super) async fn open_qcow2(
    endpoint: &Endpoint,
    access: Access,
    options: &OpenOptions,
) -> Result<OpenDevice> {
    let bytes = endpoint.clone().interpreted(FormatKind::Raw);
    let bytes = bytes.behind(Vec::new());
    let opened = open_device(&bytes, access, options).await?;
    match told(endpoint, options, &*opened.device).await? {
        FormatKind::Image(Format::Qcow2) => Ok(opened),
        kind => {
            let message = format!("images in the format {kind} are not changed so: qcow2 is");
            let error = Error::with_message(ErrorKind::Unsupported, message);
            Err(opening(endpoint)(error.during(Operation::Write)))
        }
    }
}
