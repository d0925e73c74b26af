//! The house as a drawing: a box for each crate on its floor, an arrow for each use that no other path implies.
//!
//! It is drawn from what cargo says of the workspace, so it cannot show what is not there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// A crate without its prefix, and where the middle of its box is, in hundredths of the room of one.
type Place = (&'static str, usize);

/// From the top down: what the floor is for, and who lives there. No arrow runs behind a box.
const FLOORS: [(&str, &[Place]); 5] = [
    ("what users meet", &[("blockferry", 200)]),
    ("what moves bytes", &[("copy", 360), ("relay", 500)]),
    (
        "what holds or reaches an image",
        &[
            ("client", 0),
            ("server", 100),
            ("script", 200),
            ("filter", 300),
            ("format", 400),
        ],
    ),
    (
        "what they share",
        &[("tls", 100), ("block", 360), ("packing", 450)],
    ),
    (
        "bytes on paper, and the kernel",
        &[("proto", 0), ("sys", 500)],
    ),
];

const PREFIX: &str = "blockferry-";

const WIDTH: usize = 980;
const FLOOR: usize = 100;
const TOP: usize = 10;
/// Where the middle of the first box is, and how much room one has.
const LEFT: usize = 280;
const ROOM: usize = 125;
const BOX: (usize, usize) = (92, 40);

/// The drawing of a workspace whose packages use each other so.
pub(super) fn svg(uses: &BTreeMap<String, BTreeSet<String>>) -> String {
    let height = TOP + FLOORS.len() * FLOOR;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\" role=\"img\">\n<title>The crates on their floors, and which uses which</title>\n\
         <defs><marker id=\"end\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" \
         orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#666666\"/></marker></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (number, (purpose, _)) in FLOORS.iter().enumerate() {
        let y = TOP + number * FLOOR;
        let floor = FLOORS.len() - 1 - number;
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(
            text,
            "<rect x=\"10\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"{}\"/>\n\
             <text x=\"22\" y=\"{}\" fill=\"#222222\">floor {floor}</text>\n\
             <text x=\"22\" y=\"{}\" font-size=\"11\" fill=\"#666666\">{purpose}</text>",
            WIDTH - 20,
            FLOOR - 8,
            if number % 2 == 0 {
                "#f2f5f7"
            } else {
                "#f8f8f8"
            },
            y + 46,
            y + 64
        );
    }
    for (user, used) in arrows(uses) {
        let (Some((from, from_floor)), Some((to, to_floor))) = (place(&user), place(&used)) else {
            continue;
        };
        let (half, floor) = (BOX.0 / 2, to_floor.abs_diff(from_floor));
        let (x1, y1, x2, y2) = match floor {
            // Beside each other: from side to side.
            0 if from.0 < to.0 => (from.0 + half, from.1 + 20, to.0 - half, to.1 + 20),
            0 => (from.0 - half, from.1 + 20, to.0 + half, to.1 + 20),
            _ => (from.0, from.1 + BOX.1, to.0, to.1),
        };
        let _ = writeln!(
            text,
            "<path d=\"M{x1} {y1}L{x2} {y2}\" stroke=\"#666666\" fill=\"none\" marker-end=\"url(#end)\"/>"
        );
    }
    for (name, _) in FLOORS.iter().flat_map(|(_, places)| *places) {
        let Some(((x, y), _)) = place(name) else {
            continue;
        };
        let _ = writeln!(
            text,
            "<rect x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"4\" fill=\"#ffffff\" stroke=\"#1f6f8b\"/>\n\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#222222\">{name}</text>",
            x - BOX.0 / 2,
            BOX.0,
            BOX.1,
            y + 25
        );
    }
    text + "</svg>\n"
}

/// Who uses whom, without prefixes, but for uses that follow from others.
fn arrows(uses: &BTreeMap<String, BTreeSet<String>>) -> Vec<(String, String)> {
    let short = |name: &String| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let drawn = |name: &String| place(&short(name)).is_some();
    let of = |name: &String| {
        uses.get(name)
            .into_iter()
            .flatten()
            .filter(|used| drawn(used))
    };
    let mut arrows = Vec::new();
    for user in uses.keys().filter(|name| drawn(name)) {
        for used in of(user) {
            let mut pending: Vec<&String> = of(user).filter(|other| *other != used).collect();
            let mut implied = false;
            while let Some(next) = pending.pop() {
                implied |= next == used;
                pending.extend(of(next));
            }
            if !implied {
                arrows.push((short(user), short(used)));
            }
        }
    }
    arrows
}

/// The middle of the top of a crate's box, and its floor counted from the top.
fn place(name: &str) -> Option<((usize, usize), usize)> {
    let places = FLOORS.iter().enumerate();
    let mut places =
        places.flat_map(|(floor, (_, places))| places.iter().map(move |one| (floor, one)));
    let (floor, (_, middle)) = places.find(|(_, (one, _))| *one == name)?;
    let x = LEFT + middle * ROOM / 100;
    Some(((x, TOP + floor * FLOOR + (FLOOR - 8 - BOX.1) / 2), floor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(pairs: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let pairs = pairs.iter();
        pairs
            .map(|(user, used)| ((*user).to_owned(), owned(used)))
            .collect()
    }

    #[test]
    fn a_use_that_follows_from_others_has_no_arrow() {
        let uses = uses(&[
            (
                "blockferry",
                &[
                    "blockferry-copy",
                    "blockferry-block",
                    "blockferry-sys",
                    "serde",
                ],
            ),
            ("blockferry-copy", &["blockferry-block"]),
            ("blockferry-block", &["blockferry-sys"]),
            ("blockferry-sys", &[]),
        ]);
        let expected = [("block", "sys"), ("blockferry", "copy"), ("copy", "block")];
        let mut arrows = arrows(&uses);
        arrows.sort();
        let arrows: Vec<_> = arrows.iter().map(|(a, b)| (&**a, &**b)).collect();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(arrows, expected);
    }

    #[test]
    fn every_crate_has_a_box() {
        let text = svg(&BTreeMap::new());
        for (name, _) in FLOORS.iter().flat_map(|(_, places)| *places) {
            assert!(text.contains(&format!(">{name}<")), "{name}");
        }
    }
}
