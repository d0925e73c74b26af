//! Maps of every context, and their sums.

use std::path::Path;

use tempfile::tempdir;

use super::{Served, run_as, same, servers};
use crate::support::{
    Peer,
    dropin::{BOTH, words},
    hostile::{Export, Hostile, chunk},
    run::tool,
    sparse_image,
};

const SHAPES: [&str; 6] = [
    "",
    "--json",
    "--totals",
    "--total --json",
    "--color",
    "--totals --color",
];

/// Compares the map of `context` in every shape.
fn same_maps(context: &str, uri: &str, code: i32) {
    for shape in SHAPES {
        let outcome = same(&[&[context], &words(shape)[..], &[uri]].concat());
        assert_eq!(outcome.code, code, "{context} {shape}: {}", outcome.stderr);
    }
}

#[test]
fn every_server_is_mapped_as_theirs_maps_it() {
    for server in servers() {
        let uri = server.uri("");
        let chunked = run_as(BOTH[0], &["--can", "structured-reply", &uri]).code == 0;
        let code = if chunked { 0 } else { 1 };
        same_maps("--map", &uri, code);
        for (context, code) in [
            ("--map=base:allocation", code),
            ("--map=foo:bar", 1),
            ("--map=", 1),
            ("--map=base:", 1),
            ("--map=qemu:allocation-depth", 1),
        ] {
            assert_eq!(same(&[context, "--json", &uri]).code, code, "{context}");
        }
    }
}

#[test]
fn holes_of_every_size_are_mapped() {
    for arguments in [
        &["data", "1 @6442450944 3", "size=8G"][..],
        &["data", "1 @131072 2", "size=3333333"],
        &["data", "1 @131072 2", "size=1G"],
        &["memory", "5G"],
        &[
            "--filter=offset",
            "data",
            "1 @131072 2",
            "size=16M",
            "offset=1",
            "range=100000",
        ],
    ] {
        let server = Served::nbdkit_with(arguments);
        same_maps("--map", &server.uri(""), 0);
    }
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 10 << 20);
    let peer = Peer::qemu_nbd(dir.path(), "raw", &image, &[]);
    same_maps("--map", &peer.uri(), 0);
}

#[test]
fn extents_of_one_byte_are_put_together() {
    let server = Served::nbdkit_with(&[
        "eval",
        "get_size=echo 32",
        "pread=dd if=/dev/zero count=$3 iflag=count_bytes",
        "can_extents=exit 0",
        "extents=test $4 -ge 16 -a $4 -le 19; echo $4 1 $?",
    ]);
    same_maps("--map", &server.uri(""), 0);
    let types = "for i in 0 1 2 3; do echo $((i * 1024)) 1024 $i; done";
    let server = Served::nbdkit_with(&[
        "eval",
        "get_size=echo 4096",
        "pread=dd if=/dev/zero count=$3 iflag=count_bytes",
        "can_extents=exit 0",
        &format!("extents={types}"),
    ]);
    same_maps("--map", &server.uri(""), 0);
}

fn qcow2(dir: &Path, name: &str, base: Option<&str>, writes: &[&str]) -> String {
    let path = |name: &str| dir.join(name).to_str().expect("UTF-8").to_owned();
    let image = path(name);
    let mut arguments = vec!["create", "-f", "qcow2"];
    let base = base.map(path);
    match &base {
        Some(base) => arguments.extend(["-F", "qcow2", "-b", base, &image]),
        None => arguments.extend([&*image, "8M"]),
    }
    tool("qemu-img", &arguments);
    for write in writes {
        tool("qemu-io", &["-f", "qcow2", "-c", write, &image]);
    }
    image
}

#[test]
fn depths_of_a_chain_are_mapped() {
    let dir = tempdir().expect("a directory");
    qcow2(dir.path(), "1", None, &["w 0 4M"]);
    qcow2(dir.path(), "2", Some("1"), &["w 2M 4M"]);
    qcow2(dir.path(), "3", Some("2"), &["w 1M 2M", "w 5M 2M"]);
    let top = qcow2(dir.path(), "4", Some("3"), &["w 1M 1M", "w 5M 1M"]);
    let peer = Peer::qemu_nbd(dir.path(), "qcow2", Path::new(&top), &["-A", "-r"]);
    same_maps("--map=qemu:allocation-depth", &peer.uri(), 0);
    same_maps("--map", &peer.uri(), 0);
    same(&[&peer.uri()]).success();
    same(&["--list", "--json", &peer.uri()]).success();
    let ours = run_as(
        crate::support::dropin::Who::Ours,
        &["--map=qemu:allocation-depth", &peer.uri()],
    );
    assert!(ours.text().contains("backing depth 4"), "{}", ours.text());
}

#[test]
fn dirty_bitmaps_are_mapped() {
    let dir = tempdir().expect("a directory");
    let image = qcow2(dir.path(), "disk", None, &["w 0 64k"]);
    tool("qemu-img", &["bitmap", "--add", &image, "bitmap0"]);
    for write in ["w 64k 64k", "w -z 512k 64k"] {
        tool("qemu-io", &["-f", "qcow2", "-c", write, &image]);
    }
    let options = ["-B", "bitmap0", "-x", "disk", "-D", "a disk", "-A"];
    let peer = Peer::qemu_nbd(dir.path(), "qcow2", Path::new(&image), &options);
    let uri = peer.uri().replace("///", "///disk");
    same_maps("--map=qemu:dirty-bitmap:bitmap0", &uri, 0);
    same_maps("--map=qemu:dirty-bitmap:other", &uri, 1);
    same(&[&uri]).success();
    same(&["--list", &uri]).success();
}

#[test]
fn types_without_a_meaning_have_a_number_only() {
    let dir = tempdir().expect("a directory");
    let export = Export {
        size: 4096,
        structured: true,
        ..Export::default()
    };
    let server = Hostile::serving(dir.path(), export, |stream, request| {
        use std::io::Write;
        let mut status = 1_u32.to_be_bytes().to_vec();
        for (length, kind) in [(1024_u32, 4_u32), (1024, 7), (2048, 0x8000_0000)] {
            status.extend(length.to_be_bytes());
            status.extend(kind.to_be_bytes());
        }
        stream.write_all(&chunk(request.cookie, true, 5, &status))
    });
    same_maps("--map", &server.uri(), 0);
}
