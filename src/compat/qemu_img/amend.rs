//! `qemu-img amend`.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use crate::{
    block::{ErrorKind, SizeError},
    cli::{
        commands::{resize::resize, runtime},
        failure::Failure,
        options::{ResizeJob, Trust},
        output::print,
    },
    endpoint::{
        Endpoint, FormatKind, NewSize, amend_image, image_details, image_options, open_size,
        printable,
    },
    format::{
        Format,
        qcow2::{AmendOptions, Details, ResizeOptions},
    },
};

use super::{
    super::{
        getopt::{Argument, Flag, flag},
        qemu::{format, size::parse_size, text},
    },
    command::{Command, Done, Naming, Stop, check_cache, read, shown},
    looking::opening,
    options::NewOptions,
};

const HELP: &str = "\
Changes the options of a qcow2 image.

Usage: qemu-img amend [OPTIONS] -o OPTION=VALUE[,...] FILE

  -o OPTION=VALUE,...   compat, lazy_refcounts, size, data_file_raw; 'help' lists them
  -f, --format FMT      Format of FILE
      --image-opts      FILE is a description: driver=qcow2,file.filename=PATH
      --object OBJECT   tls-creds-x509,id=ID,dir=DIR,endpoint=client
      --force           Understood; changes nothing
  -p, --progress        Show how far it is
  -t, --cache MODE      Understood; changes nothing
  -q, --quiet           Say nothing
  -h, --help            Show this text
";

const OPTIONS_HELP: &str = "\
Amend options for 'qcow2':
  compat=<str>           - 0.10 or v2, which has fewer features, or 1.1 or v3
  lazy_refcounts=<bool (on/off)> - Refcounts may be written late
  size=<size>            - The size of the disk
  data_file_raw=<bool (on/off)> - The data file is a raw image, too; off is for good
";

/// What QEMU changes and we do not: the value that asks for nothing is the one that the image has.
const NOT_HERE: &[&str] = &["data_file", "refcount_bits"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Cache,
    Force,
    Format,
    Help,
    ImageOpts,
    Object,
    Options,
    Progress,
    Quiet,
}

const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Required};
    &[
        flag("help", Some(b'h'), No, Opt::Help),
        flag("quiet", Some(b'q'), No, Opt::Quiet),
        flag("progress", Some(b'p'), No, Opt::Progress),
        flag("format", Some(b'f'), Required, Opt::Format),
        flag("image-opts", None, No, Opt::ImageOpts),
        flag("options", Some(b'o'), Required, Opt::Options),
        flag("cache", Some(b't'), Required, Opt::Cache),
        flag("force", None, No, Opt::Force),
        flag("object", None, Required, Opt::Object),
    ]
};

/// What the options say.
#[derive(Debug, Default)]
struct Choices {
    naming: Naming,
    format: Option<String>,
    options: NewOptions,
    has_options: bool,
    progress: bool,
    quiet: bool,
}

/// What is to change.
#[derive(Debug)]
struct Wanted {
    version: Option<u32>,
    lazy: Option<bool>,
    size: Option<u64>,
    not_raw: bool,
}

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut choices = Choices::default();
    let operands = read(FLAGS, words, |option, value| choices.choose(option, value))?;
    if !choices.has_options {
        return Err(Stop::Misused("Must specify options (-o)".to_owned()));
    }
    if choices.options.is_help()
        && let Some(format) = &choices.format
    {
        check_format(format::known(format).map_err(Failure::usage)?)?;
        return shown(OPTIONS_HELP);
    }
    let [file] = &operands[..] else {
        return Err(Failure::usage("Expecting one image file name").into());
    };
    choices.amend(file)
}

impl Choices {
    fn choose(&mut self, option: Opt, value: &OsStr) -> Result<(), Stop> {
        match option {
            Opt::Help => return Err(Stop::Answer(HELP.to_owned())),
            Opt::Cache => check_cache(value, "cache option")?,
            Opt::Force => {}
            Opt::Format => self.format = Some(text("format", value)?),
            Opt::ImageOpts => self.naming.image_opts = true,
            Opt::Object => self.naming.define(value)?,
            Opt::Options => {
                self.options.add(value)?;
                self.has_options = true;
            }
            Opt::Progress => self.progress = true,
            Opt::Quiet => self.quiet = true,
        }
        Ok(())
    }

