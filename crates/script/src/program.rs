//! What is run for a method: the script as a file, the shell where it names no interpreter of its own, and the
//! temporary directory.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read as _, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tempfile::TempDir;

/// Runs scripts that name no interpreter.
const SHELL: &str = "/bin/sh";

/// The variables of socket activation, which are not for scripts.
const ACTIVATION: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// A script longer than this is none.
const LONGEST_SCRIPT: u64 = 64 << 20;

/// Stands in for methods that were not given.
const MISSING: &str = "missing";

/// The methods that can be given as parameters of `eval`, in alphabetical order.
pub const METHODS: [&str; 33] = [
    "after_fork",
    "block_size",
    "cache",
    "can_cache",
    "can_extents",
    "can_fast_zero",
    "can_flush",
    "can_fua",
    "can_multi_conn",
    "can_trim",
    "can_write",
    "can_zero",
    "close",
    "config",
    "config_complete",
    "default_export",
    "dump_plugin",
    "export_description",
    "extents",
    "flush",
    "get_ready",
    "get_size",
    "is_rotational",
    "list_exports",
    MISSING,
    "open",
    "pread",
    "preconnect",
    "pwrite",
    "thread_model",
    "trim",
    "unload",
    "zero",
];

/// What says that a method can be used, and how, when only the method itself was given.
const IMPLIED: [(&str, &str, &str); 6] = [
    ("cache", "can_cache", "echo native\n"),
    ("extents", "can_extents", "exit 0\n"),
    ("flush", "can_flush", "exit 0\n"),
    ("pwrite", "can_write", "exit 0\n"),
    ("trim", "can_trim", "exit 0\n"),
    ("zero", "can_zero", "exit 0\n"),
];

/// Which script is run for a method.
#[derive(Clone, Debug)]
pub enum Program {
    /// A file that is run as `FILE METHOD ARGS...`; `-` is standard input, read to its end.
    File(PathBuf),
    /// The text of a script, which is saved to a file in the temporary directory.
    Inline(Vec<u8>),
    /// A shell command for each method (`eval`), run with `METHOD ARGS...` as its positional parameters.
    Methods(Vec<(String, OsString)>),
}

/// A program that is ready to be run.
#[derive(Debug)]
pub(crate) struct Saved {
    kind: Kind,
    /// `$tmpdir`.
    directory: PathBuf,
    /// Removes the directory when it is dropped.
    guard: Mutex<Option<TempDir>>,
}

#[derive(Debug)]
enum Kind {
    Script {
        file: PathBuf,
        /// Whether the file cannot be run without the shell.
        by_shell: AtomicBool,
    },
    Methods {
        /// Those that have a file, and whether they name an interpreter of their own.
        known: HashSet<String>,
        direct: HashSet<String>,
    },
}

impl Saved {
    /// Makes the temporary directory, and saves in it what is no file yet.
    pub(crate) fn new(program: Program) -> io::Result<Self> {
        let guard = tempfile::Builder::new()
            .prefix("blockferry-script-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()?;
        // A script may change its directory.
        let directory = fs::canonicalize(guard.path())?;
        let kind = match program {
            Program::File(path) if path == Path::new("-") => {
                let mut text = Vec::new();
                let mut stdin = io::stdin().lock().take(LONGEST_SCRIPT);
                stdin.read_to_end(&mut text)?;
                Kind::inline(&directory, &text)?
            }
            Program::File(path) => Kind::Script {
                file: fs::canonicalize(path)?,
                by_shell: AtomicBool::new(false),
            },
            Program::Inline(text) => Kind::inline(&directory, &text)?,
            Program::Methods(methods) => Kind::methods(&directory, methods)?,
        };
        Ok(Self {
            kind,
            directory,
            guard: Mutex::new(Some(guard)),
        })
    }

    /// Whether each method is a script of its own.
    pub(crate) fn is_eval(&self) -> bool {
        matches!(self.kind, Kind::Methods { .. })
    }

    /// Whether `method` may be there.
    pub(crate) fn has(&self, method: &str) -> bool {
        match &self.kind {
            Kind::Script { .. } => true,
            Kind::Methods { known, .. } => known.contains(method) || known.contains(MISSING),
        }
    }

    /// What runs `method` with `arguments`; nothing when it is known to be missing.
    pub(crate) fn command(&self, method: &str, arguments: &[&OsStr]) -> Option<Command> {
        let mut command = match &self.kind {
            Kind::Script { file, by_shell } => {
                command_for(file.as_os_str(), by_shell.load(Ordering::Relaxed))
            }
            Kind::Methods { known, direct } => {
                let name = [method, MISSING]
                    .into_iter()
                    .find(|name| known.contains(*name))?;
                command_for(
                    self.directory.join(name).as_os_str(),
                    !direct.contains(name),
                )
            }
        };
        command.arg(method).args(arguments);
        command.env("tmpdir", &self.directory);
        for variable in ACTIVATION {
            command.env_remove(variable);
        }
        Some(command)
    }

    /// Whether the script could not be run for `error` because it wants the shell, which it gets from now on.
    pub(crate) fn is_for_shell(&self, error: &io::Error) -> bool {
        // What execve says of a file in no format that it knows.
        const ENOEXEC: i32 = 8;
        match &self.kind {
            Kind::Script { by_shell, .. } if error.raw_os_error() == Some(ENOEXEC) => {
                by_shell.store(true, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }

    /// Removes the temporary directory, if that was not done before.
    pub(crate) fn remove(&self) {
        let guard = self
            .guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(guard);
    }
}

impl Kind {
    fn inline(directory: &Path, text: &[u8]) -> io::Result<Self> {
        let file = directory.join("inline-script.sh");
        save(&file, text)?;
        Ok(Self::Script {
            file,
            by_shell: AtomicBool::new(!names_interpreter(text)),
        })
    }

    fn methods(directory: &Path, methods: Vec<(String, OsString)>) -> io::Result<Self> {
        let mut known = HashSet::new();
        let mut direct = HashSet::new();
        for (name, text) in methods {
            if !is_method(&name) {
                return Err(invalid(format!("{name:?} is not a method")));
            }
            if known.contains(&name) {
                return Err(invalid(format!("the method {name} is given twice")));
            }
            save(&directory.join(&name), text.as_bytes())?;
            if names_interpreter(text.as_bytes()) {
                direct.insert(name.clone());
            }
            known.insert(name);
        }
        for (method, question, answer) in IMPLIED {
            if known.contains(method) && !known.contains(question) {
                save(&directory.join(question), answer.as_bytes())?;
                known.insert(question.to_owned());
            }
        }
        Ok(Self::Methods { known, direct })
    }
}

/// Whether `name` is a method that `eval` takes as a parameter. Any other name is one for `config`.
#[must_use]
pub fn is_method(name: &str) -> bool {
    METHODS.contains(&name)
}

fn command_for(file: &OsStr, by_shell: bool) -> Command {
    if !by_shell {
        return Command::new(file);
    }
    let mut command = Command::new(SHELL);
    command.arg(file);
    command
}

/// Whether the first line of a script says what runs it.
fn names_interpreter(text: &[u8]) -> bool {
    text.starts_with(b"#!")
}

/// Writes a script that its owner can read and run, and nobody can change.
fn save(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o500)
        .open(path)?;
    file.write_all(text)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
