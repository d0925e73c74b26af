//! The command line of `nbdcopy`: options before, between and after SOURCE and DESTINATION, in its spellings and
//! with its defaults. What it pins is pinned; where it leaves its defaults, the engine adapts.
//!
//! | file | what it does |
//! |---|---|
//! | `options` | the options, and the copy that they ask for |
//! | `values` | their values |

mod options;
mod values;

use std::{ffi::OsString, process::ExitCode};

use crate::{
    block::Capabilities,
    cli::{
        args::Size,
        commands,
        options::{CopyJob, Terminals},
        output::tell,
    },
    copy::{Destination, Order, Source},
    endpoint::{Endpoint, EndpointKind, printable},
};

use super::ending::end;
use options::{USAGE, parse};

/// The requests of a connection at a time, in its own defaults. Who asks for them asks for nothing in particular.
const REQUESTS: u32 = 64;

/// Runs `nbdcopy`. It says nothing when it succeeds, and its only other exit code is 1, but for signals.
pub(super) fn main(words: Vec<OsString>) -> ExitCode {
    match parse(words, Terminals::of_this_process()) {
        Ok(job) => commands::copy::run(job).map_or_else(end, |()| ExitCode::SUCCESS),
        Err(early) => early.end(USAGE),
    }
}

/// Says what is copied, as `nbdcopy -v` does.
fn describe(job: &CopyJob, source: &Source, destination: &Destination) {
    let source_size = match source {
        Source::Device(device) => Some(device.info().size),
        _ => None,
    };
    let of_source = match source {
        Source::Device(device) => Some((device.info().size, device.info().limits.preferred)),
        _ => None,
    };
    let of_destination = match destination {
        Destination::Device(device) => {
            let info = device.info();
            let grows = info.can(Capabilities::RESIZE);
            let size = match job.destination.kind() {
                EndpointKind::Null(_) => i64::MAX.unsigned_abs(),
                _ if grows => source_size.unwrap_or(info.size),
                _ => info.size,
            };
            Some((size, info.limits.preferred))
        }
        _ => None,
    };
    describe_side("src", &job.source, of_source);
    describe_side("dst", &job.destination, of_destination);
    let engine = &job.engine;
    tell(&format!(
        "nbdcopy: connections={} requests={} threads=1 synchronous={}",
        engine.connections,
        engine.requests.unwrap_or(REQUESTS as usize),
        engine.order == Order::Ascending,
    ));
}

/// Tells of one side, which has a size and a preferred block size unless it is a stream.
fn describe_side(side: &str, endpoint: &Endpoint, device: Option<(u64, u32)>) {
    let (kind, name) = match endpoint.kind() {
        EndpointKind::Command(command) => ("nbd_ops", printable(command.program())),
        EndpointKind::Nbd(_) => ("nbd_ops", endpoint.to_string()),
        EndpointKind::Null(_) => ("null_ops", endpoint.to_string()),
        _ if device.is_none() => ("pipe_ops", endpoint.to_string()),
        EndpointKind::Sample(_) => ("sample_ops", endpoint.to_string()),
        _ => ("file_ops", endpoint.to_string()),
    };
    let (size, human, preferred) = match device {
        Some((size, preferred)) => (size.to_string(), Size(size).to_string(), preferred),
        None => ("-1".to_owned(), "-1".to_owned(), 4096),
    };
    tell(&format!("nbdcopy: {side}: {kind} \"{name}\""));
    tell(&format!(
        "nbdcopy: {side}: size={size} ({human}), preferred block size={preferred}"
    ));
}
