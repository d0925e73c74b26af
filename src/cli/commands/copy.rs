//! `blockferry copy`: opens both sides, lets the engine run, and cleans up however it ends.
//!
//! | file | what it does |
//! |---|---|
//! | `sides` | both sides, opened, and what is wrong with them |
//! | `image` | the image in a format that the destination becomes |
//! | `notices` | what is said meanwhile |
//! | `resuming` | the checkpoint |
//! | `ending` | how a copy ends, and what becomes of everything then |
//! | `told` | what people are told of it |

mod ending;
mod image;
mod notices;
mod resuming;
mod sides;
mod told;

use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    time::{Duration, Instant},
};

use crate::{
    copy::{self, Control, Observer, Report},
    endpoint::{Connection, DestinationFile},
};

use super::super::{
    checkpoint::CheckpointFile,
    failure::Failure,
    options::{CopyJob, ReportStyle},
    output::print,
    page::{self, Place, Recorder},
    progress::View,
    report,
    signals::Signals,
};
use ending::{Connections, Ended, finish_image, finish_or_interrupt};
use sides::Sides;

/// How long the threads of blocking calls may take to end: those that have nothing to do need no time.
const LEAVE: Duration = Duration::from_millis(100);

/// A copy that was made.
pub(crate) struct Carried {
    pub(crate) report: Report,
    /// How long moving the data took.
    pub(crate) elapsed: Duration,
    /// What became of the page about it, if one was wanted.
    pub(crate) page: Result<(), Failure>,
}

#[allow(clippy::needless_pass_by_value, reason = "a job is done once")]
pub(crate) fn run(job: CopyJob) -> Result<(), Failure> {
    let view = View::new(job.show.clone(), !job.warnings);
    let result = carry_out(&job, &view);
    view.finish_with(&result);
    match result {
        Ok(done) => {
            told::tell_success(&job, &done.report, done.elapsed, &view.warnings())?;
            done.page
        }
        Err(failure) => {
            if job.report == ReportStyle::Json {
                // A standard output that cannot be written is not the first thing that failed.
                let _ = print(&report::json_failure(&failure, &view.warnings()));
            }
            Err(failure)
        }
    }
}

/// Copies on this thread, and writes a page about it where one is wanted.
pub(crate) fn carry_out(job: &CopyJob, view: &View) -> Result<Carried, Failure> {
    let page = job.page.as_deref();
    let page = page.map(|path| Place::check(path, job)).transpose()?;
    let runtime = super::runtime()?;
    let recorder = job.page.as_ref().map(|_| Recorder::new(view));
    let mut result = runtime.block_on(copy_image(job, view, recorder.as_ref()));
    // Its threads hold descriptors until they end: a program that copies with the library has none of them left. One that
    // sits in a read of standard input would never let a usual shutdown end.
    runtime.shutdown_timeout(LEAVE);
    let mut without_page = Ok(());
    if let (Some(page), Some(recorder)) = (page, recorder) {
        let mut record = recorder.into_record();
        if let Ok((_, elapsed)) = &result {
            record.ended = Some(*elapsed);
        }
        let text = page::page(job, &record, result.as_ref(), &view.warnings());
        let written = page.write(&text);
        match (written, &result) {
            (Err(failure), Ok(_)) => without_page = Err(failure.note("the copy itself is whole")),
            (written, Err(_)) => {
                let note = match written {
                    Ok(()) => format!("{} shows how far it came", page.name()),
                    Err(failure) => failure.message().to_owned(),
                };
                result = result.map_err(|failure| failure.note(note));
            }
            (Ok(()), Ok(_)) => {}
        }
    }
    result.map(|(report, elapsed)| Carried {
        report,
        elapsed,
        page: without_page,
    })
}

/// Copies, and makes a new file appear: then the copy is done. How long moving the data took is told, too.
async fn copy_image(
    job: &CopyJob,
    view: &View,
    recorder: Option<&Recorder<'_>>,
) -> Result<(Report, Duration), Failure> {
    let mut signals = match &job.stop {
        Some(stop) => Signals::Caller(stop.clone()),
        None => Signals::listen().map_err(|error| Failure::system("signals", &error))?,
    };
    let questions = view.listen();
    let questions = questions.map_err(|error| Failure::system("signals", &error))?;
    let control = Control::new();
    let mut limit = job.rate.begin(&control)?;
    let mut reload = signals
        .reload(job.rate.file.is_some())
        .map_err(|error| Failure::system("signals", &error))?;
    if let Some(path) = &job.checkpoint {
        CheckpointFile::check_place(path, &job.source, &job.destination)?;
    }
    let sides = Sides::open(job, view, &mut signals).await?;
    told::tell_sides(job, &sides, recorder);
    let (checkpoint_file, checkpoint) = resuming::open(job, &sides, view)?.unzip();
    let mut engine = job.engine.clone();
    engine.checkpoint = checkpoint;
    let Sides {
        source,
        destination,
        from,
        to,
        mut file,
        image,
    } = sides;
    let connections = Connections { from, to };
    let partial = file.as_ref().filter(|file| file.keeps_partial());
    let partial = partial.and_then(DestinationFile::data_path);
    let begun = Instant::now();
    let observer: &dyn Observer = match recorder {
        Some(recorder) => recorder,
        None => view,
    };
    let ended = {
        let copying = pin!(copy::copy(source, destination, &engine, &control, observer));
        let following = limit.follow(&control, view, &mut reload);
        let copying = beside(copying, following);
        let copying = pin!(beside(copying, view.keep_telling(questions)));
        finish_or_interrupt(copying, &control, &mut signals).await
    };
    if let Some(failure) = ended.wrong_contents(job) {
        let failure = match checkpoint_file {
            Some(file) => resuming::discard(file, failure),
            None => failure,
        };
        let discarded = connections.discard(failure, file, job, &mut signals);
        return Err(discarded.await);
    }
    let ended = match (ended, image) {
        (Ended::Whole(done), Some(image)) => finish_image(image, done, &mut signals).await,
        (ended, _) => ended,
    };
    if let Some(recorder) = recorder {
        recorder.note_end();
    }
    let tell = |source: &Connection| told::tell_filters(job, source, view, recorder);
    let result = connections.end(ended, begun, &mut file, job, &mut signals, tell);
    let result = result.await;
    match checkpoint_file {
        Some(file) => resuming::close(file, result, partial.as_deref(), &job.destination),
        None => result,
    }
}

/// Runs `main` to its end, and `side` beside it until then.
pub(super) async fn beside<T>(
    main: impl Future<Output = T>,
    side: impl Future<Output = Infallible>,
) -> T {
    tokio::select! {
        output = main => output,
        never = side => match never {},
    }
}

pub(super) async fn unless_interrupted<T>(
    future: impl Future<Output = T>,
    signals: &mut Signals,
) -> Result<T, Failure> {
    tokio::select! {
        output = future => Ok(output),
        interrupt = signals.next() => Err(Failure::interrupted(interrupt)),
    }
}
