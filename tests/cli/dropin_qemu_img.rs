//! Under the name qemu-img the program speaks its command line: each command beside the real tool, in directories of
//! their own that look alike.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome, assert_same,
    dropin::{BOTH, Who, words},
    images::random_bytes,
    qemu::{assert_identical, check, qemu_img, text},
    run,
    run::tool,
    sparse_image,
};

/// Two directories that look alike, for theirs and ours.
pub(crate) struct Twins([TempDir; 2]);

impl Twins {
    /// Each has `disk`, a sparse raw image of 6 MiB, and what `prepare` puts there.
    pub(crate) fn new(prepare: impl Fn(&Path)) -> Self {
        Self([(); 2].map(|()| {
            let dir = tempdir().expect("a directory");
            sparse_image(&dir.path().join("disk"), 6 << 20);
            prepare(dir.path());
            dir
        }))
    }

    pub(crate) fn path(&self, who: Who, name: &str) -> PathBuf {
        self.0[usize::from(who == Who::Ours)].path().join(name)
    }

    /// Removes what may be there.
    pub(crate) fn remove(&self, name: &str) {
        for who in BOTH {
            let _ = fs::remove_file(self.path(who, name));
        }
    }

    /// `qemu-img` with `arguments`, in the directory of whoever it is.
    pub(crate) fn command(&self, who: Who, arguments: &[&str]) -> Command {
        let mut command = who.tool("qemu-img", arguments);
        command.current_dir(self.path(who, ""));
        command
    }

    /// What both do with `arguments`, apart at spaces.
    pub(crate) fn run(&self, arguments: &str) -> [Outcome; 2] {
        BOTH.map(|who| run(&mut self.command(who, &words(arguments))))
    }

    /// The same, which must end alike and print the same.
    #[track_caller]
    pub(crate) fn alike(&self, arguments: &str) -> [Outcome; 2] {
        let [theirs, ours] = self.run(arguments);
        let shown = format!("{arguments}: theirs {theirs:?}, ours {ours:?}");
        assert_eq!(ours.code, theirs.code, "{shown}");
        assert!(ours.stdout == theirs.stdout, "{shown}");
        [theirs, ours]
    }

    /// The same, with the same messages.
    #[track_caller]
    pub(crate) fn same(&self, arguments: &str) {
        let [theirs, ours] = self.alike(arguments);
        assert_eq!(ours.stderr, theirs.stderr, "{arguments}");
    }
}

/// An image `name` in a format, of `disk`.
pub(crate) fn converted(dir: &Path, name: &str, format: &str) {
    let (from, to) = (dir.join("disk"), dir.join(name));
    qemu_img(&["convert", "-f", "raw", "-O", format, text(&from), text(&to)]);
}

#[test]
fn without_a_command_it_says_what_is_wrong() {
    let twins = Twins::new(|_| ());
    for arguments in [
        "",
        "foo",
        "-x",
        "--trace",
        "convert",
        "convert a",
        "convert -Q a b",
        "compare",
        "compare a",
        "compare a b c",
        "compare -Q",
        "create",
        "create a",
        "create a 1M 2M",
        "create -f bogus a 1M",
        "create a 1x",
        "dd",
        "dd if=a",
        "dd of=a",
        "dd seek=1 if=a of=b",
        "dd conv=notrunc if=a of=b",
        "dd bs=0 if=a of=b",
        "dd bs=3G if=a of=b",
        "dd bs=x if=a of=b",
        "dd count=-1 if=a of=b",
        "dd -n if=a of=b",
        "resize",
        "resize a",
        "resize a 1M 2M",
    ] {
        twins.same(arguments);
    }
}

#[test]
fn scripts_find_the_version_and_the_commands() {
    let ours = |arguments: &str| run(&mut Who::Ours.tool("qemu-img", words(arguments))).success();
    for flag in ["--version", "-V"] {
        let said = ours(flag);
        assert!(
            said.text()
                .starts_with("qemu-img version 10.0.2 (blockferry "),
            "{}",
            said.text()
        );
    }
    // As libguestfs and others look for what there is.
    let help = ours("--help");
    for line in [
        "qemu-img version 10.0.2",
        "  convert - ",
        "  info - ",
        "Supported image formats:",
        "qcow2",
    ] {
        assert!(help.text().contains(line), "{line}: {}", help.text());
    }
    for command in [
        "amend", "bitmap", "convert", "commit", "compare", "create", "dd", "rebase", "resize",
        "map",
    ] {
        for flag in ["--help", "-h"] {
            let help = ours(&format!("{command} {flag}"));
            assert!(help.text().contains(&format!("qemu-img {command}")));
        }
    }
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    for command in ["bench"] {
        // Scripts ask for help to find out what there is.
        for arguments in ["disk", "--help"] {
            let arguments = format!("{command} {arguments}");
            let refused = run(&mut Who::Ours.tool("qemu-img", words(&arguments)));
            refused.failure(1, &["qemu-img: ", command, "use QEMU's own qemu-img"]);
        }
    }
    let trace = run(&mut Who::Ours.tool("qemu-img", ["-T", "x", "info", "a"]));
    trace.failure(1, &["--trace"]);
}

