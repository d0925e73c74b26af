//! `blockferry sources`: everything that can stand for an image, with its parameters.

use serde::Serialize;

use crate::endpoint::{SOURCES, SourceKind};

use super::{
    super::failure::Failure,
    tables::{JsonParameter, print_table, push_lines, push_parameters},
};

pub(crate) fn run(json: bool) -> Result<(), Failure> {
    print_table(SOURCES, json, row_text, Row::from)
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

impl From<&SourceKind> for Row {
    fn from(row: &SourceKind) -> Self {
        Self {
            name: row.name,
            syntax: row.syntax,
            help: row.help,
            source: row.roles.source,
            destination: row.roles.destination,
            served: row.roles.served,
            parameters: row.parameters.iter().map(JsonParameter::from).collect(),
            others: row.others,
        }
    }
}
