//! Snapshots inside an image that is there.

use crate::{
    block::{Access, Error, ErrorKind, Operation, Result},
    format::{
        Format,
        qcow2::{Snapshot, SnapshotOptions, apply_snapshot, create_snapshot, delete_snapshot},
    },
};

use super::{
    Endpoint, FormatKind, OpenDevice, OpenOptions,
    formats::growable,
    guess::told,
    in_use::claim_below,
    open::{open_device, opening},
};

/// What is done with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotChange {
    /// It is made, of the disk as it is, with this name.
    Create(String),
    /// The disk becomes what it was in it: the one of this ID, or else of this name; `snapshot.id=` or `snapshot.name=`
    /// in front says which of the two.
    Apply(String),
    /// It is deleted: the one that is meant in the same way.
    Delete(String),
}

/// Makes, goes back to or deletes a snapshot inside the qcow2 image that an endpoint is, durably; it is returned. No other
/// file that the image names is opened.
///
/// # Errors
/// As [`open_device`]; `NotPermitted` where another program uses it; `Unsupported` for other formats; those of
/// [`create_snapshot`], [`apply_snapshot`], [`delete_snapshot`].
pub async fn change_snapshots(
    endpoint: &Endpoint,
    change: &SnapshotChange,
    changing: &SnapshotOptions,
    options: &OpenOptions,
) -> Result<Snapshot> {
    let bytes = endpoint.clone().interpreted(FormatKind::Raw);
    let OpenDevice { device, connection } = open_device(&bytes, Access::ReadWrite, options).await?;
    let changed = async {
        let below = growable(&bytes, &device)?;
        claim_below(&*device)?;
        let kind = told(endpoint, options, &*device).await?;
        if kind != FormatKind::Image(Format::Qcow2) {
            let message = format!("images in the format {kind} have no snapshots");
            let refused = Error::with_message(ErrorKind::Unsupported, message);
            return Err(refused.during(Operation::Write));
        }
        match change {
            SnapshotChange::Create(name) => create_snapshot(below, name, changing).await,
            SnapshotChange::Apply(wanted) => apply_snapshot(below, wanted, changing).await,
            SnapshotChange::Delete(wanted) => delete_snapshot(below, wanted, changing).await,
        }
    };
    let changed = changed.await.map_err(opening(endpoint));
    drop(device);
    let closed = connection.close().await;
    let snapshot = changed?;
    closed?;
    Ok(snapshot)
}
