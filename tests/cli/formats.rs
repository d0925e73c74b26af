//! What is told of images in a format, served and compared: beside what qemu-img says of them.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::tempdir;

use crate::support::{
    Served, blockferry,
    qemu::{self, qemu_img, qemu_io, text},
    run,
    run::tool,
};

fn ours(arguments: &[&str]) -> String {
    run(&mut blockferry(arguments)).success().text().to_owned()
}

#[test]
fn info_tells_what_qemu_img_tells_and_changes_nothing() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    qemu_img(&["create", "-q", "-f", "raw", text(&path("base")), "64M"]);
    for (options, size) in [
        ("compat=0.10", "3M"),
        ("cluster_size=4k,compression_type=zstd", "1G"),
        ("extended_l2=on,cluster_size=128k,lazy_refcounts=on", "10M"),
        ("refcount_bits=1", "64k"),
    ] {
        let image = path("image");
        let image = text(&image);
        let mut words = vec!["create", "-q", "-f", "qcow2", "-o", options];
        words.extend(["-b", "base", "-F", "raw", image, size]);
        qemu_img(&words);
        if !options.contains("0.10") {
            qemu_img(&["bitmap", "--add", "-g", "128k", image, "one"]);
            qemu_img(&["bitmap", "--add", "--disable", image, "two"]);
        }
        if !options.contains("refcount_bits=1") {
            qemu_img(&["snapshot", "-c", "before", image]);
            qemu_img(&["snapshot", "-c", "after", image]);
        }
        let before = fs::read(image).expect("an image");
        let theirs = qemu::info(Path::new(image));
        // Whoever has not the base learns the same.
        for more in [&[][..], &["--allow-backing", text(room.path())]] {
            let said = ours(&[&["info", "--json", image], more].concat());
            let said: Value = serde_json::from_str(&said).expect("JSON");
            let export = &said["exports"][0];
            assert_eq!(export["export-size"], theirs["virtual-size"]);
            let format = &export["format"];
            assert_eq!(format["name"], theirs["format"]);
            for key in [
                "virtual-size",
                "cluster-size",
                "dirty-flag",
                "backing-filename",
                "backing-filename-format",
            ] {
                assert_eq!(format[key], theirs[key], "{key}");
            }
            let specific = &theirs["format-specific"]["data"];
            assert_eq!(format["compat"], specific["compat"]);
            assert_eq!(format["refcount-bits"], specific["refcount-bits"]);
            for key in [
                "compression-type",
                "lazy-refcounts",
                "extended-l2",
                "corrupt",
                "bitmaps",
            ] {
                let known = specific.get(key).is_some();
                assert!(
                    !known || format[key] == specific[key],
                    "{key}: {format} {specific}"
                );
            }
            let theirs = theirs["snapshots"].as_array().cloned().unwrap_or_default();
            let snapshots = format["snapshots"].as_array().cloned().unwrap_or_default();
            assert_eq!(snapshots.len(), theirs.len());
            for (ours, theirs) in snapshots.iter().zip(&theirs) {
                for key in [
                    "id",
                    "name",
                    "vm-state-size",
                    "date-sec",
                    "date-nsec",
                    "vm-clock-sec",
                    "vm-clock-nsec",
                ] {
                    assert_eq!(ours[key], theirs[key], "{key}");
                }
            }
        }
        assert!(
            fs::read(image).expect("an image") == before,
            "info changed it"
        );
        fs::remove_file(image).expect("removed");
    }
}

