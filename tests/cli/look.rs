//! The commands that look at one image, under our own name: `map` with offsets and pictures, `check`, `measure`,
//! `snapshot`, `bitmap`, `info`.

use std::fs;

use serde_json::Value;

use crate::support::{Outcome, blockferry, gallery::Gallery, qemu::qemu_img, run};

fn look(gallery: &Gallery, arguments: &[&str]) -> Outcome {
    run(blockferry(arguments)
        .current_dir(gallery.path())
        .env("LC_ALL", "C"))
}

fn json(gallery: &Gallery, arguments: &[&str]) -> Value {
    let told = look(gallery, arguments).success();
    serde_json::from_str(told.text()).expect("JSON")
}

#[test]
fn a_map_with_offsets_tells_what_lies_where() {
    let gallery = Gallery::new();
    let arguments = [
        "map",
        "--offsets",
        "--json",
        "--allow-backing",
        ".",
        "top.qcow2",
    ];
    let ours = json(&gallery, &arguments);
    let (_, theirs) = gallery.alike("map --output=json", "top.qcow2");
    let theirs: Value = serde_json::from_str(&theirs).expect("JSON");
    let (ours, theirs) = (ours.as_array(), theirs.as_array());
    let (ours, theirs) = (ours.expect("a list"), theirs.expect("a list"));
    assert_eq!(ours.len(), theirs.len());
    for (own, their) in ours.iter().zip(theirs) {
        for (key, value) in their.as_object().expect("an object") {
            assert_eq!(&own[key], value, "{key} of {own}");
        }
    }
    let text = look(&gallery, &["map", "--offsets", "plain.qcow2"]).success();
    assert!(text.text().contains("compressed"), "{}", text.text());
}

#[test]
fn pictures_show_where_the_data_is() {
    let gallery = Gallery::new();
    let drawn = look(&gallery, &["map", "--picture", "sparse.raw"]).success();
    let first = drawn.text().lines().next().expect("a line").to_owned();
    assert!(
        first.contains('.') && !drawn.text().contains('\u{1b}'),
        "{first}"
    );
    assert!(drawn.text().contains("data"), "{}", drawn.text());
    let wrote = look(&gallery, &["map", "--svg", "disk.svg", "wide.qcow2"]).success();
    assert_eq!(wrote.text(), "");
    let svg = fs::read_to_string(gallery.path().join("disk.svg")).expect("a file");
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.matches("<rect").count() <= 64 * 64 + 4);
    assert!(svg.contains("wide.qcow2") && !svg.contains("href"));
    let again = look(
        &gallery,
        &["map", "--svg", "again.svg", "--totals", "wide.qcow2"],
    );
    assert!(again.success().text().contains("hole,zero"));
    let again = fs::read_to_string(gallery.path().join("again.svg")).expect("a file");
    assert_eq!(svg, again);
    let before = fs::read(gallery.path().join("sparse.raw")).expect("read");
    let over = look(&gallery, &["map", "--svg", "./sparse.raw", "sparse.raw"]);
    over.failure(2, &["--svg ./sparse.raw"]);
    assert!(fs::read(gallery.path().join("sparse.raw")).expect("read") == before);
    let arguments = ["map", "--svg", "no/such/place.svg", "sparse.raw"];
    look(&gallery, &arguments).failure(1, &["no/such/place.svg"]);
    let arguments = ["map", "--picture", "--json", "sparse.raw"];
    look(&gallery, &arguments).failure(2, &["--json"]);
}

#[test]
fn a_check_tells_what_is_wrong_by_its_exit_code() {
    let gallery = Gallery::new();
    let sound = look(&gallery, &["check", "top.qcow2"]).success();
    assert!(sound.text().contains("sound"), "{}", sound.text());
    let report = json(&gallery, &["check", "--json", "plain.qcow2"]);
    assert_eq!(report["total-clusters"], 1024);
    assert_eq!(report["leaks"], 0);
    assert_eq!(look(&gallery, &["check", "sparse.raw"]).code, 63);
    look(&gallery, &["check", "nope"]).failure(1, &["nope"]);
    // The first L2 table is nowhere any more.
    gallery.patch("old.qcow2", 0x30000, &[0x80, 0, 0, 0x7f, 0xff, 0xff, 0, 0]);
    let broken = look(&gallery, &["check", "-q", "old.qcow2"]);
    assert_eq!((broken.code, broken.text()), (2, ""));
}

