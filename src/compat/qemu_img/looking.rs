//! What the commands share that look at one image: their options, and which image they name.

use std::ffi::{OsStr, OsString};

use crate::{
    cli::{
        failure::Failure,
        options::{Timeouts, Trust, open_options},
    },
    endpoint::{Endpoint, OpenOptions},
};

use super::{
    super::{
        getopt::{Argument, Flag, flag},
        qemu::{block_options::Image, size::parse_size, text},
    },
    command::{Naming, Stop, read},
};

/// An option of any of these commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opt<T> {
    Format,
    Help,
    ImageOpts,
    Object,
    Output,
    Share,
    /// One that this command has for itself.
    Own(T),
}

/// The options that all of them have.
const fn common<T: Copy>() -> [Flag<Opt<T>>; 5] {
    use Argument::{No, Required};
    [
        flag("help", Some(b'h'), No, Opt::Help),
        flag("format", Some(b'f'), Required, Opt::Format),
        flag("image-opts", None, No, Opt::ImageOpts),
        flag("object", None, Required, Opt::Object),
        flag("force-share", Some(b'U'), No, Opt::Share),
    ]
}

/// The option of those that tell what they find as JSON, too.
pub(super) const fn output<T: Copy>() -> Flag<Opt<T>> {
    flag("output", None, Argument::Required, Opt::Output)
}

/// An option that one of them has for itself.
pub(super) const fn own<T: Copy>(
    long: &'static str,
    short: Option<u8>,
    argument: Argument,
    means: T,
) -> Flag<Opt<T>> {
    flag(long, short, argument, Opt::Own(means))
}

/// What those say.
#[derive(Debug, Default)]
pub(super) struct Looking {
    pub(super) naming: Naming,
    pub(super) format: Option<String>,
    pub(super) json: bool,
    pub(super) share: bool,
}

impl Looking {
    /// Reads the `words` of a command whose options besides the common ones are `flags`: `choose` is told each that it
    /// has for itself, and what is no option is returned.
    pub(super) fn read<T: Copy + PartialEq>(
        &mut self,
        flags: &[Flag<Opt<T>>],
        words: Vec<OsString>,
        help: &str,
        mut choose: impl FnMut(T, &OsStr) -> Result<(), Stop>,
    ) -> Result<Vec<OsString>, Stop> {
        let flags = [&common()[..], flags].concat();
        read(&flags, words, |option, value| {
            match option {
                Opt::Own(own) => choose(own, value)?,
                Opt::Help => return Err(Stop::Answer(help.to_owned())),
                Opt::Format => self.format = Some(text("format", value)?),
                Opt::ImageOpts => self.naming.image_opts = true,
                Opt::Object => self.naming.define(value)?,
                Opt::Output => {
                    self.json = match text("output", value)?.as_str() {
                        "human" => false,
                        "json" => true,
                        other => {
                            let message =
                                format!("--output expects 'human' or 'json' not '{other}'");
                            return Err(Stop::Misused(message));
                        }
                    };
                }
                Opt::Share => self.share = true,
            }
            Ok(())
        })
    }

    /// The one image that is named.
    pub(super) fn image(&self, operands: &[OsString]) -> Result<Image, Stop> {
        let [operand] = operands else {
            return Err(Stop::Misused("Expecting one image file name".to_owned()));
        };
        Ok(self.naming.image(operand, self.format.as_deref())?)
    }

    /// The same, to be read.
    pub(super) fn source(&self, operands: &[OsString]) -> Result<Endpoint, Stop> {
        Ok(self.image(operands)?.source)
    }

    /// The same, to be written.
    pub(super) fn writable(&self, operands: &[OsString]) -> Result<Endpoint, Stop> {
        let [operand] = operands else {
            return Err(Stop::Misused("Expecting one image file name".to_owned()));
        };
        Ok(self.naming.writable(operand, self.format.as_deref())?)
    }
}

/// How images are opened: what they name is followed where the environment allows it.
pub(super) fn opening() -> OpenOptions {
    Trust::of_environment().in_options(open_options(Timeouts::PATIENT))
}

/// A number of bytes that an option says, of which a message is told by the name of `what`.
pub(super) fn bytes(what: &str, value: &OsStr) -> Result<u64, Failure> {
    let value = text(what, value)?;
    let bound = || {
        Failure::usage(format!(
            "Invalid {what} specified. Must be between 0 and {}.",
            i64::MAX
        ))
    };
    match parse_size(&value) {
        Ok(bytes) => Ok(bytes),
        Err(crate::block::SizeError::TooLarge(_)) => Err(bound()),
        Err(_)
            if value
                .strip_prefix('-')
                .is_some_and(|rest| rest.parse::<u64>().is_ok()) =>
        {
            Err(bound())
        }
        Err(_) => {
            let value = crate::endpoint::printable(OsStr::new(&value));
            Err(Failure::usage(format!(
                "Invalid {what} specified: '{value}'."
            )))
        }
    }
}
