//! `blockferry copy`: opens both sides, lets the engine run, and cleans up however it ends.

mod image;
mod notices;

use std::{
    convert::Infallible,
    fs,
    future::Future,
    path::Path,
    pin::pin,
    time::{Duration, Instant},
};

use crate::{
    block::{DeviceInfo, Error, ErrorKind, HumanSize},
    copy::{self, Control, CopyError, Destination, Digest, Observer, Report, Side, Source},
    endpoint::{
        Connection, DestinationFile, Endpoint, EndpointKind, OpenDestination, OpenOptions,
        OpenSource, UnfinishedImage, is_same_image, is_written_by_others, open_destination,
        open_source, printable, seems_to_be,
    },
};

use super::super::{
    checkpoint::CheckpointFile,
    failure::Failure,
    options::{CopyJob, DigestTo, ReportStyle, open_options},
    output::{print, tell},
    page::{self, Place, Recorder},
    preflight::check_room,
    progress::View,
    report,
    signals::{Interrupt, Signals},
};
use super::checksum::{line, wrong_digest};
use image::{begin, wanted_bitmaps};
use notices::Collected;

/// How long after the first request to end a copy may finish what is in flight.
const GRACE: Duration = Duration::from_secs(5);

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
            tell_success(&job, &done.report, done.elapsed, &view.warnings())?;
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
    // A thread that sits in a read of standard input would never let a usual shutdown end.
    runtime.shutdown_background();
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
    let options = job.trust.in_options(open_options(job.timeouts));
    let control = Control::new();
    let mut limit = job.rate.begin(&control)?;
    let mut reload = signals
        .reload(job.rate.file.is_some())
        .map_err(|error| Failure::system("signals", &error))?;
    if let Some(path) = &job.checkpoint {
        CheckpointFile::check_place(path, &job.source, &job.destination)?;
    }
    // The source first: nothing of the destination is touched unless there is something to copy.
    let mut source_options = options.clone();
    if !job.engine.extents {
        // Who does not want to be asked may not even take the question well.
        source_options.contexts.clear();
    }
    let notices = Collected::default();
    source_options.notices = Some(notices.listener());
    let source = open_source(&job.source, &source_options);
    let opened = unless_interrupted(source, &mut signals).await?;
    for notice in notices.take() {
        view.warn(&notice);
    }
    let OpenSource {
        source,
        connection: mut source_connection,
    } = opened.map_err(|error| unless_swapped(error, job))?;
    let tolerated = job.onto_itself && matches!(job.source.kind(), EndpointKind::Nbd(_));
    if !tolerated && is_same_image(&job.source, &job.destination) {
        let (source, destination) = (&job.source, &job.destination);
        return Err(Failure::failed(format!(
            "{destination}: it is the same image as {source}"
        )));
    }
    if source_connection.follows(&job.destination) {
        let (source, destination) = (&job.source, &job.destination);
        return Err(Failure::failed(format!(
            "{destination}: {source} needs it, as one of the files behind it"
        )));
    }
    if let Some(data_file) = job.format.data_file(&job.destination)
        && source_connection.follows(&data_file)
    {
        let source = &job.source;
        return Err(Failure::failed(format!(
            "{data_file}: {source} needs it, as one of the files behind it: it cannot become a data file"
        )));
    }
    let destination_options = OpenOptions {
        keep_partial: job.checkpoint.is_some(),
        in_place: job.format.is_in_place(),
        ..options
    };
    let destination = open_destination(&job.destination, &destination_options);
    let opened = unless_interrupted(destination, &mut signals).await??;
    job.doubts.iter().for_each(|doubt| view.warn(doubt));
    let seen = unless_interrupted(raw_by_mistake(job, &source), &mut signals).await?;
    if let Some(doubt) = seen {
        view.warn(&doubt);
    }
    if !job.shared && is_written_by_others(&job.source) {
        view.warn(&format!(
            "{}: another program has it open and may write it: what is copied may be neither its old state nor its new one; -U says that this is known",
            job.source
        ));
    }
    let room = check_room(job, &source, &opened.destination, opened.file.as_ref());
    let doubt = unless_interrupted(room, &mut signals).await??;
    if let Some(doubt) = doubt {
        view.warn(&doubt);
    }
    let bitmaps = wanted_bitmaps(job, &source_connection, view)?;
    let begun = begin(job, source, opened, bitmaps, &destination_options);
    let (source, opened) = unless_interrupted(begun, &mut signals).await??;
    let OpenDestination {
        destination,
        connection: mut destination_connection,
        file,
        image,
    } = opened;
    if job.verbose {
        describe_sides(job, &source, &destination);
    }
    if let Some(recorder) = recorder {
        let format = source_connection.format().to_string();
        recorder.note_side("source is in the format", format);
        let (from, to) = (describe_source(&source), describe_destination(&destination));
        recorder.note_side("source offers", from);
        recorder.note_side("destination offers", to);
    }
    if let Some(describe) = job.describe {
        describe(job, &source, &destination);
    }
    let partial = file.as_ref().filter(|file| file.keeps_partial());
    let partial = partial.and_then(DestinationFile::data_path);
    let mut engine = job.engine.clone();
    let checkpoint = match &job.checkpoint {
        Some(path) => {
            let known = job.source.clone().taken_for(source_connection.format());
            let (from, to) = ((&source, &known), (&destination, &job.destination));
            let (file, checkpoint) = CheckpointFile::open(path, from, to, file.as_ref())?;
            let done = checkpoint.done.ranges.len();
            if done > 0 && job.warnings {
                let (done, name) = (HumanSize(done), file.name());
                tell(&format!("going on from {name}: {done} were done before"));
            }
            view.resumed(done);
            engine.checkpoint = Some(checkpoint);
            Some(file)
        }
        None => None,
    };
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
    let wrong = match &ended {
        Ended::Whole(done) => done
            .digest
            .and_then(|digest| wrong_digest(job.digest.expect, digest, &job.source)),
        Ended::Failed(error) if error.error.kind() == ErrorKind::Mismatch => {
            Some(Failure::from(error))
        }
        _ => None,
    };
    if let Some(failure) = wrong {
        let ending = end_servers(destination_connection, source_connection);
        let _ = unless_interrupted(ending, &mut signals).await;
        return Err(wrong_contents(failure, file, checkpoint, job));
    }
    let ended = match (ended, image) {
        (Ended::Whole(done), Some(image)) => finish_image(image, done, &mut signals).await,
        (ended, _) => ended,
    };
    if let Some(recorder) = recorder {
        recorder.note_end();
    }
    let result = match ended {
        Ended::Whole(done) => {
            let closed = destination_connection.close().await;
            let committed = closed.and_then(|()| match file {
                Some(file) if done.flushed => file.commit_durably(),
                Some(file) => file.commit(),
                None => Ok(()),
            });
            let elapsed = begun.elapsed();
            tell_filters(job, &source_connection, view, recorder);
            // It was only read.
            let _ = source_connection.close().await;
            committed.map(|()| (done, elapsed)).map_err(Failure::from)
        }
        Ended::Failed(error) => {
            let mut failure = Failure::from(&error);
            for connection in [&mut source_connection, &mut destination_connection] {
                if let Some(end) = connection.early_end() {
                    failure = failure.note(end);
                }
            }
            // Nothing was touched before there was a plan.
            let failure = match error.side {
                Side::Plan => failure,
                _ => incomplete(failure, file.as_ref(), &job.destination),
            };
            let ending = end_servers(destination_connection, source_connection);
            // Nobody needs to wait for the servers: they are killed when this is dropped.
            let _ = unless_interrupted(ending, &mut signals).await;
            Err(failure)
        }
        Ended::Unfinished(error) => {
            let ending = end_servers(destination_connection, source_connection);
            let _ = unless_interrupted(ending, &mut signals).await;
            let failure = Failure::from(error.on(job.destination.name()));
            Err(incomplete(failure, file.as_ref(), &job.destination))
        }
        Ended::Interrupted(interrupt) => {
            let ending = end_servers(destination_connection, source_connection);
            let _ = unless_interrupted(ending, &mut signals).await;
            let failure = Failure::interrupted(interrupt);
            Err(incomplete(failure, file.as_ref(), &job.destination))
        }
        Ended::AtOnce(interrupt) => {
            destination_connection.kill();
            source_connection.kill();
            let failure = Failure::interrupted(interrupt);
            Err(incomplete(failure, file.as_ref(), &job.destination))
        }
    };
    match (result, checkpoint) {
        (Ok(done), Some(checkpoint)) => {
            let name = checkpoint.name();
            let removed = checkpoint.remove();
            removed.map_err(|error| {
                let failure = Failure::system(&name, &error);
                failure.note("the copy is whole, and its checkpoint cannot be removed")
            })?;
            Ok(done)
        }
        (Err(failure), Some(checkpoint)) if is_gone(partial.as_deref(), &job.destination) => {
            // It would only be in the way: there is nothing to go on with.
            let _ = checkpoint.remove();
            Err(failure)
        }
        (Err(failure), Some(checkpoint)) => Err(match checkpoint.keep() {
            Some(done) => failure.note(format!(
                "{} of it are done: the same command goes on from {}",
                HumanSize(done),
                checkpoint.name()
            )),
            None => failure,
        }),
        (result, None) => result,
    }
}

