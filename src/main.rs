//! The `blockferry` command. Everything is in the library, so that it can be tested there.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    blockferry::cli::main(std::env::args_os())
}