    fn amend(mut self, file: &OsStr) -> Done {
        let image = self.naming.writable(file, self.format.as_deref())?;
        let options = opening();
        let details = runtime()?.block_on(async {
            if let Some(details) = image_details(&image, &options).await? {
                return Ok(Some(details));
            }
            // It is raw, if it is there.
            open_size(&image, &options).await.map(|_| None)
        });
        let details = details.map_err(Failure::from)?;
        let kind = match &details {
            None => FormatKind::Raw,
            Some(details) => FormatKind::Image(details.format()),
        };
        check_format(kind)?;
        if self.options.is_help() {
            return shown(OPTIONS_HELP);
        }
        let details = details.as_ref().and_then(|details| details.as_qcow2());
        let Some(details) = details else {
            return Ok(ExitCode::SUCCESS);
        };
        let wanted = Wanted::read(&mut self.options, details)?;
        wanted.check(details)?;
        let shows = self.progress && !self.quiet;
        if shows {
            print("    (0.00/100%)\r")?;
        }
        wanted.carry_out(&image, details)?;
        if shows {
            print("    (100.00/100%)\r\n")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Wanted {
    /// What the options ask for of an image, in which other options are as `details` has them.
    fn read(options: &mut NewOptions, details: &Details) -> Result<Self, Failure> {
        let version = match options.take("compat").as_deref() {
            None => None,
            Some("0.10" | "v2") => Some(2),
            Some("1.1" | "v3") => Some(3),
            Some(other) => {
                let other = printable(other.as_ref());
                return Err(Failure::usage(format!(
                    "Unknown compatibility level {other}"
                )));
            }
        };
        let lazy = switch(options, "lazy_refcounts")?;
        let size = match options.take("size") {
            None => None,
            Some(size) => Some(new_size(&size)?).filter(|size| *size > 0),
        };
        check_backing(options, details)?;
        let raw = switch(options, "data_file_raw")?;
        if raw == Some(true) && !details.data_file_raw {
            return Err(Failure::usage(
                "data-file-raw cannot be set on existing images",
            ));
        }
        for key in NOT_HERE {
            let Some(value) = options.take(key) else {
                continue;
            };
            let is_same = match *key {
                "refcount_bits" => is_same_width(&value, details, version)?,
                _ if details.data_file.is_none() => {
                    return Err(Failure::usage(
                        "data-file can only be set for images that use an external data file",
                    ));
                }
                _ => false,
            };
            if !is_same {
                let value = printable(value.as_ref());
                return Err(Failure::usage(format!(
                    "-o {key}={value} is not done by blockferry: use QEMU's own qemu-img"
                )));
            }
        }
        match options.first() {
            None => Ok(Self {
                version,
                lazy,
                size,
                not_raw: raw == Some(false) && details.data_file_raw,
            }),
            Some(key) => Err(unknown(key)),
        }
    }

    /// Refuses what cannot be, before anything is changed.
    fn check(&self, details: &Details) -> Result<(), Failure> {
        let version = self.version.unwrap_or(details.version);
        let refuse = |message: &str| Err(Failure::usage(message));
        if version < 3 && self.lazy == Some(true) {
            return refuse(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            );
        }
        if version < 3 && details.version >= 3 {
            if details.refcount_bits != 16 {
                return refuse("compat=0.10 requires refcount_bits=16");
            }
            if details.data_file.is_some() {
                return refuse("Cannot downgrade an image with a data file");
            }
            if details.extended_l2 {
                return refuse("Cannot downgrade an image with incompatible features 0x10 set");
            }
        }
        if self.size.is_some_and(|size| size % 512 != 0) {
            return refuse("The new size must be a multiple of 512");
        }
        let has_snapshots = !details.snapshots.is_empty();
        let is_resized = self.size.is_some_and(|size| size != details.virtual_size);
        if is_resized && has_snapshots && version.max(details.version) < 3 {
            return refuse("Can't resize a v2 image which has snapshots");
        }
        Ok(())
    }

    /// A newer version first, and an older one last.
    fn carry_out(&self, image: &Endpoint, details: &Details) -> Result<(), Failure> {
        let is_older = self
            .version
            .is_some_and(|version| version < details.version);
        let mut first = AmendOptions::default();
        first.lazy_refcounts = self.lazy;
        first.data_file_not_raw = self.not_raw;
        let mut last = AmendOptions::default();
        last.version = self.version.filter(|_| is_older);
        first.version = self.version.filter(|_| !is_older);
        amend(image, &first)?;
        if let Some(size) = self.size {
            let mut options = ResizeOptions::default();
            options.shrink = true;
            resize(&ResizeJob {
                image: image.clone(),
                size: NewSize::Exactly(size),
                options,
                trust: Trust::of_environment(),
                quiet: true,
            })?;
        }
        amend(image, &last)
    }
}

fn amend(image: &Endpoint, options: &AmendOptions) -> Result<(), Failure> {
    if *options == AmendOptions::default() {
        return Ok(());
    }
    let amended = runtime()?.block_on(amend_image(image, options, &opening()));
    amended.map_err(|error| match error.kind() {
        ErrorKind::Unsupported | ErrorKind::InvalidInput => {
            let why = Failure::from(error).reason();
            Failure::failed(format!("{image}: {why}"))
        }
        _ => Failure::from(error),
    })
}

fn check_format(kind: FormatKind) -> Result<(), Failure> {
    match kind {
        FormatKind::Image(Format::Qcow2) => Ok(()),
        kind => Err(Failure::usage(format!(
            "Format driver '{kind}' does not support option amendment"
        ))),
    }
}

fn switch(options: &mut NewOptions, key: &str) -> Result<Option<bool>, Failure> {
    match options.take(key).as_deref() {
        None => Ok(None),
        Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
        Some("off" | "no" | "false" | "n") => Ok(Some(false)),
        Some(_) => Err(Failure::usage(format!(
            "Parameter '{key}' expects 'on' or 'off'"
        ))),
    }
}

/// The size that is asked for; 0 asks for nothing.
fn new_size(size: &str) -> Result<u64, Failure> {
    let is_negative = size
        .strip_prefix('-')
        .map(parse_size)
        .is_some_and(|less| less.is_ok());
    match parse_size(size) {
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(match error {
            _ if is_negative || matches!(error, SizeError::TooLarge(_)) => {
                let size = printable(size.as_ref());
                Failure::usage(format!("Value '{size}' is out of range for parameter 'size'"))
            }
            _ => Failure::usage("Parameter 'size' expects a non-negative number below 2^64").note(
                "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta- and exabytes, respectively.",
            ),
        }),
    }
}

/// Another backing file is `rebase`'s to give.
fn check_backing(options: &mut NewOptions, details: &Details) -> Result<(), Failure> {
    let (name, format) = (options.take("backing_file"), options.take("backing_fmt"));
    if name.is_none() && format.is_none() {
        return Ok(());
    }
    let is_same = details.backing.as_ref().is_some_and(|backing| {
        name.is_some_and(|name| name.as_bytes() == backing.name) && format == backing.format
    });
    match is_same {
        true => Ok(()),
        false => Err(Failure::usage("Cannot amend the backing file")
            .note("You can use 'qemu-img rebase' instead.")),
    }
}

/// Whether refcounts have that width.
fn is_same_width(value: &str, details: &Details, version: Option<u32>) -> Result<bool, Failure> {
    let wrong = || Failure::usage("Parameter 'refcount_bits' expects a number");
    let bits: u64 = value.parse().map_err(|_| wrong())?;
    if !bits.is_power_of_two() || bits > 64 {
        return Err(Failure::usage(
            "Refcount width must be a power of two and may not exceed 64 bits",
        ));
    }
    if bits != 16 && version.unwrap_or(details.version) < 3 {
        return Err(Failure::usage(
            "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
        ));
    }
    Ok(bits == u64::from(details.refcount_bits))
}

fn unknown(key: &str) -> Failure {
    let failure = Failure::usage(format!("Invalid parameter '{}'", printable(key.as_ref())));
    if key.starts_with("encrypt.") && !matches!(key, "encrypt.format" | "encrypt.key-secret") {
        return Failure::usage("Can't amend encryption options - encryption not present");
    }
    let known = image_options(FormatKind::Image(Format::Qcow2));
    let is_made = known.iter().any(|option| option.name == key)
        || matches!(key, "encryption" | "encrypt.format" | "encrypt.key-secret");
    match is_made {
        true => failure.note("This option is only supported for image creation"),
        false => failure,
    }
}
