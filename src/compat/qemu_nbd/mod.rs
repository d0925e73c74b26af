//! The command line of `qemu-nbd`: a server of one image, or with `--list` a client that lists exports.
//!
//! | file | what it does |
//! |---|---|
//! | `request` | the options, and what they ask for |
//! | `image` | the image by its name |
//! | `list` | what `--list` prints |

mod image;
mod list;
mod request;

use std::{ffi::OsString, process::ExitCode};

use crate::cli::{commands, failure::Failure, output::print};

use super::refusal::end;
use request::Request;

/// Runs `qemu-nbd`. Its only exit code for failures is 1.
pub(super) fn main(arguments: Vec<OsString>) -> ExitCode {
    let show = |text: String| {
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    };
    let done = match Request::parse(arguments) {
        Ok(Request::Print(text)) => show(text),
        Ok(Request::List(endpoint)) => list::list(&endpoint).and_then(show),
        Ok(Request::Serve(job)) => commands::serve::run(*job),
        Err(refusal) => return refusal.end(request::USAGE),
    };
    done.unwrap_or_else(end)
}
