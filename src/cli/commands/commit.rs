//! What an overlay has, written into an image behind it.

use crate::{
    copy::Control,
    endpoint::{Commit, Endpoint, commit_image},
};

use super::{
    super::{
        failure::Failure,
        options::{Show, Timeouts, Trust, open_options},
        progress::View,
        signals::Signals,
    },
    in_place::{Ends, beside, until_sound},
};

/// What is to be done.
pub(crate) struct CommitJob {
    pub(crate) image: Endpoint,
    pub(crate) commit: Commit,
    /// Bytes a second; `None` for no limit.
    pub(crate) rate: Option<u64>,
    pub(crate) trust: Trust,
    pub(crate) show: Show,
    pub(crate) quiet: bool,
}

pub(crate) fn run(job: &CommitJob) -> Result<(), Failure> {
    let view = View::new(job.show.clone(), job.quiet);
    let runtime = super::runtime()?;
    let done = runtime.block_on(commit_image_of(job, &view));
    // What a second signal did not wait for is not waited for here.
    runtime.shutdown_background();
    view.finish_with(&done);
    done
}

async fn commit_image_of(job: &CommitJob, view: &View) -> Result<(), Failure> {
    let wrong = |error| Failure::system("signals", &error);
    let signals = Signals::listen().map_err(wrong)?;
    let questions = view.listen().map_err(wrong)?;
    let options = job.trust.in_options(open_options(Timeouts::PATIENT));
    let control = Control::new();
    control.set_rate(job.rate.filter(|rate| *rate > 0));
    let image = &job.image;
    let note =
        format!("{image} is what it was, and its backing file has a part of it: commit it again");
    let ends = Ends {
        stopped: note.clone(),
        abandoned: note,
    };
    let work = commit_image(image, &job.commit, &options, &control, view);
    let work = beside(work, view.keep_telling(questions));
    until_sound(work, || control.cancel(), signals, ends).await
}
