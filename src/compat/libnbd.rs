//! What the tools of libnbd have in common: the version, and the server that they are about.

use std::ffi::OsString;

use crate::{
    cli::failure::Failure,
    endpoint::{Endpoint, EndpointKind, printable},
};

use super::ending::{EarlyEnd, misused};

/// The version of libnbd whose tools are spoken for: what `--version` says.
const VERSION: &str = "1.24.0";

/// What `--version` prints, as scripts take it apart: the tool's version and that of the library.
pub(super) fn version(tool: &str) -> String {
    format!("{tool} {VERSION}\nlibnbd {VERSION}\n")
}

/// The server that the one operand names.
pub(super) fn server(operands: &[OsString]) -> Result<Endpoint, EarlyEnd> {
    let operand = match operands {
        [operand] => operand,
        [] => return Err(misused("an NBD-URI or [ CMD ARGS... ] is needed")),
        [_, extra, ..] => {
            let extra = printable(extra);
            return Err(misused(format!("one operand too many: {extra}")));
        }
    };
    let endpoint = Endpoint::parse(operand).map_err(Failure::from)?;
    match endpoint.kind() {
        EndpointKind::Nbd(_) | EndpointKind::Command(_) => Ok(endpoint),
        _ => Err(Failure::usage(format!(
            "{endpoint} is not an NBD URI: those begin with nbd:// or nbd+unix://, for example"
        ))
        .into()),
    }
}
