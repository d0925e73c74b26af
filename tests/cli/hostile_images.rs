//! Images from strangers through the real binary: one line says what is wrong with each, and nothing is left behind.

#[allow(dead_code, reason = "the tests of the format take more of it")]
#[path = "../../crates/format/tests/hostile/images.rs"]
mod images;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::{TempDir, tempdir};

use crate::support::{Outcome, Served, blockferry, run};
use images::{Builder, Found, cases};

/// How much memory a program may ask for, in KiB: far less than absurd tables would want.
const MEMORY: &str = "1048576";

/// A directory with an image in it.
struct Room {
    directory: TempDir,
}

impl Room {
    fn new(image: Builder) -> Self {
        let room = Self {
            directory: tempdir().expect("a directory"),
        };
        fs::write(room.path("disk"), image.build()).expect("written");
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn disk(&self) -> String {
        self.path("disk").display().to_string()
    }

    fn copy(&self, options: &[&str]) -> Outcome {
        let (source, destination) = (self.path("disk"), self.path("copy"));
        bounded(
            &[&["copy", "-q"], options].concat(),
            &[&source, &destination],
        )
    }

    /// What else is in the directory.
    fn others(&self) -> Vec<String> {
        let names = fs::read_dir(self.directory.path()).expect("a directory");
        let names = names.map(|entry| entry.expect("an entry").file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| name != "disk").collect()
    }
}

/// Runs the program with little memory.
fn bounded(words: &[&str], paths: &[&Path]) -> Outcome {
    let script = format!("ulimit -v {MEMORY}; exec \"$0\" \"$@\"");
    let program = blockferry([] as [&str; 0]);
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(program.get_program());
    run(command.args(words).args(paths).stdin(Stdio::null()))
}

#[test]
fn a_copy_says_what_is_wrong_and_leaves_nothing() {
    for case in cases() {
        let is_about_names = case.error.contains("which nobody allowed");
        let room = Room::new(Builder::sound());
        fs::write(room.path("disk"), &case.image).expect("written");
        let options = match case.found {
            Found::Snapshot(name) => vec!["-f", "qcow2", "-l", name],
            Found::Bitmap(_) => continue,
            _ => vec!["-f", "qcow2"],
        };
        let outcome = room.copy(&options);
        let name = case.name;
        if case.found == Found::Nowhere {
            assert_eq!(outcome.code, 0, "{name}: {}", outcome.stderr);
            assert_eq!(room.others(), ["copy"], "{name}");
            continue;
        }
        assert_eq!(outcome.code, 1, "{name}: {}", outcome.stderr);
        assert_eq!(room.others(), [] as [&str; 0], "{name}");
        let first = outcome.stderr.lines().next().unwrap_or_default();
        let expected = format!("blockferry: {}: {}", room.disk(), case.error);
        match case.found {
            _ if is_about_names => {}
            // Requests of a copy have other lengths.
            Found::Read => {
                let (_, why) = case.error.split_once(": ").expect("a range, and why");
                assert!(first.ends_with(why), "{name}: {}", outcome.stderr);
            }
            _ => assert_eq!(first, expected, "{name}"),
        }
        let steers = |c: char| c.is_control() && c != '\n';
        assert!(
            !outcome.stderr.contains(steers),
            "{name}: {}",
            outcome.stderr
        );
    }
}

#[test]
fn names_in_an_image_are_told_and_not_opened() {
    let builder = Builder::sound;
    for (image, said) in [
        (
            builder().backing(b"/etc/passwd", Some("raw")),
            "it has the backing file \"/etc/passwd\", which is not opened unless it is allowed: --allow-backing DIR",
        ),
        (
            builder().data_file(b"/etc/shadow"),
            "it has the data file \"/etc/shadow\", which is not opened unless it is allowed: --allow-backing DIR",
        ),
        (
            builder().backing(b"json:{\"driver\":\"nbd\"}", None),
            "it has the backing file \"json:{\"driver\":\"nbd\"}\", which is not the name of a file but a protocol's: an image's names are never followed there",
        ),
        (
            builder().backing(b"\x1b[2J\n", None),
            "it has the backing file \"\\u{1b}[2J\\n\", which is not opened unless it is allowed: --allow-backing DIR",
        ),
    ] {
        let room = Room::new(image);
        let expected = format!("blockferry: {}: open: {said}\n", room.disk());
        let outcome = room.copy(&[]);
        assert_eq!((outcome.code, &*outcome.stderr), (1, &*expected));
        assert_eq!(room.others(), [] as [&str; 0]);
        let socket = room.path("socket");
        for command in ["map", "checksum"] {
            let outcome = bounded(&[command], &[&room.path("disk")]);
            assert_eq!(
                (outcome.code, &*outcome.stderr),
                (1, &*expected),
                "{command}"
            );
        }
        let outcome = bounded(&["serve", "--unix"], &[&socket, &room.path("disk")]);
        assert_eq!((outcome.code, &*outcome.stderr), (1, &*expected));
        assert_eq!(room.others(), [] as [&str; 0]);
        // What the image says of itself can be told all the same.
        let outcome = bounded(&["info"], &[&room.path("disk")]).success();
        assert!(
            outcome.text().contains("format: qcow2"),
            "{}",
            outcome.text()
        );
        assert!(!outcome.text().contains('\x1b'));
    }
}

#[test]
fn other_formats_are_refused_by_name_and_their_bytes_are_read_on_demand() {
    let room = Room::new(Builder::sound());
    fs::write(room.path("disk"), "QED\0").expect("written");
    let outcome = room.copy(&[]);
    let expected = format!(
        "blockferry: {}: open: it is an image in the format qed, which is not supported; -f raw reads its bytes\n",
        room.disk()
    );
    assert_eq!((outcome.code, &*outcome.stderr), (1, &*expected));
    assert_eq!(room.others(), [] as [&str; 0]);
    room.copy(&["-f", "raw"]).success();
    assert_eq!(fs::read(room.path("copy")).expect("copied"), b"QED\0");
}

#[test]
fn a_disk_that_a_client_makes_look_like_an_image_stays_a_disk() {
    // CVE-2015-1851: otherwise the next one to open it would follow the names that a guest has written.
    let room = Room::new(Builder::sound());
    let image = Builder::sound()
        .backing(b"/etc/passwd", Some("raw"))
        .build();
    let size = image.len().to_string();
    fs::write(room.path("image"), &image).expect("written");
    for filters in [&[][..], &["--filter", "retry"]] {
        fs::write(room.path("disk"), vec![0; image.len()]).expect("written");
        let socket = room.path("socket");
        let disk = room.path("disk");
        let disk = disk.to_str().expect("a text");
        let server = Served::at(&socket, &[filters, &[disk]].concat());
        let uri = server.uri();
        let image = room.path("image");
        let image = image.to_str().expect("a text");
        run(&mut blockferry(["copy", "-q", "-f", "raw", image, &uri])).success();
        for _ in 0..2 {
            let told = run(&mut blockferry(["info", "--json", &uri])).success();
            assert!(told.text().contains(&size), "{}", told.text());
            let summed = run(&mut blockferry(["compare", "-f", "raw", image, &uri]));
            summed.success();
        }
        server.terminate().success();
    }
    // A block device or a server is never looked at; a file is, by the next one who opens it by name.
    let outcome = room.copy(&[]);
    assert!(
        outcome.stderr.contains("--allow-backing DIR"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_huge_disk_in_a_small_file_takes_little_memory_and_can_be_refused() {
    let room = Room::new(Builder::huge());
    let disk = room.path("disk");
    let map = bounded(&["map", "--totals"], &[&disk]).success();
    assert!(map.text().contains("8796093022208"), "{}", map.text());
    bounded(&["info"], &[&disk]).success();
    let outcome = room.copy(&["--max-size", "1T"]);
    let expected = format!(
        "blockferry: {}: open: its virtual size of 8.0 TiB is above the bound of 1.0 TiB\n",
        room.disk()
    );
    assert_eq!((outcome.code, &*outcome.stderr), (1, &*expected));
    assert_eq!(room.others(), [] as [&str; 0]);
}
