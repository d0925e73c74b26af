//! VMDK images through the real binary: copied to and from, compared, mapped and served as their disks; and those of
//! strangers, whose names are not followed.

#[allow(dead_code, reason = "the tests of the format take more of it")]
#[path = "../../crates/format/tests/vmdk/samples.rs"]
mod samples;

use std::{fs, path::Path};

use tempfile::tempdir;

use crate::support::{
    blockferry,
    qemu::{self, qemu_img, qemu_io, text},
    run,
    run::Outcome,
};
use samples::Sample;

fn ours(arguments: &[&str]) -> String {
    run(&mut blockferry(arguments)).success().text().to_owned()
}

fn refused(arguments: &[&str]) -> Outcome {
    let outcome = run(&mut blockferry(arguments));
    assert_ne!(outcome.code, 0, "{arguments:?}");
    outcome
}

/// A disk with data and holes.
fn disk(path: &Path) {
    qemu_img(&["create", "-q", "-f", "raw", text(path), "70M"]);
    let commands = [
        "write -P 7 64k 300k",
        "write -P 9 33M 2M",
        "write -P 3 69M 4k",
    ];
    qemu_io(path, "raw", &commands);
}

#[test]
fn every_way_there_and_back_keeps_the_disk() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, image, copy) = (path("raw"), path("image.vmdk"), path("copy"));
    disk(&raw);
    for options in [
        "subformat=streamOptimized",
        "subformat=streamOptimized,compression_level=9,adapter_type=lsilogic,hwversion=7",
        "subformat=monolithicSparse",
    ] {
        let _ = fs::remove_file(&image);
        let words = ["copy", "-q", "--verify", "-O", "vmdk", "-o", options];
        ours(&[&words[..], &[text(&raw), text(&image)]].concat());
        qemu::assert_identical((&raw, "raw"), (&image, "vmdk"));
        assert!(
            fs::metadata(&image).expect("made").len() < 4 << 20,
            "{options}"
        );
        let _ = fs::remove_file(&copy);
        ours(&["copy", "-q", text(&image), text(&copy)]);
        qemu::assert_identical((&raw, "raw"), (&copy, "raw"));
        ours(&["compare", "-s", text(&raw), text(&image)]);
        let told = ours(&["info", text(&image)]);
        assert!(told.contains("vmdk"), "{told}");
        assert!(ours(&["map", text(&image)]).contains("data"), "{options}");
    }
}

#[test]
fn an_image_goes_through_a_pipe() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, image) = (path("raw"), path("image.vmdk"));
    disk(&raw);
    let made = run(&mut blockferry([
        "copy",
        "-q",
        "-O",
        "vmdk",
        text(&raw),
        "-",
    ]))
    .success();
    fs::write(&image, &made.stdout).expect("written");
    qemu::assert_identical((&raw, "raw"), (&image, "vmdk"));
    let sparse = [
        "copy",
        "-O",
        "vmdk",
        "-o",
        "subformat=monolithicSparse",
        text(&raw),
        "-",
    ];
    let outcome = refused(&sparse);
    assert!(
        outcome
            .stderr
            .contains("only streamOptimized can be streamed"),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stdout.is_empty());
}

#[test]
fn mistakes_in_options_are_named() {
    let room = tempdir().expect("a directory");
    let (raw, image) = (room.path().join("raw"), room.path().join("image"));
    fs::write(&raw, [1; 512]).expect("written");
    for (options, said) in [
        (
            "subformat=monolithicFlat",
            "none of streamOptimized, monolithicSparse",
        ),
        ("compression_level=0", "compression_level is 1 to 9"),
        (
            "subformat=monolithicSparse,compression_level=3",
            "only streamOptimized is compressed",
        ),
        ("adapter_type=scsi", "none of ide, buslogic"),
        ("cluster_size=4k", "only adapter_type"),
    ] {
        let outcome = refused(&[
            "copy",
            "-O",
            "vmdk",
            "-o",
            options,
            text(&raw),
            text(&image),
        ]);
        assert!(
            outcome.stderr.contains(said),
            "{options}: {}",
            outcome.stderr
        );
        assert!(!image.exists());
    }
}

