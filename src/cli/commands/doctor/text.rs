//! The findings for people: what, whether, and what it means, a line each.

use super::{
    super::super::style::{Colour, Paint},
    Report,
    finding::{Finding, Group, State},
};
use crate::block::printable;

/// Where the words on a finding begin, in characters, and where what it means does.
const STATE: usize = 24;
const MEANING: usize = 40;

pub(super) fn text(report: &Report, colour: Colour) -> String {
    let mut text = report.title();
    text.push('\n');
    let groups = [
        ("System", &report.system),
        ("Limits", &report.limits),
        ("Processor", &report.processor),
        ("TLS", &report.tls),
    ];
    for (title, group) in groups {
        push_group(&mut text, title, group, colour);
    }
    for place in &report.places {
        let path = printable(place.path.as_os_str());
        let title = match place.kind {
            "directory" => path,
            "not-there" => format!("{path} (not there yet; its directory)"),
            kind => format!("{path} ({})", kind.replace('-', " ")),
        };
        push_group(&mut text, &title, &place.findings, colour);
    }
    push_group(&mut text, "Other programs", &report.peers, colour);
    let names = "Names of other programs that this one is installed under";
    push_group(&mut text, names, &report.drop_ins, colour);
    text
}

fn push_group(text: &mut String, title: &str, group: &Group, colour: Colour) {
    text.push_str(&format!("\n{title}\n"));
    for finding in &group.0 {
        push_line(text, finding, colour);
    }
}

fn push_line(text: &mut String, finding: &Finding, colour: Colour) {
    let paint = match finding.state {
        State::Yes => Paint::Green,
        State::No | State::Unknown => Paint::Grey,
        State::Limited => Paint::BoldMagenta,
        State::Missing => Paint::BoldRed,
    };
    let Finding {
        name,
        shown,
        meaning,
        ..
    } = finding;
    // What is measured says nothing of whether it is enough: the word does, also without colours.
    let shown = match finding.state {
        State::Limited | State::Missing if finding.value.is_some() => {
            format!("{shown}, {}", finding.state.word())
        }
        _ => shown.clone(),
    };
    let gap = |used: usize, column: usize| " ".repeat(column.saturating_sub(used).max(2));
    let end = STATE.max(name.chars().count() + 4) + shown.chars().count();
    let (on, off) = (colour.paint(paint), colour.paint(Paint::Normal));
    text.push_str(&format!(
        "  {name}{}{on}{shown}{off}",
        gap(2 + name.chars().count(), STATE)
    ));
    if let Some(meaning) = meaning {
        text.push_str(&gap(end, MEANING));
        text.push_str(meaning);
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(finding: &Finding, colour: Colour) -> String {
        let mut text = String::new();
        push_line(&mut text, finding, colour);
        text
    }

    #[test]
    fn a_line_says_what_whether_and_what_it_means() {
        let finding = Finding::new("reflink", State::No).meaning("copies move bytes");
        let told = line(&finding, Colour::Never);
        let words: Vec<_> = told.split_whitespace().collect();
        assert_eq!(words, ["reflink", "no", "copies", "move", "bytes"]);
        assert_eq!(told.find("copies"), Some(MEANING));
    }

    #[test]
    fn what_is_too_little_is_said_in_words_and_not_by_colour_alone() {
        let finding = Finding::new("descriptors", State::Limited).value(64, "64");
        assert!(line(&finding, Colour::Never).contains("64, limited"));
        assert!(line(&finding, Colour::Always).contains("\u{1b}["));
    }
}
