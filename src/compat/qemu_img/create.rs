//! `qemu-img create`.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use crate::{
    block::Operation,
    cli::{
        commands,
        failure::Failure,
        options::{CreateJob, NewFormat, Timeouts, Trust},
    },
    endpoint::{BackingName, FormatKind, NewImage, printable},
    format::Format,
};

use super::{
    super::{
        getopt::{Argument, Flag, flag},
        qemu::{format, size::parse_size, text},
    },
    command::{Command, Done, Naming, Stop, read, shown, size},
    node::SECTOR,
    options::{NewOptions, made},
    words::why,
};

const HELP: &str = "\
Makes a new image.

Usage: qemu-img create [OPTIONS] FILE [SIZE]

  -f, --format=FMT          raw (without it), qcow2, vmdk, vpc, vhdx or vdi
  -o, --options=OPTS        How it is made; '-o help' lists what a format knows
  -b, --backing=FILE        Make an overlay of FILE (qcow2), of its size where none is given
  -F, --backing-format=FMT  Format of that file
  -u, --backing-unsafe      Do not look at the backing file
      --object=OBJECT       tls-creds-x509,id=ID,dir=DIR,endpoint=client
  -q, --quiet               Say nothing
  -h, --help                Show this text

Sizes are bytes; the units k, M, G, T, P and E are powers of 1024.
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Backing,
    BackingFormat,
    Format,
    Help,
    Object,
    Options,
    Quiet,
    Unsafe,
}

const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Required};
    &[
        flag("help", Some(b'h'), No, Opt::Help),
        flag("quiet", Some(b'q'), No, Opt::Quiet),
        flag("format", Some(b'f'), Required, Opt::Format),
        flag("options", Some(b'o'), Required, Opt::Options),
        flag("backing", Some(b'b'), Required, Opt::Backing),
        flag("backing-format", Some(b'F'), Required, Opt::BackingFormat),
        flag("backing-unsafe", Some(b'u'), No, Opt::Unsafe),
        flag("object", None, Required, Opt::Object),
    ]
};

/// An option, and what is told of it where it was not given.
type Told = (&'static str, Option<&'static str>);

/// In which order the options of a format are told, and which are told also where they were not given: with what the
/// format does then.
const TOLD: &[(Format, &[Told])] = &[
    (
        Format::Qcow2,
        &[
            ("cluster_size", Some("65536")),
            ("extended_l2", Some("off")),
            ("preallocation", None),
            ("compression_type", Some("zlib")),
            ("size", None),
            ("compat", None),
            ("backing_file", None),
            ("backing_fmt", None),
            ("data_file", None),
            ("data_file_raw", None),
            ("lazy_refcounts", Some("off")),
            ("refcount_bits", Some("16")),
        ],
    ),
    (
        Format::Vmdk,
        &[
            ("size", None),
            ("adapter_type", None),
            ("compat6", Some("off")),
            ("hwversion", Some("undefined")),
            ("toolsversion", None),
            ("subformat", None),
            ("zeroed_grain", None),
        ],
    ),
    (
        Format::Vpc,
        &[("size", None), ("subformat", None), ("force_size", None)],
    ),
    (
        Format::Vhdx,
        &[
            ("size", None),
            ("log_size", Some("1048576")),
            ("block_size", Some("0")),
            ("subformat", None),
            ("block_state_zero", None),
        ],
    ),
    (Format::Vdi, &[("size", None), ("static", Some("off"))]),
];

/// The options whose values are sizes.
const SIZES: &[&str] = &[
    "block_size",
    "cluster_size",
    "compression_window",
    "extent_size_hint",
    "log_size",
];

/// What the options say.
#[derive(Debug, Default)]
struct Choices {
    naming: Naming,
    format: Option<String>,
    options: NewOptions,
    backing: Option<OsString>,
    backing_format: Option<String>,
    is_unsafe: bool,
    quiet: bool,
}

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut choices = Choices::default();
    let operands = read(FLAGS, words, |option, value| choices.choose(option, value))?;
    let format = choices.format.as_deref().unwrap_or("raw");
    if let Some(help) = choices.options.help_for(format)? {
        return shown(&help);
    }
    let (file, size) = match &operands[..] {
        [] => return Err(Stop::Misused("Expecting image file name".to_owned())),
        [file] => (file, None),
        [file, size] => (file, Some(size)),
        [_, _, extra, ..] => {
            let extra = printable(extra);
            return Err(Stop::Misused(format!("Unexpected argument: {extra}")));
        }
    };
    let (job, name) = choices.job(file, size.map(OsString::as_os_str))?;
    match commands::create::run(job) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(failure) => Err(uncreated(failure, &name).into()),
    }
}

/// The failure to make the image `name`, in the words for it.
fn uncreated(failure: Failure, name: &str) -> Failure {
    let Some(cause) = failure.cause() else {
        return failure.about(name);
    };
    let is_open = cause.operation() == Some(Operation::Open);
    let other = cause.endpoint().filter(|other| *other != name);
    let why = why(&failure);
    let message = match (is_open, other) {
        (true, None) => format!("{name}: Could not create '{name}': {why}"),
        (true, Some(other)) => {
            format!("{name}: Could not open '{other}': {why}: Could not open backing image.")
        }
        (false, _) => format!("{name}: {why}"),
    };
    failure.saying(message)
}

