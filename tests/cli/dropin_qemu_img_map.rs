//! `qemu-img map`, theirs and ours.

use crate::support::{
    dropin::Who,
    gallery::{Gallery, IMAGES},
    qemu::qemu_img,
    run,
};

#[test]
fn every_image_is_mapped_as_qemu_img_does() {
    let gallery = Gallery::new();
    for image in IMAGES {
        for arguments in [
            "map",
            "map --output=json",
            "map --output=json -s 1000 -l 3M",
            "map --start-offset 1M --max-length=250k",
            "map --output json --start-offset 1000G",
            "map --output json --max-length 0",
            "map --max-length 0",
            "map -f raw --output=json",
        ] {
            gallery.alike(arguments, image);
        }
    }
    let (code, _) = gallery.alike("map", "plain.qcow2");
    assert_eq!(code, 1, "compressed clusters lie nowhere in a row");
    let (_, text) = gallery.alike("map --output=json", "long.qcow2");
    assert!(text.contains("\"depth\": 2"), "{text}");
}

#[test]
fn other_formats_are_mapped_described_and_measured() {
    let gallery = Gallery::new();
    for (format, options) in [
        ("vpc", ""),
        ("vpc", "subformat=fixed"),
        ("vdi", ""),
        ("vdi", "static=on"),
        ("vhdx", ""),
        ("vmdk", ""),
        ("vmdk", "subformat=streamOptimized"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
    ] {
        let name = format!("disk{}.{format}", options.replace('=', "-"));
        let [from, to] = ["sparse.raw", &name].map(|name| gallery.path().join(name));
        let (from, to) = (from.to_str().expect("UTF-8"), to.to_str().expect("UTF-8"));
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        qemu_img(&[&arguments[..], &[from, to]].concat());
        gallery.settle();
        for arguments in [
            "map",
            "map --output=json",
            "map --output=json -f",
            "info",
            "info --output=json",
            "info -f",
            "measure -O qcow2",
            "check --output=json",
            "measure -O qcow2 -f",
            "check -f",
        ] {
            let arguments = match arguments.strip_suffix("-f") {
                Some(_) => format!("{arguments} {format}"),
                None => arguments.to_owned(),
            };
            gallery.alike(&arguments, &name);
        }
    }
}

#[test]
fn images_in_memory_are_mapped_as_well() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let gallery = Gallery::new();
    for image in ["sparse.raw", "prealloc.qcow2", "plain.qcow2"] {
        let copy = directory.path().join(image);
        let copied = std::process::Command::new("cp")
            .arg("--sparse=always")
            .arg(gallery.path().join(image))
            .arg(&copy)
            .status();
        assert!(copied.is_ok_and(|status| status.success()));
        gallery.alike("map --output=json", copy.to_str().expect("UTF-8"));
    }
}

#[test]
fn descriptions_and_exports_are_mapped() {
    let gallery = Gallery::new();
    for described in [
        "driver=qcow2,file.filename=plain.qcow2",
        "driver=raw,offset=65536,size=1M,file.filename=sparse.raw",
        "driver=raw,offset=4096,file.filename=sparse.raw",
    ] {
        gallery.alike("map --image-opts", described);
        gallery.alike("map --output=json --image-opts", described);
    }
    for (image, format) in [("sparse.raw", "raw"), ("plain.qcow2", "qcow2")] {
        let (server, _socket) = gallery.serve(image);
        let uri = server.uri();
        gallery.alike(&format!("map -f {format}"), &uri);
        gallery.alike(&format!("map --output=json -f {format}"), &uri);
    }
}

#[test]
fn what_is_wrong_is_refused_with_the_same_exit_code() {
    let gallery = Gallery::new();
    for arguments in [
        "map",
        "map nope",
        "map plain.qcow2 top.qcow2",
        "map --start-offset xx plain.qcow2",
        "map --max-length -5 plain.qcow2",
        "map --output=xml plain.qcow2",
    ] {
        let (code, _) = gallery.alike(arguments, "");
        assert_eq!(code, 1, "{arguments}");
    }
}

#[test]
fn a_backing_file_is_not_opened_without_permission() {
    let gallery = Gallery::new();
    let mut command = Who::Ours.tool("qemu-img", ["map", "top.qcow2"]);
    let refused = run(command.current_dir(gallery.path()));
    refused.failure(1, &["plain.qcow2"]);
}
