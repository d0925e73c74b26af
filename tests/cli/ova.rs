//! The disk in an OVA.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    assert_same, blockferry,
    qemu::{qemu_img, text},
    run,
    run::tool,
    sparse_image,
};

/// A descriptor with these files, of which the first `disks` are disks.
fn descriptor(files: &[(&str, &str)], disks: usize) -> String {
    let mut text = String::from(
        "<?xml version='1.0'?><Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1' \
         xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1'><References>",
    );
    for (number, (name, more)) in files.iter().enumerate() {
        text.push_str(&format!(
            "<File ovf:id='f{number}' ovf:href='{name}' {more}/>"
        ));
    }
    text.push_str("</References><DiskSection><Info>the disks</Info>");
    for number in 0..disks {
        text.push_str(&format!(
            "<Disk ovf:diskId='d{number}' ovf:fileRef='f{number}'/>"
        ));
    }
    text + "</DiskSection></Envelope>"
}

/// An OVA of `files` in a directory, its descriptor first.
fn ova(room: &Path, descriptor: &str, files: &[&str]) -> PathBuf {
    fs::write(room.join("box.ovf"), descriptor).expect("written");
    let archive = room.join("box.ova");
    let (room, archive_text) = (text(room), text(&archive));
    let mut words = vec!["--format=ustar", "-C", room, "-cf", archive_text, "box.ovf"];
    words.extend(files);
    tool("tar", &words);
    archive
}

/// A disk of 20 MiB, and images of it.
fn disk() -> (TempDir, PathBuf) {
    let room = tempdir().expect("a directory");
    let disk = room.path().join("disk.raw");
    sparse_image(&disk, 20 << 20);
    (room, disk)
}

#[test]
fn the_disk_of_a_virtual_machine_is_copied_from_its_archive() {
    let (room, disk) = disk();
    let inside = room.path().join("box-disk1.vmdk");
    let made = ["convert", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    qemu_img(&[&made[..], &[text(&disk), text(&inside)]].concat());
    let named = descriptor(&[("box-disk1.vmdk", "")], 1);
    let copy = room.path().join("copy.raw");
    for descriptor in [&named, "<Envelope/>"] {
        let archive = ova(room.path(), descriptor, &["box-disk1.vmdk"]);
        run(&mut blockferry(["copy", text(&archive), text(&copy)])).success();
        assert_same(&disk, &copy);
        let compared = ["compare", "-f", "ova", text(&archive), text(&disk)];
        let compared = run(&mut blockferry(compared)).success();
        assert_eq!(compared.text(), "Images are identical.\n");
    }
}

#[test]
fn an_archive_behind_an_image_is_its_bytes_as_for_all_who_read_it() {
    let (room, _) = disk();
    let named = descriptor(&[("disk.raw", "")], 1);
    let archive = ova(room.path(), &named, &["disk.raw"]);
    let image = room.path().join("overlay.qcow2");
    let words = ["create", "-f", "qcow2", "-b", text(&archive), text(&image)];
    run(&mut blockferry(words)).success();
    let words = ["convert", "-O", "raw", "-f", "qcow2", text(&image)];
    let bytes = room.path().join("bytes");
    qemu_img(&[
        "rebase",
        "-u",
        "-b",
        text(&archive),
        "-F",
        "raw",
        text(&image),
    ]);
    qemu_img(&[&words[..], &[text(&bytes)]].concat());
    assert_same(&archive, &bytes);
}

#[test]
fn disks_in_other_formats_and_compressed_ones_are_found() {
    let (room, disk) = disk();
    let inside = room.path().join("disk.qcow2");
    qemu_img(&["convert", "-O", "qcow2", text(&disk), text(&inside)]);
    let packed = format!("gzip -1 <'{0}' >'{0}.gz'", text(&inside));
    tool("sh", &["-c", &packed]);
    let copy = room.path().join("copy.raw");
    for (name, more) in [
        ("disk.qcow2", ""),
        ("disk.raw", ""),
        ("disk.qcow2.gz", "ovf:compression='gzip'"),
    ] {
        let archive = ova(room.path(), &descriptor(&[(name, more)], 1), &[name]);
        run(&mut blockferry(["copy", text(&archive), text(&copy)])).success();
        assert_same(&disk, &copy);
        let bytes = run(&mut blockferry(["copy", "-f", "raw", text(&archive), "-"])).success();
        assert!(bytes.stdout == fs::read(&archive).expect("the archive"));
    }
}

#[test]
fn what_an_archive_does_not_say_is_not_guessed() {
    let (room, disk) = disk();
    for name in ["one.vmdk", "two.vmdk"] {
        fs::copy(&disk, room.path().join(name)).expect("copied");
    }
    let copy = room.path().join("copy.raw");
    let two = [("one.vmdk", ""), ("two.vmdk", "")];
    let both = &["one.vmdk", "two.vmdk"][..];
    for (descriptor, files, words) in [
        (
            "<Envelope/>".to_owned(),
            both,
            &["which of 'one.vmdk', 'two.vmdk' is the disk", "tar:NAME"][..],
        ),
        ("<Envelope/>".to_owned(), &[], &["there is no disk in it"]),
        (
            descriptor(&two, 2),
            &["two.vmdk"],
            &["there is no 'one.vmdk' in the archive"],
        ),
        (
            descriptor(&[("one.vmdk", "ovf:compression='lzma'")], 1),
            both,
            &["compressed by lzma"],
        ),
        ("<Envelope>".to_owned(), both, &["descriptor", "cut off"]),
    ] {
        let archive = ova(room.path(), &descriptor, files);
        run(&mut blockferry(["copy", text(&archive), text(&copy)])).failure(1, words);
        assert!(!copy.exists());
    }
    let archive = ova(room.path(), &descriptor(&two, 2), both);
    let done = run(&mut blockferry(["copy", text(&archive), text(&copy)])).success();
    let words = "it has 2 disks, 'one.vmdk', 'two.vmdk', and the first is read";
    assert!(done.stderr.contains(words), "{}", done.stderr);
    assert_same(&disk, &copy);
    let other = [
        "copy",
        "[",
        "serve",
        "-f",
        "raw",
        "--filter",
        "tar:two.vmdk",
    ];
    let other = [&other[..], &[text(&archive), "]", text(&copy)]].concat();
    run(&mut blockferry(other)).success();
    assert_same(&disk, &copy);
    run(&mut blockferry([
        "copy",
        "-f",
        "ova",
        text(&disk),
        text(&copy),
    ]))
    .failure(1, &["it is not an OVA"]);
}