impl Choices {
    fn choose(&mut self, option: Opt, value: &OsStr) -> Result<(), Stop> {
        match option {
            Opt::Help => return Err(Stop::Answer(HELP.to_owned())),
            Opt::Backing => self.backing = Some(value.to_owned()),
            Opt::BackingFormat => self.backing_format = Some(text("backing-format", value)?),
            Opt::Format => self.format = Some(text("format", value)?),
            Opt::Object => self.naming.define(value)?,
            Opt::Options => self.options.add(value)?,
            Opt::Quiet => self.quiet = true,
            Opt::Unsafe => self.is_unsafe = true,
        }
        Ok(())
    }

    /// The job, and what the image is called.
    fn job(mut self, file: &OsStr, given: Option<&OsStr>) -> Result<(CreateJob, String), Stop> {
        let name = printable(file);
        let wrong = |message: String| Failure::usage(format!("{name}: {message}"));
        let given = given.map(|text| size(text, "image size specified"));
        let mut size = given.transpose()?;
        let kind = match made(self.format.as_deref().unwrap_or("raw")) {
            Ok(kind) => kind,
            Err(Stop::Failed(failure)) => return Err(failure.about(&name).into()),
            Err(stop) => return Err(stop),
        };
        if let Some(option) = self.options.take("size") {
            if size.is_some() {
                return Err(wrong("The image size must be specified only once".to_owned()).into());
            }
            size = Some(super::command::size(
                option.as_ref(),
                "image size specified",
            )?);
        }
        self.name_backing(kind).map_err(wrong)?;
        let destination = self.naming.writable(file, Some("raw"))?;
        let told = self.options.clone();
        let backing = self.backing(kind).map_err(wrong)?;
        let has_backing = backing.is_some();
        let options = self.options.into_ours(kind);
        let options = options.map_err(|failure| failure.about(&name))?;
        let format = NewFormat {
            kind,
            options: &options,
            backing,
            ..NewFormat::default()
        };
        if size.is_none() && (self.is_unsafe || !has_backing) {
            return Err(wrong("Image creation needs a size parameter".to_owned()).into());
        }
        // The files of raw images have whole sectors.
        let rounded = |bytes: u64| bytes.checked_next_multiple_of(SECTOR).unwrap_or(bytes);
        let mut image = NewImage::new(match kind {
            FormatKind::Raw => size.map(rounded),
            _ => size,
        });
        (image.format, image.allocated) = format.resolve().map_err(wrong)?;
        image.checks_backing = !self.is_unsafe;
        let announced = name.clone();
        // What was said is told as it was said.
        let announce = move |settled| {
            let told_size = size.unwrap_or_else(|| rounded(settled));
            formatting(&announced, kind, told_size, told)
        };
        let job = CreateJob {
            destination,
            image,
            announce: match self.quiet {
                true => None,
                false => Some(Box::new(announce)),
            },
            quiet: true,
            trust: Trust::of_environment(),
            timeouts: Timeouts::PATIENT,
        };
        Ok((job, name))
    }

    /// Makes `-b` and `-F` the options that they stand for.
    fn name_backing(&mut self, kind: FormatKind) -> Result<(), String> {
        let is_qcow2 = kind == FormatKind::Image(Format::Qcow2);
        if let Some(name) = &self.backing {
            if !is_qcow2 {
                return Err(format!(
                    "Backing file not supported for file format '{kind}'"
                ));
            }
            let name = name
                .to_str()
                .ok_or("the name of a backing file is not text")?;
            self.options.set("backing_file", name);
        }
        if let Some(format) = &self.backing_format {
            if !is_qcow2 {
                return Err(format!(
                    "Backing file format not supported for file format '{kind}'"
                ));
            }
            self.options.set("backing_fmt", format);
        }
        Ok(())
    }

    /// The backing file that the options name, which are no longer there then.
    fn backing(&mut self, kind: FormatKind) -> Result<Option<BackingName>, String> {
        if kind != FormatKind::Image(Format::Qcow2) {
            return Ok(None);
        }
        let format = self.options.take("backing_fmt");
        match (self.options.take("backing_file"), format) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err("Backing format cannot be used without backing file".to_owned()),
            (Some(_), None) => Err("Backing file specified without backing format".to_owned()),
            (Some(name), Some(format)) => Ok(Some(BackingName {
                name: OsString::from(name),
                format: format::known(&format)?,
            })),
        }
    }
}

/// What is said before an image is made, as scripts know it.
fn formatting(name: &str, kind: FormatKind, size: u64, mut options: NewOptions) -> String {
    let mut text = format!("Formatting '{name}', fmt={kind}");
    let mut add = |key: &str, value: &str| {
        text += &format!(" {key}={}", printable(value.as_ref()));
    };
    let rows = TOLD
        .iter()
        .find(|(format, _)| kind == FormatKind::Image(*format));
    let raw: &[_] = &[("size", None), ("preallocation", None)];
    let hints = [("nocow", None), ("extent_size_hint", None)];
    for (key, usual) in rows.map_or(raw, |(_, rows)| *rows).iter().chain(&hints) {
        if *key == "size" {
            add("size", &size.to_string());
            continue;
        }
        let given = options.take(key);
        let given = given.map(|value| match parse_size(&value) {
            Ok(bytes) if SIZES.contains(key) => bytes.to_string(),
            _ => value,
        });
        if let Some(value) = given.as_deref().or(*usual) {
            add(key, value);
        }
    }
    text + "\n"
}
