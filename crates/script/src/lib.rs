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
//!
//! ```
//! use blockferry_block::{Buffer, ClientFacts, Exports};
//! use blockferry_script::{Program, Script, ScriptOptions};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let method = |name: &str, command: &str| (name.to_owned(), command.into());
//! let program = Program::Methods(vec![
//!     method("get_size", "echo 1M"),
//!     method("pread", r#"printf "%${3}s" x"#),
//! ]);
//! let script = Script::start(ScriptOptions::new(program, "spaces")).await?;
//! let device = script.open("", ClientFacts::default()).await?.device;
//! let read = device.read(0, Buffer::zeroed(4)).await?;
//! assert_eq!(&read[..], b"   x");
//! drop(device);
//! script.close().await;
//! # Ok::<_, blockferry_block::Error>(())
//! # })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
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
