//! `qemu-img compare`.

use std::ffi::{OsStr, OsString};

use crate::{
    block::{Error, Operation},
    cli::{
        commands,
        failure::Failure,
        fraction::FractionTo,
        options::{CompareJob, Show, Timeouts, Trust},
    },
    copy::CompareOptions,
};

use super::{
    super::{
        getopt::{Argument, Flag, flag},
        qemu::text,
    },
    command::{Command, Done, Naming, Stop, check_cache, read},
    node::SECTOR,
};

const HELP: &str = "\
Tells whether two images have the same contents.

Usage: qemu-img compare [OPTIONS] FILE1 FILE2

  -f, --a-format=FMT    Format of FILE1
  -F, --b-format=FMT    Format of FILE2
      --image-opts      FILE1 and FILE2 are descriptions: driver=qcow2,file.filename=PATH
      --object OBJECT   tls-creds-x509,id=ID,dir=DIR,endpoint=client
  -s, --strict          Images differ that have two sizes, or other parts allocated
  -p, --progress        Show how far it is
  -q, --quiet           Say nothing but by the exit code
  -T, --cache=MODE      Understood; changes nothing
  -U, --force-share     Understood; images are never locked
  -h, --help            Show this text

Exit codes: 0 identical, 1 different, 2 an image cannot be opened, 3 or 4 it cannot be read.
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Cache,
    Format,
    Help,
    ImageOpts,
    Object,
    OtherFormat,
    Progress,
    Quiet,
    Share,
    Strict,
}

const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Required};
    &[
        flag("help", Some(b'h'), No, Opt::Help),
        flag("quiet", Some(b'q'), No, Opt::Quiet),
        flag("progress", Some(b'p'), No, Opt::Progress),
        flag("a-format", Some(b'f'), Required, Opt::Format),
        flag("b-format", Some(b'F'), Required, Opt::OtherFormat),
        flag("image-opts", None, No, Opt::ImageOpts),
        flag("strict", Some(b's'), No, Opt::Strict),
        flag("cache", Some(b'T'), Required, Opt::Cache),
        flag("force-share", Some(b'U'), No, Opt::Share),
        flag("object", None, Required, Opt::Object),
    ]
};

/// What the options say.
#[derive(Debug, Default)]
struct Choices {
    naming: Naming,
    formats: [Option<String>; 2],
    strict: bool,
    progress: bool,
    quiet: bool,
}

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut choices = Choices::default();
    let operands = read(FLAGS, words, |option, value| {
        if option == Opt::Help {
            return Err(Stop::Answer(HELP.to_owned()));
        }
        let chosen = choices.choose(option, value);
        chosen.map_err(|failure| Stop::Code(2, failure))
    })?;
    let [one, other] = &operands[..] else {
        return Err(Stop::Misused("Expecting two image file names".to_owned()));
    };
    let job = choices.job([one, other]);
    let job = job.map_err(|failure| Stop::Code(2, failure))?;
    commands::compare::run(&job).map_err(|failure| {
        let operation = failure.cause().and_then(Error::operation);
        let code = match operation {
            Some(Operation::Extents) => 3,
            Some(Operation::Read) => 4,
            _ => 2,
        };
        Stop::Code(code, failure)
    })
}

impl Choices {
    fn choose(&mut self, option: Opt, value: &OsStr) -> Result<(), Failure> {
        match option {
            Opt::Cache => check_cache(value, "source cache option")?,
            Opt::Format => self.formats[0] = Some(text("a-format", value)?),
            Opt::OtherFormat => self.formats[1] = Some(text("b-format", value)?),
            Opt::ImageOpts => self.naming.image_opts = true,
            Opt::Object => self.naming.define(value)?,
            Opt::Progress => self.progress = true,
            Opt::Quiet => self.quiet = true,
            Opt::Strict => self.strict = true,
            Opt::Help | Opt::Share => {}
        }
        Ok(())
    }

    fn job(&self, operands: [&OsString; 2]) -> Result<CompareJob, Failure> {
        let side = |index: usize| {
            self.naming
                .source(operands[index], self.formats[index].as_deref())
        };
        let mut engine = CompareOptions::default();
        engine.strict = self.strict;
        Ok(CompareJob {
            sides: [side(0)?, side(1)?],
            size_unit: SECTOR,
            statuses: self.strict,
            trust: Trust::of_environment(),
            engine,
            show: Show::Fraction(match self.progress && !self.quiet {
                true => FractionTo::All,
                false => FractionTo::WhoAsks,
            }),
            json: false,
            quiet: self.quiet,
            timeouts: Timeouts::PATIENT,
        })
    }
}
