//! What is told of a command line that cannot be read, in the words of all other failures; help and version.
//!
//! clap finds out what is wrong. Here its text becomes ours: the message behind the name of the program, then how the
//! command is used, then what to do.

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{CommandFactory, error::ErrorKind};

use crate::{compat::Tool, endpoint::SOURCES, proto::is_nbd_uri};

use super::{args::Cli, args::Size, output};

/// Prints what clap has to say of `words`: help and version to standard output, what is wrong to standard error.
pub(super) fn explain(error: &clap::Error, words: &[OsString]) -> ExitCode {
    // Between the words of a command group stand NUL bytes.
    let text = error.render().to_string().replace('\0', " ");
    if error.use_stderr() {
        for line in retold(&text, error.kind(), &Words::new(words)) {
            output::tell(&line);
        }
    } else {
        // A list that an option was asked for is an error to clap, and to nobody else.
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        // A standard output that cannot be written leaves nothing to be said.
        let _ = output::print(text);
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// The words of a command line, as far as they are text.
struct Words<'a> {
    /// The name of the command, if it is one.
    command: Option<String>,
    /// What follows it.
    rest: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn new(words: &'a [OsString]) -> Self {
        let mut words = words.iter().skip(1).filter_map(|word| word.to_str());
        let first = words.find(|word| !word.starts_with('-'));
        let commands = Cli::command();
        let command = first.and_then(|first| commands.find_subcommand(first));
        let command = command.map(|command| command.get_name().to_owned());
        let rest = match command {
            Some(_) => words.collect(),
            None => first.into_iter().chain(words).collect(),
        };
        Self { command, rest }
    }

    /// The first word that is no option.
    fn first(&self) -> Option<&'a str> {
        self.rest
            .iter()
            .copied()
            .find(|word| !word.starts_with('-'))
    }
}

/// clap's text as lines in our words.
fn retold(text: &str, kind: ErrorKind, words: &Words<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut hints = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let line = line.trim_end();
        if let Some(message) = line.strip_prefix("error: ") {
            let message = in_our_words(message, kind);
            lines.push(format!("{}: {message}", output::program()));
        } else if let Some(words) = choices(line) {
            lines[0].push_str(": it must be one of ");
            lines[0].push_str(words);
        } else if let Some(tip) = line.trim_start().strip_prefix("tip: ") {
            hints.extend(advice(tip));
        } else if !line.starts_with("For more information") {
            lines.push(line.to_owned());
        }
    }
    if let Some(habit) = habit(kind, &lines, words) {
        hints = vec![habit];
    }
    if hints.is_empty() {
        let name = words.command.as_deref().map(|name| format!(" {name}"));
        let name = name.unwrap_or_default();
        let does = match kind {
            ErrorKind::InvalidSubcommand => "lists them",
            _ => "explains it",
        };
        hints.push(format!("'blockferry{name} --help' {does}"));
    }
    lines.extend(hints.into_iter().map(|hint| format!("hint: {hint}")));
    lines
}

/// clap's message as others are: what it is about comes first.
fn in_our_words(message: &str, kind: ErrorKind) -> String {
    match kind {
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => of_value(message),
        ErrorKind::InvalidSubcommand => {
            let word = message.strip_prefix("unrecognized subcommand '");
            let word = word.and_then(|word| word.strip_suffix('\''));
            word.map(|word| format!("there is no command \"{word}\""))
        }
        _ => None,
    }
    .unwrap_or_else(|| message.to_owned())
}

/// `invalid value '0' for '--connections <N>': WHY`: the option, the value, and why.
fn of_value(message: &str) -> Option<String> {
    let (value, rest) = message
        .strip_prefix("invalid value '")?
        .split_once("' for '")?;
    let (name, why) = rest.split_once('\'')?;
    let name = name.trim_start_matches(['<', '[']);
    let name = name.split([' ', '=', '<', '>', '[', ']']).next()?;
    let why = why
        .strip_prefix(": ")
        .map(|why| format!(": {}", reason(why)));
    Some(format!("{name} {value}{}", why.unwrap_or_default()))
}

/// Why a number is none that is wanted.
fn reason(why: &str) -> String {
    if let Some((_, range)) = why.split_once(" is not in ")
        && let Some((least, most)) = range.split_once("..")
    {
        return match most.trim_start_matches('=') {
            "" => format!("it must be {least} or more"),
            most => format!("it must be from {least} to {most}"),
        };
    }
    match why {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "it is not a whole number".to_owned()
        }
        "number too large to fit in target type" => "the number is too large".to_owned(),
        why => why.to_owned(),
    }
}

/// The words that an option takes, where clap lists them.
fn choices(line: &str) -> Option<&str> {
    let words = line.trim_start().strip_prefix("[possible values: ")?;
    words.strip_suffix(']')
}

fn advice(tip: &str) -> Option<String> {
    match tip.split_once(": ") {
        Some((what, names)) if what.starts_with("a similar") => {
            Some(format!("did you mean {names}?"))
        }
        Some((what, names)) if what.starts_with("some similar") => {
            Some(format!("did you mean one of {names}?"))
        }
        // Few have a file with such a name, and many an option of another tool in mind.
        _ if tip.starts_with("to pass '-") => None,
        _ => Some(tip.to_owned()),
    }
}