#[test]
fn names_that_cannot_be_opened_are_told_in_the_same_words() {
    let twins = Twins::new(|_| ());
    for name in [
        "nofile",
        "./no:file",
        "json:{}",
        "json:[]",
        "nbd:foo",
        "nbd:unix:/nosock:exportname=x",
    ] {
        let [theirs, ours] = twins.alike(&format!("convert {name} copy"));
        let same = match name {
            "nbd:unix:/nosock:exportname=x" => "No such file or directory",
            _ => theirs.stderr.trim_end(),
        };
        assert!(ours.stderr.contains(same), "{name}: {}", ours.stderr);
        assert!(ours.stderr.contains(&format!("Could not open '{name}': ")));
        assert!(!twins.path(Who::Ours, "copy").exists());
    }
    for (options, words) in [
        ("x", "Cannot find device='x' nor node-name='x'"),
        ("filename=disk", "Must specify either driver or file"),
        (
            "driver=qcow2,filename=disk",
            "A block device must be specified for \"file\"",
        ),
        (
            "driver=raw,file.filename=disk,bogus=1",
            "does not support the option 'bogus'",
        ),
        ("driver=bogus,file.filename=disk", "Unknown driver 'bogus'"),
        ("driver=nbd", "NBD server address missing"),
    ] {
        for outcome in twins.alike(&format!("convert --image-opts {options} copy")) {
            assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
        }
    }
}

#[test]
fn a_name_with_a_colon_is_a_protocol() {
    let twins = Twins::new(|dir| {
        fs::copy(dir.join("disk"), dir.join("x:y"))
            .map(drop)
            .expect("room");
    });
    for outcome in twins.alike("convert x:y copy") {
        assert!(outcome.stderr.contains("Unknown protocol 'x'"));
    }
    for name in ["./x:y", "file:x:y"] {
        twins.same(&format!("compare disk {name}"));
    }
    // What stands for an image elsewhere in this program is a file's name here, or nothing.
    for name in ["sample:1M", "memory:1M", "null:"] {
        twins.alike(&format!("convert {name} copy"));
    }
}

#[test]
fn comparisons_print_and_end_alike() {
    let twins = Twins::new(|dir| {
        converted(dir, "same.qcow2", "qcow2");
        let mut bytes = fs::read(dir.join("disk")).expect("there");
        bytes.extend(vec![0; 1 << 20]);
        fs::write(dir.join("longer"), &bytes).expect("room");
        bytes[5 << 20] ^= 1;
        fs::write(dir.join("other"), &bytes).expect("room");
    });
    for arguments in [
        "disk disk",
        "disk same.qcow2",
        "-f raw -F qcow2 disk same.qcow2",
        "disk longer",
        "-s disk longer",
        "disk other",
        "-s disk other",
        "longer other",
        "-q disk other",
        "-q disk longer",
        "-q -s disk longer",
        "-U -T none disk other",
        "--image-opts driver=raw,file.filename=disk driver=qcow2,file.filename=same.qcow2",
        "--image-opts driver=raw,offset=1M,file.filename=disk driver=raw,file.filename=other",
        "nofile disk",
        "disk nofile",
        "-f bogus disk disk",
        "-T bogus disk disk",
        "-f raw --image-opts disk disk",
    ] {
        twins.same(&format!("compare {arguments}"));
    }
    // What is allocated counts for who is strict.
    for who in BOTH {
        let at = |name: &str| twins.path(who, name);
        fs::write(at("full"), vec![0x11; 1 << 20]).expect("room");
        fs::write(at("written"), vec![0; 1 << 20]).expect("room");
        fs::File::create(at("hole"))
            .and_then(|file| file.set_len(1 << 20))
            .expect("room");
        let mut changed = vec![0x11; 1 << 20];
        changed[300_000] = 0;
        fs::write(at("changed"), changed).expect("room");
        let convert = |from: &str, more: &[&str], to: &str| {
            let (from, to) = (at(from), at(to));
            let words = [
                "convert",
                "-f",
                "raw",
                "-O",
                "qcow2",
                text(&from),
                text(&to),
            ];
            qemu_img(&[&words[..1], more, &words[1..]].concat());
        };
        convert("disk", &[], "one.qcow2");
        convert("disk", &["-c"], "packed.qcow2");
        convert("full", &[], "full.qcow2");
        convert("changed", &[], "changed.qcow2");
        convert("hole", &[], "empty.qcow2");
        convert("hole", &["-S", "0"], "zeroes.qcow2");
    }
    for arguments in [
        "hole written",
        "hole hole",
        "full full",
        "full changed",
        "full hole",
        "full full.qcow2",
        "full.qcow2 changed.qcow2",
        "hole empty.qcow2",
        "empty.qcow2 zeroes.qcow2",
        "one.qcow2 same.qcow2",
        "disk one.qcow2",
        "one.qcow2 packed.qcow2",
        "-q one.qcow2 packed.qcow2",
        "one.qcow2 full.qcow2",
    ] {
        twins.same(&format!("compare -s {arguments}"));
    }
    // Not the words: theirs are about the format's own driver.
    twins.alike("compare -F qcow2 disk disk");
    // Sizes are whole sectors.
    for who in BOTH {
        fs::write(twins.path(who, "odd"), [0; 1000]).expect("room");
        fs::write(twins.path(who, "even"), [0; 1024]).expect("room");
    }
    twins.same("compare odd even");
    let [_, ours] = twins.run("compare -p disk disk");
    let said = ours.success();
    assert!(
        said.text().starts_with("    (0.00/100%)\r"),
        "{}",
        said.text()
    );
    assert!(
        said.text()
            .contains("    (100.00/100%)\r\nImages are identical.\n")
    );
}

