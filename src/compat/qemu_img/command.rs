//! What the commands share: how their arguments are read, how these name images, and how a command ends.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use crate::{
    block::SizeError,
    cli::{
        failure::Failure,
        output::{print, tell},
    },
    endpoint::{Endpoint, printable},
};

use super::{
    super::{
        ending::exit_code,
        getopt::{self, Flag, Mistake},
        qemu::{
            block_options::{Image, described},
            credentials::Objects,
            names::{could_not_open, named},
            size::parse_size,
            text,
        },
    },
    words::retold,
};

/// A command of `qemu-img`.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: &'static str,
    /// What it does, on one line.
    pub(super) about: &'static str,
    /// Whether it is done here.
    pub(super) is_there: bool,
    /// Does it, with the words behind its name.
    pub(super) run: fn(&Self, Vec<OsString>) -> Done,
}

/// How a command ends: with an exit code of its own, or before it has one.
pub(super) type Done = Result<ExitCode, Stop>;

impl Command {
    /// One that is done here.
    pub(super) const fn new(
        name: &'static str,
        about: &'static str,
        run: fn(&Self, Vec<OsString>) -> Done,
    ) -> Self {
        Self {
            name,
            about,
            is_there: true,
            run,
        }
    }

    /// One that is not.
    pub(super) const fn missing(name: &'static str, about: &'static str) -> Self {
        Self {
            name,
            about,
            is_there: false,
            run: |command, _| command.refuse(),
        }
    }

    /// Also where it is asked for help: that is how scripts find out whether a command is there.
    fn refuse(&self) -> Done {
        let name = self.name;
        let why = format!("'{name}' is not done by blockferry: use QEMU's own qemu-img");
        Err(Failure::failed(why).into())
    }
}

/// Why a command ends before it is done.
#[derive(Debug)]
pub(super) enum Stop {
    /// It was asked for something about itself, which this text says.
    Answer(String),
    /// An option is unknown or lacks its argument.
    Misread(String),
    /// The arguments make no sense, and it helps to be told how the command is called.
    Misused(String),
    /// It failed.
    Failed(Failure),
    /// It failed, with an exit code that says how.
    Code(u8, Failure),
}

impl Stop {
    /// Tells of it.
    pub(super) fn end(self, command: Option<&'static str>) -> ExitCode {
        let program = match command {
            Some(command) => format!("qemu-img {command}"),
            None => "qemu-img".to_owned(),
        };
        let advise = || tell(&format!("Try '{program} --help' for more info"));
        match self {
            Self::Answer(text) => match shown(&text) {
                Ok(code) => code,
                Err(stop) => stop.end(command),
            },
            Self::Misread(mistake) => {
                tell(&format!("{program}: {mistake}"));
                advise();
                ExitCode::FAILURE
            }
            Self::Misused(why) => {
                Failure::usage(why).report();
                advise();
                ExitCode::FAILURE
            }
            Self::Failed(failure) => end(failure, None),
            Self::Code(code, failure) => end(failure, Some(code)),
        }
    }
}

/// Whoever was interrupted ends as one who was.
fn end(failure: Failure, code: Option<u8>) -> ExitCode {
    let usual = exit_code(&failure);
    if !failure.is_reader_gone() {
        retold(failure).without_hint().report();
    }
    ExitCode::from(match code {
        Some(code) if usual < 128 => code,
        _ => usual,
    })
}

impl From<Mistake> for Stop {
    fn from(mistake: Mistake) -> Self {
        Self::Misread(mistake.to_string())
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Reads the `words` of a command: `choose` is told each option with its argument, and what is no option is returned.
pub(super) fn read<T: Copy + PartialEq>(
    flags: &[Flag<T>],
    words: Vec<OsString>,
    mut choose: impl FnMut(T, &OsStr) -> Result<(), Stop>,
) -> Result<Vec<OsString>, Stop> {
    getopt::read(flags, words, |option, argument| {
        choose(option, argument.unwrap_or_default())
    })
}

/// How the operands of a command name images.
#[derive(Debug, Default)]
pub(super) struct Naming {
    /// Whether they are descriptions.
    pub(super) image_opts: bool,
    objects: Objects,
}

impl Naming {
    /// Takes the argument of one `--object`.
    pub(super) fn define(&mut self, object: &OsStr) -> Result<(), Failure> {
        self.objects.define(&text("object", object)?)
    }

    /// The same for operands that are descriptions, or not.
    pub(super) fn with_image_opts(&self, image_opts: bool) -> Self {
        Self {
            image_opts,
            objects: self.objects.clone(),
        }
    }

    /// The image that `operand` stands for, in `format` where one was said.
    pub(super) fn image(&self, operand: &OsStr, format: Option<&str>) -> Result<Image, Failure> {
        match (self.image_opts, format) {
            (true, Some(_)) => Err(Failure::usage(
                "--image-opts and --format are mutually exclusive",
            )),
            (true, None) => described(&text("image-opts", operand)?, &self.objects),
            (false, format) => named(operand, format, &self.objects),
        }
    }

    /// The same, to be read.
    pub(super) fn source(
        &self,
        operand: &OsStr,
        format: Option<&str>,
    ) -> Result<Endpoint, Failure> {
        Ok(self.image(operand, format)?.source)
    }

    /// The same, to be written.
    pub(super) fn writable(
        &self,
        operand: &OsStr,
        format: Option<&str>,
    ) -> Result<Endpoint, Failure> {
        let image = self.image(operand, format)?;
        match image.read_only {
            false => Ok(image.source),
            true => {
                let name = could_not_open(image.source.name());
                Err(Failure::usage(format!(
                    "{name}: it is said to be read-only"
                )))
            }
        }
    }
}

/// Prints `text` as all that there is to do.
pub(super) fn shown(text: &str) -> Done {
    print(text)?;
    Ok(ExitCode::SUCCESS)
}

/// A size in bytes, for which there is no word but `what`.
pub(super) fn size(value: &OsStr, what: &str) -> Result<u64, Failure> {
    parse_size(value.to_str().unwrap_or_default()).map_err(|error| {
        Failure::usage(match error {
            SizeError::TooLarge(_) => {
                format!("Invalid {what}. Must be between 0 and {}.", i64::MAX)
            }
            _ => format!("Invalid {what}: '{}'.", printable(value)),
        })
    })
}

/// Looks at a cache mode, which changes nothing here: what is written is durable in the end. `kind` begins the message
/// about a mode that there is not.
pub(super) fn check_cache(value: &OsStr, kind: &str) -> Result<(), Failure> {
    const MODES: &[&str] = &[
        "none",
        "off",
        "writeback",
        "writethrough",
        "directsync",
        "unsafe",
    ];
    match MODES.iter().any(|mode| value == *mode) {
        true => Ok(()),
        false => {
            let value = printable(value);
            Err(Failure::usage(format!("Invalid {kind}: {value}")))
        }
    }
}
