//! `qemu-img bitmap` beside the real tool: what it says, what it makes of images, and what backup programs do with it.

use std::{fs, path::Path};

use tempfile::tempdir;

use crate::{
    dropin_qemu_img::Twins,
    support::{
        Outcome, Peer,
        dropin::{BOTH, Who},
        qemu::{check, info, qemu_img, qemu_io, text},
        run,
        run::tool,
    },
};

/// What qemu says of the bitmaps of an image.
fn bitmaps(image: &Path) -> serde_json::Value {
    info(image)["format-specific"]["data"]["bitmaps"].clone()
}

/// What qemu says is dirty.
fn dirty(image: &Path, name: &str) -> String {
    let room = tempdir().expect("a directory");
    let peer = Peer::qemu_nbd(room.path(), "qcow2", image, &["-r", "-B", name]);
    let map = format!("--map=qemu:dirty-bitmap:{name}");
    tool("nbdinfo", &[&map, &peer.uri()])
}

/// Each has `image`, in which there are the bitmaps "b", "fine" and "broken", and `base`, below `top`.
fn twins() -> Twins {
    Twins::new(|dir| {
        let path = |name: &str| dir.join(name);
        let (image, base, top) = (path("image"), path("base"), path("top"));
        let create = ["create", "-q", "-f", "qcow2"];
        qemu_img(&[&create[..], &[text(&image), "10000k"]].concat());
        for (size, name) in [("64k", "b"), ("512", "fine"), ("64k", "broken")] {
            qemu_img(&["bitmap", "--add", "-g", size, text(&image), name]);
        }
        qemu_io(&image, "qcow2", &["write 100k 1k", "write 9999k 512"]);
        break_bitmap(&image, "broken");
        qemu_img(&[&create[..], &[text(&base), "10000k"]].concat());
        qemu_img(&["bitmap", "--add", text(&base), "a"]);
        qemu_io(&base, "qcow2", &["write 1M 200k"]);
        let backed = ["-F", "qcow2", "-b", "base", text(&top)];
        qemu_img(&[&create[..], &backed].concat());
        let path = |name: &str| dir.join(name);
        let old = ["create", "-q", "-f", "qcow2", "-o", "compat=0.10"];
        qemu_img(&[&old[..], &[text(&path("old")), "1M"]].concat());
        qemu_img(&[&create[..], &[text(&path("huge")), "64T"]].concat());
    })
}

/// The bitmap was in use when the image was last written.
fn break_bitmap(image: &Path, name: &str) {
    let mut bytes = fs::read(image).expect("an image");
    let at = bytes
        .windows(name.len())
        .rposition(|part| part == name.as_bytes());
    bytes[at.expect("its name") - 24 + 15] |= 1;
    fs::write(image, bytes).expect("written");
}

#[test]
fn it_says_what_qemu_says() {
    let twins = twins();
    let long = "n".repeat(1024);
    let too_long = format!("bitmap --add image {long}");
    for arguments in [
        "bitmap",
        "bitmap image",
        "bitmap image b",
        "bitmap image b more",
        "bitmap --add",
        "bitmap --add image",
        "bitmap --add image b more",
        "bitmap --add missing b",
        "bitmap --merge b -b missing image b",
        "bitmap --add image b",
        "bitmap --add -g 3 image new",
        "bitmap --add -g 256 image new",
        "bitmap --add -g 1000 image b",
        "bitmap --add -g 4G image new",
        "bitmap --add -g -1 image new",
        "bitmap --add -g x image new",
        "bitmap --add -g 8E image new",
        "bitmap --clear -g 512 image b",
        "bitmap --clear -b top image b",
        "bitmap --clear -F qcow2 image b",
        "bitmap --merge b -F qcow2 image b",
        "bitmap --add --disabled image new",
        "bitmap --merge",
        "bitmap -Q image b",
        "bitmap --image-opts -f qcow2 --add driver=qcow2,file.filename=image new",
        "bitmap --remove image nope",
        "bitmap --clear image nope",
        "bitmap --enable image nope",
        "bitmap --disable image nope",
        "bitmap --merge b image nope",
        "bitmap --merge nope image b",
        "bitmap --merge a top b",
        "bitmap --merge b -b disk image b",
        "bitmap --remove -f raw disk b",
        "bitmap --remove old b",
        "bitmap --add -f bogus image b",
    ] {
        twins.same(arguments);
    }
    // They name a node that nobody else knows, or say more lines of their own.
    for (arguments, part) in [
        (
            &too_long[..],
            "Name length exceeds maximum (1023 characters)",
        ),
        (
            "bitmap --add old b",
            "Cannot store dirty bitmaps in qcow2 v2 files",
        ),
        (
            "bitmap --add -g 512 huge b",
            "Too much space will be occupied by the bitmap. Use larger granularity",
        ),
        ("bitmap --add -f raw disk b", "Operation not supported"),
        ("bitmap --add disk b", "Operation not supported"),
        (
            "bitmap --clear image broken",
            "Bitmap 'broken' is inconsistent and cannot be used",
        ),
        (
            "bitmap --enable image broken",
            "Bitmap 'broken' is inconsistent and cannot be used",
        ),
        (
            "bitmap --merge broken image b",
            "Operation merge on bitmap b failed: Bitmap 'broken' is inconsistent",
        ),
        (
            "bitmap --merge a -b base huge b",
            "Dirty bitmap 'b' not found",
        ),
        ("bitmap --add -f qcow2 disk b", "Could not open 'disk'"),
        (
            "bitmap --image-opts --add driver=qcow2,file.filename=image,read-only=on b",
            "read-only",
        ),
    ] {
        let [theirs, ours] = twins.alike(arguments);
        for outcome in [theirs, ours] {
            assert!(
                outcome.stderr.contains(part),
                "{arguments}: {}",
                outcome.stderr
            );
        }
    }
}

