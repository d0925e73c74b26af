//! What `copy` is told, resolved: both sides, what becomes of the destination, how the engine goes about it.

use std::{ffi::OsString, path::PathBuf};

use crate::{
    copy::{CopyOptions, Destination, Order, Source},
    endpoint::{BackingName, DestinationFormat, Endpoint, EndpointKind, FormatKind, ImageFormat},
    filter::{NamedFilter, Salvage},
    format::Format,
    job::Stop,
};

use super::{
    super::{
        args::{Common, CopyArgs, FormatArg, ProgressStyle},
        failure::Failure,
        rate::Rate,
    },
    DigestJob, DigestTo, NewFormat, ReportStyle, Show, Terminals, Timeouts, Trust,
    contents::digest_options,
    filters,
    formats::kind,
};

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
        let allocated = args.allocated || is_allocated;
        check_conversion(args, &source, &format)?;
        let is_stream = |endpoint: &Endpoint| {
            matches!(
                endpoint.kind(),
                EndpointKind::Standard | EndpointKind::Null(_) | EndpointKind::Memory { .. }
            )
        };
        if args.checkpoint.is_some() && (is_stream(&source) || is_stream(&destination)) {
            return Err(Failure::usage(
                "--checkpoint needs a source and a destination that keep what they hold",
            ));
        }
        if let (Some(queue), Some(request)) = (args.queue_size, args.request_size)
            && queue.0 < request.0
        {
            return Err(Failure::usage(format!(
                "--queue-size {queue} is less than one request of {request}"
            )));
        }
        if common.quiet
            && args
                .progress
                .is_some_and(|style| style != ProgressStyle::Json)
        {
            return Err(Failure::usage(
                "--quiet shows no progress but that for programs, --progress=json",
            ));
        }
        let asked = args.checksum.map(Option::unwrap_or_default);
        // A bare `--checksum` leaves it to the digest that is expected.
        let said = args.checksum.flatten();
        let digest = digest_options(said, args.expect)?.or(asked);
        let is_compressed = args.compress || format.is_packed_in_order();
        let mut engine = CopyOptions::default();
        engine.connections = usize::from(args.connections);
        engine.requests = args.requests.or(args.parallel).map(usize::from);
        // The parsers have kept these two at 32 MiB at most.
        engine.request_size = args
            .request_size
            .and_then(|size| u32::try_from(size.0).ok());
        engine.sparse = u32::try_from(args.sparse.0).ok().filter(|size| *size > 0);
        engine.queue_size = args.queue_size.map(|size| size.0);
        engine.order = match args.in_order || is_compressed && !args.out_of_order {
            true => Order::Ascending,
            false => Order::Any,
        };
        engine.allocated = allocated;
        engine.destination_is_zero = args.destination_is_zero;
        engine.flush = !args.no_flush;
        engine.extents = !args.no_extents;
        engine.retries = args.retries;
        engine.checkpoint = None;
        engine.digest = digest;
        engine.verify = args.verify;
        let to = match destination.kind() {
            _ if digest.is_none() || args.json => DigestTo::Nowhere,
            EndpointKind::Standard => DigestTo::Error,
            _ => DigestTo::Output,
        };
        let doubts = doubts(args, &destination);
        Ok(Self {
            source,
            destination,
            format,
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
            onto_itself: false,
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
            describe: None,
            doubts,
            stop: None,
        })
    }
}