/// What qemu says of a new image, but for what lies where in its file.
fn facts(image: &Path) -> serde_json::Value {
    let said = qemu_img(&["info", "--output=json", text(image)]);
    let mut facts: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let map = facts.as_object_mut().expect("an object");
    for key in [
        "actual-size",
        "children",
        "dirty-flag",
        "filename",
        "full-backing-filename",
    ] {
        map.remove(key);
    }
    facts
}

#[test]
fn new_images_are_told_of_and_made_alike() {
    let twins = Twins::new(|dir| {
        converted(dir, "base.qcow2", "qcow2");
        fs::write(dir.join("odd"), [7; 1000]).expect("room");
    });
    for arguments in [
        "new 1M",
        "new 1000",
        "-f raw new 0",
        "-f raw -o size=2M new",
        "-f raw -o preallocation=falloc new 1M",
        "-o preallocation=full new 1M",
        "new 1.5G",
        "-q new 1M",
        "-f qcow2 new 1G",
        "-f qcow2 new 1000",
        "-f qcow2 new 0",
        "-f qcow2 -o cluster_size=2M,preallocation=metadata,compat=0.10,lazy_refcounts=off new 1M",
        "-f qcow2 -o compat=v3,compression_type=zstd,extended_l2=on -o cluster_size=128k,lazy_refcounts=on new 9M",
        "-f qcow2 -o refcount_bits=8,preallocation=off,compat=1.1 new 64k",
        "-f qcow2 -o preallocation=falloc new 3M",
        "-f qcow2 -o preallocation=full new 3M",
        "-f qcow2 -o cluster_size=64K,size=3M new",
        "-f qcow2 -b base.qcow2 -F qcow2 new",
        "-f qcow2 -b base.qcow2 -F qcow2 new 9M",
        "-f qcow2 -F qcow2 -o backing_file=base.qcow2 new",
        "-f qcow2 -u -b nofile -F raw new 1M",
        "-f qcow2 -b disk -F raw -o cluster_size=4k new",
        "-f qcow2 -b odd -F raw new",
    ] {
        for name in ["new", "nofile"] {
            twins.remove(name);
        }
        let [_, ours] = twins.alike(&format!("create {arguments}"));
        ours.success();
        let images = BOTH.map(|who| twins.path(who, "new"));
        if !arguments.contains("qcow2") {
            let [theirs, ours] = images
                .each_ref()
                .map(|image| fs::metadata(image).expect("made").len());
            assert_eq!(ours, theirs, "{arguments}");
        }
        if !arguments.contains("nofile") {
            let [theirs, ours] = images.each_ref().map(|image| facts(image));
            assert_eq!(ours, theirs, "{arguments}");
        }
        if arguments.contains("qcow2") && !arguments.contains("nofile") {
            check(&images[1]);
            assert_identical((&images[0], "qcow2"), (&images[1], "qcow2"));
        }
    }
}

