//! Snapshots made, gone back to and deleted: what `compat/qemu_img` does under that name.

use std::pin::pin;

use crate::{
    block::ErrorKind,
    endpoint::{Endpoint, SnapshotChange, change_snapshots},
    format::qcow2::SnapshotOptions,
};

use super::super::{
    failure::Failure,
    options::{Timeouts, Trust, open_options},
    signals::Signals,
};

/// Does it, until a signal asks for the end.
///
/// # Errors
/// Those of [`change_snapshots`], and the interruption.
pub(crate) fn change(
    image: &Endpoint,
    change: &SnapshotChange,
    trust: &Trust,
) -> Result<(), Failure> {
    let runtime = super::runtime()?;
    let changed = runtime.block_on(change_unless_interrupted(image, change, trust));
    // What a second signal did not wait for is not waited for here.
    runtime.shutdown_background();
    changed
}

async fn change_unless_interrupted(
    image: &Endpoint,
    change: &SnapshotChange,
    trust: &Trust,
) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
    let options = trust.in_options(open_options(Timeouts::PATIENT));
    let changing = SnapshotOptions::default();
    let mut changed = pin!(change_snapshots(image, change, &changing, &options));
    let interrupt = tokio::select! {
        changed = &mut changed => return Ok(changed.map(drop)?),
        interrupt = signals.next() => interrupt,
    };
    // It ends where nothing is left of it; who does not want to wait for that leaves the image as a crash would.
    changing.stop.ask();
    let changed = tokio::select! {
        changed = changed => changed,
        again = signals.next() => {
            let note = format!("{image} is as it was, or as it was to be");
            return Err(Failure::interrupted(again).note(note));
        }
    };
    match changed {
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            let note = format!("{image} is as it was");
            Err(Failure::interrupted(interrupt).note(note))
        }
        changed => Ok(changed.map(drop)?),
    }
}
