//! Images of every kind that qemu-img makes, and the same question asked of qemu-img and of ours.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use tempfile::TempDir;

use super::{
    Peer,
    dropin::{BOTH, words},
    images::random_bytes,
    qemu::{qemu_img, qemu_io},
    run,
};

/// A directory of images.
pub(crate) struct Gallery {
    directory: TempDir,
}

/// Images whose disks qemu-img looks at as it does at a plain file's: raw ones, and qcow2 of every kind.
pub(crate) const IMAGES: &[&str] = &[
    "sparse.raw",
    "odd.raw",
    "empty.raw",
    "plain.qcow2",
    "top.qcow2",
    "long.qcow2",
    "data.qcow2",
    "extended.qcow2",
    "old.qcow2",
    "prealloc.qcow2",
    "wide.qcow2",
    "dirty.qcow2",
    "corrupt.qcow2",
    "\u{e9}\u{20ac}.qcow2",
    "sub/below.qcow2",
];

impl Gallery {
    pub(crate) fn new() -> Self {
        let gallery = Self {
            directory: tempfile::tempdir().expect("a directory"),
        };
        gallery.make_raw();
        gallery.make_qcow2();
        gallery.settle();
        gallery
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self, name: &str) -> String {
        let path = self.path().join(name);
        path.into_os_string().into_string().expect("UTF-8")
    }

    /// `qemu-img create` of a qcow2 image with options.
    pub(crate) fn create(&self, name: &str, options: &str, size: &str) {
        let file = self.file(name);
        let mut arguments = vec!["create", "-q", "-f", "qcow2", &file, size];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        qemu_img(&arguments);
    }

    fn overlay(&self, name: &str, backing: &str, size: &str) {
        let options = format!("backing_file={backing},backing_fmt=qcow2");
        let file = self.file(name);
        // The backing file's name is relative to the image.
        qemu_img(&[
            "create", "-q", "-u", "-f", "qcow2", "-o", &options, &file, size,
        ]);
    }

    pub(crate) fn write(&self, name: &str, commands: &[&str]) {
        qemu_io(&self.path().join(name), "qcow2", commands);
    }

    fn make_raw(&self) {
        let raw = File::create(self.path().join("sparse.raw")).expect("room");
        raw.set_len(10 << 20).expect("room");
        let data = random_bytes(192 << 10, 3);
        raw.write_all_at(&data, 320 << 10).expect("room");
        fs::write(self.path().join("odd.raw"), random_bytes(1001, 4)).expect("room");
        fs::write(self.path().join("empty.raw"), "").expect("room");
    }

    fn make_qcow2(&self) {
        self.create("plain.qcow2", "", "64M");
        self.write(
            "plain.qcow2",
            &[
                "write -P 1 0 200k",
                "write -P 2 1M 64k",
                "write -z 2M 128k",
                "write -c -P 5 4M 64k",
            ],
        );
        let plain = self.file("plain.qcow2");
        qemu_img(&["snapshot", "-c", "one", &plain]);
        qemu_img(&["snapshot", "-c", "a name with spaces and more", &plain]);
        qemu_img(&["bitmap", "--add", &plain, "b0"]);
        qemu_img(&["bitmap", "--add", "-g", "128k", &plain, "second"]);
        qemu_img(&["bitmap", "--disable", &plain, "second"]);
        self.overlay("top.qcow2", "plain.qcow2", "65M");
        self.write("top.qcow2", &["write -P 1 3M 1M", "write -z 0 64k"]);
        qemu_img(&["snapshot", "-c", "s", &self.file("top.qcow2")]);
        self.overlay("long.qcow2", "./top.qcow2", "3M");
        self.write("long.qcow2", &["write -P 7 1M 4k"]);
        let raw = self.file("data.raw");
        self.create("data.qcow2", &format!("data_file={raw}"), "16M");
        self.write("data.qcow2", &["write -P 1 3M 1M", "write -P 2 9M 64k"]);
        self.create(
            "extended.qcow2",
            "extended_l2=on,compression_type=zstd",
            "16M",
        );
        let commands = [
            "write -P 1 3M 3k",
            "write -z 5M 3M",
            "write -P 2 7M 2k",
            "write -c -P 4 9M 64k",
        ];
        self.write("extended.qcow2", &commands);
        self.create("old.qcow2", "compat=0.10", "16M");
        self.write("old.qcow2", &["write -P 1 3M 3k", "write -P 2 7M 2k"]);
        self.create("prealloc.qcow2", "preallocation=metadata", "16M");
        self.write("prealloc.qcow2", &["write -P 1 3M 3k"]);
        self.create(
            "wide.qcow2",
            "lazy_refcounts=on,refcount_bits=64,cluster_size=4k",
            "1500000000000",
        );
        self.write("wide.qcow2", &["write -P 1 1T 3M", "write -P 1 3M 3k"]);
        for (name, flag) in [("dirty.qcow2", 1), ("corrupt.qcow2", 2)] {
            fs::copy(self.path().join("plain.qcow2"), self.path().join(name)).expect("room");
            self.patch(name, 79, &[flag]);
        }
        self.create("\u{e9}\u{20ac}.qcow2", "", "1M");
        fs::create_dir(self.path().join("sub")).expect("room");
        self.overlay("sub/below.qcow2", "../plain.qcow2", "64M");
    }

    /// Changes bytes of an image.
    pub(crate) fn patch(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.path().join(name));
        file.expect("there")
            .write_all_at(bytes, offset)
            .expect("room");
    }

    /// Waits until each file's space is counted.
    pub(crate) fn settle(&self) {
        for directory in [self.path().to_owned(), self.path().join("sub")] {
            for entry in fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_file() {
                    File::open(path).expect("there").sync_all().expect("synced");
                }
            }
        }
    }

    /// The bytes of an image, served by qemu-nbd; and the directory that its socket is in.
    pub(crate) fn serve(&self, name: &str) -> (Peer, TempDir) {
        let socket = tempfile::tempdir().expect("a directory");
        let image = self.path().join(name);
        (
            Peer::qemu_nbd(socket.path(), "raw", &image, &["-r"]),
            socket,
        )
    }

    /// Fails unless qemu-img and ours print the same for these arguments between spaces and `last`, and end with the
    /// same exit code. Gives that and what was printed.
    #[track_caller]
    pub(crate) fn alike(&self, arguments: &str, last: &str) -> (i32, String) {
        let [theirs, ours] = BOTH.map(|who| {
            let mut arguments = words(arguments);
            arguments.extend((!last.is_empty()).then_some(last));
            let mut command = who.tool("qemu-img", arguments);
            command.current_dir(self.path());
            command.env("BLOCKFERRY_ALLOW_BACKING", self.path());
            run(&mut command)
        });
        assert_eq!(
            ours.text(),
            theirs.text(),
            "{arguments} {last}: {}",
            ours.stderr
        );
        assert_eq!(
            ours.code, theirs.code,
            "{arguments} {last}: {} | {}",
            ours.stderr, theirs.stderr
        );
        assert_eq!(
            ours.stderr.is_empty(),
            theirs.stderr.is_empty(),
            "{arguments} {last}: {} | {}",
            ours.stderr,
            theirs.stderr
        );
        (ours.code, ours.text().to_owned())
    }
}
