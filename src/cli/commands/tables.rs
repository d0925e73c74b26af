//! How the tables of sources and of filters are shown, with their parameters: for people, and for programs.

use serde::Serialize;

use crate::block::{Parameter, ParameterPlace};

use super::super::{endpoint_help::wrapped, failure::Failure, output::print};

/// How long a line may be, in characters.
const WIDTH: usize = 96;

/// Prints `rows`, each as a `text` for people, or all as JSON for programs.
pub(super) fn print_table<T, R: Serialize>(
    rows: &'static [T],
    json: bool,
    text: impl Fn(&'static T) -> String,
    row: impl Fn(&'static T) -> R,
) -> Result<(), Failure> {
    let shown = if json {
        let rows: Vec<_> = rows.iter().map(row).collect();
        let json = serde_json::to_string_pretty(&rows);
        json.map_err(|error| Failure::failed(error.to_string()))? + "\n"
    } else {
        let rows: Vec<_> = rows.iter().map(text).collect();
        rows.join("\n") + "\nA comma inside a parameter is written ',,'.\n"
    };
    print(&shown)
}

/// Adds `words` to `text`, in lines that begin with `indent` spaces.
pub(super) fn push_lines(text: &mut String, indent: usize, words: &str) {
    for line in wrapped(words, WIDTH - indent) {
        text.push_str(&format!("{:indent$}{line}\n", ""));
    }
}

/// Adds a line or more for each parameter.
pub(super) fn push_parameters(text: &mut String, parameters: &[Parameter]) {
    for parameter in parameters {
        let Parameter { name, kind, .. } = parameter;
        let mut line = format!("{name} ({kind}): {}", parameter.help);
        match parameter.default {
            _ if parameter.required => line.push_str("; required"),
            Some(default) => line.push_str(&format!("; {default} without it")),
            None => {}
        }
        push_lines(text, 6, &line);
    }
}

/// A parameter for programs.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct JsonParameter {
    name: &'static str,
    #[serde(rename = "type")]
    kind: String,
    place: &'static str,
    required: bool,
    default: Option<&'static str>,
    help: &'static str,
}

impl From<&Parameter> for JsonParameter {
    fn from(parameter: &Parameter) -> Self {
        Self {
            name: parameter.name,
            kind: parameter.kind.to_string(),
            place: match parameter.place {
                ParameterPlace::First => "first",
                ParameterPlace::Named => "named",
                ParameterPlace::Each => "each",
                ParameterPlace::Whole => "whole",
            },
            required: parameter.required,
            default: parameter.default,
            help: parameter.help,
        }
    }
}
