//! How work on an image in its place ends that somebody interrupts: where the image is sound.

use std::{convert::Infallible, future::Future, pin::pin};

use crate::block::{ErrorKind, Result as BlockResult};

use super::super::{failure::Failure, signals::Signals};

/// What is told of an image whose work was interrupted.
pub(super) struct Ends {
    /// It came to an end before it was done.
    pub(super) stopped: String,
    /// Nobody waited for that: it is what a crash leaves.
    pub(super) abandoned: String,
}

/// Does `work` to its end. Somebody who interrupts it has it asked to end where the image is sound; who does not want
/// to wait for that, and interrupts again, leaves the image as a crash would.
pub(super) async fn until_sound<T>(
    work: impl Future<Output = BlockResult<T>>,
    ask: impl FnOnce(),
    mut signals: Signals,
    ends: Ends,
) -> Result<T, Failure> {
    let mut work = pin!(work);
    let interrupt = tokio::select! {
        done = &mut work => return Ok(done?),
        interrupt = signals.next() => interrupt,
    };
    ask();
    let done = tokio::select! {
        done = work => done,
        again = signals.next() => return Err(Failure::interrupted(again).note(ends.abandoned)),
    };
    match done {
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            Err(Failure::interrupted(interrupt).note(ends.stopped))
        }
        done => Ok(done?),
    }
}

/// Does `work` to its end, and `side` beside it until then.
pub(super) async fn beside<T>(
    work: impl Future<Output = T>,
    side: impl Future<Output = Infallible>,
) -> T {
    tokio::select! {
        done = work => done,
        never = side => match never {},
    }
}
