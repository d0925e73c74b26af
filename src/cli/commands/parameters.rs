//! How the parameters of sources and of filters are shown: for people, and for programs.

use serde::Serialize;

use crate::block::{Parameter, ParameterPlace};

use super::super::endpoint_help::wrapped;

/// How long a line may be, in characters.
const WIDTH: usize = 96;

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
