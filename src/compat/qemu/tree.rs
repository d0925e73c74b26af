//! What QEMU's tools tell of something: the same tree as JSON and as text, in QEMU's layouts.

use std::{ffi::OsStr, fmt::Write};

use crate::{cli::significant::Significant, endpoint::printable};

/// A value. Texts may be any image's.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::compat) enum Tree {
    Text(String),
    Number(i128),
    Switch(bool),
    List(Vec<Self>),
    /// Members in the order in which JSON has them.
    Map(Vec<(&'static str, Self)>),
}

/// Spaces for each level.
const INDENT: usize = 4;

impl Tree {
    pub(in crate::compat) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(in crate::compat) fn number(number: impl Into<i128>) -> Self {
        Self::Number(number.into())
    }

    /// As JSON, with the end of a line behind it.
    pub(in crate::compat) fn json(&self) -> String {
        let mut text = String::new();
        self.write_json(&mut text, 0);
        text + "\n"
    }

    /// As text: a line for each member, its name with spaces for dashes.
    pub(in crate::compat) fn lines(&self, depth: usize) -> String {
        let mut text = String::new();
        self.write_lines(&mut text, depth);
        text
    }

    fn write_json(&self, text: &mut String, depth: usize) {
        let line = |text: &mut String, depth: usize| {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', depth * INDENT));
        };
        match self {
            Self::Text(value) => write_string(text, value),
            Self::Number(number) => *text += &number.to_string(),
            Self::Switch(on) => *text += if *on { "true" } else { "false" },
            Self::List(members) => {
                text.push('[');
                for (index, member) in members.iter().enumerate() {
                    if index > 0 {
                        text.push(',');
                    }
                    line(text, depth + 1);
                    member.write_json(text, depth + 1);
                }
                line(text, depth);
                text.push(']');
            }
            Self::Map(members) => {
                text.push('{');
                for (index, (name, member)) in members.iter().enumerate() {
                    if index > 0 {
                        text.push(',');
                    }
                    line(text, depth + 1);
                    write_string(text, name);
                    *text += ": ";
                    member.write_json(text, depth + 1);
                }
                line(text, depth);
                text.push('}');
            }
        }
    }

    fn write_lines(&self, text: &mut String, depth: usize) {
        match self {
            Self::List(members) => {
                for (index, member) in members.iter().enumerate() {
                    member.write_member(text, &format!("[{index}]"), depth);
                }
            }
            Self::Map(members) => {
                for (name, member) in members {
                    member.write_member(text, &name.replace('-', " "), depth);
                }
            }
            Self::Text(value) => *text += &printable(OsStr::new(value)),
            Self::Number(number) => *text += &number.to_string(),
            Self::Switch(on) => *text += if *on { "true" } else { "false" },
        }
    }

    fn write_member(&self, text: &mut String, name: &str, depth: usize) {
        let indent = depth * INDENT;
        let _ = write!(text, "{:indent$}{name}:", "");
        match self {
            Self::List(_) | Self::Map(_) => {
                text.push('\n');
                self.write_lines(text, depth + 1);
            }
            _ => {
                text.push(' ');
                self.write_lines(text, depth);
                text.push('\n');
            }
        }
    }
}

/// A string of JSON in which everything that is no ASCII is escaped, and everything that steers a terminal.
fn write_string(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => *text += "\\\"",
            '\\' => *text += "\\\\",
            '\u{8}' => *text += "\\b",
            '\u{c}' => *text += "\\f",
            '\n' => *text += "\\n",
            '\r' => *text += "\\r",
            '\t' => *text += "\\t",
            ' '..='~' => text.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04X}");
                }
            }
        }
    }
    text.push('"');
}

/// A number of bytes as QEMU shows it: `1.25 GiB`.
pub(in crate::compat) fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    // From a thousand of one unit on it is the next one.
    let mut unit = 0;
    while unit + 1 < UNITS.len() && u128::from(bytes) >= 1000 << (10 * unit) {
        unit += 1;
    }
    let number = bytes as f64 / (1_u64 << (10 * unit)) as f64;
    format!("{} {}", Significant(number, 3), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1536, "1.5 KiB"),
            (200_704, "196 KiB"),
            (1_000_448, "977 KiB"),
            (1_000_000_000, "954 MiB"),
            (1_500_000_000_000, "1.36 TiB"),
            (i64::MAX as u64, "8 EiB"),
        ] {
            assert_eq!(size_text(bytes), text);
        }
    }

    #[test]
    fn a_tree_is_json_and_lines() {
        let tree = Tree::Map(vec![
            ("a-b", Tree::text("x\u{1b}\"é𝄞")),
            ("list", Tree::List(vec![Tree::Switch(true)])),
            ("none", Tree::List(Vec::new())),
        ]);
        assert_eq!(
            tree.json(),
            "{\n    \"a-b\": \"x\\u001B\\\"\\u00E9\\uD834\\uDD1E\",\n    \"list\": [\n        true\n    ],\n    \
             \"none\": [\n    ]\n}\n"
        );
        assert_eq!(
            tree.lines(1),
            "    a b: x\\u{1b}\"é𝄞\n    list:\n        [0]: true\n    none:\n"
        );
    }
}
