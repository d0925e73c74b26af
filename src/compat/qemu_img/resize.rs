//! `qemu-img resize`.

use std::ffi::{OsStr, OsString};

use crate::{
    cli::{
        commands::resize::resize,
        failure::Failure,
        options::{ResizeJob, Trust, new_size},
        output::tell,
    },
    endpoint::{FormatKind, NewSize, OpenOptions, image_details, open_size, printable},
    format::qcow2::{Preallocation, ResizeOptions},
};

use super::{
    super::{
        getopt::{Argument, Flag, flag},
        qemu::{size::decimal, text},
    },
    command::{Command, Done, Naming, Stop, read, shown},
};

const HELP: &str = "\
Gives an image another size: raw or qcow2, in a file.

Usage: qemu-img resize [OPTIONS] FILE [+|-]SIZE

  -f, --format=FMT          Format of the image; without it its first bytes tell
      --image-opts          FILE is a description: driver=qcow2,file.filename=PATH
      --shrink              The image may become smaller
      --preallocation=MODE  What is allocated of what is new: off, metadata, falloc or full
      --object=OBJECT       tls-creds-x509,id=ID,dir=DIR,endpoint=client
  -q, --quiet               Say nothing
  -h, --help                Show this text

Sizes are bytes; the units k, M, G, T, P and E are powers of 1024.
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Format,
    Help,
    ImageOpts,
    Object,
    Preallocation,
    Quiet,
    Shrink,
}

const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Required};
    &[
        flag("help", Some(b'h'), No, Opt::Help),
        flag("quiet", Some(b'q'), No, Opt::Quiet),
        flag("format", Some(b'f'), Required, Opt::Format),
        flag("image-opts", None, No, Opt::ImageOpts),
        flag("shrink", None, No, Opt::Shrink),
        flag("preallocation", None, Required, Opt::Preallocation),
        flag("object", None, Required, Opt::Object),
    ]
};

/// What the options say.
#[derive(Debug, Default)]
struct Choices {
    naming: Naming,
    format: Option<String>,
    options: ResizeOptions,
    quiet: bool,
}

pub(super) fn run(_: &Command, mut words: Vec<OsString>) -> Done {
    // A size that begins with a hyphen is no option where it is the last word.
    let is_less = |word: &mut OsString| {
        let digit = word.to_str().and_then(|word| word.strip_prefix('-'));
        digit.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let less = words.pop_if(is_less);
    let mut choices = Choices::default();
    let mut operands = read(FLAGS, words, |option, value| choices.choose(option, value))?;
    operands.extend(less);
    let (file, size) = match &operands[..] {
        [] | [_] => {
            return Err(Stop::Misused(
                "Expecting image file name and size".to_owned(),
            ));
        }
        [file, size] => (file, size),
        _ => {
            return Err(Stop::Misused(
                "Extra argument(s) in command line".to_owned(),
            ));
        }
    };
    let size = size.to_str().map(decimal).and_then(|size| new_size(&size)).ok_or_else(|| {
        Failure::usage("Parameter 'size' expects a non-negative number below 2^64")
            .note("Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta- and exabytes, respectively.")
    })?;
    choices.resize(file, size)
}

impl Choices {
    fn choose(&mut self, option: Opt, value: &OsStr) -> Result<(), Stop> {
        match option {
            Opt::Help => return Err(Stop::Answer(HELP.to_owned())),
            Opt::Format => self.format = Some(text("format", value)?),
            Opt::ImageOpts => self.naming.image_opts = true,
            Opt::Object => self.naming.define(value)?,
            Opt::Preallocation => self.options.preallocation = preallocation(value)?,
            Opt::Quiet => self.quiet = true,
            Opt::Shrink => self.options.shrink = true,
        }
        Ok(())
    }

    fn resize(self, file: &OsStr, size: NewSize) -> Done {
        let image = self.naming.writable(file, self.format.as_deref())?;
        let trust = Trust::of_environment();
        let old = current_size(&image, &trust)?;
        let is_guessed = self.format.is_none() && !self.naming.image_opts;
        if is_guessed && !self.quiet && image.format().kind == FormatKind::Raw {
            tell(&format!(
                "qemu-img: warning: no format was given for '{image}', and it is taken for raw (-f raw)"
            ));
        }
        let new = size.after(old).filter(|new| *new > 0);
        let new = new.ok_or_else(|| Failure::usage("New image size must be positive"))?;
        if new < old && !self.options.shrink {
            let failure = Failure::usage("Use the --shrink option to perform a shrink operation.");
            return Err(failure
                .note("warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an operation, make sure there is no important data there.")
                .into());
        }
        if new < old && self.options.preallocation != Preallocation::Off {
            let message = "Preallocation can only be used for growing images";
            return Err(Failure::usage(message).into());
        }
        let job = ResizeJob {
            image,
            size: NewSize::Exactly(new),
            options: self.options,
            trust,
            quiet: true,
        };
        resize(&job)?;
        shown(if self.quiet { "" } else { "Image resized.\n" })
    }
}

/// The size of the disk, without anything behind it.
fn current_size(image: &crate::endpoint::Endpoint, trust: &Trust) -> Result<u64, Failure> {
    let runtime = crate::cli::commands::runtime()?;
    let options = trust.in_options(OpenOptions::default());
    runtime.block_on(async {
        Ok(match image_details(image, &options).await? {
            Some(details) => details.virtual_size(),
            None => open_size(image, &options).await?,
        })
    })
}

fn preallocation(value: &OsStr) -> Result<Preallocation, Failure> {
    Ok(match value.to_str() {
        Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        _ => {
            let value = printable(value);
            return Err(Failure::usage(format!(
                "Invalid preallocation mode '{value}'"
            )));
        }
    })
}
