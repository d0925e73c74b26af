//! `qemu-img measure`, theirs and ours.

use crate::support::gallery::{Gallery, IMAGES};

#[test]
fn copies_of_every_image_are_measured_as_qemu_img_does() {
    let gallery = Gallery::new();
    for image in IMAGES {
        for arguments in [
            "measure",
            "measure -O raw --output=json",
            "measure -O qcow2",
            "measure -O qcow2 --output=json",
            "measure -O qcow2 -o cluster_size=4k,refcount_bits=1",
            "measure -O qcow2 -o compat=0.10",
            "measure -O qcow2 -o extended_l2=on,cluster_size=128k",
            "measure -O qcow2 -o preallocation=full",
            "measure -O qcow2 -o preallocation=metadata",
            "measure -O qcow2 -o backing_file=x,backing_fmt=raw",
            "measure -O qcow2 -o size=5G",
        ] {
            gallery.alike(arguments, image);
        }
    }
    let (_, text) = gallery.alike("measure -O qcow2 -l one", "plain.qcow2");
    assert!(text.contains("bitmaps size: 327680"), "{text}");
}

#[test]
fn sizes_are_measured_as_qemu_img_does() {
    let gallery = Gallery::new();
    for size in ["0", "1", "1001", "1G", "1.5T", "63T", "7E", "9E", "-1", "x"] {
        for options in [
            "",
            "-O qcow2",
            "-O qcow2 --output=json",
            "-O qcow2 -o cluster_size=512",
            "-O qcow2 -o cluster_size=2M,refcount_bits=64",
            "-O qcow2 -o data_file=x",
        ] {
            gallery.alike(&format!("measure {options} --size"), size);
        }
    }
}

#[test]
fn exports_and_descriptions_are_measured() {
    let gallery = Gallery::new();
    let described = "driver=raw,offset=65536,size=1M,file.filename=sparse.raw";
    gallery.alike("measure -O qcow2 --image-opts", described);
    let (server, _socket) = gallery.serve("plain.qcow2");
    gallery.alike("measure -f qcow2 -O qcow2", &server.uri());
}

#[test]
fn what_is_wrong_is_refused_with_the_same_exit_code() {
    let gallery = Gallery::new();
    for arguments in [
        "measure",
        "measure --size 1G plain.qcow2",
        "measure plain.qcow2 top.qcow2",
        "measure -f raw --size 1G",
        "measure -l one --size 1G",
        "measure -O vmdk --size 1G",
        "measure -O vdi sparse.raw",
        "measure -O bogus sparse.raw",
        "measure -O qcow2 -o bogus=1 sparse.raw",
        "measure -O qcow2 -o cluster_size=3 --size 1G",
        "measure -O qcow2 -l nope plain.qcow2",
        "measure nope",
    ] {
        let (code, _) = gallery.alike(arguments, "");
        assert_eq!(code, 1, "{arguments}");
    }
}
