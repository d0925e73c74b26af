//! How a copy ends: what becomes of the destination, and of the servers that were started for it.

use std::{
    future::Future,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    block::{Error, ErrorKind},
    copy::{Control, CopyError, Report, Side},
    endpoint::{Connection, DestinationFile, Endpoint, EndpointKind, UnfinishedImage, printable},
};

use super::{
    super::{
        super::{
            failure::Failure,
            options::CopyJob,
            signals::{Interrupt, Signals},
        },
        checksum::wrong_digest,
    },
    unless_interrupted,
};

/// How long after the first request to end a copy may finish what is in flight.
const GRACE: Duration = Duration::from_secs(5);

/// How a copy ended.
pub(super) enum Ended {
    Whole(Report),
    Failed(CopyError),
    /// All of it was copied, and the image could not be completed.
    Unfinished(Error),
    /// Everything in flight was finished.
    Interrupted(Interrupt),
    /// Somebody did not want to wait for that.
    AtOnce(Interrupt),
}

impl Ended {
    /// What is wrong with the contents, where something is.
    pub(super) fn wrong_contents(&self, job: &CopyJob) -> Option<Failure> {
        match self {
            Self::Whole(done) => done
                .digest
                .and_then(|digest| wrong_digest(job.digest.expect, digest, &job.source)),
            Self::Failed(error) if error.error.kind() == ErrorKind::Mismatch => {
                Some(Failure::from(error))
            }
            _ => None,
        }
    }
}

/// Runs the copy to its end. The first request to end cancels it and gives it time to finish what is in
/// flight; the second one, or too much time, ends it at once.
pub(super) async fn finish_or_interrupt(
    mut copying: impl Future<Output = Result<Report, CopyError>> + Unpin,
    control: &Control,
    signals: &mut Signals,
) -> Ended {
    let interrupt = tokio::select! {
        result = &mut copying => {
            return match result {
                Ok(report) => Ended::Whole(report),
                Err(error) => Ended::Failed(error),
            };
        }
        interrupt = signals.next() => interrupt,
    };
    control.cancel();
    tokio::select! {
        // It may have come to its end before it heard of it.
        result = &mut copying => match result {
            Ok(report) => Ended::Whole(report),
            Err(_) => Ended::Interrupted(interrupt),
        },
        again = signals.next() => Ended::AtOnce(again),
        () = tokio::time::sleep(GRACE) => Ended::Interrupted(interrupt),
    }
}

/// Completes an image in a format. Until then it is none.
pub(super) async fn finish_image(
    image: UnfinishedImage,
    done: Report,
    signals: &mut Signals,
) -> Ended {
    tokio::select! {
        finished = image.finish() => match finished {
            Ok(()) => Ended::Whole(done),
            Err(error) => Ended::Unfinished(error),
        },
        interrupt = signals.next() => Ended::Interrupted(interrupt),
    }
}

/// What keeps both sides alive.
pub(super) struct Connections {
    pub(super) from: Connection,
    pub(super) to: Connection,
}

impl Connections {
    /// Ends a copy that began at `begun` and `ended` so; the `file` of one that is whole appears under its name. How
    /// long it took is told, too. `tell` is shown the source of a whole one while it is there.
    pub(super) async fn end(
        self,
        ended: Ended,
        begun: Instant,
        file: &mut Option<DestinationFile>,
        job: &CopyJob,
        signals: &mut Signals,
        tell: impl FnOnce(&Connection),
    ) -> Result<(Report, Duration), Failure> {
        let Self { mut from, mut to } = self;
        let failure = match ended {
            Ended::Whole(done) => {
                let closed = to.close().await;
                let committed = closed.and_then(|()| match file.take() {
                    Some(file) if done.flushed => file.commit_durably(),
                    Some(file) => file.commit(),
                    None => Ok(()),
                });
                let elapsed = begun.elapsed();
                tell(&from);
                // It was only read.
                let _ = from.close().await;
                return committed.map(|()| (done, elapsed)).map_err(Failure::from);
            }
            Ended::Failed(error) => {
                let mut failure = Failure::from(&error);
                for connection in [&mut from, &mut to] {
                    if let Some(end) = connection.early_end() {
                        failure = failure.note(end);
                    }
                }
                // Nothing was touched before there was a plan.
                let failure = match error.side {
                    Side::Plan => failure,
                    _ => incomplete(failure, file.as_ref(), &job.destination),
                };
                end_servers(to, from, signals).await;
                return Err(failure);
            }
            Ended::Unfinished(error) => {
                end_servers(to, from, signals).await;
                Failure::from(error.on(job.destination.name()))
            }
            Ended::Interrupted(interrupt) => {
                end_servers(to, from, signals).await;
                Failure::interrupted(interrupt)
            }
            Ended::AtOnce(interrupt) => {
                to.kill();
                from.kill();
                Failure::interrupted(interrupt)
            }
        };
        Err(incomplete(failure, file.as_ref(), &job.destination))
    }

    /// Ends a copy whose contents are wrong: nothing of it is kept, as far as that is ours to say.
    pub(super) async fn discard(
        self,
        failure: Failure,
        file: Option<DestinationFile>,
        job: &CopyJob,
        signals: &mut Signals,
    ) -> Failure {
        end_servers(self.to, self.from, signals).await;
        match file {
            Some(mut file) if !file.existed() => {
                file.give_up_partial();
                failure.note(format!("{} is not kept", job.destination))
            }
            _ => failure,
        }
    }
}

/// Lets servers that were started for us end in good order: an image format may have to be closed. Nobody needs to wait
/// for them: they are killed when this is dropped.
async fn end_servers(destination: Connection, source: Connection, signals: &mut Signals) {
    let ending = async {
        destination.abandon().await;
        source.abandon().await;
    };
    let _ = unless_interrupted(ending, signals).await;
}

/// Says what became of the destination.
fn incomplete(failure: Failure, file: Option<&DestinationFile>, destination: &Endpoint) -> Failure {
    match file {
        None => failure,
        Some(file) if file.is_untouched() => failure,
        Some(file) if file.existed() => failure.note(format!("{destination} is incomplete")),
        Some(file) => match file.data_path().filter(|_| file.keeps_partial()) {
            Some(partial) if !is_gone(Some(&partial), destination) => {
                let partial = printable(partial.as_os_str());
                failure.note(format!("what was copied is kept as {partial}"))
            }
            _ => failure.note(format!("{destination} is incomplete and not kept")),
        },
    }
}

/// Whether somebody removed the partial file, and the copy has not its own name either.
pub(super) fn is_gone(partial: Option<&Path>, destination: &Endpoint) -> bool {
    let missing = |path: &Path| path.try_exists().is_ok_and(|found| !found);
    match (partial, destination.kind()) {
        (Some(partial), EndpointKind::File(path)) => missing(partial) && missing(path),
        _ => false,
    }
}
