//! `qemu-img convert`: its options become a copy.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use crate::{
    cli::{
        commands,
        failure::Failure,
        fraction::FractionTo,
        options::{Bitmaps, CopyJob, NewFormat, Show, Terminals, Trust, check_sides},
        rate::Rate,
    },
    copy::{CopyOptions, Order},
    endpoint::{BackingName, DestinationFormat, Endpoint, FormatKind, ImageFormat, printable},
    filter::{NamedFilter, Salvage},
    format::{Format, vmdk::Subformat},
};

use super::{
    super::{
        getopt::{Argument, Flag, flag},
        qemu::{format, text},
    },
    command::{Command, Done, Naming, Stop, check_cache, read, shown, size},
    options::{NewOptions, made},
    words::uncreated,
};

const HELP: &str = "\
Copies an image, in another format where one is named.

Usage: qemu-img convert [OPTIONS] SOURCE... TARGET

What is read:
  -f, --source-format=FMT     Format of the sources; without it a file's first bytes tell
      --image-opts, --source-image-opts
                              The sources are descriptions: driver=qcow2,file.filename=PATH
  -l, --source-snapshot=NAME  Read an internal snapshot, by its name, snapshot.id=ID or snapshot.name=NAME
      --salvage               Read zeroes where the source cannot be read
      --bitmaps               Copy the persistent bitmaps, too (qcow2 to qcow2)
      --skip-broken-bitmaps   Leave out those that are broken
      --object=OBJECT         tls-creds-x509,id=ID,dir=DIR,endpoint=client

What is written:
  -O, --target-format=FMT     raw (without it), qcow2, vmdk, vpc, vhdx or vdi
  -o, --target-options=OPTS   How it is made; '-o help' lists what a format knows
  -c, --compress              Compress the data (qcow2; vmdk with subformat=streamOptimized)
  -B, --backing=FILE          Make an overlay of FILE (qcow2)
  -F, --backing-format=FMT    Format of that file
  -n, --no-create             TARGET is there and is written in place (raw and qcow2)
      --target-image-opts     TARGET is a description; with -n
      --target-is-zero        TARGET reads as zeroes; with -n
  -S, --sparse-size=SIZE      Make holes of runs of SIZE zero bytes (4k); 0 makes none

How:
  -m, --parallel=N            At most N requests at a time, 1 to 16
  -W, --oob-writes            Compressed data may be written out of order
  -r, --rate=BYTES            At most so many bytes a second
  -p, --progress              Show how far it is, on standard output
  -q, --quiet                 Show nothing
  -C, -U, -t MODE, -T MODE    Understood; they change nothing
  -h, --help                  Show this text

SIGUSR1 makes it tell how far it is.
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Backing,
    BackingFormat,
    Bitmaps,
    Compress,
    CopyRange,
    Format,
    Help,
    ImageOpts,
    NoCreate,
    Object,
    Options,
    OutOfOrder,
    OutputFormat,
    Parallel,
    Progress,
    Quiet,
    Rate,
    Salvage,
    Share,
    SkipBroken,
    Snapshot,
    SourceCache,
    Sparse,
    TargetCache,
    TargetImageOpts,
    TargetIsZero,
}

const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Required};
    &[
        flag("help", Some(b'h'), No, Opt::Help),
        flag("quiet", Some(b'q'), No, Opt::Quiet),
        flag("progress", Some(b'p'), No, Opt::Progress),
        flag("source-format", Some(b'f'), Required, Opt::Format),
        flag("source-image-opts", None, No, Opt::ImageOpts),
        flag("image-opts", None, No, Opt::ImageOpts),
        flag("source-snapshot", Some(b'l'), Required, Opt::Snapshot),
        flag("source-cache", Some(b'T'), Required, Opt::SourceCache),
        flag("target-format", Some(b'O'), Required, Opt::OutputFormat),
        flag("target-image-opts", None, No, Opt::TargetImageOpts),
        flag("target-options", Some(b'o'), Required, Opt::Options),
        flag("compress", Some(b'c'), No, Opt::Compress),
        flag("target-cache", Some(b't'), Required, Opt::TargetCache),
        flag("backing", Some(b'B'), Required, Opt::Backing),
        flag("backing-format", Some(b'F'), Required, Opt::BackingFormat),
        flag("no-create", Some(b'n'), No, Opt::NoCreate),
        flag("target-is-zero", None, No, Opt::TargetIsZero),
        flag("sparse-size", Some(b'S'), Required, Opt::Sparse),
        flag("bitmaps", None, No, Opt::Bitmaps),
        flag("skip-broken-bitmaps", None, No, Opt::SkipBroken),
        flag("force-share", Some(b'U'), No, Opt::Share),
        flag("rate", Some(b'r'), Required, Opt::Rate),
        flag("parallel", Some(b'm'), Required, Opt::Parallel),
        flag("copy-range-offloading", Some(b'C'), No, Opt::CopyRange),
        flag("salvage", None, No, Opt::Salvage),
        flag("oob-writes", Some(b'W'), No, Opt::OutOfOrder),
        flag("object", None, Required, Opt::Object),
    ]
};

