//! What stands below the options in a command's help: examples, endpoints, exit codes; and the commands by what they
//! are for, in the help of the program.

use crate::cli::endpoint_help::{Reader, endpoints};

use super::examples::{Example, examples};

/// Commands that serve one end.
struct Task {
    what: &'static str,
    commands: &'static [&'static str],
}

const TASKS: &[Task] = &[
    Task {
        what: "Move images",
        commands: &["copy", "dd"],
    },
    Task {
        what: "Serve and forward",
        commands: &["serve", "relay"],
    },
    Task {
        what: "Look at images and servers",
        commands: &[
            "info", "map", "compare", "checksum", "check", "measure", "snapshot", "bitmap",
        ],
    },
    Task {
        what: "Make and change images",
        commands: &["create", "resize"],
    },
    Task {
        what: "Find out more",
        commands: &["doctor", "sources", "filters", "completions", "help"],
    },
];

/// Where what a command is for begins, in characters.
const COLUMN: usize = 15;

/// The commands of `program` by what they are for.
pub(super) fn tasks(program: &clap::Command) -> String {
    let mut text = String::new();
    for task in TASKS {
        text.push_str(&format!("{}:\n", task.what));
        for name in task.commands {
            let about = match *name {
                "help" => "Explain a command: the same as COMMAND --help".to_owned(),
                name => {
                    let command = program.find_subcommand(name);
                    let about = command.and_then(clap::Command::get_about);
                    about.map(ToString::to_string).unwrap_or_default()
                }
            };
            let room = COLUMN - 2;
            text.push_str(&format!("  {name:<room$}{about}\n"));
        }
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// What stands below the short help.
pub(super) fn brief(command: &str) -> String {
    let mut text = shown(command);
    text.push_str(&format!("\n\n'blockferry {command} --help' says more."));
    text
}

/// What stands below the long help: the examples, which endpoints there are for it, other words, the exit codes.
pub(super) fn whole(command: &str, reader: Option<Reader>, more: &[&str]) -> String {
    let mut parts = vec![shown(command)];
    parts.extend(reader.map(endpoints));
    parts.extend(more.iter().map(ToString::to_string));
    if !more.iter().any(|part| part.starts_with(EXIT_CODES_TITLE)) {
        parts.push(EXIT_CODES.to_owned());
    }
    parts.join("\n\n")
}

const EXIT_CODES_TITLE: &str = "Exit codes:";

/// What every command ends with, unless it says something else.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0    Done, and durable where asked
  1    Failed
  2    Wrong usage
  75   Failed, but trying again may help: a lost connection, a time-out
  130  Interrupted (SIGINT); 143: asked to end (SIGTERM)";

fn shown(command: &str) -> String {
    let mut text = "Examples:".to_owned();
    for Example { line, does } in examples(command) {
        text.push_str(&format!("\n  {line}\n      {does}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::command, *};

    #[test]
    fn every_command_is_listed_once_by_what_it_is_for() {
        let program = command();
        let mut shown: Vec<_> = TASKS
            .iter()
            .flat_map(|task| task.commands)
            .copied()
            .collect();
        shown.sort_unstable();
        let mut known: Vec<_> = program
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(clap::Command::get_name)
            .chain(["help"])
            .collect();
        known.sort_unstable();
        known.dedup();
        assert_eq!(shown, known);
        for line in tasks(&program).lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn what_a_command_is_for_fits_on_a_line_and_ends_without_a_full_stop() {
        for command in command().get_subcommands() {
            let about = command
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(!about.is_empty() && !about.ends_with('.'), "{about}");
        }
    }

    #[test]
    fn the_help_ends_with_the_exit_codes_of_the_command() {
        for command in command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            let text = command.get_after_long_help().map(ToString::to_string);
            let text = text.unwrap_or_default();
            assert_eq!(
                text.matches("Exit codes:").count(),
                1,
                "{}",
                command.get_name()
            );
            assert!(text.starts_with("Examples:\n"), "{text}");
        }
    }
}
