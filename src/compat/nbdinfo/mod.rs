//! The command line of `nbdinfo`. What it prints is printed at the end and all at once, so that nobody takes
//! the beginning of a failure for an answer.
//!
//! | file | what it does |
//! |---|---|
//! | `options` | the options, and what they ask for |
//! | `feature` | what `--can`, `--is` and `--has` ask about |
//! | `content` | what `file` says of an export's first bytes |

mod content;
mod feature;
mod options;

use std::{ffi::OsString, process::ExitCode};

use crate::{
    block::{Error, ErrorKind},
    cli::{
        commands::{
            info::{self, Asked, ask_server},
            map,
        },
        failure::Failure,
        options::{MapJob, Timeouts, Trust},
        output::print,
    },
    client::blocking,
    endpoint::Endpoint,
    inspect::{self, Facts},
};

use super::ending::end;
use feature::Feature;
use options::{Content, Job, Layout, Task, USAGE, Which};

/// The exit code of a question whose answer is no.
const NO: u8 = 2;

/// Runs `nbdinfo`.
pub(super) fn main(words: Vec<OsString>) -> ExitCode {
    let answer = match Job::parse(words) {
        Ok(job) => run(&job),
        Err(early) => return early.end(USAGE),
    };
    let printed = answer.and_then(|answer| {
        print(&answer.text)?;
        Ok(ExitCode::from(answer.code))
    });
    printed.unwrap_or_else(end)
}

/// What is printed, and the exit code.
struct Answer {
    text: String,
    code: u8,
}

impl Answer {
    fn yes(text: String) -> Self {
        Self { text, code: 0 }
    }
}

fn run(job: &Job) -> Result<Answer, Failure> {
    match &job.task {
        Task::Show { which, content } => show(job, *which, *content),
        Task::Size => {
            let size = ask_server(&job.endpoint, Timeouts::PATIENT, |server| {
                let report = blocking::info(server.uri, &server.options)?;
                Ok(report.negotiated.export.size)
            })?;
            Ok(Answer::yes(format!("{size}\n")))
        }
        Task::Uri => {
            let uri = ask_server(&job.endpoint, Timeouts::PATIENT, uri)?;
            Ok(Answer::yes(match job.layout {
                Layout::Json => format!("\"{}\"\n", info::json::Escaped(&uri)),
                Layout::Text(_) => format!("{uri}\n"),
            }))
        }
        Task::Ask { feature, expected } => {
            let found = ask_server(&job.endpoint, Timeouts::PATIENT, |server| {
                has(server, *feature)
            })?;
            Ok(Answer {
                text: String::new(),
                code: if found == *expected { 0 } else { NO },
            })
        }
        Task::Map { context, totals } => {
            let map = MapJob {
                offsets: false,
                list: true,
                picture: false,
                svg: None,
                trust: Trust::default(),
                endpoint: job.endpoint.clone(),
                context: context.clone(),
                totals: *totals,
                json: job.layout == Layout::Json,
                timeouts: Timeouts::PATIENT,
            };
            let mut output = Vec::new();
            map::write(&map, job.colour(), &mut output)?
                .map_err(|error| Failure::system("the map", &error))?;
            Ok(Answer::yes(String::from_utf8_lossy(&output).into_owned()))
        }
    }
}

/// Everything there is to know of one export or all.
fn show(job: &Job, which: Which, content: Content) -> Result<Answer, Failure> {
    let mut facts = ask_server(&job.endpoint, Timeouts::PATIENT, |server| {
        let mut facts = match which {
            Which::One => info::export(server)?,
            Which::All => info::list(server)?,
        };
        if content == Content::Probed {
            probe(&mut facts, server);
        }
        Ok(facts)
    })?;
    let code = u8::from(!drop_failed(&mut facts, &job.endpoint));
    let text = match job.layout {
        Layout::Json => info::json::as_nbdinfo(&facts),
        Layout::Text(colour) => info::text::text(&facts, colour),
    };
    Ok(Answer { text, code })
}

/// Lets `file` say what the exports begin with.
fn probe(facts: &mut Facts, server: &Asked<'_>) {
    let known = facts.exports.iter_mut();
    for export in known.filter(|export| export.details.is_some()) {
        let mut uri = server.uri.clone();
        uri.export.clone_from(&export.asked);
        export.content = content::probe(&uri, &server.options);
    }
}

/// Tells which exports of a list could not be asked, and leaves them out. Whether there were none.
fn drop_failed(facts: &mut Facts, endpoint: &Endpoint) -> bool {
    let count = facts.exports.len();
    facts.exports.retain(|export| {
        let Some(error) = &export.error else {
            return true;
        };
        let name = &export.name;
        Failure::failed(format!("{endpoint}: export \"{name}\": {error}")).report();
        false
    });
    facts.exports.len() == count
}

fn uri(server: &Asked<'_>) -> Result<String, Error> {
    blocking::info(server.uri, &server.options)?;
    server
        .public_uri()
        .and_then(|uri| inspect::facts::uri_of(uri, &uri.export))
        .ok_or_else(|| {
            Error::with_message(
                ErrorKind::Unsupported,
                "a server that is started for this question alone has no URI",
            )
        })
}

fn has(server: &Asked<'_>, feature: Feature) -> Result<bool, Error> {
    let report = blocking::info(server.uri, &server.options)?;
    Ok(feature.is_had_by(&report.negotiated))
}
