//! What `copy` is told, resolved: both sides, what becomes of the destination, how the engine goes about it.

mod destination;

use std::{ffi::OsString, path::PathBuf};

use crate::{
    copy::{CopyOptions, Destination, Order, Source},
    endpoint::{DestinationFormat, Endpoint, EndpointKind, FormatKind, ImageFormat},
    filter::{NamedFilter, Salvage},
    format::Format,
    job::Stop,
};

use super::{
    super::{
        args::{Common, CopyArgs, ProgressStyle},
        failure::Failure,
        rate::Rate,
    },
    DigestJob, DigestTo, ReportStyle, Show, Terminals, Timeouts, Trust, check_sides,
    contents::digest_options,
    filters,
    formats::kind,
    sides::check_readable,
};
use destination::{check_conversion, destination_format, doubts};

/// A resolved `copy`.
#[derive(Debug)]
pub(crate) struct CopyJob {
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
    /// What becomes of the destination.
    pub(crate) format: DestinationFormat,
    /// What is done with the source's bitmaps.
    pub(crate) bitmaps: Bitmaps,
    pub(crate) trust: Trust,
    pub(crate) engine: CopyOptions,
    /// Where to note what is done.
    pub(crate) checkpoint: Option<PathBuf>,
    pub(crate) digest: DigestJob,
    pub(crate) timeouts: Timeouts,
    /// Whether it is known that others may write the source meanwhile.
    pub(crate) shared: bool,
    /// Whether an NBD export may be copied onto itself, which writes what is there already.
    pub(crate) onto_itself: bool,
    pub(crate) rate: Rate,
    pub(crate) show: Show,
    pub(crate) report: ReportStyle,
    /// The file that a page about the copy is written to.
    pub(crate) page: Option<PathBuf>,
    /// Whether it is told what is not as it should be.
    pub(crate) warnings: bool,
    pub(crate) verbose: bool,
    /// Tells of the two sides before anything is copied, in another tool's words.
    pub(crate) describe: Option<Describe>,
    /// What may not be meant as it was said.
    pub(crate) doubts: Vec<String>,
    /// Who asks it to end, where that is not the system.
    pub(crate) stop: Option<Stop>,
}

/// What a copy does with the persistent bitmaps of its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Bitmaps {
    /// Nothing.
    #[default]
    Ignored,
    /// They are copied, and broken ones fail the copy.
    Copied,
    /// They are copied without those that are broken.
    SkippingBroken,
}

/// Tells of a job and the two sides that were opened for it.
pub(crate) type Describe = fn(&CopyJob, &Source, &Destination);

impl CopyJob {
    /// A copy as the engine likes it best, that says nothing but warnings and waits for servers as long as they take.
    pub(crate) fn new(source: Endpoint, destination: Endpoint, format: DestinationFormat) -> Self {
        Self {
            source,
            destination,
            format,
            bitmaps: Bitmaps::Ignored,
            trust: Trust::default(),
            engine: CopyOptions::default(),
            checkpoint: None,
            digest: DigestJob::default(),
            timeouts: Timeouts::PATIENT,
            shared: false,
            onto_itself: false,
            rate: Rate::default(),
            show: Show::Nothing,
            report: ReportStyle::Nothing,
            page: None,
            warnings: true,
            verbose: false,
            describe: None,
            doubts: Vec::new(),
            stop: None,
        }
    }

