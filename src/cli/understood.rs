//! Reading a command line without carrying it out: for the tests that keep the guide true.

use std::ffi::OsString;

use clap::Parser;

use crate::endpoint::collapse_groups;

use super::{
    args::{Cli, Command},
    failure::Failure,
    options::{
        CheckJob, ChecksumJob, CompareJob, CopyJob, CreateJob, DdJob, InfoJob, ListingJob, MapJob,
        MeasureJob, RelayJob, ResizeJob, ServeJob, SnapshotJob, Terminals,
    },
};

/// Reads a command line, the first argument being the program's name, as far as [`main`](super::main) does before it
/// touches anything: options, endpoints, filters, and what contradicts itself.
///
/// # Errors
/// What the program would say that is wrong.
pub fn understood(arguments: impl IntoIterator<Item = OsString>) -> Result<(), String> {
    let arguments = collapse_groups(arguments).map_err(|error| error.to_string())?;
    match Cli::try_parse_from(arguments) {
        Ok(cli) => resolve(cli).map_err(|failure| failure.to_string()),
        // Help was asked for, of the program or of an option.
        Err(error) if !error.use_stderr() => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn resolve(cli: Cli) -> Result<(), Failure> {
    let common = cli.common;
    let terminals = Terminals {
        input: false,
        output: false,
        error: false,
    };
    match cli.command {
        Command::Copy(args) => CopyJob::resolve(&args, common, terminals).map(drop),
        Command::Serve(args) => ServeJob::resolve(args, common).map(drop),
        Command::Relay(args) => RelayJob::resolve(*args, common).map(drop),
        Command::Info(args) => InfoJob::resolve(&args).map(drop),
        Command::Map(args) => MapJob::resolve(&args).map(drop),
        Command::Check(args) => CheckJob::resolve(&args, common).map(drop),
        Command::Measure(args) => MeasureJob::resolve(&args).map(drop),
        Command::Snapshot(args) => SnapshotJob::resolve(&args, common).map(drop),
        Command::Bitmap(args) => ListingJob::resolve(&args.listing).map(drop),
        Command::Compare(args) => CompareJob::resolve(&args, common, terminals).map(drop),
        Command::Checksum(args) => ChecksumJob::resolve(&args, common, terminals).map(drop),
        Command::Create(args) => CreateJob::resolve(&args, common).map(drop),
        Command::Dd(args) => DdJob::resolve(&args, common, terminals).map(drop),
        Command::Resize(args) => ResizeJob::resolve(&args, common).map(drop),
        // What is left has nothing that clap does not read.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<(), String> {
        understood(words.split(' ').map(OsString::from))
    }

    #[test]
    fn what_the_program_would_refuse_before_it_begins_is_told() {
        read("blockferry copy --filter rate:1M [ nbdkit --no-such memory 1G ] null:")
            .expect("right");
        for (wrong, word) in [
            ("blockferry copy --no-such a b", "--no-such"),
            ("blockferry copy --filter rat:1M a b", "rat"),
            ("blockferry copy sample:banana b", "banana"),
            ("blockferry serve --unix a [ nbdkit", "]"),
        ] {
            let error = read(wrong).expect_err("wrong");
            assert!(error.contains(word), "{error}");
        }
    }
}