/// The most requests that are asked for, and the longest run of zeroes, in bytes.
const MOST_PARALLEL: usize = 16;
const LONGEST_SPARSE: u64 = 16 << 20;

/// What the options say.
#[derive(Debug, Default)]
struct Choices {
    naming: Naming,
    format: Option<String>,
    snapshot: Option<String>,
    salvage: bool,
    bitmaps: bool,
    skip_broken: bool,
    output_format: Option<String>,
    options: NewOptions,
    compress: bool,
    backing: Option<OsString>,
    backing_format: Option<String>,
    no_create: bool,
    target_image_opts: bool,
    target_is_zero: bool,
    /// In bytes; 0 makes no holes.
    sparse: Option<u64>,
    parallel: Option<usize>,
    out_of_order: bool,
    copy_range: bool,
    rate: Option<u64>,
    progress: bool,
    quiet: bool,
    shared: bool,
}

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut choices = Choices::default();
    let operands = read(FLAGS, words, |option, value| choices.choose(option, value))?;
    let kind = choices.output_format.as_deref().unwrap_or("raw").to_owned();
    if let Some(help) = choices.options.help_for(&kind)? {
        return shown(&help);
    }
    let job = choices.job(&operands)?;
    let target = job.destination.name().to_string();
    let is_new = !job.format.is_in_place();
    match commands::copy::run(job) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(failure) if is_new => {
            let doing = format!("error while converting {kind}");
            Err(uncreated(failure, &target, &doing).into())
        }
        Err(failure) => Err(too_small(failure).into()),
    }
}

/// The failure that `-n` found too small a target, where it is that.
fn too_small(failure: Failure) -> Failure {
    let why = failure.reason();
    match why.starts_with("the destination is too small") {
        true => failure.saying(format!("output file is smaller than input file: {why}")),
        false => failure,
    }
}

impl Choices {
    fn choose(&mut self, option: Opt, value: &OsStr) -> Result<(), Stop> {
        match option {
            Opt::Help => return Err(Stop::Answer(HELP.to_owned())),
            Opt::Backing => self.backing = Some(value.to_owned()),
            Opt::BackingFormat => self.backing_format = Some(text("backing-format", value)?),
            Opt::Bitmaps => self.bitmaps = true,
            Opt::Compress => self.compress = true,
            Opt::CopyRange => self.copy_range = true,
            Opt::Format => self.format = Some(text("source-format", value)?),
            Opt::ImageOpts => self.naming.image_opts = true,
            Opt::NoCreate => self.no_create = true,
            Opt::Object => self.naming.define(value)?,
            Opt::Options => self.options.add(value)?,
            Opt::OutOfOrder => self.out_of_order = true,
            Opt::OutputFormat => self.output_format = Some(text("target-format", value)?),
            Opt::Parallel => self.parallel = Some(parallel(value)?),
            Opt::Progress => self.progress = true,
            Opt::Quiet => self.quiet = true,
            Opt::Rate => self.rate = Some(size(value, "rate limit specified")?),
            Opt::Salvage => self.salvage = true,
            Opt::Share => self.shared = true,
            Opt::SkipBroken => self.skip_broken = true,
            Opt::Snapshot => self.snapshot = Some(text("source-snapshot", value)?),
            Opt::SourceCache => check_cache(value, "source cache option")?,
            Opt::Sparse => self.sparse = Some(sparse(value)?),
            Opt::TargetCache => check_cache(value, "cache option")?,
            Opt::TargetImageOpts => self.target_image_opts = true,
            Opt::TargetIsZero => self.target_is_zero = true,
        }
        Ok(())
    }

    /// Refuses what does not go together.
    fn check(&self) -> Result<(), Failure> {
        let refuse = |message: &str| Err(Failure::usage(message));
        if self.naming.image_opts && self.format.is_some() {
            return refuse("--image-opts and --format are mutually exclusive");
        }
        if self.skip_broken && !self.bitmaps {
            return refuse("Use of --skip-broken-bitmaps requires --bitmaps");
        }
        if self.target_is_zero && !self.no_create {
            return refuse("--target-is-zero requires use of -n flag");
        }
        if self.target_image_opts && !self.no_create {
            return refuse("--target-image-opts requires use of -n flag");
        }
        if self.target_image_opts && self.output_format.is_some() {
            return refuse("--image-opts and --format are mutually exclusive");
        }
        if self.copy_range && self.sparse.is_some() {
            return refuse("Cannot enable copy offloading when -S is used");
        }
        if self.copy_range && self.salvage {
            return refuse("Cannot use copy offloading in salvaging mode");
        }
        if self.no_create && !self.options.is_empty() {
            return refuse("-o has no effect when skipping image creation");
        }
        if self.no_create && self.compress {
            return refuse(
                "-c with -n, into an image that is there, is not done by blockferry: use QEMU's own qemu-img",
            );
        }
        if self.target_is_zero && self.backing.is_some() {
            return refuse(
                "Cannot use --target-is-zero when the destination image has a backing file",
            );
        }
        Ok(())
    }

