//! From an argument list to an exit code.

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser};

use crate::{compat::Tool, endpoint::collapse_groups};

use super::{
    args::{Cli, Command},
    commands::{self, listing::Listed},
    failure::Failure,
    hints::name_exports,
    manual,
    options::{
        CheckJob, ChecksumJob, CompareJob, CopyJob, CreateJob, DdJob, InfoJob, ListingJob, MapJob,
        MeasureJob, RelayJob, ResizeJob, ServeJob, SnapshotJob, Terminals,
    },
    output::{become_the_program, print, program},
    usage::explain,
};

/// Runs the command line. The first argument is the program's name; under that of a tool which this
/// program stands in for it is that tool's command line.
///
/// Call it on the main thread: a server that is started for an endpoint ends with the thread that
/// started it.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    become_the_program();
    let mut arguments: Vec<_> = arguments.into_iter().collect();
    if let Some(tool) = arguments.first().and_then(|name| Tool::of_program(name)) {
        return tool.run(arguments.split_off(1));
    }
    // Help and messages have one name for this program, wherever it lies.
    if let Some(name) = arguments.first_mut() {
        *name = program().into();
    }
    let result = collapse_groups(arguments)
        .map_err(Failure::from)
        .and_then(|arguments| match Cli::try_parse_from(&arguments) {
            Ok(cli) => dispatch(cli),
            Err(error) => Ok(explain(&error, &arguments)),
        });
    result.unwrap_or_else(|failure| {
        let failure = name_exports(failure);
        failure.report();
        ExitCode::from(failure.code())
    })
}

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let common = cli.common;
    let done = match cli.command {
        Command::Copy(args) => {
            let terminals = Terminals::of_this_process();
            commands::copy::run(CopyJob::resolve(&args, common, terminals)?)
        }
        Command::Serve(args) => return commands::serve::run(ServeJob::resolve(args, common)?),
        Command::Relay(args) => return commands::relay::run(RelayJob::resolve(*args, common)?),
        Command::Info(args) => commands::info::run(&InfoJob::resolve(&args)?),
        Command::Map(args) => commands::map::run(&MapJob::resolve(&args)?),
        Command::Check(args) => return commands::check::run(&CheckJob::resolve(&args, common)?),
        Command::Measure(args) => commands::measure::run(&MeasureJob::resolve(&args)?),
        Command::Snapshot(args) => commands::snapshot::run(&SnapshotJob::resolve(&args, common)?),
        Command::Bitmap(args) => {
            commands::listing::run(&ListingJob::resolve(&args.listing)?, Listed::Bitmaps)
        }
        Command::Compare(args) => {
            let terminals = Terminals::of_this_process();
            let compared = CompareJob::resolve(&args, common, terminals)
                .and_then(|job| commands::compare::run(&job));
            return compared.map_err(Failure::undecided);
        }
        Command::Checksum(args) => {
            let terminals = Terminals::of_this_process();
            commands::checksum::run(ChecksumJob::resolve(&args, common, terminals)?)
        }
        Command::Create(args) => commands::create::run(CreateJob::resolve(&args, common)?),
        Command::Dd(args) => {
            let terminals = Terminals::of_this_process();
            commands::dd::run(DdJob::resolve(&args, common, terminals)?)
        }
        Command::Resize(args) => commands::resize::run(&ResizeJob::resolve(&args, common)?),
        Command::Sources(args) => commands::sources::run(args.json),
        Command::Filters(args) => commands::filters::run(args.json),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "blockferry", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Man(args) => print(&man_page(args.command.as_deref())?),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn man_page(command: Option<&str>) -> Result<String, Failure> {
    let Some(page) = manual::page(Cli::command(), command) else {
        let name = command.unwrap_or_default();
        return Err(Failure::usage(format!("there is no command \"{name}\""))
            .hint("'blockferry --help' lists them"));
    };
    page.map_err(|error| Failure::system("the manual page", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_of_an_unknown_command_is_wrong_usage() {
        let failure = man_page(Some("nonsense")).expect_err("no such command");
        assert_eq!(failure.code(), 2);
    }
}