#[test]
fn a_new_image_that_cannot_be_made_leaves_nothing() {
    let twins = Twins::new(|dir| converted(dir, "base.qcow2", "qcow2"));
    for arguments in [
        "-f raw -o size=2M new 1M",
        "-f qcow2 -u -b base.qcow2 -F qcow2 new",
        "-b base.qcow2 -F qcow2 new",
        "-F qcow2 new 1M",
        "-f raw -o backing_file=base new 1M",
        "-f qcow2 -o bogus=1 new 1M",
        "-f qcow2 new 8E",
    ] {
        twins.same(&format!("create {arguments}"));
        assert!(!twins.path(Who::Ours, "new").exists(), "{arguments}");
    }
    // The same failures, in other words.
    for (arguments, words) in [
        (
            "-f qcow2 nodir/new 1M",
            "Could not create 'nodir/new': No such file or directory",
        ),
        (
            "-f qcow2 -b base.qcow2 new 1M",
            "Backing file specified without backing format",
        ),
        (
            "-f qcow2 -b nofile -F raw new",
            "Could not open 'nofile': No such file or directory",
        ),
        ("-f qcow2 -o cluster_size=3k new 1M", "power of two"),
        ("-f qcow2 -o encryption=on new 1M", "encrypt"),
        ("-f qcow2 -b base.qcow2 -F qcow2 base.qcow2", "backing file"),
    ] {
        let [theirs, ours] = twins.run(&format!("create {arguments}"));
        assert_eq!(ours.code, theirs.code, "{arguments}");
        assert!(ours.stderr.contains(words), "{arguments}: {}", ours.stderr);
        assert!(!twins.path(Who::Ours, "new").exists(), "{arguments}");
    }
    check(&twins.path(Who::Ours, "base.qcow2"));
    let luks = run(&mut Who::Ours.tool("qemu-img", words("create -f luks new 1M")));
    luks.failure(1, &["images in the format luks are not made by blockferry"]);
}

#[test]
fn the_options_of_formats_are_listed_as_scripts_look_for_them() {
    for arguments in [
        "create -f FMT -o help",
        "create -f FMT -o ? x",
        "convert -O FMT -o help",
    ] {
        for (format, option) in [
            ("qcow2", "\n  lazy_refcounts=<bool (on/off)> - "),
            ("qcow2", "\n  compat=<str>           - "),
            ("qcow2", "\n  preallocation=<str>    - "),
            ("vmdk", "\n  subformat=<str>        - "),
            ("vpc", "\n  force_size=<bool (on/off)> - "),
            ("vdi", "\n  static=<bool (on/off)> - "),
            ("vhdx", "\n  block_size=<size>      - "),
            ("raw", "\n  size=<size>            - "),
        ] {
            let arguments = arguments.replace("FMT", format);
            let said = run(&mut Who::Ours.tool("qemu-img", words(&arguments))).success();
            assert!(said.text().contains(option), "{arguments}: {}", said.text());
        }
    }
}

#[test]
fn blocks_are_copied_alike() {
    let twins = Twins::new(|dir| {
        fs::write(dir.join("data"), random_bytes(1 << 20, 5)).expect("room");
        converted(dir, "disk.qcow2", "qcow2");
    });
    for arguments in [
        "if=data of=copy",
        "bs=4k count=3 if=data of=copy",
        "bs=4k skip=1 if=data of=copy",
        "bs=1000 count=7 if=data of=copy",
        "bs=1M skip=5 if=data of=copy",
        "bs=1M skip=1 if=data of=copy",
        "count=0 if=data of=copy",
        "bs=1k bs=2k count=1 if=data of=copy",
        "-O qcow2 bs=1M if=disk.qcow2 of=copy",
        "-f qcow2 -O raw bs=64k skip=2 if=disk.qcow2 of=copy",
        "-f raw bs=64k if=disk.qcow2 of=copy",
        "--image-opts -U if=driver=qcow2,file.filename=disk.qcow2 of=copy",
    ] {
        twins.remove("copy");
        twins.same(&format!("dd {arguments}"));
        let [theirs, ours] = BOTH.map(|who| twins.path(who, "copy"));
        let said = qemu_img(&["compare", text(&theirs), text(&ours)]);
        // Theirs are whole sectors.
        let is_odd = arguments.contains("bs=1000");
        assert!(is_odd || !said.contains("Warning"), "{arguments}: {said}");
    }
    // Theirs count the blocks that are skipped, too.
    run(&mut twins.command(Who::Ours, &words("dd bs=4k skip=1 count=3 if=data of=part"))).success();
    let part = fs::read(twins.path(Who::Ours, "part")).expect("made");
    assert!(part == random_bytes(1 << 20, 5)[4096..4 * 4096]);
    let [_, ours] = twins.run("dd if=nofile of=copy");
    ours.failure(1, &["Could not open 'nofile': No such file or directory"]);
    let [_, ours] = twins.run("dd if=data of=nodir/copy");
    ours.failure(
        1,
        &["error while creating output image: Could not create 'nodir/copy'"],
    );
}