    fn job(mut self, operands: &[OsString]) -> Result<CopyJob, Stop> {
        self.check()?;
        let (target, sources) = match operands.split_last() {
            Some((target, sources)) if !sources.is_empty() => (target, sources),
            _ => return Err(Failure::usage("Must specify image file name").into()),
        };
        let kind = match self.target_image_opts {
            true => FormatKind::Raw,
            false => made(self.output_format.as_deref().unwrap_or("raw"))?,
        };
        let source = self.source(sources)?;
        let target = self.target(target)?;
        let (target, format, allocated) = match self.no_create {
            true => self.in_place(target, kind)?,
            false => self.new_image(target, kind)?,
        };
        if self.bitmaps {
            self.check_bitmaps(&source, kind)?;
        }
        let terminals = Terminals::of_this_process();
        check_sides(&source, &target, false, terminals)?;
        Ok(self.finish(source, target, format, allocated))
    }

    fn finish(
        self,
        source: Endpoint,
        destination: Endpoint,
        format: DestinationFormat,
        allocated: bool,
    ) -> CopyJob {
        let (is_compressed, in_order) = match &format {
            DestinationFormat::Qcow2(new) => (
                new.create.compress,
                new.create.compress && new.create.in_order,
            ),
            _ => (false, false),
        };
        let sparse = self.sparse.unwrap_or(4096);
        let mut engine = CopyOptions::default();
        engine.requests = self.parallel;
        engine.sparse = u32::try_from(sparse).ok().filter(|size| *size > 0);
        if in_order {
            engine.order = Order::Ascending;
        }
        // Who makes no holes has everything allocated; zeroes that are to take no space are worth nothing allocated.
        engine.allocated = allocated || sparse == 0 && !is_compressed;
        engine.destination_is_zero = self.target_is_zero;
        CopyJob {
            bitmaps: match (self.bitmaps, self.skip_broken) {
                (false, _) => Bitmaps::Ignored,
                (true, false) => Bitmaps::Copied,
                (true, true) => Bitmaps::SkippingBroken,
            },
            trust: Trust::of_environment(),
            engine,
            shared: self.shared,
            rate: Rate {
                limit: self.rate,
                file: None,
            },
            show: Show::Fraction(match self.progress && !self.quiet {
                true => FractionTo::All,
                false => FractionTo::WhoAsks,
            }),
            warnings: !self.quiet,
            ..CopyJob::new(source, destination, format)
        }
    }

    /// What is read: one image, or several joined.
    fn source(&self, operands: &[OsString]) -> Result<Endpoint, Failure> {
        let parts = operands.iter().map(|operand| {
            let part = self.naming.source(operand, self.format.as_deref())?;
            let Some(snapshot) = &self.snapshot else {
                return Ok(part);
            };
            if operands.len() > 1 {
                return Err(Failure::usage(
                    "No support for concatenating multiple snapshot",
                ));
            }
            let format = ImageFormat {
                snapshot: Some(snapshot.clone()),
                ..part.format().clone()
            };
            Ok(part.interpreted(format))
        });
        let parts: Vec<_> = parts.collect::<Result<_, Failure>>()?;
        let whole = match <[Endpoint; 1]>::try_from(parts) {
            Ok([only]) => only,
            Err(parts) => Endpoint::joined(parts),
        };
        Ok(match self.salvage {
            true => whole.behind(vec![NamedFilter::new(Salvage::default())]),
            false => whole,
        })
    }

    /// What is written.
    fn target(&self, operand: &OsStr) -> Result<Endpoint, Failure> {
        let naming = self.naming.with_image_opts(self.target_image_opts);
        if self.target_image_opts {
            return naming.writable(operand, None);
        }
        // What is in a new image does not matter, and in place -O says it.
        naming.writable(operand, Some("raw"))
    }