/// The failure to open the source, with the advice of those who have named both sides the wrong way round.
fn unless_swapped(error: Error, job: &CopyJob) -> Failure {
    let is_missing = error.kind() == ErrorKind::NotFound;
    let failure = Failure::from(error);
    match (job.source.kind(), job.destination.kind()) {
        (EndpointKind::File(_), EndpointKind::File(path)) if is_missing && path.is_file() => {
            let there = &job.destination;
            failure.hint(format!(
                "the source comes first, and {there} is there: is it the other way round?"
            ))
        }
        _ => failure,
    }
}

/// What is said of a source whose bytes are copied because nobody said what they are, and that begins as an image.
async fn raw_by_mistake(job: &CopyJob, source: &Source) -> Option<String> {
    let Source::Device(device) = source else {
        return None;
    };
    if !job.warnings || matches!(job.destination.kind(), EndpointKind::Null(_)) {
        return None;
    }
    let format = seems_to_be(&job.source, &**device).await?;
    Some(format!(
        "{}: it begins as an image in the format {format}, and its bytes are copied as they are; \
         -f {format} copies the disk in it, -f raw says that the bytes are meant",
        job.source
    ))
}

/// How a copy ended.
enum Ended {
    Whole(Report),
    Failed(CopyError),
    /// All of it was copied, and the image could not be completed.
    Unfinished(Error),
    /// Everything in flight was finished.
    Interrupted(Interrupt),
    /// Somebody did not want to wait for that.
    AtOnce(Interrupt),
}