#[test]
fn images_are_resized_alike() {
    let twins = Twins::new(|dir| {
        converted(dir, "disk.qcow2", "qcow2");
        converted(dir, "disk.vmdk", "vmdk");
        fs::write(dir.join("empty"), "").expect("room");
    });
    let size = |who, name: &str| facts(&twins.path(who, name))["virtual-size"].clone();
    for arguments in [
        "-f raw disk +1M",
        "-f raw disk -1M",
        "-f raw --shrink disk -1M",
        "-f raw disk -- -1k",
        "-f raw --shrink disk 1000",
        "-f raw --shrink disk -5M",
        "-q -f raw disk 6M",
        "-f raw disk 6M",
        "-f raw --preallocation=falloc disk 7M",
        "-f raw --preallocation=bogus disk 8M",
        "-f raw --shrink --preallocation=falloc disk 1M",
        "--image-opts driver=raw,file.filename=disk 8M",
        "-f raw --image-opts disk 1M",
        "-f raw empty 1M",
        "disk.qcow2 8M",
        "disk.qcow2 -1M",
        "--shrink disk.qcow2 -1M",
        "-f qcow2 --preallocation=metadata disk.qcow2 9M",
        "nofile 1M",
    ] {
        twins.same(&format!("resize {arguments}"));
        for name in ["disk", "disk.qcow2", "empty"] {
            assert_eq!(
                size(Who::Ours, name),
                size(Who::Theirs, name),
                "{arguments}"
            );
        }
    }
    let ours = twins.path(Who::Ours, "disk.qcow2");
    check(&ours);
    assert_identical(
        (&ours, "qcow2"),
        (&twins.path(Who::Theirs, "disk.qcow2"), "qcow2"),
    );
    for outcome in twins.alike("resize disk.vmdk 8M") {
        assert_eq!(outcome.code, 1);
    }
    // Theirs say it at more length.
    let [_, ours] = twins.alike("resize disk 9M");
    assert!(
        ours.stderr.contains("no format was given"),
        "{}",
        ours.stderr
    );
}

#[test]
fn what_begins_as_something_compressed_is_raw_to_both_whatever_its_name() {
    let twins = Twins::new(|dir| {
        for name in ["guest", "guest.gz"] {
            // Whole sectors, which both leave as they are.
            let words = format!(
                "cd '{}' && gzip -1 <disk >{name} && truncate -s %512 {name}",
                text(dir)
            );
            tool("sh", &["-c", &words]);
        }
    });
    for name in ["guest", "guest.gz"] {
        let [_, info] = twins.alike(&format!("info --output=json {name}"));
        assert!(
            info.text().contains("\"format\": \"raw\""),
            "{}",
            info.text()
        );
        twins.alike(&format!("map --output=json {name}"));
        twins.alike(&format!("compare {name} {name}"));
        twins.alike(&format!("convert -O raw {name} copy"));
        for who in BOTH {
            assert_same(&twins.path(who, name), &twins.path(who, "copy"));
        }
        twins.remove("copy");
    }
}

#[test]
fn bitmaps_of_an_image_that_is_resized_are_kept_alike() {
    let twins = Twins::new(|dir| {
        let image = dir.join("a");
        qemu_img(&["create", "-q", "-f", "qcow2", text(&image), "10M"]);
        qemu_img(&["bitmap", "--add", text(&image), "b0"]);
        qemu_img(&[
            "bitmap",
            "--add",
            "--disable",
            "-g",
            "512",
            text(&image),
            "b1",
        ]);
    });
    for words in [
        "resize a 20M",
        "resize --shrink a 3M",
        "resize --preallocation=full a +1M",
    ] {
        twins.alike(words);
        let [theirs, ours] = BOTH.map(|who| facts(&twins.path(who, "a")));
        for key in ["virtual-size", "format-specific"] {
            assert_eq!(theirs[key], ours[key], "{words}");
        }
        check(&twins.path(Who::Ours, "a"));
    }
}