    fn in_place(
        &self,
        target: Endpoint,
        kind: FormatKind,
    ) -> Result<(Endpoint, DestinationFormat, bool), Failure> {
        let kind = match self.target_image_opts {
            true => target.format().kind,
            false => kind,
        };
        match kind {
            FormatKind::Raw => Ok((target, DestinationFormat::RawInPlace, false)),
            FormatKind::Image(Format::Qcow2) => Ok((
                target.interpreted(kind),
                DestinationFormat::Qcow2InPlace,
                false,
            )),
            _ => Err(Failure::usage(format!(
                "-n with images in the format {kind} is not done by blockferry: use QEMU's own qemu-img"
            ))),
        }
    }

    fn new_image(
        &mut self,
        target: Endpoint,
        kind: FormatKind,
    ) -> Result<(Endpoint, DestinationFormat, bool), Failure> {
        // It gets that of the source.
        self.options.take("size");
        if kind == FormatKind::Image(Format::Qcow2) {
            // The name may be said in one way, and the format in the other.
            let name = self.options.take("backing_file").map(OsString::from);
            self.backing = self.backing.take().or(name);
            let format = self.options.take("backing_fmt");
            self.backing_format = self.backing_format.take().or(format);
        }
        let options = std::mem::take(&mut self.options).into_ours(kind)?;
        let name = target.name();
        let wrong = |message: String| {
            Failure::usage(format!("{name}: error while converting {kind}: {message}"))
        };
        if self.backing.is_some() && kind != FormatKind::Image(Format::Qcow2) {
            return Err(Failure::usage(format!(
                "Backing file not supported for file format '{kind}'"
            )));
        }
        let is_qcow2 = kind == FormatKind::Image(Format::Qcow2);
        if self.compress && !is_qcow2 && kind != FormatKind::Image(Format::Vmdk) {
            return Err(Failure::usage(
                "Compression not supported for this file format",
            ));
        }
        let new = NewFormat {
            kind,
            options: &options,
            backing: self.backing()?,
            compress: self.compress,
            out_of_order: self.out_of_order,
            threads: self.parallel.unwrap_or(0),
        };
        let (format, allocated) = new.resolve().map_err(wrong)?;
        match &format {
            DestinationFormat::Vmdk(new)
                if self.compress && new.subformat != Subformat::StreamOptimized =>
            {
                return Err(Failure::usage(
                    "-c for VMDK is -o subformat=streamOptimized, which is always compressed",
                ));
            }
            DestinationFormat::Qcow2(new) => match &new.backing {
                None if self.backing_format.is_some() => {
                    return Err(wrong(
                        "Backing format cannot be used without backing file".to_owned(),
                    ));
                }
                Some(backing) if backing.format == FormatKind::Probe => {
                    return Err(wrong(
                        "Backing file specified without backing format".to_owned(),
                    ));
                }
                _ => {}
            },
            _ => {}
        }
        Ok((target, format, allocated))
    }

    /// What `-B` and `-F` name.
    fn backing(&self) -> Result<Option<BackingName>, Failure> {
        let Some(name) = &self.backing else {
            return Ok(None);
        };
        let Some(format) = &self.backing_format else {
            return Err(Failure::usage(
                "Use of backing file requires explicit backing format",
            ));
        };
        Ok(Some(BackingName {
            name: name.clone(),
            format: format::known(format).map_err(Failure::usage)?,
        }))
    }

    fn check_bitmaps(&self, source: &Endpoint, kind: FormatKind) -> Result<(), Failure> {
        let is_qcow2 = |kind| kind == FormatKind::Image(Format::Qcow2);
        if !is_qcow2(source.format().kind) {
            return Err(Failure::usage("Source lacks bitmap support"));
        }
        if !is_qcow2(kind) {
            return Err(Failure::usage(format!(
                "Format driver '{kind}' does not support bitmaps"
            )));
        }
        if self.no_create || self.snapshot.is_some() {
            return Err(Failure::usage(
                "--bitmaps with -n or -l is not done by blockferry: use QEMU's own qemu-img",
            ));
        }
        Ok(())
    }
}

fn parallel(value: &OsStr) -> Result<usize, Failure> {
    let number = value.to_str().map(str::trim_start);
    match number.and_then(|number| number.parse().ok()) {
        Some(number @ 1..=MOST_PARALLEL) => Ok(number),
        Some(_) => Err(Failure::usage(format!(
            "Invalid number of coroutines specified. Must be between 1 and {MOST_PARALLEL}."
        ))),
        None => {
            let value = printable(value);
            Err(Failure::usage(format!(
                "Invalid number of coroutines specified: '{value}'."
            )))
        }
    }
}

fn sparse(value: &OsStr) -> Result<u64, Failure> {
    let size = size(value, "buffer size for sparse output specified")?;
    match size <= LONGEST_SPARSE && size % 512 == 0 {
        true => Ok(size),
        false => Err(Failure::usage(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to {LONGEST_SPARSE}. Select 0 to disable sparse detection (fully allocates output)."
        ))),
    }
}
