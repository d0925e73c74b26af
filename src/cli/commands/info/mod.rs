//! `blockferry info`: what a server or a file offers, as text or JSON with nbdinfo's keys. What is known of it comes from
//! [`inspect`](crate::inspect).
//!
//! | file | what it does |
//! |---|---|
//! | `text`, `json` | how it is shown; `compat/nbdinfo` shows it in the same way |

pub(crate) mod json;
pub(crate) mod text;

use crate::{
    block::Error,
    endpoint::{Endpoint, EndpointKind},
    inspect::{self, inspect},
};

use super::super::{
    failure::Failure,
    options::{InfoJob, Timeouts, open_options},
    output::print,
    style::Colour,
};

pub(crate) use inspect::{Asked, export, list};

pub(crate) fn run(job: &InfoJob) -> Result<(), Failure> {
    let facts = inspect(&job.endpoint, &job.options())?;
    let text = match job.json {
        true => json::pretty(&facts),
        false => text::text(&facts, Colour::Never),
    };
    print(&text)
}

/// Asks the server that `endpoint` names, or one that is started for it and ends afterwards.
pub(crate) fn ask_server<T>(
    endpoint: &Endpoint,
    timeouts: Timeouts,
    ask: impl FnOnce(&Asked<'_>) -> Result<T, Error>,
) -> Result<T, Failure> {
    match endpoint.kind() {
        EndpointKind::Nbd(_) | EndpointKind::Command(_) => {
            Ok(inspect::ask_server(endpoint, &open_options(timeouts), ask)?)
        }
        _ => Err(Failure::usage(format!(
            "{endpoint}: it is not an NBD server"
        ))),
    }
}
