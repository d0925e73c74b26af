//! A disk as cells in SVG: a file of its own, or a part of a page. The same for the same image.

use std::fmt::Write;

use crate::block::{ByteRange, HumanSize};

use super::{
    cells::{Cell, Cells, Kind},
    escaped::Escaped,
    palette::{AXIS, BLANK, BLUE, Colour, GREEN, ORANGE, PALE, TEXT, VERMILION},
};

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

/// In how many steps a cell goes from one colour to another.
const STEPS: u64 = 16;

/// The textures of kinds, over their colours: nothing is told by colour alone.
const TEXTURES: &str = "<defs>\
    <pattern id=\"dots\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\">\
    <circle cx=\"2.5\" cy=\"2.5\" r=\"1\" fill=\"#000\" fill-opacity=\".5\"/></pattern>\
    <pattern id=\"stripes\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\">\
    <path d=\"M0 5L5 0M-1 1L1 -1M4 6L6 4\" stroke=\"#fff\" stroke-opacity=\".6\"/></pattern>\
    <pattern id=\"hatch\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\">\
    <path d=\"M0 0L5 5M4 -1L6 1M-1 4L1 6\" stroke=\"#888\" stroke-opacity=\".6\" stroke-width=\".7\"/></pattern>\
    </defs>\n";

impl Kind {
    fn colour(self) -> Colour {
        match self {
            Self::Data => BLUE,
            Self::Zero => ORANGE,
            Self::Hole => PALE,
            Self::Before => GREEN,
            Self::Missing => BLANK,
        }
    }

    fn texture(self) -> Option<&'static str> {
        match self {
            Self::Data | Self::Hole => None,
            Self::Zero => Some("dots"),
            Self::Before => Some("stripes"),
            Self::Missing => Some("hatch"),
        }
    }
}

/// The picture of an image of that name, with its legend, as a file.
pub(crate) fn file(cells: &Cells, name: &str) -> String {
    let rows = cells.cells().len().div_ceil(COLUMNS);
    let (width, height) = (LEFT + COLUMNS * SIDE + 20, TOP + rows * SIDE + BELOW);
    let (name, size) = (Escaped(name), HumanSize(cells.size()));
    let mut text = opening(
        width,
        height,
        &format!("Where {name} has data, zeroes and holes"),
    );
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
        "<text x=\"{LEFT}\" y=\"44\" fill=\"{TEXT}\">{size}, a cell is {cell}</text>"
    );
    draw_cells(&mut text, cells, TOP);
    draw_legend(&mut text, cells.total(), TOP + rows * SIDE + 30);
    text + "</svg>\n"
}

/// The picture as a part of a page, with `failed` marked in it.
pub(crate) fn part(cells: &Cells, title: &str, failed: Option<ByteRange>) -> String {
    let rows = cells.cells().len().div_ceil(COLUMNS);
    let (width, height) = (LEFT + COLUMNS * SIDE + 4, rows * SIDE + 14);
    let mut text = opening(width, height, &Escaped(title).to_string());
    draw_cells(&mut text, cells, 4);
    if let Some(failed) = failed {
        draw_cross(&mut text, cells.index_of(failed.start()), 4);
    }
    text + "</svg>\n"
}

/// What a kind looks like, for a legend.
pub(crate) fn swatch(kind: Kind) -> String {
    let rect = |fill: &str| {
        format!("<rect x=\".5\" y=\".5\" width=\"15\" height=\"15\" {fill} stroke=\"{AXIS}\"/>")
    };
    let mut text =
        String::from("<svg class=\"swatch\" viewBox=\"0 0 16 16\" aria-hidden=\"true\">");
    text += &rect(&format!("fill=\"{}\"", kind.colour()));
    if let Some(texture) = kind.texture() {
        text += &rect(&format!("fill=\"url(#{texture})\""));
    }
    text + "</svg>"
}

/// The mark of what failed, for a legend.
pub(crate) fn cross() -> String {
    format!(
        "<svg class=\"swatch\" viewBox=\"0 0 16 16\" aria-hidden=\"true\">{}</svg>",
        cross_at(8, 8)
    )
}

fn opening(width: usize, height: usize, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
         {height}\" role=\"img\" font-family=\"sans-serif\" font-size=\"12\">\n<title>{title}</title>\n{TEXTURES}"
    )
}

fn draw_cells(text: &mut String, cells: &Cells, top: usize) {
    *text += "<g shape-rendering=\"crispEdges\">\n";
    for (number, row) in cells.cells().chunks(COLUMNS).enumerate() {
        draw_row(text, row, top + number * SIDE);
    }
    *text += "</g>\n";
    draw_scale(text, cells, top);
}

/// Cells that look the same beside each other are one rectangle for each of their layers.
fn draw_row(text: &mut String, row: &[Cell], y: usize) {
    let mut column = 0;
    for run in row.chunk_by(|a, b| Look::of(*a) == Look::of(*b)) {
        let (x, width) = (LEFT + column * SIDE, run.len() * SIDE);
        let look = Look::of(run[0]);
        let mut rect = |fill: &str, opacity: &str| {
            let _ = writeln!(
                text,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{SIDE}\" fill=\"{fill}\"{opacity}/>"
            );
        };
        for (kind, share, of) in look.layers() {
            let fill = kind.colour().to_string();
            match share == of {
                true => rect(&fill, ""),
                false => {
                    let opacity = share as f64 / of as f64;
                    rect(&fill, &format!(" fill-opacity=\"{opacity:.2}\""));
                }
            }
        }
        if let Some(texture) = look.texture {
            rect(&format!("url(#{texture})"), "");
        }
        column += run.len();
    }
}

