//! Scripts in directories of their own, and what they wrote down of their calls.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use blockferry_block::{BlockDevice, ClientFacts, Error, Exports as _, OpenExport, Result};
use blockferry_script::{Program, Script, ScriptOptions};
use tempfile::TempDir;

/// Writes each call down, one a line, before anything else.
const LOGGED: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/calls"
case "$1" in
"#;

/// Answers what every device needs, and nothing else.
const PLAIN: &str = r#"
get_size) echo 1M ;;
pread) head -c "$3" /dev/zero ;;
*) exit 2 ;;
esac
"#;

/// A script in a directory, where it may leave files beside itself.
pub(crate) struct Room {
    directory: TempDir,
}

impl Room {
    /// A script of `text`.
    pub(crate) fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("script");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        Self { directory }
    }

    /// A script that writes its calls down and answers by `cases`; what they leave out is as plain as can be.
    pub(crate) fn cases(cases: &str) -> Self {
        Self::new(&format!("{LOGGED}{cases}{PLAIN}"))
    }

    pub(crate) fn script(&self) -> PathBuf {
        self.file("script")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        // A script's path is absolute and without links.
        fs::canonicalize(self.directory.path())
            .expect("a directory")
            .join(name)
    }

    pub(crate) fn options(&self) -> ScriptOptions {
        ScriptOptions::new(Program::File(self.script()), "sh:script")
    }

    pub(crate) async fn start(&self) -> Script {
        Script::start(self.options()).await.expect("a script")
    }

    /// The device of the script's default export, and the script.
    pub(crate) async fn open(&self) -> (Script, OpenExport) {
        let script = self.start().await;
        let open = open(&script, "").await.expect("an export");
        (script, open)
    }

    /// Why the script's default export does not open.
    pub(crate) async fn refusal(&self) -> Error {
        let script = self.start().await;
        refusal(open(&script, "").await)
    }

    /// What was called so far.
    pub(crate) fn calls(&self) -> Vec<String> {
        lines(&self.file("calls"))
    }

    /// What was called with a method of `methods` so far.
    pub(crate) fn calls_of(&self, methods: &[&str]) -> Vec<String> {
        let method = |call: &String| call.split(' ').next().unwrap_or_default().to_owned();
        let mut calls = self.calls();
        calls.retain(|call| methods.contains(&method(call).as_str()));
        calls
    }

    /// Waits until the script has left a file.
    pub(crate) async fn wait_for(&self, name: &str) {
        let path = self.file(name);
        let begin = Instant::now();
        while !path.exists() {
            assert!(begin.elapsed() < Duration::from_secs(60), "no {name}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

pub(crate) async fn open(script: &Script, name: &str) -> Result<OpenExport> {
    script.open(name, ClientFacts::default()).await
}

pub(crate) fn refusal(result: Result<OpenExport>) -> Error {
    match result {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

/// The device of an `eval` of these methods.
pub(crate) async fn eval(methods: &[(&str, &str)]) -> (Script, Arc<dyn BlockDevice>) {
    let script = eval_script(methods).await.expect("a script");
    let device = open(&script, "").await.expect("an export").device;
    (script, device)
}

pub(crate) async fn eval_script(methods: &[(&str, &str)]) -> Result<Script> {
    let methods = methods.iter();
    let methods = methods.map(|(name, text)| ((*name).to_owned(), (*text).into()));
    let program = Program::Methods(methods.collect());
    Script::start(ScriptOptions::new(program, "eval")).await
}
