//! Another backing file for an image.

use std::sync::Arc;

use crate::{
    copy::{Event, Observer, Progress},
    endpoint::{Endpoint, Rebase, rebase_image},
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
pub(crate) struct RebaseJob {
    pub(crate) image: Endpoint,
    pub(crate) rebase: Rebase,
    pub(crate) trust: Trust,
    pub(crate) show: Show,
    pub(crate) quiet: bool,
}

pub(crate) fn run(job: RebaseJob) -> Result<(), Failure> {
    let view = Arc::new(View::new(job.show.clone(), job.quiet));
    let runtime = super::runtime()?;
    let done = runtime.block_on(rebase_image_of(job, &view));
    // What a second signal did not wait for is not waited for here.
    runtime.shutdown_background();
    view.finish_with(&done);
    done
}

async fn rebase_image_of(mut job: RebaseJob, view: &Arc<View>) -> Result<(), Failure> {
    let wrong = |error| Failure::system("signals", &error);
    let signals = Signals::listen().map_err(wrong)?;
    let questions = view.listen().map_err(wrong)?;
    let options = job.trust.in_options(open_options(Timeouts::PATIENT));
    let shown = Arc::clone(view);
    job.rebase.progress = Some(Arc::new(move |done, size| {
        shown.event(match done {
            0 => Event::Planned { size: Some(size) },
            done => Event::Progress(Progress {
                done,
                ..Progress::default()
            }),
        });
    }));
    let image = &job.image;
    let ends = Ends {
        stopped: format!("{image} has the backing file that it had"),
        abandoned: format!(
            "{image} has its old backing file or the new one; 'blockferry check --repair leaks' gives back what space was lost"
        ),
    };
    let work = rebase_image(image, &job.rebase, &options);
    let work = beside(work, view.keep_telling(questions));
    until_sound(work, || job.rebase.stop.ask(), signals, ends).await
}