#[test]
fn lost_space_is_given_back() {
    let gallery = Gallery::new();
    // The last cluster of the file has a refcount in the first block of them, and no use.
    let path = gallery.path().join("prealloc.qcow2");
    let clusters = path.metadata().expect("there").len().div_ceil(65536) + 1;
    let file = fs::File::options().write(true).open(&path).expect("there");
    file.set_len(clusters * 65536).expect("room");
    gallery.patch("prealloc.qcow2", 0x20000 + 2 * (clusters - 1), &[0, 1]);
    assert_eq!(look(&gallery, &["check", "prealloc.qcow2"]).code, 3);
    let mended = look(&gallery, &["check", "--repair", "leaks", "prealloc.qcow2"]).success();
    assert!(
        mended.text().contains("1 leaked clusters given back"),
        "{}",
        mended.text()
    );
    look(&gallery, &["check", "prealloc.qcow2"]).success();
    let refused = look(&gallery, &["check", "--repair=some", "prealloc.qcow2"]);
    refused.failure(2, &["leaks"]);
}

#[test]
fn a_measurement_is_that_of_qemu_img() {
    let gallery = Gallery::new();
    let ours = json(
        &gallery,
        &["measure", "-O", "qcow2", "--json", "plain.qcow2"],
    );
    let (_, theirs) = gallery.alike("measure -O qcow2 --output=json", "plain.qcow2");
    let theirs: Value = serde_json::from_str(&theirs).expect("JSON");
    assert_eq!(ours, theirs);
    let told = look(&gallery, &["measure", "--size", "1G", "-O", "qcow2"]).success();
    assert!(
        told.text().contains("required: 393216 (384.0 KiB)"),
        "{}",
        told.text()
    );
    let arguments = ["measure", "-O", "vmdk", "--size", "1G"];
    look(&gallery, &arguments).failure(2, &["only raw and qcow2"]);
    look(&gallery, &["measure"]).failure(2, &["IMAGE"]);
}

#[test]
fn snapshots_and_bitmaps_are_listed() {
    let gallery = Gallery::new();
    let snapshots = json(&gallery, &["snapshot", "--json", "plain.qcow2"]);
    assert_eq!(snapshots[1]["name"], "a name with spaces and more");
    let bitmaps = json(&gallery, &["bitmap", "--json", "plain.qcow2"]);
    assert_eq!(bitmaps[0]["name"], "b0");
    assert_eq!(bitmaps[1]["granularity"], 131_072);
    let told = look(&gallery, &["snapshot", "-l", "plain.qcow2"]).success();
    assert!(told.text().starts_with("1 \"one\""), "{}", told.text());
    look(&gallery, &["bitmap", "sparse.raw"]).failure(1, &["it is not a qcow2 image"]);
}

#[test]
fn info_tells_of_formats_chains_and_space() {
    let gallery = Gallery::new();
    let arguments = ["info", "--json", "-b", "--allow-backing", ".", "long.qcow2"];
    let info = &json(&gallery, &arguments)["exports"][0];
    let chain = info["format"]["chain"].as_array().expect("a chain");
    let names: Vec<_> = chain.iter().map(|one| &one["filename"]).collect();
    assert_eq!(names, ["./top.qcow2", "./plain.qcow2"]);
    assert!(info["disk-size"].as_u64().is_some_and(|size| size > 0));
    // Names are told without permission, and nothing is opened.
    look(&gallery, &["info", "long.qcow2"]).success();
    look(&gallery, &["info", "-b", "long.qcow2"]).failure(1, &["--allow-backing"]);
    let [from, to] = ["sparse.raw", "disk.vdi"].map(|name| gallery.path().join(name));
    let (from, to) = (from.to_str().expect("UTF-8"), to.to_str().expect("UTF-8"));
    qemu_img(&["convert", "-f", "raw", "-O", "vdi", from, to]);
    let info = &json(&gallery, &["info", "--json", "disk.vdi"])["exports"][0]["format"];
    assert_eq!(
        (&info["name"], &info["kind"]),
        (&"vdi".into(), &"dynamic".into())
    );
    let told = look(&gallery, &["info", "disk.vdi"]).success();
    assert!(told.text().contains("kind: dynamic"), "{}", told.text());
}