#[test]
fn images_have_the_bitmaps_that_qemu_gives_them() {
    let twins = twins();
    for arguments in [
        "bitmap --add image new",
        "bitmap --add --disable -g 4k -f qcow2 image idle",
        "bitmap --merge b --merge fine image new",
        "bitmap --merge b image idle",
        "bitmap --add --add image twice",
        "bitmap --add --merge nope --disable image part",
        "bitmap --enable --disable --clear --merge fine image part",
        "bitmap --remove --add image broken",
        "bitmap --merge a -b base -F qcow2 image broken",
        "bitmap --merge a -b base image part",
        "bitmap --merge new -b image -F qcow2 top missing",
        "bitmap --add --merge a -b base -F qcow2 top over",
        "bitmap --add -g 0 huge usual",
        "bitmap --merge usual -b huge image b",
        "bitmap --image-opts --add driver=qcow2,file.filename=image opts",
        "bitmap --image-opts --merge a -b base -F qcow2 driver=qcow2,file.filename=image opts",
        "bitmap --remove huge usual",
    ] {
        twins.same(arguments);
        for image in ["image", "top", "huge"] {
            let [theirs, ours] = BOTH.map(|who| twins.path(who, image));
            assert_eq!(bitmaps(&ours), bitmaps(&theirs), "{arguments}: {image}");
            check(&ours);
        }
    }
    // What both write from here on is noted in both.
    for who in BOTH {
        qemu_io(&twins.path(who, "image"), "qcow2", &["write 5M 100k"]);
    }
    for name in ["new", "idle", "part", "broken", "fine", "opts"] {
        let [theirs, ours] = BOTH.map(|who| dirty(&twins.path(who, "image"), name));
        assert_eq!(ours, theirs, "{name}");
        assert!(name == "opts" || ours.contains("dirty"), "{ours}");
    }
    let [theirs, ours] = BOTH.map(|who| dirty(&twins.path(who, "top"), "over"));
    assert_eq!(ours, theirs);
    // And each goes on with what the other one made.
    let [theirs, ours] = BOTH.map(|who| twins.path(who, "image"));
    let swapped = |who: Who, image: &Path, words: &[&str]| {
        let arguments = [&["bitmap"], words, &[text(image), "new"]].concat();
        run(&mut twins.command(who, &arguments)).success();
    };
    for words in [
        &["--merge", "idle"][..],
        &["--disable"],
        &["--clear"],
        &["--remove"],
    ] {
        swapped(Who::Ours, &theirs, words);
        swapped(Who::Theirs, &ours, words);
        assert_eq!(bitmaps(&ours), bitmaps(&theirs), "{words:?}");
        check(&ours);
        check(&theirs);
    }
}

#[test]
fn the_bitmaps_of_an_image_in_use_are_left_alone() {
    let twins = twins();
    let path = twins.path(Who::Ours, "image");
    let before = fs::read(&path).expect("there");
    let room = tempdir().expect("a directory");
    let peer = Peer::qemu_nbd(room.path(), "qcow2", &path, &[]);
    let refused = run(&mut twins.command(Who::Ours, &["bitmap", "--add", "image", "new"]));
    refused.failure(1, &["Could not open 'image'", "another program uses it"]);
    drop(peer);
    // Their server marks what it writes, and takes that back.
    assert_eq!(fs::read(&path).expect("there").len(), before.len());
}

/// A program that calls `qemu-img bitmap` one after the other, and what the bitmaps of the images are then.
fn sequence(calls: &[&str], images: &[(&str, &str)]) {
    let twins = twins();
    for call in calls {
        let ended: [Outcome; 2] = twins.run(call);
        for outcome in ended {
            outcome.success();
        }
    }
    for (image, name) in images {
        let [theirs, ours] = BOTH.map(|who| twins.path(who, image));
        assert_eq!(bitmaps(&ours), bitmaps(&theirs), "{image}");
        assert_eq!(dirty(&ours, name), dirty(&theirs, name), "{image}");
        check(&ours);
    }
}

#[test]
fn ovirt_carries_bitmaps_over_to_new_volumes_and_back() {
    // vdsm's calls for a volume that gets an overlay, and when that is merged back; options may stand last.
    sequence(
        &[
            "bitmap --add --enable top a -g 65536",
            "bitmap --add --disable top idle",
            "bitmap --merge a -F qcow2 -b base top a",
            "bitmap --remove base a",
            "bitmap --add --enable base a -g 65536",
            "bitmap --merge a -F qcow2 -b top base a",
            "bitmap --remove top idle",
            "amend -o compat=1.1 old",
        ],
        &[("base", "a"), ("top", "a")],
    );
}

#[test]
fn checkpoints_are_merged_into_one_for_a_backup() {
    sequence(
        &[
            "bitmap --remove -f qcow2 image broken",
            "bitmap --add --enable -f qcow2 image checkpoint.0",
            "bitmap --disable -f qcow2 image checkpoint.0",
            "bitmap --add -f qcow2 image checkpoint.1",
            "bitmap --add --disable -f qcow2 -g 65536 image both",
            "bitmap --merge checkpoint.0 --merge checkpoint.1 --merge b -f qcow2 image both",
            "bitmap --remove -f qcow2 image checkpoint.0",
        ],
        &[("image", "both"), ("image", "checkpoint.1")],
    );
}
