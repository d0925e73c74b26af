//! A disk as a picture for terminals: rows of cells, and the share of each kind.

use std::fmt::Write;

use crate::block::HumanSize;

use super::{
    super::style::Colour,
    cells::{Cells, Kind, Shade},
};

/// How many cells stand beside each other, and below each other at most.
const COLUMNS: usize = 64;
const ROWS: usize = 32;

/// How many cells such a picture has.
pub(crate) const CELLS: usize = COLUMNS * ROWS;

/// Which characters can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Charset {
    Unicode,
    Ascii,
}

impl Charset {
    /// What the locale says: the first of the three variables that is set counts.
    pub(crate) fn of_environment() -> Self {
        let variables = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter();
        let mut set = variables.filter_map(|name| std::env::var(name).ok());
        let locale = set.find(|value| !value.is_empty()).unwrap_or_default();
        let locale = locale.to_ascii_lowercase();
        match locale.ends_with("utf-8") || locale.ends_with("utf8") {
            true => Self::Unicode,
            false => Self::Ascii,
        }
    }
}

/// The picture, a line each. With colours a character stands for two cells, one above the other.
pub(crate) fn picture(cells: &Cells, charset: Charset, colour: Colour) -> String {
    let halves = charset == Charset::Unicode && colour == Colour::Always;
    let rows: Vec<_> = cells.cells().chunks(COLUMNS).collect();
    let mut text = String::new();
    let lines: Vec<_> = rows.chunks(if halves { 2 } else { 1 }).collect();
    let mut first = 0;
    for line in lines {
        let start = cells.range_of(first).start();
        first += line.iter().map(|row| row.len()).sum::<usize>();
        let _ = write!(text, "{:>10}  ", HumanSize(start).to_string());
        for (column, upper) in line[0].iter().enumerate() {
            let lower = line.get(1).and_then(|row| row.get(column));
            match (halves, lower) {
                (true, Some(lower)) => {
                    let (upper, lower) = (code(upper.shade()), code(lower.shade()));
                    let _ = write!(text, "\x1b[38;5;{upper}m\x1b[48;5;{lower}m\u{2580}");
                }
                (true, None) => {
                    let _ = write!(text, "\x1b[0m\x1b[38;5;{}m\u{2580}", code(upper.shade()));
                }
                (false, _) => text.push(character(upper.shade(), charset)),
            }
        }
        if halves {
            text += "\x1b[0m";
        }
        text.push('\n');
    }
    text + &legend(cells, charset, halves)
}

/// What is what, and how much there is of it.
fn legend(cells: &Cells, charset: Charset, halves: bool) -> String {
    let total = cells.total();
    let mark = |shade| match halves {
        true => format!("\x1b[38;5;{}m\u{2588}\x1b[0m", code(shade)),
        false => character(shade, charset).to_string(),
    };
    let mut text = String::from("\n");
    for (shade, name, kind) in [
        (Shade::Data, "data", Kind::Data),
        (Shade::Zero, "zeroes with space", Kind::Zero),
        (Shade::Hole, "holes", Kind::Hole),
    ] {
        let bytes = HumanSize(total.of(kind)).to_string();
        let percent = total.percent(kind);
        let _ = writeln!(
            text,
            "  {} {name:<18} {bytes:>11} {percent:>5.1}%",
            mark(shade)
        );
    }
    let (most, some) = (mark(Shade::Most), mark(Shade::Some));
    let cell = HumanSize(cells.range_of(0).len());
    let _ = writeln!(
        text,
        "  {most} data in half of a cell and more, {some} in less of it; a cell is {cell} of {}",
        HumanSize(cells.size())
    );
    text
}

fn character(shade: Shade, charset: Charset) -> char {
    match (charset, shade) {
        (Charset::Unicode, Shade::Hole) => '\u{b7}',
        (Charset::Unicode, Shade::Zero) => '\u{25cb}',
        (Charset::Unicode, Shade::Some) => '\u{2591}',
        (Charset::Unicode, Shade::Most) => '\u{2593}',
        (Charset::Unicode, Shade::Data) => '\u{2588}',
        (Charset::Ascii, Shade::Hole) => '.',
        (Charset::Ascii, Shade::Zero) => 'o',
        (Charset::Ascii, Shade::Some) => '-',
        (Charset::Ascii, Shade::Most) => '+',
        (Charset::Ascii, Shade::Data) => '#',
    }
}

/// A colour of the 256 that terminals have: blue for data, orange for zeroes, grey for holes, which the colour-blind
/// tell apart, too.
fn code(shade: Shade) -> u8 {
    match shade {
        Shade::Hole => 238,
        Shade::Zero => 214,
        Shade::Some => 24,
        Shade::Most => 31,
        Shade::Data => 39,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{ByteRange, Extent, Status};

    fn cells(count: usize) -> Cells {
        let mut cells = Cells::new(1 << 20, count);
        for (start, end, status) in [
            (0, 256 << 10, Status::DATA),
            (256 << 10, 512 << 10, Status::ZERO),
            (512 << 10, 1 << 20, Status::HOLE_ZERO),
        ] {
            let range = ByteRange::between(start, end);
            cells.add_extent(Extent { range, status });
        }
        cells
    }

    #[test]
    fn kinds_are_told_apart_without_colours() {
        let text = picture(&cells(CELLS), Charset::Ascii, Colour::Never);
        assert!(text.is_ascii(), "{text}");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            format!("{:>10}  {}", "0 bytes", "#".repeat(COLUMNS))
        );
        assert_eq!(
            lines[8],
            format!("{:>10}  {}", "256.0 KiB", "o".repeat(COLUMNS))
        );
        assert_eq!(
            lines[31],
            format!("{:>10}  {}", "992.0 KiB", ".".repeat(COLUMNS))
        );
        assert!(
            text.contains("# data                 256.0 KiB  25.0%"),
            "{text}"
        );
        assert!(
            text.contains(". holes                512.0 KiB  50.0%"),
            "{text}"
        );
        let text = picture(&cells(CELLS), Charset::Unicode, Colour::Never);
        assert!(text.contains(&"\u{2588}".repeat(COLUMNS)) && !text.contains('\x1b'));
    }

    #[test]
    fn with_colours_a_line_has_two_rows_and_ends_plain() {
        let text = picture(&cells(CELLS), Charset::Unicode, Colour::Always);
        let drawn: Vec<_> = text.lines().take(ROWS / 2).collect();
        assert!(drawn.iter().all(|line| line.ends_with("\x1b[0m")), "{text}");
        assert!(drawn[0].contains("\x1b[38;5;39m\x1b[48;5;39m\u{2580}"));
        let odd = picture(&cells(COLUMNS * 3 - 5), Charset::Unicode, Colour::Always);
        assert_eq!(odd.matches('\u{2580}').count(), COLUMNS * 2 - 5);
    }
}