/// What those are told who write what another program understands.
fn habit(kind: ErrorKind, lines: &[String], words: &Words<'_>) -> Option<String> {
    let first = words.first()?;
    let says = |what: &str| lines.iter().any(|line| line.contains(what));
    match (words.command.as_deref(), kind) {
        (None, ErrorKind::InvalidSubcommand) => not_a_command(first),
        (Some("serve"), ErrorKind::UnknownArgument) => {
            // As for nbdkit: a plugin, and its parameters behind it.
            let row = SOURCES.iter().find(|row| row.name == first)?;
            let example = match row.name {
                "file" => "'blockferry serve disk.img'".to_owned(),
                _ => format!("'blockferry serve {}'", row.syntax),
            };
            Some(format!(
                "nbdkit's plugins are endpoints here: {example}; under the name nbdkit its own command line is taken"
            ))
        }
        (Some("create"), ErrorKind::ValueValidation)
            if says(": SIZE ") && first.parse::<Size>().is_ok() =>
        {
            Some("the file comes first, then the size".to_owned())
        }
        (Some("copy" | "info" | "compare" | "map" | "measure"), ErrorKind::UnknownArgument)
            if says("--image-opts") || says("--object") =>
        {
            Some("that is QEMU's: it is understood under the name qemu-img".to_owned())
        }
        _ => None,
    }
}

fn not_a_command(word: &str) -> Option<String> {
    if Tool::of_program(word.as_ref()).is_some() {
        return Some(format!(
            "a link called {word} to this program takes the command line of {word}, see 'blockferry doctor'"
        ));
    }
    let is_image = is_nbd_uri(word) || word.contains('/') || Path::new(word).exists();
    is_image.then(|| {
        "a command comes first: copy, serve, info...; 'blockferry --help' lists them".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn told(words: &[&str]) -> String {
        let words: Vec<_> = [&["blockferry"], words].concat();
        let error = Cli::try_parse_from(&words).expect_err("wrong usage");
        let words: Vec<_> = words.into_iter().map(OsString::from).collect();
        let text = error.render().to_string();
        retold(&text, error.kind(), &Words::new(&words)).join("\n")
    }

    #[test]
    fn the_message_comes_first_then_the_usage_then_the_hint() {
        let text = told(&["copy", "--chekcsum", "a", "b"]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "blockferry: unexpected argument '--chekcsum' found"
        );
        assert!(lines[1].starts_with("Usage: blockferry copy"), "{text}");
        assert_eq!(lines[2], "hint: did you mean '--checksum'?");
        assert_eq!(lines.len(), 3, "{text}");
    }

    #[test]
    fn who_gets_no_better_hint_is_sent_to_the_help_of_the_command() {
        assert!(told(&["compare", "a"]).ends_with("hint: 'blockferry compare --help' explains it"));
        assert!(
            told(&["convert", "-C", "0", "a", "b"])
                .ends_with("'blockferry copy --help' explains it")
        );
        assert!(
            told(&["copy", "--xyzzy", "a", "b"])
                .ends_with("hint: 'blockferry copy --help' explains it")
        );
        assert_eq!(
            told(&["xyzzy"]),
            "blockferry: there is no command \"xyzzy\"\n\
             Usage: blockferry [OPTIONS] <COMMAND>\n\
             hint: 'blockferry --help' lists them"
        );
    }

    #[test]
    fn a_value_that_is_none_stands_behind_its_option() {
        for (words, message) in [
            (
                &["copy", "-C", "0", "a", "b"][..],
                "--connections 0: it must be from 1 to 64",
            ),
            (
                &["copy", "-C", "x", "a", "b"],
                "--connections x: it is not a whole number",
            ),
            (
                &["copy", "-C", "99999999999999999999", "a", "b"],
                "--connections 99999999999999999999: the number is too large",
            ),
            (
                &["copy", "--queue-size", "1K", "a", "b"],
                "--queue-size 1K: it must lie between 4K and 4G",
            ),
            (
                &["create", "a.raw", "x y"],
                "SIZE x y: \"x y\" is not a size",
            ),
            (
                &["copy", "-f", "qed", "a", "b"],
                "--format qed: it must be one of raw, qcow2, ",
            ),
        ] {
            let text = told(words);
            assert!(
                text.starts_with(&format!("blockferry: {message}")),
                "{text}"
            );
            assert!(!text.contains("possible values"), "{text}");
        }
    }

    #[test]
    fn habits_are_recognised() {
        for (words, hint) in [
            (&["cpoy", "a", "b"][..], "did you mean 'copy'?"),
            (&["qemu-img", "convert"], "a link called qemu-img"),
            (&["/disk.raw", "/copy.raw"], "a command comes first"),
            (&["nbd://host/x", "/copy.raw"], "a command comes first"),
            (
                &["serve", "file", "disk.img"],
                "'blockferry serve disk.img'",
            ),
            (&["serve", "memory", "1G"], "'blockferry serve memory:SIZE'"),
            (&["create", "10G", "a.qcow2"], "the file comes first"),
            (&["convert", "--image-opts", "driver=raw", "b"], "qemu-img"),
        ] {
            let text = told(words);
            assert!(
                text.contains(&format!("hint: {hint}"))
                    || text.lines().last().is_some_and(|it| it.contains(hint)),
                "{text}"
            );
        }
    }
}
