//! `compare`, with `qemu-img compare` as the oracle.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use tempfile::tempdir;

use crate::support::{
    Peer, blockferry,
    hostile::{Export, Hostile, simple_reply},
    images::random_bytes,
    random_image, run, sparse_image,
};

fn change(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.expect("the image");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("in the image");
    byte[0] ^= 0x20;
    file.write_all_at(&byte, offset).expect("writable");
}

/// The outcome of `qemu-img compare`: its exit code and what it printed.
fn oracle(a: &Path, b: &Path, strict: bool) -> (i32, String) {
    let mut command = Command::new("qemu-img");
    command.args(["compare", "-f", "raw", "-F", "raw"]);
    if strict {
        command.arg("-s");
    }
    let outcome = run(command.arg(a).arg(b));
    let text = outcome.text().to_owned();
    (outcome.code, text)
}

/// The offset in a message, rounded down to a sector as qemu-img says it.
fn by_sectors(text: &str) -> String {
    let Some((before, rest)) = text.split_once("offset ") else {
        return text.to_owned();
    };
    let (offset, after) = rest.split_once('!').expect("an exclamation mark");
    let offset: u64 = offset.parse().expect("a number");
    format!("{before}offset {}!{after}", offset / 512 * 512)
}

#[test]
fn random_pairs_are_judged_as_qemu_img_judges_them() {
    let dir = tempdir().expect("a directory");
    let (a, b) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
    let size = 9_u64 << 20;
    let random = random_bytes(400, 77);
    let numbers = random
        .as_chunks::<8>()
        .0
        .iter()
        .map(|it| u64::from_le_bytes(*it));
    let places = [None, Some(0), Some(size - 1), Some(size - 4097)]
        .into_iter()
        .chain(numbers.take(8).map(|number| Some(number % size)));
    for place in places {
        sparse_image(&a, size);
        // A copy in which holes are data.
        fs::write(&b, fs::read(&a).expect("readable")).expect("writable");
        if let Some(offset) = place {
            change(&b, offset);
        }
        let (code, text) = oracle(&a, &b, false);
        let ours = run(blockferry(["compare"]).arg(&a).arg(&b));
        assert_eq!(ours.code, code, "{place:?}: {}", ours.stderr);
        assert_eq!(by_sectors(ours.text()), text, "{place:?}");
        let exact = place.map(|offset| format!("Content mismatch at offset {offset}!\n"));
        let exact = exact.unwrap_or_else(|| "Images are identical.\n".to_owned());
        assert_eq!(ours.text(), exact);
    }
}

#[test]
fn different_sizes_are_judged_as_qemu_img_judges_them() {
    let dir = tempdir().expect("a directory");
    let (a, b) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
    random_image(&a, 1 << 20);
    for (length, place) in [
        (1_u64 << 20, None),
        (3 << 20, None),
        (3 << 20, Some((3 << 20) - 1)),
        (3 << 20, Some(1 << 20)),
        (3 << 20, Some(5)),
    ] {
        fs::copy(&a, &b).expect("copied");
        let file = OpenOptions::new().write(true).open(&b).expect("there");
        file.set_len(length).expect("resized");
        if let Some(offset) = place {
            change(&b, offset);
        }
        for strict in [false, true] {
            // Its strict mode looks at the allocation of equally long images, too.
            if strict && length == 1 << 20 {
                continue;
            }
            for (one, other) in [(&a, &b), (&b, &a)] {
                let (code, text) = oracle(one, other, strict);
                let flag = if strict {
                    "--strict"
                } else {
                    "--connections=4"
                };
                let ours = run(blockferry(["compare", flag]).arg(one).arg(other));
                assert_eq!(ours.code, code, "{length} {place:?}: {}", ours.stderr);
                assert_eq!(by_sectors(ours.text()), text, "{length} {place:?}");
            }
        }
    }
}

