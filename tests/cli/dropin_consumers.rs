//! Command lines that well-known programs run, beside the real tools: virtual machine managers, importers, backup
//! programs. Each is what its program calls, and what it reads of the answer.

use std::{fs, path::PathBuf, process::Command};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome,
    dropin::{BOTH, Who, words},
    qemu::{qemu_img, qemu_io, text},
    run, sparse_image,
};

/// A directory in which there are `base.raw`, `base.qcow2` and the overlay `top.qcow2`.
struct Room(TempDir);

impl Room {
    fn new() -> Self {
        let room = Self(tempdir().expect("a directory"));
        let path = |name: &str| room.path(name);
        sparse_image(&path("base.raw"), 8 << 20);
        let convert = ["convert", "-f", "raw", "-O", "qcow2"];
        let (raw, base) = (path("base.raw"), path("base.qcow2"));
        qemu_img(&[&convert[..], &[text(&raw), text(&base)]].concat());
        let top = path("top.qcow2");
        let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
        qemu_img(&[&create[..], &["base.qcow2", text(&top)]].concat());
        qemu_io(&top, "qcow2", &["write -P 5 1M 128k", "write -z 3M 64k"]);
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What `tool` answers in this directory.
    fn call<'a>(
        &self,
        who: Who,
        tool: &str,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Outcome {
        let mut command = who.tool(tool, arguments);
        command.current_dir(self.0.path());
        command.env("BLOCKFERRY_ALLOW_BACKING", self.0.path());
        run(&mut command)
    }

    /// Fails unless both answer the same.
    #[track_caller]
    fn assert_alike(&self, tool: &str, arguments: &[&str]) {
        let [theirs, ours] = BOTH.map(|who| self.call(who, tool, arguments.iter().copied()));
        assert_eq!(ours.code, theirs.code, "{arguments:?}: {}", ours.stderr);
        assert_eq!(ours.text(), theirs.text(), "{arguments:?}");
    }
}

/// The image `name` without its backing file, as oVirt describes it for one volume of a chain.
fn alone(name: &str) -> String {
    format!(
        r#"json:{{"driver": "qcow2", "file": {{"driver": "file", "filename": "{name}"}}, "backing": null}}"#
    )
}

#[test]
fn one_volume_of_a_chain_is_read_without_what_is_behind_it() {
    let room = Room::new();
    let image = alone("top.qcow2");
    for arguments in ["map --output json", "measure --output json -O qcow2", "map"] {
        let arguments = [&words(arguments)[..], &[&image]].concat();
        room.assert_alike("qemu-img", &arguments);
    }
    let both = BOTH.map(|who| {
        let copy = format!("{who:?}.raw");
        let words = ["convert", "-O", "raw", &image, &copy];
        room.call(who, "qemu-img", words).success();
        fs::read(room.path(&copy)).expect("a copy")
    });
    assert!(both[0] == both[1]);
    assert!(
        both[1][1 << 20..(1 << 20) + (128 << 10)]
            .iter()
            .all(|byte| *byte == 5)
    );
    let single = image.replace('"', "'");
    room.assert_alike("qemu-img", &["map", "--output", "json", &single]);
    let opts = "driver=qcow2,backing=,file.driver=file,file.filename=top.qcow2";
    room.assert_alike("qemu-img", &["map", "--output=json", "--image-opts", opts]);
}

#[test]
fn one_volume_of_a_chain_is_served_without_what_is_behind_it() {
    let room = Room::new();
    let maps = BOTH.map(|who| {
        let socket = room.path(&format!("{who:?}.sock"));
        let socket = text(&socket);
        let image = alone(text(&room.path("top.qcow2")));
        let mut command = who.tool(
            "qemu-nbd",
            [
                "--export-name=",
                "--persistent",
                "--shared=8",
                "--read-only",
                "--cache=none",
                "--aio=native",
                "--discard=unmap",
                "--fork",
                &format!("--socket={socket}"),
                &format!("--pid-file={socket}.pid"),
                &image,
            ],
        );
        run(&mut command).success();
        let map = format!("nbdinfo --map 'nbd+unix:///?socket={socket}'");
        let map = run(Command::new("sh").args(["-c", &map]));
        let pid = fs::read_to_string(format!("{socket}.pid")).expect("a number");
        run(Command::new("kill").arg(pid.trim())).success();
        map.success().text().to_owned()
    });
    assert_eq!(maps[1], maps[0]);
}

#[test]
fn an_image_is_looked_at_in_a_gibibyte_of_addresses() {
    let room = Room::new();
    for arguments in [
        "info --output=json base.qcow2",
        "info -U --output json ./top.qcow2",
        "info --output=json base.raw",
        "check --output json -f qcow2 base.qcow2",
    ] {
        let script = format!("ulimit -v 1048576; ulimit -t 10; exec qemu-img {arguments}");
        let link = Who::Ours.path("qemu-img", &room.path(""));
        let directory = link.parent().expect("a directory").to_owned();
        let path = std::env::var("PATH").expect("a path");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(room.path(""));
        command.env("PATH", format!("{}:{path}", directory.display()));
        let bounded = run(&mut command).success();
        let theirs = room.call(Who::Theirs, "qemu-img", words(arguments));
        assert_eq!(bounded.text(), theirs.text(), "{arguments}");
    }
}

#[test]
fn a_disk_is_served_for_an_offline_backup() {
    let room = Room::new();
    let maps = BOTH.map(|who| {
        let socket = room.path(&format!("{who:?}.sock"));
        let socket = text(&socket);
        let image = room.path("base.qcow2");
        let pid = format!("--pid-file={socket}.pid");
        // As virtnbdbackup calls it, with an option and its argument in one word.
        let arguments = [
            "-r",
            "--format=qcow2",
            "-x",
            "sda",
            text(&image),
            "-k",
            socket,
            "-t",
            "-e 2",
            "--fork",
            "--detect-zeroes=on",
            &pid,
            "--",
        ];
        room.call(who, "qemu-nbd", arguments).success();
        let map = format!("nbdinfo --json --map 'nbd+unix:///sda?socket={socket}'");
        let map = run(Command::new("sh").args(["-c", &map]));
        let pid = fs::read_to_string(format!("{socket}.pid")).expect("a number");
        run(Command::new("kill").arg(pid.trim())).success();
        map.success().text().to_owned()
    });
    assert_eq!(maps[1], maps[0]);
}

#[test]
fn images_are_imported_as_kubevirt_openstack_and_ovirt_import_them() {
    let room = Room::new();
    let json = format!(
        r#"json: {{"file.driver": "file", "file.filename": "{}"}}"#,
        text(&room.path("base.qcow2"))
    );
    for (arguments, target) in [
        (
            "convert -t none -p -O raw base.qcow2 OUT -o preallocation=falloc",
            "raw",
        ),
        ("convert -t writeback -p -O raw -S 0 base.qcow2 OUT", "raw"),
        ("convert -O raw -f qcow2 -t none -W base.qcow2 OUT", "raw"),
        (
            "convert -p -t none -T none -f qcow2 top.qcow2 -O qcow2 -o compat=1.1 OUT",
            "qcow2",
        ),
        (
            "convert -p -t none -T none -f qcow2 -O qcow2 -o compat=0.10 base.qcow2 OUT",
            "qcow2",
        ),
        (
            "convert -p -t none -T none -f qcow2 -O qcow2 \
             -o compat=1.1,backing_file=base.qcow2,backing_fmt=qcow2 top.qcow2 OUT",
            "qcow2",
        ),
        (
            "convert -O qcow2 -B base.qcow2 -o backing_fmt=qcow2 top.qcow2 OUT",
            "qcow2",
        ),
        ("convert -c -f raw -O qcow2 base.raw OUT", "qcow2"),
        (
            "convert -f raw -O vpc -o subformat=fixed,force_size base.raw OUT",
            "vpc",
        ),
        (
            "convert -f raw -O vmdk -o adapter_type=lsilogic,subformat=streamOptimized base.raw OUT",
            "vmdk",
        ),
        (
            "convert -f raw -O vhdx -o subformat=dynamic base.raw OUT",
            "vhdx",
        ),
        ("convert -O vdi base.raw OUT", "vdi"),
        ("convert -O raw JSON OUT", "raw"),
    ] {
        let read = BOTH.map(|who| {
            let out = format!("{who:?}.{target}");
            let called: Vec<_> = arguments
                .split_whitespace()
                .map(|word| match word {
                    "OUT" => out.as_str(),
                    "JSON" => json.as_str(),
                    word => word,
                })
                .collect();
            room.call(who, "qemu-img", called).success();
            let back = format!("{who:?}.back");
            let convert = ["convert", "-f", target, "-O", "raw", &out, &back];
            room.call(Who::Theirs, "qemu-img", convert).success();
            let bytes = fs::read(room.path(&back)).expect("a copy");
            fs::remove_file(room.path(&out)).expect("removed");
            bytes
        });
        assert!(read[0] == read[1], "{arguments}");
    }
}

#[test]
fn overlays_are_made_as_openstack_and_libguestfs_make_them() {
    let room = Room::new();
    for arguments in [
        "create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2,cluster_size=65536,size=9000000 NEW",
        "create -f qcow2 -o preallocation=off,backing_file=base.raw,backing_fmt=raw,compat=1.1 NEW",
        "create -f qcow2 -o preallocation=off NEW 1073741824",
        "create -f raw NEW 1048576 -o preallocation=falloc",
        "create -f qcow2 -b base.qcow2 -F qcow2 -u NEW 10G",
        "create -f qcow2 -o nocow=on,extent_size_hint=1M NEW 1M",
        "create -f qcow2 NEW 1048576.0b",
        "create NEW 0x100000",
        "create -f qcow2 -o cluster_size=0x10000 NEW 0x40000000",
    ] {
        let answers = BOTH.map(|who| {
            let call = arguments.replace("NEW", "new");
            let created = room.call(who, "qemu-img", words(&call)).success();
            let info = room
                .call(Who::Theirs, "qemu-img", ["info", "new"])
                .success();
            fs::remove_file(room.path("new")).expect("removed");
            let info = info.text().lines();
            let info =
                info.filter(|line| !line.contains("disk size") && !line.contains("file length"));
            let info: Vec<_> = info.map(str::to_owned).collect();
            (created.text().to_owned(), info)
        });
        assert_eq!(answers[1].1, answers[0].1, "{arguments}");
        assert_eq!(answers[1].0, answers[0].0, "{arguments}");
    }
}

#[test]
fn a_write_reaches_the_image_through_the_description_that_a_manager_gives() {
    let room = Room::new();
    let target = room.path("target.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&target), "8M"]);
    let opts = format!(
        "driver=qcow2,discard-no-unref=true,file.driver=file,file.filename={}",
        text(&target)
    );
    let convert = [
        "convert",
        "-p",
        "-n",
        "-f",
        "raw",
        "--target-image-opts",
        "base.raw",
        &opts,
    ];
    room.call(Who::Ours, "qemu-img", convert).success();
    let compare = [
        "compare",
        "-f",
        "raw",
        "-F",
        "qcow2",
        "base.raw",
        "target.qcow2",
    ];
    room.call(Who::Theirs, "qemu-img", compare).success();
}
