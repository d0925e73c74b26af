//! Another version for an image that is there.

use crate::{
    block::{Access, Result},
    format::qcow2::{self, AmendOptions},
};

use super::{
    Endpoint, OpenDevice, OpenOptions, bitmap::open_qcow2, formats::growable, in_use::claim_below,
    open::opening,
};

/// Changes the version of the qcow2 image that `endpoint` is, without its filters, and whether it writes refcounts late,
/// durably. No other file that it names is opened.
///
/// # Errors
/// `Unsupported` for images in other formats; `NotPermitted` where another program uses it; those of
/// [`qcow2::amend`]; as those of opening the image.
pub async fn amend_image(
    endpoint: &Endpoint,
    amending: &AmendOptions,
    options: &OpenOptions,
) -> Result<()> {
    let OpenDevice { device, connection } =
        open_qcow2(endpoint, Access::ReadWrite, options).await?;
    let amended = async {
        claim_below(&*device)?;
        let below = growable(endpoint, &device)?;
        qcow2::amend(below, amending).await
    };
    let amended = amended.await.map_err(opening(endpoint));
    drop(device);
    let closed = connection.close().await;
    amended?;
    closed
}
