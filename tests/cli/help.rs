//! The help, as it is printed: short and long, and the manual pages that are made of it.

use crate::support::{blockferry, run};

/// The longest line, in characters.
const WIDTH: usize = 100;

fn help(words: &[&str]) -> String {
    let outcome = run(blockferry(words).env("COLUMNS", "200")).success();
    assert!(outcome.stderr.is_empty(), "{}", outcome.stderr);
    outcome.text().to_owned()
}

fn commands() -> Vec<String> {
    let text = help(&["--help"]);
    let rows = text
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("  -"));
    let names = rows.filter_map(|line| line.split_whitespace().next().map(str::to_owned));
    let is_name = |name: &String| name.chars().all(|c| c.is_ascii_lowercase());
    names
        .filter(is_name)
        .filter(|name| name != "help")
        .collect()
}

#[test]
fn the_program_lists_its_commands_by_what_they_are_for() {
    let text = help(&["--help"]);
    let at = |what: &str| {
        text.find(what)
            .unwrap_or_else(|| panic!("no {what}: {text}"))
    };
    assert!(at("Move images:") < at("\n  copy "));
    assert!(at("\n  copy ") < at("Serve and forward:"));
    assert!(at("Find out more:") < at("\n  doctor "));
    assert!(at("\n  doctor ") < at("Options:"));
    assert_eq!(text.matches("\n  copy ").count(), 1, "{text}");
    assert!(commands().len() > 15, "{:?}", commands());
    assert_eq!(help(&["-h"]), text);
}

#[test]
fn every_command_has_a_short_help_and_a_long_one_with_examples() {
    for name in commands() {
        let (short, long) = (help(&[&name, "-h"]), help(&[&name, "--help"]));
        for text in [&short, &long] {
            assert!(
                text.contains(&format!("Usage: blockferry {name}")),
                "{text}"
            );
            assert_eq!(
                text.matches("\nExamples:\n  blockferry ").count(),
                1,
                "{text}"
            );
        }
        assert!(short.lines().count() < long.lines().count(), "{name}");
        assert!(
            long.contains("\nExit codes:\n") && !short.contains("Exit codes:"),
            "{name}"
        );
        assert_eq!(help(&["help", &name]), long);
    }
}

#[test]
fn no_line_is_too_long_but_an_example_that_must_be_one() {
    for name in commands() {
        for line in help(&[&name, "--help"]).lines() {
            let is_example = line.starts_with("  blockferry ");
            assert!(is_example || line.chars().count() <= WIDTH, "{line}");
        }
    }
}

#[test]
fn many_options_stand_under_headings() {
    for (name, headings) in [
        (
            "copy",
            &[
                "Formats:",
                "Source:",
                "Destination:",
                "Speed:",
                "Interruptions:",
                "Verification:",
                "Output:",
            ][..],
        ),
        (
            "serve",
            &[
                "Places to listen at:",
                "TLS:",
                "Clients:",
                "Beginning and end:",
                "Log and metrics:",
            ],
        ),
        (
            "relay",
            &["Limits:", "TLS and the PROXY protocol:", "Log and metrics:"],
        ),
    ] {
        let text = help(&[name, "-h"]);
        for heading in headings {
            assert_eq!(
                text.matches(&format!("\n{heading}\n")).count(),
                1,
                "{heading}: {text}"
            );
        }
    }
}

#[test]
fn manual_pages_have_the_examples_and_the_exit_codes() {
    for name in commands() {
        let page = help(&["man", &name]);
        for words in [
            ".SH EXAMPLES",
            "\"EXIT STATUS\"",
            &format!("blockferry {name}"),
        ] {
            let page = page.replace("\\-", "-");
            assert!(page.contains(words), "{name}: {words}: {page}");
        }
    }
    assert!(help(&["man"]).contains("Move disk images"));
}
