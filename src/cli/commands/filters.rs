//! `blockferry filters`: everything that can stand in front of an image, with its parameters and effects.

use serde::Serialize;

use crate::filter::{Effects, FILTERS, FilterKind};

use super::{
    super::failure::Failure,
    tables::{JsonParameter, print_table, push_lines, push_parameters},
};

pub(crate) fn run(json: bool) -> Result<(), Failure> {
    print_table(FILTERS, json, |row| row_text(row), |row| Row::from(*row))
}

fn row_text(row: &FilterKind) -> String {
    let mut text = format!("{}\n", row.syntax);
    push_lines(&mut text, 4, row.help);
    push_parameters(&mut text, row.parameters);
    let Effects {
        extents,
        mapping,
        flush,
        concurrency,
    } = row.effects;
    for (what, effect) in [
        ("extents", extents),
        ("zero copy", mapping),
        ("flush", flush),
        ("several connections", concurrency),
    ] {
        push_lines(&mut text, 4, &format!("- {what}: {effect}"));
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
    parameters: Vec<JsonParameter>,
    effects: RowEffects,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct RowEffects {
    extents: &'static str,
    mapping: &'static str,
    flush: &'static str,
    concurrency: &'static str,
}

impl From<&FilterKind> for Row {
    fn from(row: &FilterKind) -> Self {
        Self {
            name: row.name,
            syntax: row.syntax,
            help: row.help,
            parameters: row.parameters.iter().map(JsonParameter::from).collect(),
            effects: RowEffects {
                extents: row.effects.extents,
                mapping: row.effects.mapping,
                flush: row.effects.flush,
                concurrency: row.effects.concurrency,
            },
        }
    }
}
