//! `qemu-img amend` beside the real tool.

use std::path::Path;

use crate::{
    dropin_qemu_img::Twins,
    support::{
        dropin::{BOTH, Who},
        qemu::{assert_identical, check, info, qemu_img, qemu_io, text},
        run,
    },
};

/// What the image says of itself, but for the file that it lies in.
fn facts(image: &Path) -> (serde_json::Value, serde_json::Value) {
    let info = info(image);
    (
        info["virtual-size"].clone(),
        info["format-specific"].clone(),
    )
}

fn create(dir: &Path, name: &str, options: &str, more: &[&str]) {
    let path = dir.join(name);
    let create = ["create", "-q", "-f", "qcow2", "-o", options];
    qemu_img(&[&create[..], more, &[text(&path), "10M"]].concat());
    qemu_io(&path, "qcow2", &["write -P 7 1M 300k"]);
}

/// Each has `old` and `new`, of version 2 and 3, `over` that is backed by `base`, and images that cannot be old.
fn twins() -> Twins {
    Twins::new(|dir| {
        create(dir, "old", "compat=0.10", &[]);
        create(dir, "new", "compat=1.1", &[]);
        create(dir, "base", "compat=1.1", &[]);
        let base = dir.join("base");
        create(
            dir,
            "over",
            "compat=0.10",
            &["-F", "qcow2", "-b", text(&base)],
        );
        create(dir, "wide", "refcount_bits=64", &[]);
        create(dir, "extended", "extended_l2=on", &[]);
        let file = format!("data_file={},data_file_raw=on", text(&dir.join("data")));
        create(dir, "outside", &file, &[]);
        create(dir, "zstd", "compression_type=zstd", &[]);
        create(dir, "zeroes", "compat=1.1", &[]);
        qemu_io(&dir.join("zeroes"), "qcow2", &["write -z 1M 64k"]);
        create(dir, "tracked", "compat=1.1", &[]);
        qemu_img(&["bitmap", "--add", text(&dir.join("tracked")), "b"]);
        create(dir, "kept", "compat=0.10", &[]);
        qemu_img(&["snapshot", "-c", "one", text(&dir.join("kept"))]);
    })
}

#[test]
fn it_says_what_qemu_says() {
    let twins = twins();
    for arguments in [
        "amend",
        "amend new",
        "amend -o compat=1.1",
        "amend -o compat=1.1 new more",
        "amend -o compat=1.1 missing",
        "amend -o ,size=1M new",
        "amend -o help",
        "amend -f raw -o help",
        "amend -f raw -o size=1M disk",
        "amend -o bogus=1 new",
        "amend -o nocow=on new",
        "amend -o compat=3 new",
        "amend -o lazy_refcounts=maybe new",
        "amend -o lazy_refcounts=on old",
        "amend -o compat=0.10,lazy_refcounts=on new",
        "amend -o compat=0.10 wide",
        "amend -o compat=0.10 extended",
        "amend -o refcount_bits=8 old",
        "amend -o refcount_bits=3 new",
        "amend -o refcount_bits=x new",
        "amend -o size=1000001 new",
        "amend -o size=-1 new",
        "amend -o size=20M kept",
        "amend -o data_file=x new",
        "amend -o data_file_raw=on new",
        "amend -o encrypt.state=active new",
        "amend -t bogus -o lazy_refcounts=on new",
        "amend --image-opts -f qcow2 -o compat=1.1 driver=qcow2,file.filename=new",
        "amend -Q new",
    ] {
        twins.same(arguments);
    }
    // Theirs says more on lines without a name.
    for (arguments, part) in [
        (
            "amend -o cluster_size=4k new",
            "Invalid parameter 'cluster_size'",
        ),
        (
            "amend -o preallocation=full new",
            "Invalid parameter 'preallocation'",
        ),
        (
            "amend -o encryption=on new",
            "This option is only supported for image creation",
        ),
        (
            "amend -o size=3x new",
            "Parameter 'size' expects a non-negative number below 2^64",
        ),
        (
            "amend -o backing_file=base new",
            "You can use 'qemu-img rebase' instead.",
        ),
        (
            "amend -o backing_fmt=raw over",
            "Cannot amend the backing file",
        ),
        ("amend -o size=7E new", "too large"),
    ] {
        let [theirs, ours] = twins.alike(arguments);
        assert!(ours.stderr.contains(part), "{arguments}: {}", ours.stderr);
        assert!(
            part == "too large" || theirs.stderr.contains(part),
            "{}",
            theirs.stderr
        );
    }
}

#[test]
fn images_become_what_qemu_makes_of_them() {
    let twins = twins();
    for arguments in [
        "amend -o compat=1.1 old",
        "amend -o compat=v2 old",
        "amend -o compat=v3,lazy_refcounts=on old",
        "amend -q -f qcow2 -o lazy_refcounts=off old",
        "amend -o compat=0.10,size=12M new",
        "amend -o compat=1.1,size=5M -o lazy_refcounts new",
        "amend -o size=0,refcount_bits=16,data_file_raw=off new",
        "amend -p -o size=20M new",
        "amend -p -q --force -t none -o size=21M new",
        "amend -o compat=1.1 over",
        "amend -o compat=0.10 over",
        "amend -o compat=1.1,size=20M kept",
        "amend -o data_file_raw=on outside",
        "amend -o data_file_raw=off outside",
        "amend -o data_file_raw=on outside",
        "amend --image-opts -o compat=1.1 driver=qcow2,file.filename=old",
    ] {
        twins.same(arguments);
        for image in ["old", "new", "over", "kept"] {
            let [theirs, ours] = BOTH.map(|who| twins.path(who, image));
            assert_eq!(facts(&ours), facts(&theirs), "{arguments}: {image}");
            assert_identical((&ours, "qcow2"), (&theirs, "qcow2"));
            check(&ours);
            for path in [&theirs, &ours] {
                qemu_io(path, "qcow2", &["write -P 9 2M 100k"]);
            }
        }
    }
}

#[test]
fn what_is_not_done_is_refused_by_name_and_nothing_is_changed() {
    let twins = twins();
    for (arguments, image, part) in [
        (
            "amend -o refcount_bits=8 new",
            "new",
            "-o refcount_bits=8 is not done by blockferry",
        ),
        (
            "amend -o compat=0.10 zeroes",
            "zeroes",
            "'convert -o compat=0.10'",
        ),
        ("amend -o compat=0.10 tracked", "tracked", "has bitmaps"),
        ("amend -o compat=0.10 zstd", "zstd", "zlib"),
    ] {
        let path = twins.path(Who::Ours, image);
        let before = std::fs::read(&path).expect("there");
        let words: Vec<_> = arguments.split(' ').collect();
        run(&mut twins.command(Who::Ours, &words)).failure(1, &[part]);
        assert!(
            std::fs::read(&path).expect("there") == before,
            "{arguments}"
        );
    }
}
