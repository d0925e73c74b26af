//! `blockferry snapshot`: snapshots listed, made, gone back to and deleted.

use crate::{
    endpoint::{Endpoint, SnapshotChange, change_snapshots, printable},
    format::qcow2::{Snapshot, SnapshotOptions},
};

use super::{
    super::{
        failure::Failure,
        options::{SnapshotJob, Timeouts, Trust, open_options},
        output::tell,
        signals::Signals,
    },
    in_place::{Ends, until_sound},
    listing::{self, Listed},
};

pub(crate) fn run(job: &SnapshotJob) -> Result<(), Failure> {
    let (image, wanted, timeouts, quiet) = match job {
        SnapshotJob::List(job) => return listing::run(job, Listed::Snapshots),
        SnapshotJob::Change {
            image,
            change,
            timeouts,
            quiet,
        } => (image, change, *timeouts, *quiet),
    };
    let snapshot = change(image, wanted, &Trust::default(), timeouts)?;
    if !quiet {
        let (id, name) = (
            printable(snapshot.id.as_ref()),
            printable(snapshot.name.as_ref()),
        );
        tell(&match wanted {
            SnapshotChange::Create(_) => format!("made snapshot {id}, \"{name}\", of {image}"),
            SnapshotChange::Apply(_) => {
                format!("{image} is what it was in snapshot {id}, \"{name}\"")
            }
            SnapshotChange::Delete(_) => format!("deleted snapshot {id}, \"{name}\", of {image}"),
        });
    }
    Ok(())
}

/// Makes, goes back to or deletes a snapshot, which is returned, until a signal asks for the end.
///
/// # Errors
/// Those of [`change_snapshots`], and the interruption.
pub(crate) fn change(
    image: &Endpoint,
    change: &SnapshotChange,
    trust: &Trust,
    timeouts: Timeouts,
) -> Result<Snapshot, Failure> {
    let runtime = super::runtime()?;
    let options = trust.in_options(open_options(timeouts));
    let changing = SnapshotOptions::default();
    let changed = runtime.block_on(async {
        let signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
        let changed = change_snapshots(image, change, &changing, &options);
        let ends = Ends {
            stopped: format!("{image} is as it was"),
            abandoned: format!("{image} is as it was, or as it was to be"),
        };
        until_sound(changed, || changing.stop.ask(), signals, ends).await
    });
    // What a second signal did not wait for is not waited for here.
    runtime.shutdown_background();
    changed
}
