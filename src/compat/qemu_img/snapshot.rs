//! `qemu-img snapshot`.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use time::OffsetDateTime;

use crate::{
    block::{ErrorKind, Operation},
    cli::{
        commands::{runtime, snapshot::change},
        failure::Failure,
        options::{Timeouts, Trust},
    },
    endpoint::{SnapshotChange, image_details, printable},
    format::qcow2::Snapshot,
};

use super::{
    super::{
        getopt::{Argument, Flag},
        qemu::{names::could_not_open, text, tree::size_text},
    },
    command::{Command, Done, Stop, shown},
    looking::{Looking, Opt, opening, own},
    words::why,
};

/// How long a name can be, in bytes: what is behind is cut off.
const LONGEST_NAME: usize = 255;

const HELP: &str = "\
Lists the snapshots in an image, makes one, goes back to one, or deletes one.

Usage: qemu-img snapshot [OPTIONS] FILE

  -l, --list           List them, which is what is done without any of these
  -c, --create=NAME    Make one of the disk as it is now
  -a, --apply=ID|NAME  Let the disk be what it was in that one; what it is now is lost
  -d, --delete=NAME    Delete that one
  -f, --format=FMT     Format of FILE
      --image-opts     FILE is a description: driver=qcow2,file.filename=PATH
      --object OBJECT  tls-creds-x509,id=ID,dir=DIR,endpoint=client
  -q, --quiet          Understood; changes nothing
  -U, --force-share    Understood where FILE is only read
  -h, --help           Show this text
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Action(Action),
    Quiet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    List,
    Apply,
    Create,
    Delete,
}

const FLAGS: &[Flag<Opt<Own>>] = {
    use Argument::{No, Required};
    &[
        own("quiet", Some(b'q'), No, Own::Quiet),
        own("list", Some(b'l'), No, Own::Action(Action::List)),
        own("apply", Some(b'a'), Required, Own::Action(Action::Apply)),
        own("create", Some(b'c'), Required, Own::Action(Action::Create)),
        own("delete", Some(b'd'), Required, Own::Action(Action::Delete)),
    ]
};

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut looking = Looking::default();
    let mut action = None;
    let operands = looking.read(FLAGS, words, HELP, |option, value| {
        if let Own::Action(asked) = option
            && action.replace((asked, value.to_owned())).is_some()
        {
            let message = "Cannot mix '-l', '-a', '-c', '-d'";
            return Err(Stop::Misused(message.to_owned()));
        }
        Ok(())
    })?;
    match action {
        Some((Action::Create, name)) => {
            let name = text("create", &name)?;
            let cut = cut(&name, LONGEST_NAME).to_owned();
            changed(&looking, &operands, &name, &SnapshotChange::Create(cut))
        }
        Some((Action::Apply, wanted)) => {
            let wanted = text("apply", &wanted)?;
            let asked = SnapshotChange::Apply(wanted.clone());
            changed(&looking, &operands, &wanted, &asked)
        }
        Some((Action::Delete, name)) => {
            let name = text("delete", &name)?;
            let asked = SnapshotChange::Delete(format!("snapshot.name={name}"));
            changed(&looking, &operands, &name, &asked)
        }
        None | Some((Action::List, _)) => listed(&looking, &operands),
    }
}

fn listed(looking: &Looking, operands: &[OsString]) -> Done {
    let source = looking.source(operands)?;
    let details = runtime()?.block_on(image_details(&source, &opening()));
    let details = details.map_err(Failure::from)?;
    match details.as_ref().and_then(|details| details.as_qcow2()) {
        Some(details) if !details.snapshots.is_empty() => shown(&table(&details.snapshots)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Changes the image that is named; `name` is that of the snapshot, for messages.
fn changed(looking: &Looking, operands: &[OsString], name: &str, asked: &SnapshotChange) -> Done {
    let image = looking.writable(operands)?;
    if looking.share {
        let name = could_not_open(image.name());
        let message = format!("{name}: force-share=on can only be used with read-only images");
        return Err(Failure::usage(message).into());
    }
    match change(&image, asked, &Trust::of_environment(), Timeouts::PATIENT) {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(failure) => Err(retold(failure, name, asked).into()),
    }
}

/// The failure as `qemu-img` would tell it, where the image could be opened.
fn retold(failure: Failure, name: &str, asked: &SnapshotChange) -> Failure {
    let Some(cause) = failure.cause() else {
        return failure;
    };
    if cause.operation() == Some(Operation::Open) {
        return failure;
    }
    let is_missing = cause.kind() == ErrorKind::NotFound;
    let (doing, why) = match asked {
        SnapshotChange::Create(_) => ("create", why(&failure)),
        SnapshotChange::Apply(_) if is_missing => {
            let why = "Failed to load snapshot: No such file or directory";
            ("apply", why.to_owned())
        }
        SnapshotChange::Apply(_) => ("apply", why(&failure)),
        SnapshotChange::Delete(_) if is_missing => ("delete", "snapshot not found".to_owned()),
        SnapshotChange::Delete(_) => ("delete", why(&failure)),
    };
    let name = printable(OsStr::new(name));
    Failure::failed(format!("Could not {doing} snapshot '{name}': {why}"))
}

/// The beginning of a text, of `most` bytes at most.
fn cut(text: &str, most: usize) -> &str {
    let mut ends = (0..=text.len().min(most)).rev();
    let end = ends.find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// The list of snapshots, as QEMU prints it. Dates are those of UTC.
pub(super) fn table(snapshots: &[Snapshot]) -> String {
    let mut text = "Snapshot list:\n".to_owned();
    let mut line = |columns: [&str; 6]| {
        let [id, tag, size, date, clock, count] = columns;
        text += &format!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {count:>10}\n");
    };
    line(["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"]);
    for snapshot in snapshots {
        let seconds = snapshot.guest_clock.as_secs();
        let clock = format!(
            "{:04}:{:02}:{:02}.{:03}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            snapshot.guest_clock.subsec_millis()
        );
        let count = snapshot.instructions.map(|count| count.to_string());
        line([
            &printable(OsStr::new(&snapshot.id)),
            &printable(OsStr::new(&snapshot.name)),
            &size_text(snapshot.state_size),
            &date(snapshot.date.as_secs()),
            &clock,
            &count.unwrap_or_default(),
        ]);
    }
    text
}

fn date(seconds: u64) -> String {
    let moment = i64::try_from(seconds).ok();
    let moment = moment.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let Some(moment) = moment else {
        return String::new();
    };
    let (hour, minute, second) = moment.to_hms();
    format!(
        "{:04}-{:02}-{:02} {hour:02}:{minute:02}:{second:02}",
        moment.year(),
        u8::from(moment.month()),
        moment.day()
    )
}
