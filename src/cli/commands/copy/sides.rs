//! Both sides of a copy, opened: what has to be known of them before anything is copied.

use crate::{
    block::{Error, ErrorKind},
    copy::{Destination, Source},
    endpoint::{
        Connection, DestinationFile, EndpointKind, OpenDestination, OpenOptions, OpenSource,
        UnfinishedImage, is_same_image, is_written_by_others, open_destination, open_source,
        seems_to_be,
    },
};

use super::{
    super::super::{
        failure::Failure,
        options::{CopyJob, open_options},
        preflight::check_room,
        progress::View,
        signals::Signals,
    },
    image::{begin, wanted_bitmaps},
    notices::Collected,
    unless_interrupted,
};

/// Both sides.
pub(super) struct Sides {
    pub(super) source: Source,
    pub(super) destination: Destination,
    /// What keeps the source alive.
    pub(super) from: Connection,
    /// What keeps the destination alive.
    pub(super) to: Connection,
    /// The destination, where it is a file: to be committed once the copy is whole.
    pub(super) file: Option<DestinationFile>,
    /// The image in a format that is being made of it: to be finished before that.
    pub(super) image: Option<UnfinishedImage>,
}

impl Sides {
    /// Opens both, and refuses, or warns of, what would end badly. The source first: nothing of the destination is
    /// touched unless there is something to copy.
    pub(super) async fn open(
        job: &CopyJob,
        view: &View,
        signals: &mut Signals,
    ) -> Result<Self, Failure> {
        let options = job.trust.in_options(open_options(job.timeouts));
        let OpenSource {
            source,
            connection: from,
        } = open_to_read(job, &options, view, signals).await?;
        check_apart(job, &from)?;
        let options = OpenOptions {
            keep_partial: job.checkpoint.is_some(),
            in_place: job.format.is_in_place(),
            ..options
        };
        let opened = open_destination(&job.destination, &options);
        let opened = unless_interrupted(opened, signals).await??;
        job.doubts.iter().for_each(|doubt| view.warn(doubt));
        let seen = unless_interrupted(raw_by_mistake(job, &source), signals).await?;
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
        let doubt = unless_interrupted(room, signals).await??;
        if let Some(doubt) = doubt {
            view.warn(&doubt);
        }
        let bitmaps = wanted_bitmaps(job, &from, view)?;
        let begun = begin(job, source, opened, bitmaps, &options);
        let (source, opened) = unless_interrupted(begun, signals).await??;
        let OpenDestination {
            destination,
            connection: to,
            file,
            image,
        } = opened;
        Ok(Self {
            source,
            destination,
            from,
            to,
            file,
            image,
        })
    }
}

/// Opens the source. What is said of it meanwhile is told as a warning.
async fn open_to_read(
    job: &CopyJob,
    options: &OpenOptions,
    view: &View,
    signals: &mut Signals,
) -> Result<OpenSource, Failure> {
    let mut options = options.clone();
    if !job.engine.extents {
        // Who does not want to be asked may not even take the question well.
        options.contexts.clear();
    }
    let notices = Collected::default();
    options.notices = Some(notices.listener());
    let opened = unless_interrupted(open_source(&job.source, &options), signals).await?;
    for notice in notices.take() {
        view.warn(&notice);
    }
    opened.map_err(|error| unless_swapped(error, job))
}

/// Refuses to write what is read.
fn check_apart(job: &CopyJob, from: &Connection) -> Result<(), Failure> {
    let (source, destination) = (&job.source, &job.destination);
    let tolerated = job.onto_itself && matches!(source.kind(), EndpointKind::Nbd(_));
    if !tolerated && is_same_image(source, destination) {
        return Err(Failure::failed(format!(
            "{destination}: it is the same image as {source}"
        )));
    }
    if from.follows(destination) {
        return Err(Failure::failed(format!(
            "{destination}: {source} needs it, as one of the files behind it"
        )));
    }
    if let Some(data_file) = job.format.data_file(destination)
        && from.follows(&data_file)
    {
        return Err(Failure::failed(format!(
            "{data_file}: {source} needs it, as one of the files behind it: it cannot become a data file"
        )));
    }
    Ok(())
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