/// Runs the copy to its end. The first request to end cancels it and gives it time to finish what is in
/// flight; the second one, or too much time, ends it at once.
async fn finish_or_interrupt(
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
async fn finish_image(image: UnfinishedImage, done: Report, signals: &mut Signals) -> Ended {
    tokio::select! {
        finished = image.finish() => match finished {
            Ok(()) => Ended::Whole(done),
            Err(error) => Ended::Unfinished(error),
        },
        interrupt = signals.next() => Ended::Interrupted(interrupt),
    }
}

/// Tells what the filters of the source have to say in the end.
fn tell_filters(job: &CopyJob, source: &Connection, view: &View, recorder: Option<&Recorder<'_>>) {
    for counters in source.filter_counters() {
        for warning in &counters.warnings {
            view.warn(&format!("{}: {warning}", job.source));
        }
        if job.verbose || job.warnings && !counters.warnings.is_empty() {
            report::tell_counters(&counters);
        }
        if let Some(recorder) = recorder {
            recorder.note_filter(counters);
        }
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

/// Lets servers that were started for us end in good order: an image format may have to be closed.
async fn end_servers(destination: Connection, source: Connection) {
    destination.abandon().await;
    source.abandon().await;
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
fn is_gone(partial: Option<&Path>, destination: &Endpoint) -> bool {
    let missing = |path: &Path| path.try_exists().is_ok_and(|found| !found);
    match (partial, destination.kind()) {
        (Some(partial), EndpointKind::File(path)) => missing(partial) && missing(path),
        _ => false,
    }
}

fn tell_success(
    job: &CopyJob,
    done: &Report,
    elapsed: Duration,
    warnings: &[String],
) -> Result<(), Failure> {
    if job.verbose {
        tell(&format!(
            "{} connections to the source, {} to the destination; in the end requests of {} bytes, {} bytes in flight",
            done.source_connections,
            done.destination_connections,
            done.request_size,
            done.queue_size,
        ));
    }
    if let Some(digest) = done.digest {
        tell_digest(job, digest)?;
    }
    match job.report {
        ReportStyle::Nothing => Ok(()),
        ReportStyle::Sentence => {
            tell(&report::sentence(done, elapsed));
            Ok(())
        }
        ReportStyle::Json => {
            let text = report::json(done, job.engine.digest, elapsed, warnings);
            print(&text)
        }
    }
}

/// Prints the digest of what was copied, where it is wanted.
fn tell_digest(job: &CopyJob, digest: Digest) -> Result<(), Failure> {
    let line = line(digest, &job.source);
    match &job.digest.to {
        DigestTo::Nowhere => Ok(()),
        DigestTo::Output => print(&line),
        DigestTo::Error => {
            tell(line.trim_end());
            Ok(())
        }
        DigestTo::Plain => print(&format!("{digest}\n")),
        DigestTo::PlainError => {
            tell(&digest.to_string());
            Ok(())
        }
        DigestTo::File(path) => fs::write(path, format!("{digest}\n"))
            .map_err(|error| Failure::system(&printable(path.as_os_str()), &error)),
    }
}

/// What was copied is not what it should be: nothing of it is kept, as far as that is ours to say.
fn wrong_contents(
    mut failure: Failure,
    file: Option<DestinationFile>,
    checkpoint: Option<CheckpointFile>,
    job: &CopyJob,
) -> Failure {
    if let Some(Err(error)) = checkpoint.map(CheckpointFile::remove) {
        failure = failure.note(format!("its checkpoint cannot be removed: {error}"));
    }
    match file {
        Some(mut file) if !file.existed() => {
            file.give_up_partial();
            failure.note(format!("{} is not kept", job.destination))
        }
        _ => failure,
    }
}

fn describe_sides(job: &CopyJob, source: &Source, destination: &Destination) {
    let source = describe_source(source);
    let destination = describe_destination(destination);
    tell(&format!("source {}: {source}", job.source));
    tell(&format!("destination {}: {destination}", job.destination));
    let engine = &job.engine;
    let or_adaptive = |size: Option<u64>| match size {
        Some(size) => size.to_string(),
        None => "adaptive".to_owned(),
    };
    tell(&format!(
        "at most {} connections, requests on each: {}, bytes per request: {}, bytes in flight: {}",
        engine.connections,
        or_adaptive(engine.requests.map(|requests| requests as u64)),
        or_adaptive(engine.request_size.map(u64::from)),
        or_adaptive(engine.queue_size),
    ));
}

fn describe_source(source: &Source) -> String {
    match source {
        Source::Device(device) => describe(device.info()),
        _ => "a stream".to_owned(),
    }
}

fn describe_destination(destination: &Destination) -> String {
    match destination {
        Destination::Device(device) => describe(device.info()),
        _ => "a stream".to_owned(),
    }
}

fn describe(info: &DeviceInfo) -> String {
    let limits = info.limits;
    format!(
        "{} bytes, blocks of {}, {} and at most {} bytes, {}",
        info.size,
        limits.minimum,
        limits.preferred,
        limits.maximum,
        bitflags_text(info),
    )
}

fn bitflags_text(info: &DeviceInfo) -> String {
    let names: Vec<_> = info
        .capabilities
        .iter_names()
        .map(|(name, _)| name.to_ascii_lowercase().replace('_', "-"))
        .collect();
    if names.is_empty() {
        return "read-only".to_owned();
    }
    names.join(" ")
}
