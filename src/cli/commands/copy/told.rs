//! What is told of a copy: of its sides where somebody wants to know more, and in the end.

use std::{fs, time::Duration};

use crate::{
    block::DeviceInfo,
    copy::{Destination, Digest, Report, Source},
    endpoint::{Connection, printable},
};

use super::{
    super::{
        super::{
            failure::Failure,
            options::{CopyJob, DigestTo, ReportStyle},
            output::{print, tell},
            page::Recorder,
            progress::View,
            report,
        },
        checksum::line,
    },
    sides::Sides,
};

/// Tells of both sides, each in the way that somebody wants to hear of them.
pub(super) fn tell_sides(job: &CopyJob, sides: &Sides, recorder: Option<&Recorder<'_>>) {
    let (source, destination) = (&sides.source, &sides.destination);
    if job.verbose {
        describe_sides(job, source, destination);
    }
    if let Some(recorder) = recorder {
        let format = sides.from.format().to_string();
        recorder.note_side("source is in the format", format);
        let (from, to) = (describe_source(source), describe_destination(destination));
        recorder.note_side("source offers", from);
        recorder.note_side("destination offers", to);
    }
    if let Some(describe) = job.describe {
        describe(job, source, destination);
    }
}

/// Tells what the filters of the source have to say in the end.
pub(super) fn tell_filters(
    job: &CopyJob,
    source: &Connection,
    view: &View,
    recorder: Option<&Recorder<'_>>,
) {
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

/// Tells that the copy is made.
pub(super) fn tell_success(
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
