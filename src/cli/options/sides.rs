//! What can be read, and what can be written: whether an endpoint is of use on its side.

use std::ffi::OsStr;

use crate::{
    cli::failure::Failure,
    endpoint::{Endpoint, EndpointKind},
};

use super::Terminals;

/// An endpoint that holds an image with offsets.
pub(super) fn seekable(text: &OsStr) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::parse(text)?;
    match endpoint.kind() {
        EndpointKind::Standard | EndpointKind::Null(None) => Err(Failure::usage(format!(
            "{endpoint}: a stream is for copy and checksum only"
        ))),
        _ => Ok(endpoint),
    }
}

/// Refuses pairs of endpoints that can never work.
pub(crate) fn check_sides(
    source: &Endpoint,
    destination: &Endpoint,
    json: bool,
    terminals: Terminals,
) -> Result<(), Failure> {
    check_source(source, terminals)?;
    let refuse = |message: &str| Err(Failure::usage(message));
    match destination.kind() {
        EndpointKind::Standard if terminals.output => {
            refuse("an image is not written to a terminal; redirect standard output")
        }
        EndpointKind::Standard if json => {
            refuse("--json writes to standard output, which is the destination")
        }
        kind if !kind.roles().destination => {
            let (name, why) = (kind.source_kind().name, unreadable(destination));
            let why = why.unwrap_or("can only be a source");
            Err(Failure::usage(format!("{name}: {why}")))
        }
        _ => Ok(()),
    }
}

/// Refuses what can never be read from front to back.
pub(super) fn check_source(source: &Endpoint, terminals: Terminals) -> Result<(), Failure> {
    match source.kind() {
        EndpointKind::Standard if terminals.input => Err(Failure::usage(
            "an image is not read from a terminal; redirect standard input",
        )),
        _ => check_readable(source),
    }
}

/// Refuses what holds no image that could be read.
pub(super) fn check_readable(source: &Endpoint) -> Result<(), Failure> {
    let Some(why) = unreadable(source) else {
        return Ok(());
    };
    let name = source.kind().source_kind().name;
    Err(Failure::usage(format!("{name}: {why}")))
}

/// Why there is no image to read.
fn unreadable(source: &Endpoint) -> Option<&'static str> {
    match source.kind() {
        _ if source.kind().roles().source => None,
        EndpointKind::Null(None) => Some("can only be a destination"),
        _ => Some("has several images, and works with serve only"),
    }
}
