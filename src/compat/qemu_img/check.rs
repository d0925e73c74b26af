//! `qemu-img check`.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use crate::{
    cli::{
        commands::check::{Checked, check_unless_interrupted, clusters_text},
        failure::Failure,
        output::tell,
    },
    endpoint::{FormatKind, printable},
    format::{Format, qcow2::RepairMode},
};

use super::{
    super::{
        getopt::{Argument, Flag},
        qemu::{text, tree::Tree},
    },
    command::{Command, Done, Stop, check_cache, shown},
    looking::{Looking, Opt, opening, output, own},
};

const HELP: &str = "\
Looks whether an image contradicts itself.

Usage: qemu-img check [OPTIONS] FILE

  -f, --format=FMT         Format of FILE
      --image-opts         FILE is a description: driver=qcow2,file.filename=PATH
      --object OBJECT      tls-creds-x509,id=ID,dir=DIR,endpoint=client
      --output=human|json  Lines for people, or JSON
  -r, --repair=leaks|all   Mend it: give lost space back, or all that can be mended without losing data
  -q, --quiet              Say nothing but what is wrong
  -T, --cache=MODE         Understood; changes nothing
  -U, --force-share        Understood; images are never locked
  -h, --help               Show this text

Exit codes: 0 sound, 1 it could not be checked, 2 corrupt, 3 space is lost, 63 the format has no checks.
";

/// What QEMU says of formats that it cannot check.
const WITHOUT_CHECKS: u8 = 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Cache,
    Quiet,
    Repair,
}

const FLAGS: &[Flag<Opt<Own>>] = {
    use Argument::{No, Required};
    &[
        output(),
        own("quiet", Some(b'q'), No, Own::Quiet),
        own("cache", Some(b'T'), Required, Own::Cache),
        own("repair", Some(b'r'), Required, Own::Repair),
    ]
};

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut looking = Looking::default();
    let (mut quiet, mut repair) = (false, None);
    let operands = looking.read(FLAGS, words, HELP, |option, value| {
        match option {
            Own::Quiet => quiet = true,
            Own::Cache => check_cache(value, "source cache option")?,
            Own::Repair => match text("repair", value)?.as_str() {
                "leaks" => repair = Some(RepairMode::Leaks),
                "all" => repair = Some(RepairMode::All),
                other => {
                    let other = printable(OsStr::new(other));
                    let message = format!("--repair (-r) expects 'leaks' or 'all' not '{other}'");
                    return Err(Stop::Misused(message));
                }
            },
        }
        Ok(())
    })?;
    let source = looking.source(&operands)?;
    if repair.is_some() && looking.share {
        let name = printable(operands.first().map_or(OsStr::new(""), OsString::as_os_str));
        return Err(Failure::usage(format!(
            "Could not open '{name}': force-share=on can only be used with read-only images"
        ))
        .into());
    }
    // What QEMU has no check for it says so of, also where there is one here.
    let has_checks = !matches!(
        source.format().kind,
        FormatKind::Raw | FormatKind::Image(Format::Vpc)
    );
    let options = opening();
    let checked = check_unless_interrupted(&source, repair, &options)?;
    let Some(checked) = checked.filter(|_| has_checks) else {
        let message = "This image format does not support checks";
        return Err(Stop::Code(WITHOUT_CHECKS, Failure::failed(message)));
    };
    let repaired = checked.report.repaired.iter();
    for finding in repaired.chain(&checked.report.findings) {
        tell(finding);
    }
    let code = ExitCode::from(checked.code());
    let name = operands.first().map(|name| name.to_string_lossy());
    let name = name.unwrap_or_default();
    match (quiet, looking.json) {
        (true, _) => return Ok(code),
        (false, true) => shown(&tree(&name, &checked).json())?,
        (false, false) => shown(&lines(&checked))?,
    };
    Ok(code)
}

fn tree(name: &str, checked: &Checked) -> Tree {
    let report = &checked.report;
    let mut members = Vec::new();
    // What is nothing is left out.
    let mut add = |name, number: u64| {
        if number > 0 {
            members.push((name, Tree::number(number)));
        }
    };
    add("image-end-offset", report.image_end);
    add("compressed-clusters", report.compressed_clusters);
    add("total-clusters", report.total_clusters);
    add("corruptions", report.corruptions);
    add("corruptions-fixed", report.corruptions_fixed);
    members.push(("check-errors", Tree::number(report.check_errors)));
    let mut add = |name, number: u64| {
        if number > 0 {
            members.push((name, Tree::number(number)));
        }
    };
    add("leaks", report.leaks);
    add("leaks-fixed", report.leaks_fixed);
    add("allocated-clusters", report.allocated_clusters);
    members.push(("filename", Tree::text(name)));
    members.push(("format", Tree::text(checked.format.name())));
    if report.fragmented_clusters > 0 {
        let number = Tree::number(report.fragmented_clusters);
        members.push(("fragmented-clusters", number));
    }
    Tree::Map(members)
}

fn lines(checked: &Checked) -> String {
    let report = &checked.report;
    let mut text = String::new();
    if report.corruptions_fixed > 0 || report.leaks_fixed > 0 {
        text += &format!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
             Double checking the fixed image now...\n",
            report.leaks_fixed, report.corruptions_fixed
        );
    }
    if checked.code() == 0 {
        text += "No errors were found on the image.\n";
    }
    if report.corruptions > 0 {
        text += &format!(
            "\n{} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.\n",
            report.corruptions
        );
    }
    if report.leaks > 0 {
        text += &format!(
            "\n{} leaked clusters were found on the image.\n\
             This means waste of disk space, but no harm to data.\n",
            report.leaks
        );
    }
    if report.check_errors > 0 {
        text += &format!(
            "\n{} internal errors have occurred during the check.\n",
            report.check_errors
        );
    }
    if report.allocated_clusters > 0 {
        text += &clusters_text(report);
        text.push('\n');
    }
    if report.image_end > 0 {
        text += &format!("Image end offset: {}\n", report.image_end);
    }
    text
}
