//! `qemu-img snapshot`: only the list.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use time::OffsetDateTime;

use crate::{
    cli::{commands::runtime, failure::Failure},
    endpoint::{image_details, printable},
    format::qcow2::Snapshot,
};

use super::{
    super::{
        getopt::{Argument, Flag},
        qemu::tree::size_text,
    },
    command::{Command, Done, Stop, shown},
    looking::{Looking, Opt, opening, own},
};

const HELP: &str = "\
Lists the snapshots in an image.

Usage: qemu-img snapshot [OPTIONS] FILE

  -l, --list           List them, which is what is done without any of these
  -a, -c, -d SNAPSHOT  Not there: use QEMU's own qemu-img to apply, create or delete one
  -f, --format=FMT     Format of FILE
      --image-opts     FILE is a description: driver=qcow2,file.filename=PATH
      --object OBJECT  tls-creds-x509,id=ID,dir=DIR,endpoint=client
  -q, --quiet          Understood; changes nothing
  -U, --force-share    Understood; images are never locked
  -h, --help           Show this text
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Action(&'static str),
    Quiet,
}

const FLAGS: &[Flag<Opt<Own>>] = {
    use Argument::{No, Required};
    &[
        own("quiet", Some(b'q'), No, Own::Quiet),
        own("list", Some(b'l'), No, Own::Action("list")),
        own("apply", Some(b'a'), Required, Own::Action("apply")),
        own("create", Some(b'c'), Required, Own::Action("create")),
        own("delete", Some(b'd'), Required, Own::Action("delete")),
    ]
};

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut looking = Looking::default();
    let mut action = None;
    let operands = looking.read(FLAGS, words, HELP, |option, _| {
        if let Own::Action(asked) = option
            && action.replace(asked).is_some()
        {
            let message = "Cannot mix '-l', '-a', '-c', '-d'";
            return Err(Stop::Misused(message.to_owned()));
        }
        Ok(())
    })?;
    let source = looking.source(&operands)?;
    if let Some(action @ ("apply" | "create" | "delete")) = action {
        let message =
            format!("snapshot --{action} is not done by blockferry: use QEMU's own qemu-img");
        return Err(Failure::failed(message).into());
    }
    let details = runtime()?.block_on(image_details(&source, &opening()));
    let details = details.map_err(Failure::from)?;
    match details.as_ref().and_then(|details| details.as_qcow2()) {
        Some(details) if !details.snapshots.is_empty() => shown(&table(&details.snapshots)),
        _ => Ok(ExitCode::SUCCESS),
    }
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
