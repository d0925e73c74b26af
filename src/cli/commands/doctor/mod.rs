//! `blockferry doctor`: what this machine can do for copies and servers, and what follows from it.
//!
//! | file | what it looks at |
//! |---|---|
//! | `system` | what the kernel can do, by doing it |
//! | `limits` | descriptors, pipes, buffers, memory |
//! | `processor` | processors and their instructions |
//! | `place` | directories, files, block devices |
//! | `programs` | programs of others, and the names that this one is installed under |
//! | `finding` | what one finding is; JSON is made of it |
//! | `text` | how findings are shown |

mod finding;
mod limits;
mod place;
mod processor;
mod programs;
mod system;
mod text;

use std::{collections::HashSet, path::PathBuf};

use serde::Serialize;

use blockferry_sys as sys;

use crate::{proto::is_nbd_uri, tls::trusted_by_system};

use super::super::{args::DoctorArgs, failure::Failure, output::print, style::Colour};
use finding::{Finding, Group, Place, State};

/// Everything that was found out. Its keys are stable: programs read them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    /// Of this program.
    version: &'static str,
    kernel: Kernel,
    /// Whether nothing that is needed is missing.
    ok: bool,
    /// What is.
    missing: Vec<String>,
    system: Group,
    limits: Group,
    processor: Group,
    tls: Group,
    places: Vec<Place>,
    peers: Group,
    drop_ins: Group,
}

#[derive(Debug, Serialize)]
struct Kernel {
    name: String,
    release: String,
    machine: String,
}

impl Report {
    fn collect(paths: &[PathBuf]) -> Result<Self, Failure> {
        let directories = programs::search_path();
        let own = std::env::current_exe().ok();
        let sys::Kernel {
            name,
            release,
            machine,
        } = sys::kernel();
        let places = paths.iter().map(|path| place::look(path));
        let mut report = Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: Kernel {
                name,
                release,
                machine,
            },
            ok: true,
            missing: Vec::new(),
            places: places.collect::<Result<_, _>>()?,
            system: system::findings(),
            limits: limits::findings(),
            processor: processor::findings(),
            tls: tls(),
            peers: programs::peers(&directories, own.as_deref()),
            drop_ins: programs::drop_ins(&directories, own.as_deref()),
        };
        let groups = [&report.system, &report.limits, &report.tls];
        let missing = groups.into_iter().flat_map(Group::missing);
        report.missing = missing.map(str::to_owned).collect();
        report.ok = report.missing.is_empty();
        Ok(report)
    }

    fn title(&self) -> String {
        let Kernel {
            name,
            release,
            machine,
        } = &self.kernel;
        format!(
            "blockferry {}, {name} {release} on {machine}\n",
            self.version
        )
        .trim_end()
        .to_owned()
    }
}

pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    for path in &args.path {
        if path.to_str().is_some_and(is_nbd_uri) {
            let message = format!(
                "{}: doctor looks at this machine, not at servers",
                path.display()
            );
            let hint = "'blockferry info URI' tells what a server offers";
            return Err(Failure::usage(message).hint(hint));
        }
    }
    let report = Report::collect(&paths(args))?;
    let text = match args.json {
        true => {
            let json = serde_json::to_string_pretty(&report);
            json.map_err(|error| Failure::failed(error.to_string()))? + "\n"
        }
        false => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
            text::text(&report, Colour::chosen(None, terminal))
        }
    };
    print(&text)?;
    match report.missing.as_slice() {
        [] => Ok(()),
        missing => Err(Failure::failed(format!(
            "this machine lacks what is needed: {}",
            missing.join(", ")
        ))),
    }
}

/// What was asked for; else where images are likely to go. Of two names for one place the first one.
fn paths(args: &DoctorArgs) -> Vec<PathBuf> {
    if !args.path.is_empty() {
        return args.path.clone();
    }
    let mut seen = HashSet::new();
    let places = std::env::current_dir()
        .into_iter()
        .chain([std::env::temp_dir()]);
    places
        .filter(|path| path.exists() && seen.insert(path.canonicalize().ok()))
        .collect()
}

/// Whom a client believes that names no authorities of its own.
fn tls() -> Group {
    const NAME: &str = "trusted authorities";
    let found = match trusted_by_system() {
        Ok(count) => Finding::new(NAME, State::Yes)
            .value(count, count.to_string())
            .meaning("of the system: nbds:// believes servers with a certificate of theirs"),
        Err(error) => Finding::new(NAME, State::No).meaning(format!(
            "nbds:// needs tls-certificates=DIRECTORY in the URI: {error}"
        )),
    };
    Group(vec![found])
}
