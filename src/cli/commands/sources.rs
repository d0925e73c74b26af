//! `blockferry sources`: everything that can stand for an image, with its parameters.

use serde::Serialize;

use crate::endpoint::{SOURCES, SourceKind};

use super::{
    super::{failure::Failure, output::print},
    parameters::{JsonParameter, push_lines, push_parameters},
};

pub(crate) fn run(json: bool) -> Result<(), Failure> {
    let text = match json {
        true => as_json().map_err(|error| Failure::failed(error.to_string()))?,
        false => as_text(),
    };
    print(&text)
}

fn as_text() -> String {
    let rows: Vec<_> = SOURCES.iter().map(row_text).collect();
    let note = "A comma inside a parameter is written ',,'.\n";
    rows.join("\n") + "\n" + note
}

fn row_text(row: &SourceKind) -> String {
    let mut text = format!("{}\n", row.syntax);
    push_lines(&mut text, 4, row.help);
    let roles = [
        (row.roles.source, "a source of copies"),
        (row.roles.destination, "a destination of copies"),
        (row.roles.served, "served"),
    ];
    let roles: Vec<_> = roles
        .iter()
        .filter_map(|(is, role)| is.then_some(*role))
        .collect();
    push_lines(&mut text, 4, &format!("Can be {}", roles.join(", ")));
    push_parameters(&mut text, row.parameters);
    if let Some(others) = row.others {
        push_lines(&mut text, 6, &format!("KEY=VALUE: {others}"));
    }
    text
}

/// A row for programs.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    name: &'static str,
    syntax: &'static str,
    help: &'static str,
    source: bool,
    destination: bool,
    served: bool,
    parameters: Vec<JsonParameter>,
    /// What other `KEY=VALUE` is for, where others are taken.
    others: Option<&'static str>,
}

fn as_json() -> serde_json::Result<String> {
    let rows = SOURCES.iter().map(|row| Row {
        name: row.name,
        syntax: row.syntax,
        help: row.help,
        source: row.roles.source,
        destination: row.roles.destination,
        served: row.roles.served,
        parameters: row.parameters.iter().map(JsonParameter::from).collect(),
        others: row.others,
    });
    let rows: Vec<_> = rows.collect();
    Ok(serde_json::to_string_pretty(&rows)? + "\n")
}