/// What is copied: one source, or several joined, behind the filters.
fn source(sources: &[OsString], args: &CopyArgs) -> Result<Endpoint, Failure> {
    let parts = sources.iter().map(|text| {
        Ok(Endpoint::parse(text)?.interpreted(ImageFormat {
            kind: kind(args.formats.format),
            snapshot: args.snapshot.clone(),
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

/// What becomes of the destination, and whether all of a raw one is allocated.
fn destination_format(
    args: &CopyArgs,
    destination: &Endpoint,
) -> Result<(DestinationFormat, bool), Failure> {
    if args.no_create {
        return Ok((in_place(args)?, false));
    }
    let said = kind(Some(args.output_format.unwrap_or(FormatArg::Raw)));
    if said != FormatKind::Image(Format::Qcow2) {
        let needing = [
            (args.compress, "--compress"),
            (args.backing.is_some(), "--backing"),
        ];
        if let Some((_, option)) = needing.iter().find(|(is, _)| *is) {
            let failure = Failure::usage(format!("{option}: no destination but qcow2 has that"));
            return Err(failure.hint("-O qcow2 makes an image that can have it"));
        }
    }
    let new = NewFormat {
        kind: said,
        options: &args.option,
        backing: args.backing.as_ref().map(|name| BackingName {
            name: name.clone(),
            format: kind(args.backing_format),
        }),
        compress: args.compress,
        out_of_order: args.out_of_order,
        threads: args.parallel.map_or(0, usize::from),
    };
    let (format, is_allocated) = new.resolve().map_err(|message| {
        let failure = Failure::usage(format!("-O {said}: {message}"));
        match said {
            FormatKind::Raw => failure.hint("-O qcow2 makes an image that has more options"),
            _ => failure,
        }
    })?;
    if is_allocated && args.destination_is_zero {
        let message = "--destination-is-zero writes no zeroes, and -o preallocation all of them";
        return Err(Failure::usage(message));
    }
    if let DestinationFormat::Qcow2(new) = &format
        && !matches!(destination.kind(), EndpointKind::File(_))
        && let Some(name) = new.relative_names().first()
    {
        return Err(Failure::usage(format!(
            "{name} is relative to the directory of the image, and {destination} is in none: write the whole path"
        )));
    }
    Ok((format, is_allocated))
}

/// What becomes of a destination that is there already, and written as it is.
fn in_place(args: &CopyArgs) -> Result<DestinationFormat, Failure> {
    let refuse = |message: &str| Err(Failure::usage(message));
    if args.compress {
        return refuse("--compress is for images that are made, and --no-create makes none");
    }
    if !args.option.is_empty() {
        return refuse("-o says how an image is made, and --no-create makes none");
    }
    if args.backing.is_some() {
        return refuse("--backing is of an image that is made, and --no-create makes none");
    }
    match args.output_format {
        Some(FormatArg::Qcow2) => Ok(DestinationFormat::Qcow2InPlace),
        None | Some(FormatArg::Raw) => Ok(DestinationFormat::RawInPlace),
        Some(_) => refuse(
            "only raw and qcow2 images are written in place; without --no-create one is made",
        ),
    }
}

/// Refuses what does not go together.
fn check_conversion(
    args: &CopyArgs,
    source: &Endpoint,
    format: &DestinationFormat,
) -> Result<(), Failure> {
    let refuse = |message: &str| Err(Failure::usage(message));
    let is_raw = matches!(
        format,
        DestinationFormat::Raw | DestinationFormat::RawInPlace
    );
    if args.checkpoint.is_some() && !is_raw {
        return refuse(
            "--checkpoint needs a raw destination: an image that is not whole cannot be gone on with",
        );
    }
    if args.allocated && !is_raw {
        let failure = Failure::usage("--allocated is for raw destinations");
        return Err(failure.hint("-o preallocation=falloc, or =full, allocates a qcow2 image"));
    }
    if args.verify && matches!(format, DestinationFormat::Packed(_)) {
        let failure = Failure::usage("--verify does not unpack a destination again");
        return Err(failure.hint("'blockferry compare' does, afterwards"));
    }
    let overlays = match format {
        DestinationFormat::Qcow2(new) => new.backing.is_some(),
        _ => false,
    };
    if args.destination_is_zero && overlays {
        return refuse("--destination-is-zero is not true of an image with a backing file");
    }
    let joined = args.sides()?.0.len() > 1;
    let is_raw_source = args.formats.format == Some(FormatArg::Raw);
    if args.snapshot.is_some() {
        if joined {
            return refuse("--snapshot is of one source, and several are joined");
        }
        if is_raw_source {
            return refuse("--snapshot needs a source in a format, and -f says that it is raw");
        }
    }
    if !args.bitmaps {
        return Ok(());
    }
    if is_raw || is_raw_source {
        return refuse("--bitmaps needs qcow2 on both sides: raw images have none");
    }
    if args.no_create {
        return refuse("--bitmaps is for images that are made, and --no-create makes none");
    }
    if joined || args.snapshot.is_some() || !args.filters.filter.is_empty() {
        return refuse(
            "--bitmaps are about one image as it is: they do not go with --snapshot, --filter or several sources",
        );
    }
    check_readable(source)
}

/// How files are called that are in a format.
const SUFFIXES: &[&str] = &[
    "qcow2",
    "qcow",
    "qed",
    "vmdk",
    "vhdx",
    "vhd",
    "vdi",
    "vpc",
    "parallels",
    "ova",
    "gz",
    "xz",
    "zst",
    "bz2",
];

/// What may not be meant as it was said.
fn doubts(args: &CopyArgs, destination: &Endpoint) -> Vec<String> {
    let EndpointKind::File(path) = destination.kind() else {
        return Vec::new();
    };
    let suffix = path.extension().and_then(|suffix| suffix.to_str());
    let suffix = suffix.map(str::to_ascii_lowercase).unwrap_or_default();
    if args.output_format.is_some() || !SUFFIXES.contains(&&*suffix) {
        return Vec::new();
    }
    let advice = match &*suffix {
        "qcow2" => "-O qcow2 makes a qcow2 image of it",
        "vmdk" => "-O vmdk makes a VMDK image of it",
        "vhd" | "vpc" => "-O vpc makes a VHD image of it",
        "vdi" => "-O vdi makes a VDI image of it",
        "gz" => "-O gzip compresses it",
        "zst" => "-O zstd compresses it",
        _ => "-O raw says that this is meant",
    };
    vec![format!(
        "{destination} becomes a raw image, whatever it is called; {advice}"
    )]
}

/// Refuses pairs of endpoints that can never work.
pub(crate) fn check_sides(
    source: &Endpoint,
    destination: &Endpoint,
    json: bool,
    terminals: Terminals,
) -> Result<(), Failure> {
    let refuse = |message: &str| Err(Failure::usage(message));
    match source.kind() {
        EndpointKind::Standard if terminals.input => {
            return refuse("an image is not read from a terminal; redirect standard input");
        }
        _ => check_readable(source)?,
    }
    match destination.kind() {
        EndpointKind::Standard if terminals.output => {
            refuse("an image is not written to a terminal; redirect standard output")
        }
        EndpointKind::Standard if json => {
            refuse("--json writes to standard output, which is the destination")
        }
        kind if !kind.roles().destination => {
            let (name, why) = (kind.source_kind().name, unreadable(destination));
            let why = why.unwrap_or("can only be a source");
            Err(Failure::usage(format!("{name}: {why}")))
        }
        _ => Ok(()),
    }
}

/// Refuses what holds no image that could be read.
pub(super) fn check_readable(source: &Endpoint) -> Result<(), Failure> {
    let Some(why) = unreadable(source) else {
        return Ok(());
    };
    let name = source.kind().source_kind().name;
    Err(Failure::usage(format!("{name}: {why}")))
}

/// Why there is no image to read.
fn unreadable(source: &Endpoint) -> Option<&'static str> {
    match source.kind() {
        _ if source.kind().roles().source => None,
        EndpointKind::Null(None) => Some("can only be a destination"),
        _ => Some("has several images, and works with serve only"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use std::time::Duration;

    use super::*;
    use crate::{
        cli::args::{Cli, Command},
        endpoint::NewQcow2,
        format::qcow2::Compression,
    };

    const NO_TERMINAL: Terminals = Terminals {
        input: false,
        output: false,
        error: false,
    };
    const TERMINAL: Terminals = Terminals {
        input: true,
        output: true,
        error: true,
    };

    fn resolve(words: &[&str], terminals: Terminals) -> Result<CopyJob, Failure> {
        let cli = Cli::try_parse_from([&["blockferry", "copy"], words].concat());
        let cli = cli.expect("valid arguments");
        let Command::Copy(args) = cli.command else {
            panic!("not a copy")
        };
        CopyJob::resolve(&args, cli.common, terminals)
    }

    fn refusal(words: &[&str], terminals: Terminals) -> String {
        let failure = resolve(words, terminals).expect_err("refused");
        assert_eq!(failure.code(), 2);
        failure.to_string()
    }

    #[test]
    fn without_flags_the_engine_has_its_own_defaults() {
        let job = resolve(&["a", "b"], NO_TERMINAL).expect("a job");
        let default = CopyOptions::default();
        assert_eq!(format!("{:?}", job.engine), format!("{default:?}"));
    }

    #[test]
    fn flags_reach_the_engine() {
        let words = "-C 3 -R 7 --request-size 64k --queue-size 1M --in-order -S 0 --allocated --no-flush --no-extents --retries 3 a b";
        let words: Vec<_> = words.split(' ').collect();
        let engine = resolve(&words, NO_TERMINAL).expect("a job").engine;
        assert_eq!((engine.connections, engine.requests), (3, Some(7)));
        assert_eq!(engine.request_size, Some(64 << 10));
        assert_eq!((engine.queue_size, engine.sparse), (Some(1 << 20), None));
        assert_eq!((engine.order, engine.retries), (Order::Ascending, 3));
        assert!(engine.allocated && !engine.flush && !engine.extents);
    }

    #[test]
    fn a_timeout_holds_for_everything_only_when_it_is_asked_for() {
        let timeouts = |words: &[&str]| resolve(words, NO_TERMINAL).expect("a job").timeouts;
        let seconds = Duration::from_secs;
        let usual = timeouts(&["a", "b"]);
        assert_eq!((usual.request, usual.flush), (Some(seconds(300)), None));
        assert_eq!(usual.connect, seconds(30));
        let short = timeouts(&["--timeout", "5", "a", "b"]);
        let five = Some(seconds(5));
        assert_eq!((short.request, short.flush), (five, five));
        assert_eq!(short.connect, seconds(5));
        let long = timeouts(&["--timeout", "600", "a", "b"]);
        assert_eq!(long.connect, seconds(30));
        assert_eq!(timeouts(&["--timeout=0", "a", "b"]), Timeouts::PATIENT);
    }

    #[test]
    fn terminals_are_neither_read_nor_written() {
        assert!(refusal(&["-", "b"], TERMINAL).contains("terminal"));
        assert!(refusal(&["a", "-"], TERMINAL).contains("terminal"));
        assert!(resolve(&["-", "-"], NO_TERMINAL).is_ok());
    }

    #[test]
    fn sides_that_make_no_sense_are_wrong_usage() {
        refusal(&["null:", "b"], NO_TERMINAL);
        refusal(&["a", "sample:1M"], NO_TERMINAL);
        refusal(&["--json", "a", "-"], NO_TERMINAL);
        refusal(
            &["--request-size", "1M", "--queue-size", "512K", "a", "b"],
            NO_TERMINAL,
        );
        refusal(&["http://host/a", "b"], NO_TERMINAL);
    }

    #[test]
    fn a_bar_is_for_terminals_and_lines_are_for_logs() {
        let show = |words: &[&str], error| {
            let terminals = Terminals {
                error,
                ..NO_TERMINAL
            };
            resolve(words, terminals).expect("a job").show
        };
        assert_eq!(show(&["a", "b"], true), Show::Bar);
        assert_eq!(show(&["-q", "a", "b"], true), Show::Nothing);
        assert_eq!(show(&["a", "b"], false), Show::Nothing);
        assert_eq!(show(&["-p", "a", "b"], false), Show::Lines);
        assert_eq!(show(&["--progress=bar", "a", "b"], false), Show::Lines);
        assert_eq!(show(&["--progress=lines", "a", "b"], true), Show::Lines);
        for words in [
            &["--progress=json", "a", "b"][..],
            &["-q", "-p=json", "a", "b"],
        ] {
            assert_eq!(show(words, false), Show::Json);
            assert_eq!(show(words, true), Show::Json);
        }
        refusal(&["-q", "-p", "a", "b"], NO_TERMINAL);
    }

    #[test]
    fn json_is_printed_even_when_quiet() {
        let report = |words: &[&str]| resolve(words, NO_TERMINAL).expect("a job").report;
        assert_eq!(report(&["--json", "-q", "a", "b"]), ReportStyle::Json);
        assert_eq!(report(&["-q", "a", "b"]), ReportStyle::Nothing);
        assert_eq!(report(&["a", "b"]), ReportStyle::Sentence);
    }

    fn new_image(words: &str) -> NewQcow2 {
        let words: Vec<_> = words.split(' ').collect();
        match resolve(&words, NO_TERMINAL).expect("a job").format {
            DestinationFormat::Qcow2(new) => (*new).clone(),
            other => panic!("not a new image: {other:?}"),
        }
    }

    #[test]
    fn a_compressed_image_is_written_in_order_unless_any_will_do() {
        let order = |words: &[&str]| {
            let job = resolve(words, NO_TERMINAL).expect("a job");
            let in_order = match job.format {
                DestinationFormat::Qcow2(new) => new.create.in_order,
                _ => panic!("not a new image"),
            };
            (job.engine.order, in_order)
        };
        let plain = ["-O", "qcow2", "a", "b"];
        assert_eq!(order(&plain), (Order::Any, true));
        let compressed = ["-c", "-O", "qcow2", "a", "b"];
        assert_eq!(order(&compressed), (Order::Ascending, true));
        let any = ["-c", "-W", "-O", "qcow2", "a", "b"];
        assert_eq!(order(&any), (Order::Any, false));
    }

    #[test]
    fn options_of_the_format_reach_it() {
        let new = new_image("-O qcow2 -c -m 7 -o compression_type=zstd,cluster_size=128k a b");
        assert!(new.create.compress);
        assert_eq!(new.create.compression, Compression::Zstd);
        assert_eq!(
            (new.create.cluster_size, new.create.threads),
            (128 << 10, 7)
        );
        let new = new_image("-O qcow2 -B base.raw -F raw a b");
        let backing = new.backing.expect("a backing file");
        assert_eq!(backing.format, FormatKind::Raw);
        let in_place = resolve(&["-n", "-O", "qcow2", "a", "b"], NO_TERMINAL).expect("a job");
        assert!(matches!(in_place.format, DestinationFormat::Qcow2InPlace));
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        for (words, part) in [
            ("-c a b", "-O qcow2"),
            ("-o cluster_size=4k a b", "raw"),
            ("-o preallocation=falloc --target-is-zero a b", "zeroes"),
            ("-b base a b", "no destination but qcow2"),
            ("-n -c -O qcow2 a b", "--no-create"),
            ("-n -O qcow2 -o compat=v3 a b", "--no-create"),
            ("-n -O qcow2 -b base a b", "--no-create"),
            ("-O qcow2 -b x -o backing_file=y a b", "named twice"),
            ("-O qcow2 -b x.gz -F gzip a b", "format gzip"),
            ("-O qcow2 -b x.ova -F ova a b", "format ova"),
            ("-O qcow2 -o nonsense=1 a b", "cluster_size"),
            ("-O qcow2 -o cluster_size=3k a b", "power of two"),
            (
                "-O qcow2 -c -o compat=0.10,compression_type=zstd a b",
                "zstd",
            ),
            ("-O qcow2 -o data_file=d -c a b", "compressed"),
            ("-O qcow2 -b base a nbd://host/", "the whole path"),
            ("-O qcow2 --checkpoint c a b", "--checkpoint"),
            ("-O qcow2 --allocated a b", "preallocation"),
            ("-O qcow2 -b base --target-is-zero a b", "backing file"),
            ("-l one a b c", "several are joined"),
            ("-f raw -l one a b", "raw"),
            ("--bitmaps a b", "qcow2 on both sides"),
            ("--bitmaps -f raw -O qcow2 a b", "qcow2 on both sides"),
            ("--bitmaps -O qcow2 a b c", "several sources"),
            ("--bitmaps -n -O qcow2 a b", "--no-create"),
            ("--bitmaps -O qcow2 --filter offset:512 a b", "--filter"),
            ("a - b", "a stream"),
            ("null: a b", "only be a destination"),
        ] {
            let words: Vec<_> = words.split(' ').collect();
            let text = refusal(&words, NO_TERMINAL);
            assert!(text.contains(part), "{words:?}: {text}");
        }
    }

    #[test]
    fn a_name_that_promises_a_format_raises_a_doubt() {
        let doubts = |words: &[&str]| resolve(words, NO_TERMINAL).expect("a job").doubts;
        assert!(doubts(&["a", "b.qcow2"])[0].contains("-O qcow2"));
        assert!(doubts(&["a", "b.VMDK"])[0].contains("-O vmdk"));
        assert!(doubts(&["a", "b.raw.gz"])[0].contains("-O gzip"));
        assert!(doubts(&["a", "b.zst"])[0].contains("-O zstd"));
        assert!(doubts(&["a", "b.vhdx"])[0].contains("-O raw"));
        assert!(doubts(&["-O", "raw", "a", "b.qcow2"]).is_empty());
        assert!(doubts(&["a", "b.raw"]).is_empty());
        assert!(doubts(&["a", "nbd://host/b.qcow2"]).is_empty());
    }

    #[test]
    fn salvage_stands_nearest_to_the_source() {
        let words = ["--salvage", "--filter", "offset:512", "a", "b"];
        let job = resolve(&words, NO_TERMINAL).expect("a job");
        let filters: Vec<_> = job
            .source
            .filters()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(filters, ["offset:512", "salvage"]);
    }
}
