//! Mending images in place.

use crate::{
    block::{Access, Result},
    format::qcow2::{self, CheckReport, RepairMode},
};

use super::{
    Endpoint, FormatKind, OpenDevice, OpenOptions,
    formats::growable,
    in_use::claim_below,
    open::{open_device, opening},
};

/// Mends the qcow2 image that an endpoint is, without its filters, as far as `mode` allows, and checks it again. No
/// other file that it names is opened.
///
/// # Errors
/// As [`open_device`]; `NotPermitted` where another program uses it; those of [`qcow2::repair`].
pub async fn repair_qcow2(
    endpoint: &Endpoint,
    mode: RepairMode,
    options: &OpenOptions,
) -> Result<CheckReport> {
    let bytes = endpoint.clone().interpreted(FormatKind::Raw);
    let bytes = bytes.behind(Vec::new());
    let OpenDevice { device, connection } = open_device(&bytes, Access::ReadWrite, options).await?;
    let repaired = async {
        claim_below(&*device)?;
        let below = growable(&bytes, &device)?;
        qcow2::repair(below, mode).await
    };
    let repaired = repaired.await.map_err(opening(endpoint));
    drop(device);
    let closed = connection.close().await;
    let report = repaired?;
    closed?;
    Ok(report)
}