#[test]
fn extents_and_parents_are_followed_where_that_is_allowed() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, copy) = (path("raw"), path("copy"));
    disk(&raw);
    for subformat in [
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
    ] {
        let image = path(&format!("{subformat}.vmdk"));
        let options = format!("subformat={subformat}");
        let convert = ["convert", "-f", "raw", "-O", "vmdk", "-o", &options];
        qemu_img(&[&convert[..], &[text(&raw), text(&image)]].concat());
        let outcome = refused(&["copy", text(&image), text(&copy)]);
        let said = "which is not opened unless it is allowed: --allow-backing DIR";
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
        assert!(!copy.exists());
        let allow = ["copy", "-q", "--allow-backing", text(room.path())];
        ours(&[&allow[..], &[text(&image), text(&copy)]].concat());
        qemu::assert_identical((&raw, "raw"), (&copy, "raw"));
        fs::remove_file(&copy).expect("removed");
    }
    let (base, top) = (path("base.vmdk"), path("top.vmdk"));
    ours(&[
        "copy",
        "-q",
        "-O",
        "vmdk",
        "-o",
        "subformat=monolithicSparse",
        text(&raw),
        text(&base),
    ]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "vmdk",
        "-F",
        "vmdk",
        "-b",
        text(&base),
        text(&top),
    ]);
    qemu_io(&top, "vmdk", &["write -P 1 1M 64k"]);
    refused(&["copy", text(&top), text(&copy)]);
    ours(&[
        "copy",
        "-q",
        "--allow-backing",
        text(room.path()),
        text(&top),
        text(&copy),
    ]);
    qemu::assert_identical((&top, "vmdk"), (&copy, "raw"));
}

#[test]
fn a_descriptor_of_a_stranger_opens_nothing() {
    // CVE-2022-47951: otherwise a disk of the host's files would come out.
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (disk, copy, socket) = (path("disk.vmdk"), path("copy"), path("socket"));
    for (line, name) in [
        ("RW 1 FLAT \"/etc/passwd\" 0", "/etc/passwd"),
        ("RW 1 VMFS \"/etc/shadow\"", "/etc/shadow"),
        ("RW 1 SPARSE \"../secret\"", "../secret"),
    ] {
        fs::write(&disk, Sample::descriptor(line).0).expect("written");
        let expected = format!(
            "blockferry: {}: open: it has the extent \"{name}\", which is not opened unless it is allowed: --allow-backing DIR\n",
            text(&disk)
        );
        for arguments in [
            &["copy", "-q", text(&disk), text(&copy)][..],
            &["copy", "-q", "-f", "vmdk", text(&disk), text(&copy)],
            &["checksum", text(&disk)],
            &["serve", "--read-only", "--unix", text(&socket), text(&disk)],
        ] {
            assert_eq!(refused(arguments).stderr, expected, "{arguments:?}");
        }
        assert!(!copy.exists() && !socket.exists());
        // What it says of itself can be told all the same, and its bytes are read on demand.
        assert!(ours(&["info", text(&disk)]).contains("vmdk"));
        ours(&["copy", "-q", "-f", "raw", text(&disk), text(&copy)]);
        fs::remove_file(&copy).expect("removed");
    }
}

#[test]
fn a_stream_that_was_cut_short_is_told() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (disk, copy) = (path("disk.vmdk"), path("copy"));
    let whole = Sample::stream().0;
    fs::write(&disk, &whole[..whole.len() - 512]).expect("written");
    let outcome = refused(&["copy", text(&disk), text(&copy)]);
    let expected = format!(
        "blockferry: {}: open: it ends without the footer and the end-of-stream marker: it was cut short\nhint: it is shorter than it says: was all of it copied here?\n",
        text(&disk)
    );
    assert_eq!(outcome.stderr, expected);
    assert!(!copy.exists());
}

#[test]
fn a_compressed_image_needs_no_room_for_what_it_was_before() {
    let room = tempdir().expect("a directory");
    let (raw, image) = (room.path().join("raw"), room.path().join("image.vmdk"));
    fs::write(&raw, vec![b'x'; 8 << 20]).expect("room");
    // dash counts in blocks of 512 bytes: 4 MiB.
    let script = "ulimit -f 8192; exec \"$0\" copy -q -O vmdk \"$1\" \"$2\"";
    let mut limited = std::process::Command::new("sh");
    let program = env!("CARGO_BIN_EXE_blockferry");
    limited.args(["-c", script, program, text(&raw), text(&image)]);
    run(&mut limited).success();
    qemu::assert_identical((&raw, "raw"), (&image, "vmdk"));
}
