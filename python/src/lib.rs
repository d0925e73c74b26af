//! The extension module `blockferry._native`: what the Python package `blockferry` has from Rust.
//!
//! | file | what it has |
//! |---|---|
//! | `client` | `Client`: reads and writes an image in place |
//! | `transfer` | long reads and writes, in pieces that are in flight together |
//! | `memory` | the memory of Python objects, and when it may be touched |
//! | `runtime` | waiting without the interpreter, until a signal wants it |
//! | `session` | an image while it is open |
//! | `extents` | `Extent` |
//! | `words` | arguments that become endpoints and words of the command line |
//! | `copying` | `copy` |
//! | `looking` | `info`, `map`, `map_offsets` |
//! | `serving` | `serve` |
//! | `errors` | failures become exceptions |
//!
//! No unsafe code is needed: pyo3's macros write their own, and the memory of Python objects is only touched where
//! pyo3 can vouch for it. `blockferry/` beside this folder is the Python half: exceptions, dataclasses, type stubs.

#![forbid(unsafe_code)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "what Python hands over is handed over by value"
)]

mod client;
mod copying;
mod errors;
mod extents;
mod looking;
mod memory;
mod runtime;
mod serving;
mod session;
mod transfer;
mod words;

/// What the package has from Rust.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::{
        client::Client,
        copying::copy,
        extents::Extent,
        looking::{info, map, map_offsets},
        serving::Served,
    };

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the name is Python's")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
