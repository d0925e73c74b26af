//! The same changes by qemu-img and by us, of images that qemu made.

use std::{fs, path::Path};

use blockferry_block::{Access, FileDevice};

use super::*;
use crate::qcow2::qemu::{is_installed, number, qemu_check, qemu_img, qemu_io};

fn open(directory: &Path, name: &str) -> Arc<dyn BlockDevice> {
    let opened = FileDevice::open(&directory.join(name), Access::ReadWrite);
    Arc::new(opened.expect("opened"))
}

#[tokio::test]
async fn bitmaps_are_those_that_qemu_makes() {
    if !is_installed() {
        return;
    }
    for options in [
        "cluster_size=512",
        "cluster_size=64k,refcount_bits=2",
        "cluster_size=16k,extended_l2=on,lazy_refcounts=on",
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        qemu_img(
            directory,
            &format!("create -q -f qcow2 -o {options} a 5000k"),
        );
        qemu_img(directory, "bitmap --add -g 512 a fine");
        qemu_img(directory, "bitmap --add -g 64k a coarse");
        qemu_io(
            directory,
            "a",
            &["write -P 1 0 300k", "write -P 2 4000k 172k"],
        );
        qemu_img(directory, "snapshot -c one a");
        fs::copy(directory.join("a"), directory.join("b")).expect("copied");
        for (words, name, change) in [
            ("--add -g 4k a new", "new", add(4096)),
            ("--merge fine a new", "new", merge("fine", None)),
            ("--disable a coarse", "coarse", BitmapChange::Disable),
            (
                "--add a usual",
                "usual",
                BitmapChange::Add { granularity: None },
            ),
            ("--merge new a usual", "usual", merge("new", None)),
            ("--clear a fine", "fine", BitmapChange::Clear),
            ("--merge coarse a fine", "fine", merge("coarse", None)),
            ("--remove a coarse", "coarse", BitmapChange::Remove),
            ("--enable a fine", "fine", BitmapChange::Enable),
            ("--remove a new", "new", BitmapChange::Remove),
            ("--remove a usual", "usual", BitmapChange::Remove),
            ("--remove a fine", "fine", BitmapChange::Remove),
            (
                "--add a last",
                "last",
                BitmapChange::Add { granularity: None },
            ),
        ] {
            let what = format!("{options}, {words}");
            qemu_img(directory, &format!("bitmap {words}"));
            let changed = change_bitmap(open(directory, "b"), name, &change).await;
            changed.unwrap_or_else(|error| panic!("{what}: {error}"));
            let [theirs, ours] = ["a", "b"].map(|name| open(directory, name));
            assert_eq!(seen(&*ours).await, seen(&*theirs).await, "{what}");
            let report = qemu_check(directory, "b");
            for wrong in ["corruptions", "leaks", "check-errors"] {
                assert_eq!(number(&report, wrong), 0, "{what}: {report}");
            }
            // Both note in them what is written from here on.
            for name in ["a", "b"] {
                qemu_io(directory, name, &["write -P 3 1000k 1k"]);
            }
            let [theirs, ours] = ["a", "b"].map(|name| open(directory, name));
            assert_eq!(seen(&*ours).await, seen(&*theirs).await, "{what}");
        }
        let compared = qemu_img(directory, "compare -f qcow2 -F qcow2 a b");
        assert!(compared.contains("identical"), "{compared}");
    }
}
