//! The image in a format that a copy makes of its destination: begun, and given the bitmaps of the source.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
};

use crate::{
    copy::{Destination, Source},
    endpoint::{
        Connection, DestinationFormat, EndpointKind, OpenDestination, OpenOptions, UnfinishedImage,
        printable,
    },
    format::{Details, qcow2::BitmapDetails},
};

use super::super::super::{
    failure::Failure,
    options::{Bitmaps, CopyJob},
    progress::View,
};

/// Begins the image in a format that the destination is to become, if it is. What is copied then may be another
/// source: the file that has the image in it.
pub(super) async fn begin(
    job: &CopyJob,
    source: Source,
    opened: OpenDestination,
    bitmaps: Vec<BitmapDetails>,
    options: &OpenOptions,
) -> Result<(Source, OpenDestination), Failure> {
    // Of what is compressed the digest is that of the disk.
    let is_bytes = matches!(
        job.format,
        DestinationFormat::Raw | DestinationFormat::Packed(_)
    );
    let is_image = !is_bytes && !job.format.is_in_place();
    if job.engine.verify && is_only_written(job, &opened.destination) {
        return Err(Failure::failed(
            "standard output is only written here, and cannot be read back to be verified: name the file",
        ));
    }
    if is_image && matches!(opened.destination, Destination::Stream(_)) {
        if job.engine.verify {
            return Err(Failure::failed(
                "a stream cannot be read back, so the image in it cannot be verified; write it to a file",
            ));
        }
        if job.engine.digest.is_some() {
            return Err(Failure::usage(
                "the digest of an image is not computed while it is streamed in a format; write it to a file",
            ));
        }
        if !bitmaps.is_empty() {
            return Err(Failure::usage(
                "bitmaps are not streamed with an image: write it to a file",
            ));
        }
    }
    let device = match &source {
        Source::Device(device) => Some(device.clone()),
        Source::Stream(_) => None,
    };
    let source = (source, &job.source);
    let (source, opened) = job
        .format
        .begin(&job.destination, source, opened, options)
        .await?;
    let image = opened.image.as_ref().and_then(UnfinishedImage::as_qcow2);
    if let (Some(image), Some(device)) = (image, device) {
        for bitmap in bitmaps {
            let name = printable(bitmap.name.as_ref());
            image.add_bitmap(bitmap, device.clone()).map_err(|error| {
                let destination = &job.destination;
                Failure::failed(format!("{destination}: the bitmap \"{name}\": {error}"))
            })?;
        }
    }
    Ok((source, opened))
}

/// Whether the destination is a standard output that leads into a file, and was opened for writing alone, as `> FILE`
/// does.
fn is_only_written(job: &CopyJob, destination: &Destination) -> bool {
    let is_file = matches!(destination, Destination::Device(_));
    if !is_file || !matches!(job.destination.kind(), EndpointKind::Standard) {
        return false;
    }
    let output = io::stdout().as_fd().try_clone_to_owned();
    output.is_ok_and(|output| File::from(output).read_at(&mut [0], 0).is_err())
}

/// The bitmaps of the source that are to be copied.
pub(super) fn wanted_bitmaps(
    job: &CopyJob,
    source: &Connection,
    view: &View,
) -> Result<Vec<BitmapDetails>, Failure> {
    if job.bitmaps == Bitmaps::Ignored {
        return Ok(Vec::new());
    }
    let name = &job.source;
    let details = source.details();
    let Some(details) = details.as_ref().and_then(Details::as_qcow2) else {
        return Err(Failure::failed(format!(
            "{name}: it is not a qcow2 image, and has no bitmaps"
        )));
    };
    let mut wanted = Vec::new();
    for bitmap in details.bitmaps.clone() {
        let shown = printable(bitmap.name.as_ref());
        if !bitmap.in_use {
            wanted.push(bitmap);
        } else if job.bitmaps == Bitmaps::SkippingBroken {
            view.warn(&format!(
                "{name}: the bitmap \"{shown}\" is broken and left out"
            ));
        } else {
            let failure = Failure::failed(format!(
                "{name}: the bitmap \"{shown}\" is broken: the image was not closed when it was in use"
            ));
            return Err(failure.hint("--skip-broken-bitmaps leaves such bitmaps out"));
        }
    }
    Ok(wanted)
}
