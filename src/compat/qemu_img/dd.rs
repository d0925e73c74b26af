//! `qemu-img dd`.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use crate::cli::{
    commands,
    failure::Failure,
    options::{CopyJob, DdJob, DdOperands, NewFormat, Trust, WrongBlocks},
};

use super::{
    super::{
        getopt::{Argument, Flag, flag},
        qemu::{size::decimal, text},
    },
    command::{Command, Done, Naming, Stop, read},
    options::{NewOptions, made},
    words::uncreated,
};

const HELP: &str = "\
Copies blocks of an image, in another format where one is named.

Usage: qemu-img dd [OPTIONS] if=SOURCE of=TARGET [bs=SIZE] [count=N] [skip=N]

  -f, --format=FMT         Format of the source; without it a file's first bytes tell
      --image-opts         SOURCE is a description: driver=qcow2,file.filename=PATH
  -O, --output-format=FMT  Format of the target: raw (without it), qcow2, vmdk, vpc, vhdx or vdi
      --object=OBJECT      tls-creds-x509,id=ID,dir=DIR,endpoint=client
  -U, --force-share        Understood; images are never locked
  -h, --help               Show this text

Blocks have 512 bytes unless bs says it; skip leaves out the first ones, and count is how many come then.
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Format,
    Help,
    ImageOpts,
    Object,
    OutputFormat,
    Share,
}

const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Required};
    &[
        flag("help", Some(b'h'), No, Opt::Help),
        flag("format", Some(b'f'), Required, Opt::Format),
        flag("image-opts", None, No, Opt::ImageOpts),
        flag("output-format", Some(b'O'), Required, Opt::OutputFormat),
        flag("force-share", Some(b'U'), No, Opt::Share),
        flag("object", None, Required, Opt::Object),
    ]
};

/// What the options say.
#[derive(Debug, Default)]
struct Choices {
    naming: Naming,
    format: Option<String>,
    output_format: Option<String>,
    shared: bool,
}

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut choices = Choices::default();
    let operands = read(FLAGS, words, |option, value| choices.choose(option, value))?;
    let mut operands = DdOperands::read(&operands)
        .map_err(|key| Failure::usage(format!("unrecognized operand {key}")))?;
    for value in [&mut operands.bs, &mut operands.count, &mut operands.skip] {
        let number = value.as_ref().and_then(|value| value.to_str());
        *value = match number.map(|number| decimal(number).into_owned()) {
            Some(number) => Some(OsString::from(number)),
            None => value.take(),
        };
    }
    let kind = made(choices.output_format.as_deref().unwrap_or("raw"))?;
    let blocks = operands.blocks().map_err(|wrong| {
        let WrongBlocks { name, value, range } = wrong;
        Failure::usage(match range {
            Some((least, most)) => {
                format!("Invalid {name} specified. Must be between {least} and {most}.")
            }
            None => format!("Invalid {name} specified: '{value}'."),
        })
    })?;
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        return Err(Failure::usage("Must specify both input and output files").into());
    };
    let source = choices.naming.source(input, choices.format.as_deref())?;
    let target = choices.naming.with_image_opts(false);
    let target = target.writable(output, Some("raw"))?;
    let options = NewOptions::default().into_ours(kind)?;
    let format = NewFormat {
        kind,
        options: &options,
        ..NewFormat::default()
    };
    let (format, _) = format.resolve().map_err(Failure::usage)?;
    let name = target.name().to_string();
    let copy = CopyJob {
        trust: Trust::of_environment(),
        shared: choices.shared,
        ..CopyJob::new(source, target, format)
    };
    match commands::dd::run(DdJob { copy, blocks }) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(failure) => Err(uncreated(failure, &name, "error while creating output image").into()),
    }
}

impl Choices {
    fn choose(&mut self, option: Opt, value: &OsStr) -> Result<(), Stop> {
        match option {
            Opt::Help => return Err(Stop::Answer(HELP.to_owned())),
            Opt::Format => self.format = Some(text("format", value)?),
            Opt::ImageOpts => self.naming.image_opts = true,
            Opt::Object => self.naming.define(value)?,
            Opt::OutputFormat => self.output_format = Some(text("output-format", value)?),
            Opt::Share => self.shared = true,
        }
        Ok(())
    }
}
