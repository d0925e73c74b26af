//! VHDX images through the real binary: copied, compared, mapped and served as their disks, and never changed.

#[allow(dead_code, reason = "the tests of the format take more of it")]
#[path = "../../crates/format/tests/vhdx/images.rs"]
mod images;
#[path = "../../crates/format/tests/vhdx/lies.rs"]
mod lies;

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::tempdir;

use crate::support::{
    Served, blockferry,
    qemu::{self, qemu_img, qemu_io, text},
    run,
    run::{Outcome, tool},
    sparse_image,
};
use images::{BAT, Content, DATA_WRITE, Header, ImageBuilder, LogEntry, METADATA, MIB, Write};
use lies::{Found, lies};

/// How much memory a program may ask for, in KiB: far less than absurd tables would want.
const MEMORY: &str = "1048576";

fn ours(arguments: &[&str]) -> String {
    run(&mut blockferry(arguments)).success().text().to_owned()
}

/// Runs the program with little memory.
fn bounded(words: &[&str]) -> Outcome {
    let script = format!("ulimit -v {MEMORY}; exec \"$0\" \"$@\"");
    let program = blockferry([] as [&str; 0]);
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(program.get_program());
    run(command.args(words).stdin(Stdio::null()))
}

#[test]
fn an_image_is_copied_compared_mapped_and_served_as_its_disk() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, image, copy, socket) = (path("raw"), path("image"), path("copy"), path("socket"));
    qemu_img(&["create", "-q", "-f", "raw", text(&raw), "20M"]);
    qemu_io(&raw, "raw", &["write -P 7 64k 300k", "write -P 9 13M 2M"]);
    for options in ["block_size=1M", "subformat=fixed,block_size=2M"] {
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "vhdx",
            "-o",
            options,
            text(&raw),
            text(&image),
        ]);
        let before = fs::read(&image).expect("an image");
        let _ = fs::remove_file(&copy);
        ours(&["copy", "-q", text(&image), text(&copy)]);
        qemu::assert_identical((&raw, "raw"), (&copy, "raw"));
        ours(&["compare", "-s", text(&raw), text(&image)]);
        // The holes of what was allocated in advance are known as well.
        let map: Value =
            serde_json::from_str(&ours(&["map", "--json", text(&image)])).expect("JSON");
        let extents = map.as_array().expect("a list");
        let data = extents.iter().filter(|extent| extent["type"] == 0);
        let data: u64 = data
            .map(|extent| extent["length"].as_u64().expect("a number"))
            .sum();
        assert!(data <= 5 << 20, "{options}: {map}");
        let server = Served::at(&socket, &["--read-only", text(&image)]);
        let uri = server.uri();
        tool(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", text(&raw), &uri],
        );
        server.terminate().success();
        assert!(
            fs::read(&image).expect("an image") == before,
            "reading changed it"
        );
    }
}

#[test]
fn an_image_is_made_that_qemu_reads() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    sparse_image(&path("raw"), (40 << 20) + 512);
    for options in [
        "subformat=dynamic",
        "subformat=fixed",
        "block_state_zero=off",
        "block_size=1M,log_size=2M",
    ] {
        let copy = ["copy", "-q", "-O", "vhdx", "-o", options];
        let (raw, image) = (path("raw"), path("image"));
        run(&mut blockferry(
            copy.into_iter().chain([text(&raw), text(&image)]),
        ))
        .success();
        tool("qemu-img", &["check", "-f", "vhdx", text(&image)]);
        let compare = ["compare", "-f", "raw", "-F", "vhdx"];
        tool(
            "qemu-img",
            &[&compare[..], &[text(&raw), text(&image)]].concat(),
        );
        // It can be written by others, too.
        let write = ["-f", "vhdx", "-c", "write -P 7 1M 1M", text(&image)];
        tool("qemu-io", &write);
        let written = path("written");
        let back = ["copy", "-q", "-f", "vhdx", text(&image), text(&written)];
        run(&mut blockferry(back)).success();
        let bytes = fs::read(&written).expect("read");
        assert_eq!(bytes.len(), (40 << 20) + 512, "{options}");
        assert!(bytes[1 << 20..2 << 20].iter().all(|byte| *byte == 7));
        fs::remove_file(&written).expect("removed");
    }
}

#[test]
fn an_image_that_was_not_closed_is_read_with_its_log_and_stays_as_it_is() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (image, raw) = (path("image"), path("raw"));
    let builder = ImageBuilder::new(4 << 20).with(1, Content::Data(vec![0x55; MIB]));
    let mut bytes = builder.build();
    let place = builder.bat();
    let page = bytes[place..place + 4096].to_vec();
    bytes[place..place + 4096].fill(0);
    let end = bytes.len() as u64;
    let entry = LogEntry::new(3, 0, end, vec![Write::Page(place as u64, page)]);
    images::write_log(&mut bytes, MIB, 0, &[entry]);
    fs::write(&image, &bytes).expect("written");
    let mut permissions = fs::metadata(&image).expect("a file").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&image, permissions).expect("allowed");
    ours(&["copy", "-q", text(&image), text(&raw)]);
    let copied = fs::read(&raw).expect("copied");
    assert!(copied[..MIB].iter().all(|byte| *byte == 0));
    assert!(copied[MIB..2 * MIB] == vec![0x55; MIB]);
    assert!(
        fs::read(&image).expect("an image") == bytes,
        "reading changed it"
    );
    ours(&["info", text(&image)]);
    ours(&["compare", text(&image), text(&raw)]);
    assert!(
        fs::read(&image).expect("an image") == bytes,
        "reading changed it"
    );
}