/// What a cell looks like.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Look {
    /// The share of each kind, in steps.
    steps: [u64; Kind::ALL.len()],
    texture: Option<&'static str>,
}

impl Look {
    /// A little of what is drawn later is seen, too.
    fn of(cell: Cell) -> Self {
        let total = u128::from(cell.total().max(1));
        let mut steps = [0; Kind::ALL.len()];
        let mut left = STEPS;
        for (step, kind) in steps.iter_mut().zip(Kind::ALL).rev() {
            let share = u128::from(cell.of(kind)) * u128::from(STEPS);
            *step = (share.div_ceil(total) as u64).min(left);
            left -= *step;
        }
        Self {
            steps,
            texture: cell.most().and_then(Kind::texture),
        }
    }

    /// Each kind that is there from below, with its share of that and all below: what is drawn over each other in
    /// these shares is mixed by them.
    fn layers(self) -> impl Iterator<Item = (Kind, u64, u64)> {
        let mut below = 0;
        let layers = Kind::ALL.into_iter().zip(self.steps);
        layers
            .filter(|(_, step)| *step > 0)
            .map(move |(kind, step)| {
                below += step;
                (kind, step, below)
            })
    }
}

/// The offsets at which every eighth row begins, and the end.
fn draw_scale(text: &mut String, cells: &Cells, top: usize) {
    let rows = cells.cells().len().div_ceil(COLUMNS);
    let x = LEFT - 8;
    let mut label = |row: usize, offset: u64| {
        let y = top + row * SIDE + 9;
        let _ = writeln!(
            text,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\" font-size=\"10\" fill=\"{TEXT}\">{}</text>",
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
    let kinds = [
        (Kind::Data, "data"),
        (Kind::Zero, "zeroes with space"),
        (Kind::Hole, "holes"),
    ];
    for (number, (kind, name)) in kinds.into_iter().enumerate() {
        let y = y + number * 20;
        let fills = [
            Some(kind.colour().to_string()),
            kind.texture().map(|texture| format!("url(#{texture})")),
        ];
        for fill in fills.into_iter().flatten() {
            let _ = writeln!(
                text,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"14\" height=\"14\" fill=\"{fill}\" stroke=\"{AXIS}\"/>"
            );
        }
        let (x, y) = (LEFT + 22, y + 12);
        let (bytes, percent) = (HumanSize(total.of(kind)), total.percent(kind));
        let _ = writeln!(
            text,
            "<text x=\"{x}\" y=\"{y}\">{name}: {bytes}, {percent:.1}%</text>"
        );
    }
}

fn draw_cross(text: &mut String, index: usize, top: usize) {
    let x = LEFT + index % COLUMNS * SIDE + SIDE / 2;
    let y = top + index / COLUMNS * SIDE + SIDE / 2;
    *text += &cross_at(x, y);
}

fn cross_at(x: usize, y: usize) -> String {
    let path = format!("M{x} {y}m-6 -6l12 12m0 -12l-12 12");
    format!(
        "<path d=\"{path}\" stroke=\"#FFFFFF\" stroke-width=\"6\" fill=\"none\"/>\
         <path class=\"failed\" d=\"{path}\" stroke=\"{VERMILION}\" stroke-width=\"3\" fill=\"none\"/>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Extent, Status};

    #[test]
    fn many_extents_make_no_more_rectangles_than_cells() {
        let size = 1 << 40;
        let mut cells = Cells::new(size, CELLS);
        let step = 1 << 24;
        for start in (0..size).step_by(step as usize) {
            let status =
                [Status::DATA, Status::HOLE_ZERO, Status::ZERO][(start / step % 3) as usize];
            let range = ByteRange::between(start, start + step);
            cells.add_extent(Extent { range, status });
        }
        let text = file(&cells, "big");
        assert!(text.matches("<rect").count() <= 4 * CELLS + 8);
        assert_eq!(text, file(&cells, "big"));
    }

    #[test]
    fn a_name_is_text_and_nothing_else() {
        let text = file(&Cells::new(10, CELLS), "a<script>\"&\u{1b}[31m\u{ffff}");
        assert!(
            text.contains(">a&lt;script&gt;&quot;&amp;\\u{1b}[31m?<"),
            "{text}"
        );
        assert!(!text.contains("<script"));
    }

    #[test]
    fn kinds_have_their_own_looks_and_a_little_data_shows() {
        let layers =
            |parts: &[(Kind, u64)]| Look::of(Cell::with(parts)).layers().collect::<Vec<_>>();
        for kind in Kind::ALL {
            assert_eq!(layers(&[(kind, 7)]), [(kind, STEPS, STEPS)]);
        }
        assert_eq!(
            layers(&[(Kind::Data, 1), (Kind::Hole, 1 << 40)]),
            [(Kind::Hole, STEPS - 1, STEPS - 1), (Kind::Data, 1, STEPS)]
        );
        assert!(layers(&[]).is_empty());
        let looks: Vec<_> = Kind::ALL
            .iter()
            .map(|kind| (kind.colour().to_string(), kind.texture()))
            .collect();
        for (index, look) in looks.iter().enumerate() {
            assert!(!looks[..index].contains(look));
        }
    }

    #[test]
    fn what_failed_is_marked_in_its_cell() {
        let cells = Cells::new(1 << 20, 128);
        let failed = ByteRange::between((1 << 20) - 1, 1 << 20);
        let text = part(&cells, "a & b", Some(failed));
        let (x, y) = (LEFT + 63 * SIDE + 5, 4 + SIDE + 5);
        assert!(text.contains(&format!("M{x} {y}m")), "{text}");
        assert!(text.contains("<title>a &amp; b</title>"));
    }
}
