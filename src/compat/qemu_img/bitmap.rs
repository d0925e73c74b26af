//! `qemu-img bitmap`.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use crate::{
    block::ErrorKind,
    cli::{commands::runtime, failure::Failure, output::tell},
    endpoint::{Endpoint, FormatKind, change_image_bitmap, image_details, open_size, printable},
    format::qcow2::{BitmapChange, BitmapDetails, Details},
};

use super::{
    super::{
        getopt::{Argument, Flag, flag},
        qemu::text,
    },
    command::{Command, Done, Naming, Stop, read},
    looking::{bytes, opening},
};

const HELP: &str = "\
Changes the bitmaps in a qcow2 image, which note what is written to its disk.

Usage: qemu-img bitmap ACTION... [OPTIONS] FILE BITMAP

Actions, done one after the other:
      --add                Make BITMAP, with nothing dirty, and enable it
      --remove             Remove it
      --clear              Nothing is dirty in it any more
      --enable             Whoever writes the disk is to note it there
      --disable            Nobody is to
      --merge SOURCE       What is dirty in the bitmap SOURCE is dirty in it, too

Options:
  -g, --granularity SIZE   How much one bit of a new bitmap stands for: 512 to 2G, a power of two;
                           default the size of a cluster, but 4k at least and 64k at most
  -b, --source-file FILE   The image that SOURCE is in, instead of FILE
  -F, --source-format FMT  Format of that image
  -f, --format FMT         Format of FILE
      --image-opts         FILE is a description: driver=qcow2,file.filename=PATH
      --object OBJECT      tls-creds-x509,id=ID,dir=DIR,endpoint=client
  -h, --help               Show this text
";

/// The longest name of a bitmap, in bytes.
const LONGEST_NAME: usize = 1023;
/// What one bit can stand for.
const GRANULARITIES: std::ops::RangeInclusive<u64> = 512..=2 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Act(&'static str),
    Format,
    Granularity,
    Help,
    ImageOpts,
    Object,
    SourceFile,
    SourceFormat,
}

const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Required};
    &[
        flag("help", Some(b'h'), No, Opt::Help),
        flag("format", Some(b'f'), Required, Opt::Format),
        flag("image-opts", None, No, Opt::ImageOpts),
        flag("add", None, No, Opt::Act("add")),
        flag("granularity", Some(b'g'), Required, Opt::Granularity),
        flag("remove", None, No, Opt::Act("remove")),
        flag("clear", None, No, Opt::Act("clear")),
        flag("enable", None, No, Opt::Act("enable")),
        flag("disable", None, No, Opt::Act("disable")),
        flag("merge", None, Required, Opt::Act("merge")),
        flag("source-file", Some(b'b'), Required, Opt::SourceFile),
        flag("source-format", Some(b'F'), Required, Opt::SourceFormat),
        flag("object", None, Required, Opt::Object),
    ]
};

/// What the options say.
#[derive(Debug, Default)]
struct Choices {
    naming: Naming,
    format: Option<String>,
    /// What is done, in its order, and what it is done with.
    actions: Vec<(&'static str, String)>,
    granularity: Option<u64>,
    source_file: Option<OsString>,
    source_format: Option<String>,
}

/// What is known of an image before an action.
struct Known {
    /// As the user wrote it.
    image: String,
    /// `None` for one that is not qcow2.
    details: Option<Box<Details>>,
}

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut choices = Choices::default();
    let operands = read(FLAGS, words, |option, value| choices.choose(option, value))?;
    let refuse = |message: &str| Err(Stop::Failed(Failure::usage(message)));
    let does = |wanted: &str| choices.actions.iter().any(|(action, _)| *action == wanted);
    if choices.actions.is_empty() {
        return refuse(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        );
    }
    if choices.granularity.is_some() && !does("add") {
        return refuse("granularity only supported with --add");
    }
    if choices.source_file.is_some() && !does("merge") {
        return refuse("Merge bitmap source file only supported with --merge");
    }
    if choices.source_format.is_some() && choices.source_file.is_none() {
        return refuse("-F only supported with -b");
    }
    let [file, bitmap] = &operands[..] else {
        return refuse("Expecting filename and bitmap name");
    };
    choices.carry_out(file, &text("bitmap", bitmap)?)
}

impl Choices {
    fn choose(&mut self, option: Opt, value: &OsStr) -> Result<(), Stop> {
        match option {
            Opt::Help => return Err(Stop::Answer(HELP.to_owned())),
            Opt::Act(action) => self.actions.push((action, text(action, value)?)),
            Opt::Format => self.format = Some(text("format", value)?),
            Opt::Granularity => self.granularity = Some(bytes("granularity", value)?),
            Opt::ImageOpts => self.naming.image_opts = true,
            Opt::Object => self.naming.define(value)?,
            Opt::SourceFile => self.source_file = Some(value.to_owned()),
            Opt::SourceFormat => self.source_format = Some(text("source-format", value)?),
        }
        Ok(())
    }

