//! `qemu-img commit`.

use std::ffi::{OsStr, OsString};

use crate::{
    block::{ErrorKind, Operation},
    cli::{
        commands::commit::{CommitJob, run as commit},
        failure::Failure,
        fraction::FractionTo,
        options::{Show, Trust},
    },
    endpoint::Commit,
};

use super::{
    super::{
        getopt::{Argument, Flag, flag},
        qemu::text,
    },
    command::{Command, Done, Naming, Stop, check_cache, read, shown, size},
};

const HELP: &str = "\
Writes what an overlay has into its backing file, and empties it.

Usage: qemu-img commit [OPTIONS] FILE

  -b, --base=BASE       Write into BASE, an image further down the chain; FILE and all in between
                        stay as they are
  -d, --drop            FILE stays as it is: it will be deleted anyhow
  -f, --format=FMT      Format of FILE; without it its first bytes tell
      --image-opts      FILE is a description: driver=qcow2,file.filename=PATH
  -r, --rate=BYTES      At most so many bytes a second
  -p, --progress        Show how far it is, on standard output
  -q, --quiet           Show nothing
      --object=OBJECT   tls-creds-x509,id=ID,dir=DIR,endpoint=client
  -t MODE               Understood; it changes nothing
  -h, --help            Show this text

The files of the chain are opened where BLOCKFERRY_ALLOW_BACKING allows it.
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Base,
    Cache,
    Drop,
    Format,
    Help,
    ImageOpts,
    Object,
    Progress,
    Quiet,
    Rate,
}

const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Required};
    &[
        flag("help", Some(b'h'), No, Opt::Help),
        flag("quiet", Some(b'q'), No, Opt::Quiet),
        flag("progress", Some(b'p'), No, Opt::Progress),
        flag("format", Some(b'f'), Required, Opt::Format),
        flag("image-opts", None, No, Opt::ImageOpts),
        flag("cache", Some(b't'), Required, Opt::Cache),
        flag("drop", Some(b'd'), No, Opt::Drop),
        flag("base", Some(b'b'), Required, Opt::Base),
        flag("rate", Some(b'r'), Required, Opt::Rate),
        flag("object", None, Required, Opt::Object),
    ]
};

/// What the options say.
#[derive(Debug, Default)]
struct Choices {
    naming: Naming,
    format: Option<String>,
    commit: Commit,
    rate: Option<u64>,
    progress: bool,
    quiet: bool,
}

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut choices = Choices::default();
    let operands = read(FLAGS, words, |option, value| choices.choose(option, value))?;
    let [file] = &operands[..] else {
        return Err(Stop::Misused("Expecting one image file name".to_owned()));
    };
    choices.commit(file)
}

impl Choices {
    fn choose(&mut self, option: Opt, value: &OsStr) -> Result<(), Stop> {
        match option {
            Opt::Help => return Err(Stop::Answer(HELP.to_owned())),
            Opt::Base => self.commit.base = Some(value.to_owned()),
            Opt::Cache => check_cache(value, "cache option")?,
            Opt::Drop => self.commit.keep = true,
            Opt::Format => self.format = Some(text("format", value)?),
            Opt::ImageOpts => self.naming.image_opts = true,
            Opt::Object => self.naming.define(value)?,
            Opt::Progress => self.progress = true,
            Opt::Quiet => self.quiet = true,
            Opt::Rate => self.rate = Some(size(value, "rate limit specified")?),
        }
        Ok(())
    }

    fn commit(self, file: &OsStr) -> Done {
        let job = CommitJob {
            image: self.naming.writable(file, self.format.as_deref())?,
            commit: self.commit,
            rate: self.rate,
            trust: Trust::of_environment(),
            show: Show::Fraction(match self.progress && !self.quiet {
                true => FractionTo::All,
                false => FractionTo::WhoAsks,
            }),
            quiet: self.quiet,
        };
        commit(&job).map_err(uncommitted)?;
        shown(if self.quiet { "" } else { "Image committed.\n" })
    }
}

/// The failure to commit, in the words that scripts know, where they are those already.
fn uncommitted(failure: Failure) -> Failure {
    let told = failure.cause().filter(|cause| {
        cause.kind() == ErrorKind::InvalidInput && cause.operation() != Some(Operation::Open)
    });
    match told {
        Some(_) => {
            let why = failure.reason();
            failure.saying(why)
        }
        None => failure,
    }
}
