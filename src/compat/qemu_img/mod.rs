//! The command line of `qemu-img`: a command, its options, and images.
//!
//! | file | what it does |
//! |---|---|
//! | `command` | what the commands share: how they are read, how they name images, how they end |
//! | `looking` | what the commands share that look at one image |
//! | `node` | what is told of the file that an image lies in |
//! | `options` | `-o`, the options of new images |
//! | `words` | failures in the words that scripts look for |
//!
//! and one file for each command.

mod amend;
mod bitmap;
mod check;
mod command;
mod commit;
mod compare;
mod convert;
mod create;
mod dd;
mod info;
mod looking;
mod map;
mod measure;
mod node;
mod options;
mod rebase;
mod resize;
mod snapshot;
mod words;

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use crate::{cli::failure::Failure, endpoint::printable};

use super::{
    getopt::{Argument, Flag, flag},
    qemu::VERSION,
};
use command::{Command, Done, Stop, read};

/// What each command is called, what it does, and what does it.
const COMMANDS: &[Command] = &[
    Command::new("amend", "Change the options of an image", amend::run),
    Command::missing("bench", "Measure how fast an image is"),
    Command::new("bitmap", "Change the bitmaps of an image", bitmap::run),
    Command::new(
        "check",
        "Look whether an image contradicts itself",
        check::run,
    ),
    Command::new(
        "commit",
        "Write an overlay into its backing file",
        commit::run,
    ),
    Command::new(
        "compare",
        "Tell whether two images have the same contents",
        compare::run,
    ),
    Command::new(
        "convert",
        "Copy an image, in another format where one is named",
        convert::run,
    ),
    Command::new("create", "Make a new image", create::run),
    Command::new(
        "dd",
        "Copy blocks of an image, in another format where one is named",
        dd::run,
    ),
    Command::new("info", "Tell of an image", info::run),
    Command::new("map", "Tell where the data of an image lies", map::run),
    Command::new(
        "measure",
        "Tell how large an image would become",
        measure::run,
    ),
    Command::new(
        "rebase",
        "Give an overlay another backing file",
        rebase::run,
    ),
    Command::new("resize", "Give an image another size", resize::run),
    Command::new(
        "snapshot",
        "List, make, apply and delete snapshots in an image",
        snapshot::run,
    ),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Help,
    Trace,
    Version,
}

const FLAGS: &[Flag<Opt>] = &[
    flag("help", Some(b'h'), Argument::No, Opt::Help),
    flag("version", Some(b'V'), Argument::No, Opt::Version),
    flag("trace", Some(b'T'), Argument::Required, Opt::Trace),
];

/// Runs `qemu-img`.
pub(super) fn main(mut words: Vec<OsString>) -> ExitCode {
    // The options of all commands end where the command begins.
    let is_option = |word: &OsString| word.to_string_lossy().starts_with('-') && word != "-";
    let mut first = 0;
    while words.get(first).is_some_and(is_option) {
        // Only this one has an argument that may be the next word.
        let takes_next = matches!(words[first].to_str(), Some("-T" | "--trace"));
        first += 1 + usize::from(takes_next);
    }
    let rest = words.split_off(first.min(words.len()));
    match start(words, rest) {
        Ok(code) => code,
        Err((stop, command)) => stop.end(command),
    }
}

fn start(
    options: Vec<OsString>,
    rest: Vec<OsString>,
) -> Result<ExitCode, (Stop, Option<&'static str>)> {
    let wrong = |stop: Stop| (stop, None);
    // Whichever stands first ends it.
    let answer = |option, _: &OsStr| {
        Err(match option {
            Opt::Help => Stop::Answer(version() + &help()),
            Opt::Version => Stop::Answer(version()),
            Opt::Trace => Failure::usage("--trace: there are no trace points in blockferry").into(),
        })
    };
    read(FLAGS, options, answer).map_err(wrong)?;
    let mut words = rest.into_iter();
    let Some(name) = words.next() else {
        return Err(wrong(Stop::Misused("Not enough arguments".to_owned())));
    };
    let Some(command) = COMMANDS.iter().find(|command| name == command.name) else {
        let name = printable(&name);
        return Err(wrong(Stop::Misused(format!("Command not found: {name}"))));
    };
    let done: Done = (command.run)(command, words.collect());
    done.map_err(|stop| (stop, Some(command.name)))
}

fn version() -> String {
    let ours = env!("CARGO_PKG_VERSION");
    format!("qemu-img version {VERSION} (blockferry {ours})\n")
}

fn help() -> String {
    let commands: String = COMMANDS
        .iter()
        .map(|command| match command.is_there {
            true => format!("  {} - {}\n", command.name, command.about),
            false => format!("  {} - Not there: use QEMU's own\n", command.name),
        })
        .collect();
    format!(
        "\
Works on disk images.

Usage: qemu-img [OPTIONS] COMMAND [--help | ARGUMENTS]

Options:
  -h, --help     Show this text
  -V, --version  Show the version

Commands:
{commands}
Supported image formats:
  file host_device nbd null-co qcow2 raw vdi vhdx vmdk vpc

This is blockferry under the name of qemu-img; 'blockferry --help' shows what else it can do.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_where_scripts_look_for_it() {
        let text = version();
        let words: Vec<_> = text.split_whitespace().collect();
        assert_eq!(words[..3], ["qemu-img", "version", "10.0.2"]);
    }

    #[test]
    fn every_command_is_listed_once_and_in_order() {
        let help = help();
        for pair in COMMANDS.windows(2) {
            assert!(pair[0].name < pair[1].name);
        }
        for command in COMMANDS {
            assert!(help.contains(&format!("\n  {} - ", command.name)), "{help}");
        }
    }
}
