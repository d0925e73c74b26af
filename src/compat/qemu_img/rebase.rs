//! `qemu-img rebase`.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use crate::{
    block::{ErrorKind, Operation},
    cli::{
        commands::rebase::{RebaseJob, run as rebase},
        failure::Failure,
        fraction::FractionTo,
        options::{Show, Trust},
    },
    endpoint::{Endpoint, Rebase, RebaseOnto, printable},
};

use super::{
    super::{
        getopt::{Argument, Flag, flag},
        qemu::{format, text},
    },
    command::{Command, Done, Naming, Stop, check_cache, read},
    words::{retold, why},
};

const HELP: &str = "\
Gives a qcow2 image another backing file, or none.

Usage: qemu-img rebase [OPTIONS] -b BACKING FILE

  -b, -B, --backing=BACKING   Name of the new one, relative to FILE's directory; \"\" for none
  -F, --backing-format=FMT    Format of the new one
  -u, --backing-unsafe        Only the name and the format change: neither the old backing file nor
                              the new one is looked at. Without it what the image shows stays the
                              same: what differs is written into FILE first
  -c, --compress              What is written into FILE is compressed
  -f, --format=FMT            Format of FILE; without it its first bytes tell
      --image-opts            FILE is a description: driver=qcow2,file.filename=PATH
  -p, --progress              Show how far it is, on standard output
  -q, --quiet                 Show nothing
      --object=OBJECT         tls-creds-x509,id=ID,dir=DIR,endpoint=client
  -U, -t MODE, -T MODE        Understood; they change nothing
  -h, --help                  Show this text

Without -u the old backing file is opened where BLOCKFERRY_ALLOW_BACKING allows it.
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Backing,
    BackingFormat,
    Cache,
    Compress,
    Format,
    Help,
    ImageOpts,
    Object,
    Progress,
    Quiet,
    Share,
    SourceCache,
    Unsafe,
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
        flag("backing", Some(b'b'), Required, Opt::Backing),
        // As other commands of it have it.
        flag("backing", Some(b'B'), Required, Opt::Backing),
        flag("backing-format", Some(b'F'), Required, Opt::BackingFormat),
        flag("backing-cache", Some(b'T'), Required, Opt::SourceCache),
        flag("backing-unsafe", Some(b'u'), No, Opt::Unsafe),
        flag("compress", Some(b'c'), No, Opt::Compress),
        flag("force-share", Some(b'U'), No, Opt::Share),
        flag("object", None, Required, Opt::Object),
    ]
};

/// What the options say.
#[derive(Debug, Default)]
struct Choices {
    naming: Naming,
    format: Option<String>,
    backing: Option<OsString>,
    backing_format: Option<String>,
    is_unsafe: bool,
    compress: bool,
    progress: bool,
    quiet: bool,
}

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut choices = Choices::default();
    let operands = read(FLAGS, words, |option, value| choices.choose(option, value))?;
    let [file] = &operands[..] else {
        return Err(Stop::Misused("Expecting one image file name".to_owned()));
    };
    choices.rebase(file)
}

impl Choices {
    fn choose(&mut self, option: Opt, value: &OsStr) -> Result<(), Stop> {
        match option {
            Opt::Help => return Err(Stop::Answer(HELP.to_owned())),
            Opt::Backing => self.backing = Some(value.to_owned()),
            Opt::BackingFormat => self.backing_format = Some(text("backing-format", value)?),
            Opt::Cache => check_cache(value, "cache option")?,
            Opt::Compress => self.compress = true,
            Opt::Format => self.format = Some(text("format", value)?),
            Opt::ImageOpts => self.naming.image_opts = true,
            Opt::Object => self.naming.define(value)?,
            Opt::Progress => self.progress = true,
            Opt::Quiet => self.quiet = true,
            Opt::Share => {}
            Opt::SourceCache => check_cache(value, "source cache option")?,
            Opt::Unsafe => self.is_unsafe = true,
        }
        Ok(())
    }

    fn rebase(self, file: &OsStr) -> Done {
        if self.backing.is_none() && !self.is_unsafe {
            return Err(Stop::Misused(
                "Must specify backing file (-b) or use unsafe mode (-u)".to_owned(),
            ));
        }
        let image = self.naming.writable(file, self.format.as_deref())?;
        let onto = self.onto()?;
        let how = Rebase {
            onto: onto.clone(),
            is_unsafe: self.is_unsafe,
            compress: self.compress,
            ..Rebase::default()
        };
        let job = RebaseJob {
            image: image.clone(),
            rebase: how,
            trust: Trust::of_environment(),
            show: Show::Fraction(match self.progress && !self.quiet {
                true => FractionTo::All,
                false => FractionTo::WhoAsks,
            }),
            quiet: self.quiet,
        };
        match rebase(job) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(failure) => Err(unchanged(failure, &image, onto.as_ref()).into()),
        }
    }

    /// The new backing file; `None` for none.
    fn onto(&self) -> Result<Option<RebaseOnto>, Failure> {
        if let Some(name) = &self.backing_format
            && !format::exists(name)
        {
            let name = printable(name.as_ref());
            return Err(Failure::usage(format!("Invalid format name: '{name}'")));
        }
        let name = match &self.backing {
            Some(name) if !name.is_empty() => name,
            _ => return Ok(None),
        };
        let Some(format) = &self.backing_format else {
            let name = printable(name);
            return Err(Failure::usage(format!(
                "Could not change the backing file to '{name}': backing format must be specified"
            )));
        };
        if !self.is_unsafe {
            format::known(format).map_err(Failure::usage)?;
        }
        Ok(Some(RebaseOnto {
            name: name.clone(),
            format: format.clone(),
        }))
    }
}

/// The failure to give `image` another backing file, in the words for it.
fn unchanged(failure: Failure, image: &Endpoint, onto: Option<&RebaseOnto>) -> Failure {
    let Some(cause) = failure.cause() else {
        return failure;
    };
    let name = onto.map_or_else(String::new, |onto| printable(&onto.name));
    let is_of_image = cause.endpoint() == Some(&**image.name());
    let is_open = cause.operation() == Some(Operation::Open);
    match cause.kind() {
        ErrorKind::Unsupported | ErrorKind::InvalidInput if is_of_image && !is_open => {
            let why = why(&failure);
            failure.saying(format!(
                "Could not change the backing file to '{name}': {why}"
            ))
        }
        _ if is_open && !is_of_image => {
            let why = why(&failure);
            let cause = cause.endpoint().unwrap_or_default().to_owned();
            failure.saying(format!(
                "Could not open new backing file '{name}': Could not open '{cause}': {why}"
            ))
        }
        _ => retold(failure),
    }
}
