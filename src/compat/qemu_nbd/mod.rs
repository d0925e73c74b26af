//! The command line of `qemu-nbd`: a server of one image, or with `--list` a client that lists exports.
//!
//! | file | what it does |
//! |---|---|
//! | `options` | the options, and what they say |
//! | `values` | their values |
//! | `request` | what they ask for |
//! | `image` | the image by its name |
//! | `list` | what `--list` prints |

mod image;
mod list;
mod options;
mod request;
mod values;

use std::{ffi::OsString, process::ExitCode};

use crate::cli::{commands, output::print};

use super::ending::end;
use options::USAGE;
use request::Request;

/// Runs `qemu-nbd`. Its only exit code for failures is 1.
pub(super) fn main(words: Vec<OsString>) -> ExitCode {
    let done = match Request::parse(words) {
        Ok(Request::List(endpoint)) => list::list(&endpoint)
            .and_then(|text| print(&text))
            .map(|()| ExitCode::SUCCESS),
        Ok(Request::Serve(job)) => commands::serve::run(*job),
        Err(early) => return early.end(USAGE),
    };
    done.unwrap_or_else(end)
}
