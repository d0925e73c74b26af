//! Block devices whose answers come from scripts: the protocol of nbdkit's `sh` and `eval` plugins.

#![forbid(unsafe_code)]

use std::{ffi::OsString, path::PathBuf};

use blockferry_block::{
    BoxFuture, ClientFacts, Error, ErrorKind, ExportEntry, Exports, OpenExport, Result,
};

/// Which script is run for a method.
#[derive(Clone, Debug)]
pub enum Program {
    /// A file that is run as `FILE METHOD ARGS...`.
    File(PathBuf),
    /// The text of a script, which is saved to a file in the temporary directory.
    Inline(Vec<u8>),
    /// A shell command for each method (`eval`), run with `METHOD ARGS...` as its positional parameters.
    Methods(Vec<(String, OsString)>),
}

/// What a script is started with.
#[derive(Clone, Debug)]
pub struct ScriptOptions {
    /// What is run.
    pub program: Program,
    /// The parameters that are handed to `config`, in order.
    pub parameters: Vec<(OsString, OsString)>,
    /// What errors call it.
    pub name: String,
}

/// A script that was loaded and configured: its exports.
#[derive(Debug)]
pub struct Script {}

impl Script {
    /// Loads and configures a script: `load`, `config` for each parameter, `config_complete`, `thread_model`, `get_ready`,
    /// `after_fork`.
    ///
    /// # Errors
    /// What the script says, or whatever keeps it from being run.
    pub async fn start(options: ScriptOptions) -> Result<Self> {
        Err(Error::with_message(ErrorKind::Unsupported, options.name))
    }
}

impl Exports for Script {
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn open<'a>(&'a self, _: &'a str, _: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async { Err(blockferry_block::no_such_export()) })
    }
}
