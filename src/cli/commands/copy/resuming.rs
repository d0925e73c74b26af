//! The checkpoint of a copy: opened before it, and gone or kept when it is over.

use std::path::Path;

use crate::{block::HumanSize, copy::Checkpoint, endpoint::Endpoint};

use super::{
    super::super::{
        checkpoint::CheckpointFile, failure::Failure, options::CopyJob, output::tell,
        progress::View,
    },
    ending::is_gone,
    sides::Sides,
};

/// Opens the checkpoint, if there is to be one, and tells what was done before.
pub(super) fn open(
    job: &CopyJob,
    sides: &Sides,
    view: &View,
) -> Result<Option<(CheckpointFile, Checkpoint)>, Failure> {
    let Some(path) = &job.checkpoint else {
        return Ok(None);
    };
    let known = job.source.clone().taken_for(sides.from.format());
    let from = (&sides.source, &known);
    let to = (&sides.destination, &job.destination);
    let (file, checkpoint) = CheckpointFile::open(path, from, to, sides.file.as_ref())?;
    let done = checkpoint.done.ranges.len();
    if done > 0 && job.warnings {
        let (done, name) = (HumanSize(done), file.name());
        tell(&format!("going on from {name}: {done} were done before"));
    }
    view.resumed(done);
    Ok(Some((file, checkpoint)))
}

/// Removes the checkpoint of a copy that is whole, or whose `partial` file was removed; that of another one is kept, and
/// the failure says so.
pub(super) fn close<T>(
    checkpoint: CheckpointFile,
    result: Result<T, Failure>,
    partial: Option<&Path>,
    destination: &Endpoint,
) -> Result<T, Failure> {
    match result {
        Ok(done) => {
            let name = checkpoint.name();
            let removed = checkpoint.remove();
            removed.map_err(|error| {
                let failure = Failure::system(&name, &error);
                failure.note("the copy is whole, and its checkpoint cannot be removed")
            })?;
            Ok(done)
        }
        Err(failure) if is_gone(partial, destination) => {
            // It would only be in the way: there is nothing to go on with.
            let _ = checkpoint.remove();
            Err(failure)
        }
        Err(failure) => Err(match checkpoint.keep() {
            Some(done) => failure.note(format!(
                "{} of it are done: the same command goes on from {}",
                HumanSize(done),
                checkpoint.name()
            )),
            None => failure,
        }),
    }
}

/// Removes the checkpoint of a copy whose contents are wrong.
pub(super) fn discard(checkpoint: CheckpointFile, failure: Failure) -> Failure {
    match checkpoint.remove() {
        Ok(()) => failure,
        Err(error) => failure.note(format!("its checkpoint cannot be removed: {error}")),
    }
}
