//! A map as a picture in a file: one SVG that needs nothing else, the same for the same image.

use std::fmt::Write;

use crate::block::HumanSize;

use super::cells::{Cell, Cells};

/// How many cells stand beside each other, and below each other at most.
const COLUMNS: usize = 64;
const ROWS: usize = 64;

/// How many cells such a picture has at most, however many extents there are.
pub(crate) const CELLS: usize = COLUMNS * ROWS;

/// The size of a cell, and the space around all of them.
const SIDE: usize = 10;
const LEFT: usize = 90;
const TOP: usize = 60;
const BELOW: usize = 110;

/// Blue, orange and grey of those that the colour-blind tell apart (Okabe and Ito).
const DATA: [u32; 3] = [0x00, 0x72, 0xb2];
const ZERO: [u32; 3] = [0xe6, 0x9f, 0x00];
const HOLE: [u32; 3] = [0xe4, 0xe4, 0xe4];

/// In how many steps a cell goes from one colour to another.
const STEPS: u64 = 16;

/// The picture of an image of that name.
pub(crate) fn svg(cells: &Cells, name: &str) -> String {
    let rows = cells.cells().len().div_ceil(COLUMNS);
    let (width, height) = (LEFT + COLUMNS * SIDE + 20, TOP + rows * SIDE + BELOW);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
         {height}\" role=\"img\" font-family=\"sans-serif\" font-size=\"12\">\n"
    );
    let (name, size) = (Escaped(name), HumanSize(cells.size()));
    let title = format!("Where {name} has data, zeroes and holes");
    let _ = writeln!(text, "<title>{title}</title>");
    let _ = writeln!(
        text,
        "<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"
    );
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"24\" font-size=\"16\">{name}</text>"
    );
    let cell = HumanSize(cells.range_of(0).len());
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"44\" fill=\"#555555\">{size}, a cell is {cell}</text>"
    );
    text += "<g shape-rendering=\"crispEdges\">\n";
    for (number, row) in cells.cells().chunks(COLUMNS).enumerate() {
        draw_row(&mut text, row, TOP + number * SIDE);
    }
    text += "</g>\n";
    draw_scale(&mut text, cells, rows);
    draw_legend(&mut text, cells.total(), TOP + rows * SIDE + 30);
    text + "</svg>\n"
}

/// Cells of one colour beside each other are one rectangle.
fn draw_row(text: &mut String, row: &[Cell], y: usize) {
    let mut column = 0;
    for run in row.chunk_by(|a, b| colour(*a) == colour(*b)) {
        let (x, width) = (LEFT + column * SIDE, run.len() * SIDE);
        let fill = colour(run[0]);
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{SIDE}\" fill=\"{fill}\"/>"
        );
        column += run.len();
    }
}

/// The offsets at which every eighth row begins, and the end.
fn draw_scale(text: &mut String, cells: &Cells, rows: usize) {
    let x = LEFT - 8;
    let mut label = |row: usize, offset: u64| {
        let y = TOP + row * SIDE + 9;
        let _ = writeln!(
            text,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\" font-size=\"10\">{}</text>",
            HumanSize(offset)
        );
    };
    for row in (0..rows).step_by(8) {
        label(row, cells.range_of(row * COLUMNS).start());
    }
    if rows % 8 != 1 {
        label(rows, cells.size());
    }
}

fn draw_legend(text: &mut String, total: Cell, y: usize) {
    let [data, zero, hole] = total.percentages();
    let kinds = [
        (DATA, "data", total.data, data),
        (ZERO, "zeroes with space", total.zero, zero),
        (HOLE, "holes", total.hole, hole),
    ];
    for (number, (colour, name, bytes, percent)) in kinds.into_iter().enumerate() {
        let y = y + number * 20;
        let fill = hex(colour);
        let bytes = HumanSize(bytes);
        let _ = writeln!(
            text,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"14\" height=\"14\" fill=\"{fill}\" stroke=\"#888888\"/>"
        );
        let (x, y) = (LEFT + 22, y + 12);
        let _ = writeln!(
            text,
            "<text x=\"{x}\" y=\"{y}\">{name}: {bytes}, {percent:.1}%</text>"
        );
    }
}

/// The colours of what is in a cell, mixed by their shares. A little data is seen, too.
fn colour(cell: Cell) -> String {
    let total = u128::from(cell.total().max(1));
    let share = |bytes: u64| {
        let steps = (u128::from(bytes) * u128::from(STEPS)).div_ceil(total);
        steps as u32
    };
    let data = share(cell.data);
    let zero = share(cell.zero).min(STEPS as u32 - data);
    let hole = STEPS as u32 - data - zero;
    let mut mixed = [0; 3];
    for (index, part) in mixed.iter_mut().enumerate() {
        *part = (DATA[index] * data + ZERO[index] * zero + HOLE[index] * hole) / STEPS as u32;
    }
    hex(mixed)
}

fn hex([red, green, blue]: [u32; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// A text as XML has it.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                // No XML can have these (XML 1.0, section 2.2).
                '\u{fffe}' | '\u{ffff}' => f.write_str("?")?,
                c if c.is_control() => write!(f, "{}", c.escape_default())?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{ByteRange, Extent, Status};

    #[test]
    fn many_extents_make_no_more_rectangles_than_cells() {
        let size = 1 << 40;
        let mut cells = Cells::new(size, CELLS);
        let step = 1 << 24;
        for start in (0..size).step_by(step as usize) {
            let status =
                [Status::DATA, Status::HOLE_ZERO, Status::ZERO][(start / step % 3) as usize];
            let range = ByteRange::between(start, start + step);
            cells.add(Extent { range, status });
        }
        let text = svg(&cells, "big");
        assert!(text.matches("<rect").count() <= CELLS + 4);
        assert_eq!(text, svg(&cells, "big"));
    }

    #[test]
    fn a_name_is_text_and_nothing_else() {
        let text = svg(&Cells::new(10, CELLS), "a<script>\"&\u{1b}[31m\u{ffff}");
        assert!(
            text.contains(">a&lt;script&gt;&quot;&amp;\\u{1b}[31m?<"),
            "{text}"
        );
        assert!(!text.contains("<script"));
    }

    #[test]
    fn kinds_have_their_own_colours_and_a_little_data_shows() {
        let cell = |data, zero, hole| colour(Cell { data, zero, hole });
        assert_eq!(cell(1, 0, 0), "#0072b2");
        assert_eq!(cell(0, 1, 0), "#e69f00");
        assert_eq!(cell(0, 0, 1), "#e4e4e4");
        assert_ne!(cell(1, 0, 1 << 40), "#e4e4e4");
        assert_eq!(cell(1, 1, 1 << 40), cell(1, 1, 1 << 40));
    }
}