#[test]
fn an_odd_tail_behind_the_shorter_image_is_looked_at_to_its_last_byte() {
    let dir = tempdir().expect("a directory");
    let (a, b) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
    fs::write(&a, random_bytes(1000, 3)).expect("written");
    let mut longer = random_bytes(1000, 3);
    longer.resize(5001, 0);
    fs::write(&b, &longer).expect("written");
    run(blockferry(["compare"]).arg(&a).arg(&b)).success();
    longer[5000] = 1;
    fs::write(&b, &longer).expect("written");
    let outcome = run(blockferry(["compare", "--json"]).arg(&a).arg(&b));
    assert_eq!(outcome.code, 1);
    let found: serde_json::Value = serde_json::from_str(outcome.text()).expect("JSON");
    assert_eq!(found["first-difference"], 5000);
    assert_eq!(found["sizes"], serde_json::json!([1000, 5001]));
}

#[test]
fn exports_of_other_servers_are_compared_with_files() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 40 << 20);
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    fs::create_dir(&one).expect("made");
    fs::create_dir(&two).expect("made");
    let qcow2 = dir.path().join("image.qcow2");
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    run(Command::new("qemu-img")
        .args(convert)
        .arg(&image)
        .arg(&qcow2))
    .success();
    let qemu = Peer::qemu_nbd(&one, "qcow2", &qcow2, &["-r"]);
    let other = dir.path().join("other.raw");
    fs::copy(&image, &other).expect("copied");
    change(&other, 33 << 20);
    let kit = Peer::nbdkit(&two, &["file", &format!("file={}", other.display())]);

    run(blockferry(["compare", &qemu.uri()]).arg(&image)).success();
    run(blockferry(["compare"]).arg(&image).arg(qemu.uri())).success();
    let outcome = run(&mut blockferry(["compare", &kit.uri(), &qemu.uri()]));
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    let expected = format!("Content mismatch at offset {}!\n", 33 << 20);
    assert_eq!(outcome.text(), expected);
}

#[test]
fn servers_are_started_for_both_sides() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 300_000);
    let command = ["[", "nbdkit", "file"];
    let file = format!("file={}", image.display());
    let outcome = run(blockferry(["compare"])
        .args(command)
        .args([&file, "]"])
        .args(command)
        .args([&file, "]"]));
    assert_eq!(outcome.success().text(), "Images are identical.\n");
}

#[test]
fn what_cannot_be_read_is_never_called_a_difference() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 1 << 20);
    run(blockferry(["compare", "/nonexistent.raw"]).arg(&image)).failure(2, &["/nonexistent.raw"]);
    run(blockferry(["compare", "-"]).arg(&image)).failure(2, &["stream"]);
    let failing = Hostile::serving(dir.path(), Export::default(), |stream, request| {
        std::io::Write::write_all(stream, &simple_reply(request.cookie, 5, &[]))
    });
    run(blockferry(["compare"]).arg(&image).arg(failing.uri()))
        .failure(2, &["read", &failing.uri()]);
    drop(failing);
    fs::remove_file(dir.path().join("hostile.sock")).expect("there");
    let dying = Hostile::serving(dir.path(), Export::default(), |stream, _| {
        stream.shutdown(std::net::Shutdown::Both)
    });
    run(blockferry(["compare"]).arg(&image).arg(dying.uri())).failure(75, &[&dying.uri()]);
}

#[test]
fn a_quiet_comparison_says_it_with_its_exit_code() {
    let dir = tempdir().expect("a directory");
    let (a, b) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
    fs::write(&a, "same").expect("written");
    fs::write(&b, "sane").expect("written");
    let different = run(blockferry(["compare", "-q"]).arg(&a).arg(&b));
    assert_eq!((different.code, different.text()), (1, ""));
    assert_eq!(different.stderr, "");
    let same = run(blockferry(["compare", "-q"]).arg(&a).arg(&a));
    assert_eq!((same.code, same.text()), (0, ""));
}
