//! `qemu-img measure`.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use crate::{
    cli::{
        commands::{
            measure::{Measurement, Subject, Target, measure},
            runtime,
        },
        failure::Failure,
    },
    endpoint::{FormatKind, ImageFormat, NewQcow2, printable, raw_is_allocated},
    inspect::View,
};

use super::{
    super::{
        getopt::{Argument, Flag},
        qemu::{text, tree::Tree},
    },
    command::{Command, Done, Stop, shown},
    looking::{Looking, Opt, bytes, opening, output, own},
    node::SECTOR,
};

const HELP: &str = "\
Tells how long the file of an image would become.

Usage: qemu-img measure [OPTIONS] --size SIZE | FILE

  -O, --target-format=FMT  Of an image in that format: raw, which it is without this option, or qcow2
  -o OPTIONS               Made with these options
  -s, --size=SIZE          Of an empty disk of that size
  -l, --snapshot=SNAPSHOT  Of a copy of that snapshot in FILE
  -f, --format=FMT         Format of FILE
      --image-opts         FILE is a description: driver=qcow2,file.filename=PATH
      --object OBJECT      tls-creds-x509,id=ID,dir=DIR,endpoint=client
      --output=human|json  Lines for people, or JSON
  -U, --force-share        Understood; images are never locked
  -h, --help               Show this text
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Options,
    Size,
    Snapshot,
    Target,
}

const FLAGS: &[Flag<Opt<Own>>] = {
    use Argument::Required;
    &[
        output(),
        own("target-format", Some(b'O'), Required, Own::Target),
        own("size", Some(b's'), Required, Own::Size),
        own("snapshot", Some(b'l'), Required, Own::Snapshot),
        // It has no long name; nobody types this one.
        own("options", Some(b'o'), Required, Own::Options),
    ]
};

#[derive(Default)]
struct Choices {
    looking: Looking,
    target: Option<String>,
    options: Vec<OsString>,
    size: Option<u64>,
    snapshot: Option<String>,
}

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut choices = Choices::default();
    let looking = &mut choices.looking;
    let operands = looking.read(FLAGS, words, HELP, |option, value| {
        match option {
            Own::Target => choices.target = Some(text("target-format", value)?),
            Own::Options => choices.options.extend(without_size(value)),
            Own::Size => choices.size = Some(bytes("image size", value)?),
            Own::Snapshot => choices.snapshot = Some(text("snapshot", value)?),
        }
        Ok(())
    })?;
    let subject = choices.subject(&operands)?;
    let target = choices.target()?;
    let options = opening();
    let measured = measure(&subject, &target, (SECTOR, View::Qemu), &options);
    let measured = runtime()?.block_on(measured)?;
    shown(&told(measured, choices.looking.json))
}

impl Choices {
    fn subject(&self, operands: &[OsString]) -> Result<Subject, Stop> {
        let refuse = |message: &str| Err(Failure::usage(message).into());
        let looking = &self.looking;
        match (operands, self.size) {
            ([_, _, ..], _) => refuse("At most one filename argument is allowed."),
            ([], _)
                if looking.naming.image_opts
                    || looking.format.is_some()
                    || self.snapshot.is_some() =>
            {
                refuse("--image-opts, -f, and -l require a filename argument.")
            }
            ([_], Some(_)) => refuse("--size N cannot be used together with a filename."),
            ([], None) => refuse("Either --size N or one filename must be specified."),
            ([], Some(size)) => Ok(Subject::Size(size)),
            ([_], None) => {
                let mut source = looking.source(operands)?;
                if self.snapshot.is_some() {
                    let format = ImageFormat {
                        snapshot: self.snapshot.clone(),
                        ..source.format().clone()
                    };
                    source = source.interpreted(format);
                }
                Ok(Subject::Copy(source))
            }
        }
    }

    fn target(&self) -> Result<Target, Failure> {
        let name = self.target.as_deref().unwrap_or("raw");
        let wrong = |why: String| {
            Failure::usage(format!("Invalid options for file format '{name}': {why}"))
        };
        match name.parse() {
            Ok(FormatKind::Raw) => {
                raw_is_allocated(&self.options).map_err(wrong)?;
                Ok(Target::Raw)
            }
            Ok(FormatKind::Image(crate::format::Format::Qcow2)) => {
                let new = NewQcow2::parse(&self.options).map_err(wrong)?;
                new.check().map_err(|error| wrong(error.to_string()))?;
                Ok(Target::Qcow2(Box::new(new)))
            }
            Ok(FormatKind::Image(other)) => Err(Failure::usage(format!(
                "Block driver '{other}' does not support size measurement"
            ))),
            _ => Err(Failure::usage(format!(
                "Unknown file format '{}'",
                printable(OsStr::new(name))
            ))),
        }
    }
}

/// The options without the size, which is that of the source.
fn without_size(options: &OsStr) -> Option<OsString> {
    let pieces = options.as_bytes().split(|byte| *byte == b',');
    let kept: Vec<_> = pieces
        .filter(|piece| !piece.starts_with(b"size="))
        .collect();
    let kept = kept.join(&b","[..]);
    (!kept.is_empty()).then(|| OsString::from_vec(kept))
}

fn told(measured: Measurement, json: bool) -> String {
    let Measurement {
        required,
        fully_allocated,
        bitmaps,
    } = measured;
    if json {
        let mut members = Vec::new();
        members.extend(bitmaps.map(|bytes| ("bitmaps", Tree::number(bytes))));
        members.push(("required", Tree::number(required)));
        members.push(("fully-allocated", Tree::number(fully_allocated)));
        return Tree::Map(members).json();
    }
    let mut text = format!("required size: {required}\nfully allocated size: {fully_allocated}\n");
    if let Some(bytes) = bitmaps {
        text += &format!("bitmaps size: {bytes}\n");
    }
    text
}
