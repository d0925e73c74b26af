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
            lines.push(format!("{}: {message}", output::program()));
        } else if let Some(tip) = line.trim_start().strip_prefix("tip: ") {
            hints.push(advice(tip));
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
        hints.push(format!("'blockferry{name} --help' explains it"));
    }
    lines.extend(hints.into_iter().map(|hint| format!("hint: {hint}")));
    lines
}

fn advice(tip: &str) -> String {
    match tip.split_once(": ") {
        Some((what, names)) if what.starts_with("a similar") => format!("did you mean {names}?"),
        Some((what, names)) if what.starts_with("some similar") => {
            format!("did you mean one of {names}?")
        }
        _ => tip.to_owned(),
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
            if says("[SIZE]") && first.parse::<Size>().is_ok() =>
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
        assert!(told(&["xyzzy"]).ends_with("hint: 'blockferry --help' explains it"));
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