    fn carry_out(self, file: &OsStr, bitmap: &str) -> Done {
        let image = self.naming.writable(file, self.format.as_deref())?;
        let mut known = Known::read(&image)?;
        let is_guessed = self.format.is_none() && !self.naming.image_opts;
        if is_guessed && image.format().kind == FormatKind::Raw {
            tell(&format!(
                "qemu-img: warning: no format was given for '{image}', and it is taken for raw (-f raw)"
            ));
        }
        let source = match &self.source_file {
            // A name, also where the other one is a description.
            Some(name) => {
                let naming = self.naming.with_image_opts(false);
                let source = naming.source(name, self.source_format.as_deref())?;
                let known = Known::read(&source)?;
                Some((source, known))
            }
            None => None,
        };
        for (index, (action, argument)) in self.actions.iter().enumerate() {
            if index > 0 {
                known = Known::read(&image)?;
            }
            let failed = |why: &str| {
                let bitmap = printable(OsStr::new(bitmap));
                Failure::failed(format!(
                    "Operation {action} on bitmap {bitmap} failed: {why}"
                ))
            };
            let other = source.as_ref().map(|(_, known)| known);
            let change = known.change(bitmap, action, argument, self.granularity, other);
            let change = change.map_err(|why| match why.split_once('\n') {
                Some((why, note)) => failed(why).note(note),
                None => failed(&why),
            })?;
            let source = source.as_ref().map(|(source, _)| source);
            let runtime = runtime()?;
            let changed = runtime.block_on(change_image_bitmap(
                &image,
                bitmap,
                &change,
                source,
                &opening(),
            ));
            changed.map_err(|error| match error.kind() {
                ErrorKind::InvalidInput | ErrorKind::NotFound | ErrorKind::Unsupported => {
                    failed(&Failure::from(error).reason())
                }
                _ => Failure::from(error),
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Known {
    fn read(image: &Endpoint) -> Result<Self, Failure> {
        let options = opening();
        let details = runtime()?.block_on(async {
            if let Some(details) = image_details(image, &options).await? {
                return Ok(Some(details));
            }
            // It has none, if it is there.
            open_size(image, &options).await.map(|_| None)
        })?;
        Ok(Self {
            image: image.name().to_string(),
            details: details.and_then(|details| details.as_qcow2().cloned().map(Box::new)),
        })
    }

    /// What `action` with its argument does to `bitmap`, or why it cannot be done, in the words that scripts look for.
    fn change(
        &self,
        bitmap: &str,
        action: &str,
        argument: &str,
        granularity: Option<u64>,
        other: Option<&Self>,
    ) -> Result<BitmapChange, String> {
        if action == "add" {
            let granularity = granularity.filter(|bytes| *bytes > 0);
            self.check_new(bitmap, granularity)?;
            return Ok(BitmapChange::Add { granularity });
        }
        let known = self.find(bitmap)?;
        if action == "remove" {
            return Ok(BitmapChange::Remove);
        }
        check_consistent(known)?;
        Ok(match action {
            "clear" => BitmapChange::Clear,
            "enable" => BitmapChange::Enable,
            "disable" => BitmapChange::Disable,
            _ => {
                let of = other.unwrap_or(self);
                check_consistent(of.find(argument)?)?;
                if of.size() != self.size() {
                    let (size, source) = (self.size(), of.size());
                    return Err(format!(
                        "Bitmaps are of different sizes (destination size is {size}, source size is {source}) and can't be merged"
                    ));
                }
                BitmapChange::Merge {
                    source: argument.to_owned(),
                    image: None,
                }
            }
        })
    }

    fn check_new(&self, bitmap: &str, granularity: Option<u64>) -> Result<(), String> {
        let shown = printable(OsStr::new(bitmap));
        let image = &self.image;
        if bitmap.is_empty() {
            return Err("Bitmap name cannot be empty".to_owned());
        }
        let fits = |bytes: u64| bytes.is_power_of_two() && GRANULARITIES.contains(&bytes);
        if granularity.is_some_and(|bytes| !fits(bytes)) {
            return Err("Granularity must be power of 2 and at least 512".to_owned());
        }
        if self.find(bitmap).is_ok() {
            return Err(format!("Bitmap already exists: {shown}"));
        }
        let Some(details) = &self.details else {
            return Err(format!(
                "Can't store persistent bitmaps to '{image}': Operation not supported"
            ));
        };
        let why = match bitmap.len() {
            _ if details.version < 3 => "Cannot store dirty bitmaps in qcow2 v2 files".to_owned(),
            longer if longer > LONGEST_NAME => {
                format!("Name length exceeds maximum ({LONGEST_NAME} characters)")
            }
            _ if is_too_large(details, granularity) => {
                "Too much space will be occupied by the bitmap. Use larger granularity".to_owned()
            }
            _ => return Ok(()),
        };
        Err(format!(
            "Can't make bitmap '{shown}' persistent in '{image}': {why}"
        ))
    }

    fn find(&self, bitmap: &str) -> Result<&BitmapDetails, String> {
        let details = self.details.as_ref();
        let mut bitmaps = details.into_iter().flat_map(|details| &details.bitmaps);
        bitmaps.find(|known| known.name == bitmap).ok_or_else(|| {
            let bitmap = printable(OsStr::new(bitmap));
            format!("Dirty bitmap '{bitmap}' not found")
        })
    }

    fn size(&self) -> u64 {
        self.details
            .as_ref()
            .map_or(0, |details| details.virtual_size)
    }
}

/// Whether all bits of a new bitmap would take more than an image has for one: 512 MiB.
fn is_too_large(details: &Details, granularity: Option<u64>) -> bool {
    const LARGEST: u64 = 512 << 20;
    let cluster = details.cluster_size.max(1);
    let granularity = granularity.unwrap_or(cluster.clamp(4096, 65536));
    let told = (cluster * 8).saturating_mul(granularity);
    let clusters = details.virtual_size.div_ceil(told);
    clusters.saturating_mul(cluster) > LARGEST
}

fn check_consistent(bitmap: &BitmapDetails) -> Result<(), String> {
    match bitmap.in_use {
        false => Ok(()),
        true => {
            let name = printable(OsStr::new(&bitmap.name));
            Err(format!(
                "Bitmap '{name}' is inconsistent and cannot be used\n\
                 'qemu-img bitmap --remove' deletes it (block-dirty-bitmap-remove in QEMU)"
            ))
        }
    }
}
