//! The manual pages, from the one definition of the command line.
//!
//! What stands below the options in a command's help is written for a terminal, in columns. A manual has its own
//! width, so the columns become lists here, and each heading a section.

use std::io;

use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

/// The page of `program`, or of its command of that name; `None` if there is no such command.
pub(crate) fn page(program: clap::Command, command: Option<&str>) -> Option<io::Result<String>> {
    // `help` explains the other ones and has no page.
    let mut program = program
        .disable_help_subcommand(true)
        .subcommand_value_name("COMMAND")
        .subcommand_help_heading("COMMANDS");
    // Gives the commands their full names, `blockferry-copy`.
    program.build();
    match command {
        None => Some(render(&program, &["blockferry-drop-in(7)"])),
        Some(name) => program
            .find_subcommand(name)
            .map(|command| render(command, &["blockferry(1)", "blockferry-drop-in(7)"])),
    }
}

fn render(command: &clap::Command, see_also: &[&str]) -> io::Result<String> {
    let release = format!("blockferry {}", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command.clone())
        .source(release)
        .manual("blockferry");
    let mut roff = Vec::new();
    page.render_title(&mut roff)?;
    // Command lines and names stay as they are typed: no hyphens at the ends of lines, no wide spaces.
    let mut plain = Roff::new();
    plain.control("nh", []).control("ad", ["l"]);
    plain.to_writer(&mut roff)?;
    page.render_name_section(&mut roff)?;
    page.render_synopsis_section(&mut roff)?;
    page.render_description_section(&mut roff)?;
    page.render_options_section(&mut roff)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut roff)?;
    }
    let below = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    let below = below.map(ToString::to_string).unwrap_or_default();
    sections(&below).to_writer(&mut roff)?;
    let mut last = Roff::new();
    last.control("SH", ["SEE ALSO"]);
    last.text([roman(see_also.join(", "))]);
    last.to_writer(&mut roff)?;
    String::from_utf8(roff).map_err(io::Error::other)
}

/// One line of help, as to what it says.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    /// `Title:` begins a section.
    Title(&'a str),
    /// A row's left column, and what its right one begins with.
    Row(&'a str, &'a str),
    /// Goes on with the row above.
    More(&'a str),
    /// A sentence outside all rows.
    Text(&'a str),
    Blank,
}

fn read(line: &str) -> Line<'_> {
    let text = line.trim();
    match line.len() - line.trim_start().len() {
        _ if text.is_empty() => Line::Blank,
        0 => text.strip_suffix(':').map_or(Line::Text(text), Line::Title),
        2 => {
            let (left, right) = text.split_once("  ").unwrap_or((text, ""));
            Line::Row(left, right.trim_start())
        }
        _ => Line::More(text),
    }
}

fn sections(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut in_row = false;
    for line in help.lines().map(read) {
        match line {
            Line::Title(title) => {
                let title = match title {
                    "Exit codes" => "EXIT STATUS".to_owned(),
                    title => title.to_uppercase(),
                };
                roff.control("SH", [title.as_str()]);
            }
            Line::Row(left, right) => {
                roff.control("TP", []).text([bold(left)]);
                if !right.is_empty() {
                    roff.text([roman(right)]);
                }
            }
            Line::Text(text) => {
                if in_row {
                    roff.control("PP", []);
                }
                roff.text([roman(text)]);
            }
            Line::More(text) => {
                roff.text([roman(text)]);
            }
            Line::Blank => {
                roff.control("PP", []);
            }
        }
        in_row = matches!(line, Line::Row(..) | Line::More(_));
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args;

    #[test]
    fn every_command_has_a_page_with_the_sections_of_the_field() {
        let program = args::command();
        let names = program
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(|command| Some(command.get_name()));
        for name in names.chain([None]) {
            let page = page(program.clone(), name).expect("a page").expect("text");
            for section in [
                ".SH NAME",
                ".SH SYNOPSIS",
                ".SH OPTIONS",
                ".SH \"EXIT STATUS\"",
            ] {
                assert!(page.contains(section), "{name:?}: {section}: {page}");
            }
            assert!(
                !page.contains("EXTRA") && !page.contains("help(1)"),
                "{name:?}: {page}"
            );
        }
        assert!(page(program, Some("nonsense")).is_none());
    }

    #[test]
    fn columns_become_a_list_and_what_stands_outside_of_them_a_paragraph() {
        let roff = sections(
            "Things:\n  one, two   The first\n             and more of it\n  a-very-long-name\n             \
             The second\nAll of them.\n\nExit codes:\n  0    Done",
        );
        assert_eq!(
            roff.to_roff(),
            ".SH THINGS\n.TP\n\\fBone, two\\fR\nThe first\nand more of it\n.TP\n\\fBa\\-very\\-long\\-name\\fR\n\
             The second\n.PP\nAll of them.\n.PP\n.SH \"EXIT STATUS\"\n.TP\n\\fB0\\fR\nDone\n"
        );
    }
}
