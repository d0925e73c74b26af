//! What the help says of endpoints, from the table that they are read by.

use crate::endpoint::{SOURCES, SourceKind};

/// Where the explanations begin, in characters.
const COLUMN: usize = 29;

/// How long a line may be, in characters.
const WIDTH: usize = 100;

/// Whom the help is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Who copies, from what and to what there is.
    Copies,
    /// Who reads images that have offsets.
    Reads,
}

/// The paragraph on endpoints.
pub(crate) fn endpoints(reader: Reader) -> String {
    let mut text = "Endpoints:\n".to_owned();
    let rows = SOURCES.iter().filter(|row| match reader {
        Reader::Copies => row.roles.source || row.roles.destination,
        Reader::Reads => row.roles.source && row.roles.served,
    });
    for row in rows {
        push_row(&mut text, row.syntax, &explanation(row));
    }
    text += "'blockferry sources' explains all of them.";
    text
}

fn explanation(row: &SourceKind) -> String {
    let help = row.help;
    match (row.roles.source, row.roles.destination) {
        (true, false) => format!("{help}; only a source"),
        (false, true) => format!("{help}; only a destination"),
        _ => help.to_owned(),
    }
}

/// Adds a row of two columns; a left side that is too long stands on a line of its own.
fn push_row(text: &mut String, left: &str, right: &str) {
    let mut lines = wrapped(right, WIDTH - COLUMN).into_iter();
    let first = if left.chars().count() + 4 <= COLUMN {
        lines.next().unwrap_or_default()
    } else {
        String::new()
    };
    let room = COLUMN - 2;
    text.push_str(format!("  {left:<room$}{first}").trim_end());
    text.push('\n');
    for line in lines {
        text.push_str(&format!("{:COLUMN$}{line}\n", ""));
    }
}

/// The words of `text` in lines of `width` characters at most, where the words allow it.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_that_fits_is_shown_and_no_line_is_too_long() {
        let copied = endpoints(Reader::Copies);
        let read = endpoints(Reader::Reads);
        for row in SOURCES {
            let is_copied = row.roles.source || row.roles.destination;
            assert_eq!(copied.contains(row.syntax), is_copied, "{row:?}");
        }
        assert!(read.contains("split:FILE") && !read.contains("Standard input"));
        for line in copied.lines().chain(read.lines()) {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(
            copied.contains("  FILE, file:PATH            A raw image"),
            "{copied}"
        );
    }
}
