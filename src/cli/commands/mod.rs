//! One file per command: from a resolved job to its end.
//!
//! Commands that serve share `listen` (their sockets), `journal` (what is told and logged of them) and
//! `exposition` (what they count); those that change an image in place end as `in_place` has it.

pub(crate) mod check;
pub(crate) mod checksum;
pub(crate) mod commit;
pub(crate) mod compare;
pub(crate) mod copy;
pub(crate) mod create;
pub(crate) mod dd;
pub(crate) mod doctor;
mod exposition;
pub(crate) mod filters;
mod in_place;
pub(crate) mod info;
mod journal;
mod listen;
pub(crate) mod listing;
pub(crate) mod map;
pub(crate) mod measure;
pub(crate) mod rebase;
pub(crate) mod relay;
pub(crate) mod resize;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod sources;
mod tables;

use tokio::runtime::{Builder, Runtime};

use super::failure::Failure;

/// The runtime of a command: on this thread, because servers that are started for an endpoint live as
/// long as the thread that started them.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system("cannot start", &error))
}
