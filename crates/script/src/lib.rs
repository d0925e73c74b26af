//! Block devices whose answers come from scripts: the protocol of nbdkit's `sh` and `eval` plugins.
//!
//! A [`Script`] is a program that is run once for each call: `SCRIPT METHOD ARGUMENTS...`. What it answers is
//! its output, its exit code and what it says on standard error. A `Script` is loaded and configured once;
//! each client's device is a handle that the script gave out, open until the device is dropped.
//!
//! ```text
//!  Script ──open──▶ device ──▶ calls ──▶ process        (program: what is run, in $tmpdir)
//!                     │          │
//!                     └─ answers ┘                      (what scripts print, understood)
//! ```

#![forbid(unsafe_code)]

pub mod answers;
mod blocking;
mod calls;
mod device;
mod handle;
mod process;
mod program;
mod script;

pub use answers::ThreadModel;
pub use program::{METHODS, Program, is_method};
pub use script::{PluginDump, Script, ScriptOptions};