#[test]
fn an_image_is_compared_mapped_and_summed_as_its_disk() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, image, packed) = (path("raw"), path("image"), path("packed"));
    qemu_img(&["create", "-q", "-f", "raw", text(&raw), "5M"]);
    qemu_io(&raw, "raw", &["write -P 7 64k 300k", "write -P 9 3M 1M"]);
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        text(&raw),
        text(&image),
    ]);
    qemu_img(&[
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        text(&raw),
        text(&packed),
    ]);
    let sum = |words: &[&str]| {
        let line = ours(&[&["checksum", "-q"], words].concat());
        line.split_whitespace().next().expect("a digest").to_owned()
    };
    let expected = sum(&[text(&raw)]);
    for other in [&image, &packed] {
        assert_eq!(sum(&[text(other)]), expected);
        assert_ne!(sum(&["-f", "raw", text(other)]), expected);
        ours(&["compare", "-s", text(&raw), text(other)]);
        let differ = run(&mut blockferry([
            "compare",
            "-F",
            "raw",
            text(&raw),
            text(other),
        ]));
        assert_eq!(differ.code, 1, "{}", differ.stderr);
        let map: Value =
            serde_json::from_str(&ours(&["map", "--json", text(other)])).expect("JSON");
        let extents = map.as_array().expect("a list");
        let data: u64 = extents
            .iter()
            .filter(|extent| extent["type"] == 0)
            .map(|extent| extent["length"].as_u64().expect("a number"))
            .sum();
        let theirs = qemu_img(&["map", "--output=json", text(other)]);
        let theirs: Value = serde_json::from_str(&theirs).expect("JSON");
        let theirs: u64 = theirs
            .as_array()
            .expect("a list")
            .iter()
            .filter(|extent| extent["data"] == true)
            .map(|extent| extent["length"].as_u64().expect("a number"))
            .sum();
        assert_eq!(data, theirs);
    }
}

#[test]
fn an_image_is_served_as_its_disk_and_closed_in_good_order() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, image, socket) = (path("raw"), path("image"), path("socket"));
    qemu_img(&["create", "-q", "-f", "raw", text(&raw), "5M"]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "lazy_refcounts=on",
        text(&image),
        "5M",
    ]);
    for filters in [&[][..], &["--filter", "retry"]] {
        let server = Served::at(&socket, &[filters, &[text(&image)]].concat());
        let uri = server.uri();
        // Clients come and go.
        for (place, value) in [("0", "1"), ("64k", "2"), ("4M", "3")] {
            let write = format!("write -P {value} {place} 100k");
            qemu_io(&raw, "raw", &[&write]);
            tool("qemu-io", &["-f", "raw", &uri, "-c", &write, "-c", "flush"]);
            tool(
                "qemu-img",
                &["compare", "-f", "raw", "-F", "raw", text(&raw), &uri],
            );
        }
        server.terminate().success();
        qemu::check(&image);
        qemu::assert_identical((&raw, "raw"), (&image, "qcow2"));
        assert!(!socket.exists());
    }
    let server = Served::at(&socket, &["--read-only", text(&image)]);
    let uri = server.uri();
    let before = fs::read(&image).expect("an image");
    tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", text(&raw), &uri],
    );
    server.terminate().success();
    assert!(
        fs::read(&image).expect("an image") == before,
        "reading changed it"
    );
}

#[test]
fn an_image_behind_a_server_is_an_image_where_that_is_said() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, image, socket) = (path("raw"), path("image"), path("socket"));
    qemu_img(&["create", "-q", "-f", "raw", text(&raw), "5M"]);
    qemu_io(&raw, "raw", &["write -P 7 64k 300k"]);
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        text(&raw),
        text(&image),
    ]);
    let server = Served::at(&socket, &["--read-only", "-f", "raw", text(&image)]);
    let uri = server.uri();
    let said: Value = serde_json::from_str(&ours(&["info", "--json", &uri])).expect("JSON");
    let size = fs::metadata(&image).expect("an image").len();
    assert_eq!(said["exports"][0]["export-size"], size);
    ours(&["compare", "-F", "qcow2", text(&raw), &uri]);
    let said = ours(&["info", "--json", "-f", "qcow2", &uri]);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(said["exports"][0]["export-size"], 5 << 20);
    assert_eq!(said["exports"][0]["format"]["name"], "qcow2");
    // And again: a server of what is in it.
    let second = Served::at(&path("inner"), &["--read-only", "-f", "qcow2", &uri]);
    ours(&["compare", text(&raw), &second.uri()]);
    second.terminate().success();
    server.terminate().success();
}