#[test]
fn a_parent_is_read_where_that_is_allowed() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    fs::create_dir(path("base")).expect("a directory");
    let parent = ImageBuilder::new(3 << 20).with(0, Content::Data(vec![1; MIB]));
    let parent = parent.with(1, Content::Data(vec![2; MIB]));
    fs::write(path("base/parent.vhdx"), parent.build()).expect("written");
    let child = ImageBuilder::new(3 << 20).child_of(DATA_WRITE, "./base/parent.vhdx");
    let child = child.with(1, Content::Partly(vec![3; MIB], |sector| sector < 10));
    fs::write(path("child"), child.build()).expect("written");
    let (child, raw) = (path("child"), path("raw"));
    let refused = run(&mut blockferry(["copy", "-q", text(&child), text(&raw)]));
    refused.failure(1, &["base/parent.vhdx", "--allow-backing"]);
    let allow = ["--allow-backing", text(room.path())];
    ours(&[&["copy", "-q"], &allow[..], &[text(&child), text(&raw)]].concat());
    let copied = fs::read(&raw).expect("copied");
    let mut expected = vec![1; MIB];
    expected.extend(vec![3; 5120]);
    expected.extend(vec![2; MIB - 5120]);
    expected.extend(vec![0; MIB]);
    assert!(copied == expected);
    // A parent that somebody wrote to is another one.
    let mut parent = fs::read(path("base/parent.vhdx")).expect("read");
    let mut header = Header::sound(MIB);
    header.data_write.0[0] ^= 1;
    header.write(&mut parent, 0, 99);
    fs::write(path("base/parent.vhdx"), parent).expect("written");
    let words = [&["copy", "-q"], &allow[..], &[text(&child), text(&raw)]].concat();
    run(&mut blockferry(words)).failure(1, &["was changed since"]);
}

#[test]
fn lies_end_in_one_line_and_leave_nothing() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (image, copy) = (path("image"), path("copy"));
    for lie in lies() {
        fs::write(&image, &lie.image).expect("written");
        let outcome = bounded(&["copy", "-q", "-f", "vhdx", text(&image), text(&copy)]);
        let (name, said) = (lie.name, &outcome.stderr);
        if lie.found == Found::Nowhere {
            assert_eq!(outcome.code, 0, "{name}: {said}");
            fs::remove_file(&copy).expect("copied");
            continue;
        }
        assert_eq!(outcome.code, 1, "{name}: {said}");
        assert!(!copy.exists(), "{name}");
        let (_, why) = lie.error.split_once(": ").expect("what was done, and why");
        let names_a_file = why.contains("nobody allowed");
        let first = said.lines().next().unwrap_or_default();
        assert!(first.ends_with(why) || names_a_file, "{name}: {said}");
        assert!(
            !said.contains(|c: char| c.is_control() && c != '\n'),
            "{name}: {said}"
        );
    }
}

/// A sparse file with the largest disk that there is, in the smallest blocks: its table has 513 MiB. Its log has 4 GiB.
fn huge(path: &Path) {
    let log = 0xfff0_0000_usize;
    let builder = ImageBuilder::new(1 << 20);
    let mut head = builder.build();
    head.truncate(builder.bat());
    let metadata = 2 * MIB;
    let bat = 4 * MIB;
    let length = 513 * MIB;
    images::write_regions(
        &mut head,
        &[(BAT, bat, length, 1), (METADATA, metadata, MIB, 1)],
    );
    let size = metadata + (64 << 10) + 8;
    head[size..size + 8].copy_from_slice(&u64::to_le_bytes(64 << 40));
    let mut header = Header::sound(log);
    header.log = images::LOG_GUID;
    header.log_place = ((bat + length) as u64, log as u32);
    // The first header is the current one, and then the other one is.
    header.write(&mut head, 0, 1);
    header.log = images::Guid::ZERO;
    header.write(&mut head, 1, 2);
    // Metadata that lie where the log would have been.
    head.copy_within(2 * MIB..3 * MIB, metadata);
    let file = fs::File::create(path).expect("created");
    file.write_all_at(&head, 0).expect("written");
    file.set_len((bat + length + log) as u64).expect("sparse");
}

#[test]
fn tables_of_any_length_take_little_memory() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let image = path("image");
    huge(&image);
    bounded(&["info", text(&image)]).success();
    let map = bounded(&["map", "--totals", text(&image)]).success();
    assert!(map.text().contains("70368744177664"), "{}", map.text());
    // And with a log of 4 GiB that has nothing in it.
    let file = fs::OpenOptions::new().write(true).open(&image);
    let file = file.expect("an image");
    file.write_all_at(&[0; 4096], 128 << 10).expect("written");
    let outcome = bounded(&["info", text(&image)]);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    let said = "it was not closed, and its log has nothing that could be replayed";
    assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
}