    pub(crate) fn resolve(
        args: &CopyArgs,
        common: Common,
        terminals: Terminals,
    ) -> Result<Self, Failure> {
        let (sources, destination) = args.sides()?;
        let source = source(sources, args)?;
        let destination = Endpoint::parse(destination)?;
        check_sides(&source, &destination, args.json, terminals)?;
        let (format, is_allocated) = destination_format(args, &destination)?;
        let destination = match format {
            DestinationFormat::Qcow2InPlace => {
                destination.interpreted(FormatKind::Image(Format::Qcow2))
            }
            _ => destination,
        };
        check_conversion(args, &source, &format)?;
        check_checkpoint(args, &source, &destination)?;
        if common.quiet
            && args
                .progress
                .is_some_and(|style| style != ProgressStyle::Json)
        {
            return Err(Failure::usage(
                "--quiet shows no progress but that for programs, --progress=json",
            ));
        }
        let is_compressed = args.compress || format.is_packed_in_order();
        let mut engine = engine(args)?;
        engine.order = match args.in_order || is_compressed && !args.out_of_order {
            true => Order::Ascending,
            false => Order::Any,
        };
        engine.allocated = args.allocated || is_allocated;
        let to = match destination.kind() {
            _ if engine.digest.is_none() || args.json => DigestTo::Nowhere,
            EndpointKind::Standard => DigestTo::Error,
            _ => DigestTo::Output,
        };
        Ok(Self {
            bitmaps: match (args.bitmaps, args.skip_broken_bitmaps) {
                (false, _) => Bitmaps::Ignored,
                (true, false) => Bitmaps::Copied,
                (true, true) => Bitmaps::SkippingBroken,
            },
            trust: Trust::resolve(&args.formats.follow),
            engine,
            checkpoint: args.checkpoint.clone(),
            digest: DigestJob {
                expect: args.expect,
                to,
            },
            timeouts: Timeouts::resolve(args.timeouts),
            shared: args.force_share,
            rate: Rate {
                limit: args.rate.map(|rate| rate.0),
                file: args.rate_file.clone(),
            },
            show: Show::resolve(args.progress, common, terminals),
            report: match (args.json, common.quiet) {
                (true, _) => ReportStyle::Json,
                (false, true) => ReportStyle::Nothing,
                (false, false) => ReportStyle::Sentence,
            },
            page: args.report.clone(),
            warnings: args.json || !common.quiet,
            verbose: common.verbose,
            doubts: doubts(args, &destination),
            ..Self::new(source, destination, format)
        })
    }
}

/// What the engine is told, but for what depends on the destination.
fn engine(args: &CopyArgs) -> Result<CopyOptions, Failure> {
    if let (Some(queue), Some(request)) = (args.queue_size, args.request_size)
        && queue.0 < request.0
    {
        return Err(Failure::usage(format!(
            "--queue-size {queue} is less than one request of {request}"
        )));
    }
    let asked = args.checksum.map(Option::unwrap_or_default);
    // A bare `--checksum` leaves it to the digest that is expected.
    let said = args.checksum.flatten();
    let mut engine = CopyOptions::default();
    engine.connections = usize::from(args.connections);
    engine.requests = args.requests.or(args.parallel).map(usize::from);
    // The parsers have kept these two at 32 MiB at most.
    engine.request_size = args
        .request_size
        .and_then(|size| u32::try_from(size.0).ok());
    engine.sparse = u32::try_from(args.sparse.0).ok().filter(|size| *size > 0);
    engine.queue_size = args.queue_size.map(|size| size.0);
    engine.destination_is_zero = args.destination_is_zero;
    engine.flush = !args.no_flush;
    engine.extents = !args.no_extents;
    engine.retries = args.retries;
    engine.digest = digest_options(said, args.expect)?.or(asked);
    engine.verify = args.verify;
    Ok(engine)
}

/// Refuses to note what is done where that will not be there later.
fn check_checkpoint(
    args: &CopyArgs,
    source: &Endpoint,
    destination: &Endpoint,
) -> Result<(), Failure> {
    let is_stream = |endpoint: &Endpoint| {
        matches!(
            endpoint.kind(),
            EndpointKind::Standard | EndpointKind::Null(_) | EndpointKind::Memory { .. }
        )
    };
    if args.checkpoint.is_some() && (is_stream(source) || is_stream(destination)) {
        return Err(Failure::usage(
            "--checkpoint needs a source and a destination that keep what they hold",
        ));
    }
    Ok(())
}

/// What is copied: one source, or several joined, behind the filters.
fn source(sources: &[OsString], args: &CopyArgs) -> Result<Endpoint, Failure> {
    let parts = sources.iter().map(|text| {
        Ok(Endpoint::parse(text)?.interpreted(ImageFormat {
            kind: kind(args.formats.format),
            snapshot: args.snapshot.clone(),
            ..ImageFormat::default()
        }))
    });
    let parts: Vec<_> = parts.collect::<Result<_, Failure>>()?;
    let whole = match <[Endpoint; 1]>::try_from(parts) {
        Ok([only]) => only,
        Err(parts) => {
            let is_stream = |part: &&Endpoint| matches!(part.kind(), EndpointKind::Standard);
            if let Some(stream) = parts.iter().find(is_stream) {
                return Err(Failure::usage(format!(
                    "{stream}: a stream cannot be joined with others"
                )));
            }
            for part in &parts {
                check_readable(part)?;
            }
            Endpoint::joined(parts)
        }
    };
    let mut filters = filters(&args.filters)?;
    if args.salvage {
        filters.push(NamedFilter::new(Salvage::default()));
    }
    Ok(whole.behind(filters))
}

#[cfg(test)]
mod tests;
