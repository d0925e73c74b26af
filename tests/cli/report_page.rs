//! `copy --report`: the page of a copy, however it ended.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use quick_xml::{Reader, events::Event};
use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome, Peer, Proxy, assert_same, blockferry,
    images::sparse_image,
    random_image,
    run::{finish, run, run_with_input, signal, until_it_writes},
};

struct Room(TempDir);

impl Room {
    fn new() -> Self {
        Self(tempdir().expect("a directory"))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A sparse image of 16 MiB with some data.
    fn image(&self) -> PathBuf {
        let image = self.at("image.raw");
        sparse_image(&image, 16 << 20);
        image
    }

    /// A copy with a page.
    fn copy<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Outcome {
        run(blockferry(["copy", "--report"])
            .arg(self.at("page.html"))
            .args(arguments))
    }

    fn page(&self) -> Page {
        Page::read(&self.at("page.html"))
    }
}

/// A page that is well-formed.
struct Page(String);

impl Page {
    #[track_caller]
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("a page");
        let html = text.strip_prefix("<!doctype html>").expect("HTML");
        let mut reader = Reader::from_str(html);
        reader.config_mut().check_end_names = true;
        loop {
            match reader.read_event() {
                Ok(Event::Eof) => break,
                Ok(Event::Start(tag) | Event::Empty(tag)) => {
                    let attributes = tag.attributes().map(|it| it.expect("well-formed"));
                    for attribute in attributes {
                        let name = attribute.key.as_ref().to_ascii_lowercase();
                        assert!(!name.starts_with("on"), "a script: {tag:?}");
                        assert_ne!(name, "src", "something to load: {tag:?}");
                    }
                    assert_ne!(tag.name().as_ref(), "script");
                }
                Ok(_) => {}
                Err(error) => panic!("{error} at {}: {html}", reader.error_position()),
            }
        }
        assert!(text.contains("default-src 'none'"));
        Self(text)
    }

    #[track_caller]
    fn has(&self, parts: &[&str]) -> &Self {
        for part in parts {
            assert!(self.0.contains(part), "no {part:?} in {}", self.0);
        }
        self
    }

    #[track_caller]
    fn lacks(&self, parts: &[&str]) -> &Self {
        for part in parts {
            assert!(!self.0.contains(part), "{part:?} in {}", self.0);
        }
        self
    }
}

#[test]
fn a_copy_that_is_whole_has_its_page_with_everything_in_it() {
    let room = Room::new();
    let (image, copy) = (room.image(), room.at("copy.raw"));
    let peer = Peer::nbdkit(
        room.0.path(),
        &["file", &format!("file={}", image.display())],
    );
    let arguments = ["--checksum", "--verify", &peer.uri()];
    let outcome = room.copy(arguments.iter().map(OsStr::new).chain([copy.as_os_str()]));
    let outcome = outcome.success();
    assert_same(&image, &copy);
    let digest = outcome.text().split(' ').next().expect("a digest");
    room.page()
        .has(&["Copied", "Throughput", "Done so far", "Latency of requests"])
        .has(&[
            "reads, median",
            "writes, 99%",
            "Bytes in flight",
            "read back",
        ])
        .has(&["copied as data", "holes, not read", "all of 16.0 MiB"])
        .has(&[
            digest,
            "sha256/64k",
            "request size",
            "adaptive",
            "kernel",
            "processors",
        ])
        .lacks(&["not copied", "class=\"trouble\"", "<h2>Warnings"]);
    // The next one takes its place.
    room.copy([&image, &copy]).success();
    room.page().lacks(&[digest]);
}

#[test]
fn every_way_of_a_copy_has_a_page() {
    let room = Room::new();
    let image = room.image();
    let (image, copy) = (image.as_os_str(), room.at("copy"));
    for options in [
        &[][..],
        &["-S", "0"],
        &["--in-order"],
        &["-O", "qcow2"],
        &["-c", "-O", "qcow2"],
        &["-O", "gzip"],
        &["--allocated"],
    ] {
        let _ = fs::remove_file(&copy);
        let arguments = options
            .iter()
            .map(OsStr::new)
            .chain([image, copy.as_os_str()]);
        room.copy(arguments).success();
        room.page()
            .has(&["Copied", "Throughput", "Done so far", "all of 16.0 MiB"]);
    }
    let _ = fs::remove_file(&copy);
    let mut command = blockferry(["convert", "-O", "qcow2", "--report"]);
    run(command
        .arg(room.at("page.html"))
        .args([image, copy.as_os_str()]))
    .success();
    room.page().has(&["a qcow2 image"]);
}

#[test]
fn a_stream_has_a_page_of_the_size_that_it_turned_out_to_have() {
    let room = Room::new();
    let mut command = blockferry(["copy", "--report"]);
    command
        .arg(room.at("page.html"))
        .arg("-")
        .arg(room.at("copy"));
    run_with_input(&mut command, &vec![7; (3 << 20) + 5]).success();
    room.page()
        .has(&["all of 3.0 MiB", "(3145733 bytes)", "a stream"])
        .lacks(&["not copied"]);
    let output = run(blockferry(["copy", "--report"])
        .arg(room.at("page.html"))
        .args(["data:1 2 3", "-"]));
    assert_eq!(output.success().stdout.len(), 3);
    room.page().has(&["Copied"]);
}

#[test]
fn a_copy_that_fails_shows_where() {
    let room = Room::new();
    random_image(&room.at("image"), 8 << 20);
    let file = format!("file={}", room.at("image").display());
    let marker = room.at("broken");
    let error = format!("error-file={}", marker.display());
    let arguments = [
        "--filter=error",
        "file",
        &file,
        "error-pread-rate=100%",
        &error,
    ];
    let peer = Peer::nbdkit(room.0.path(), &arguments);
    // From here on every read fails.
    fs::write(&marker, "").expect("written");
    let copy = room.at("copy");
    let outcome = room.copy([OsStr::new(&peer.uri()), copy.as_os_str()]);
    let outcome = outcome.failure(1, &["page.html shows how far it came"]);
    let message = outcome.stderr.lines().next().expect("a message");
    assert!(message.contains("read of"), "{message}");
    room.page()
        .has(&["Failed", "class=\"trouble\"", "exit code 1", "read of"])
        .has(&["failed here", "not copied", "class=\"failed\""]);
}

#[test]
fn a_server_that_is_killed_is_told_of_with_the_attempts_to_reach_it() {
    let room = Room::new();
    random_image(&room.at("image"), 32 << 20);
    let file = format!("file={}", room.at("image").display());
    let arguments = ["--filter=delay", "file", &file, "rdelay=20ms"];
    let mut peer = Peer::nbdkit(room.0.path(), &arguments);
    let child = blockferry(["copy", "--requests=1", "--retries=2", "--report"])
        .arg(room.at("page.html"))
        .arg(peer.uri())
        .arg(room.at("copy"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    until_it_writes(&child, room.0.path());
    peer.kill();
    finish(child).failure(75, &["could not be opened again"]);
    room.page()
        .has(&[
            "Failed",
            "exit code 75",
            "hint:",
            "<h2>Warnings",
            "(attempt 1 of 2)",
        ])
        .has(&["Connections", "not copied"]);
}

#[test]
fn a_connection_that_is_lost_on_the_way_is_a_mark_in_the_charts() {
    let room = Room::new();
    random_image(&room.at("image"), 48 << 20);
    let server = Peer::blockferry(room.0.path(), &room.at("image"));
    let proxy = Proxy::cutting(room.0.path(), server.socket(), 4, |number| {
        (number == 0).then_some(1_000_003)
    });
    let copy = room.at("copy");
    let outcome = room.copy([OsStr::new(&proxy.uri()), copy.as_os_str()]);
    outcome.success();
    assert_same(&room.at("image"), &copy);
    room.page()
        .has(&["Copied", "<h2>Warnings", "Numbered marks", "Connections"]);
}

#[test]
fn an_interrupted_copy_shows_how_far_it_came_and_going_on_what_was_done_before() {
    let room = Room::new();
    random_image(&room.at("image"), 32 << 20);
    let (copy, checkpoint) = (room.at("copy"), room.at("checkpoint"));
    let child = blockferry(["copy", "--rate=16M", "--checkpoint"])
        .arg(&checkpoint)
        .arg("--report")
        .arg(room.at("page.html"))
        .arg(room.at("image"))
        .arg(&copy)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    until_it_writes(&child, room.0.path());
    std::thread::sleep(std::time::Duration::from_millis(500));
    signal(&child, "INT");
    finish(child).failure(130, &["interrupted", "page.html shows how far it came"]);
    room.page()
        .has(&["Interrupted", "not copied", "the same command goes on"])
        .lacks(&["failed here"]);

    let image = room.at("image");
    let again = [
        OsStr::new("--checkpoint"),
        checkpoint.as_os_str(),
        image.as_os_str(),
    ];
    room.copy(again.into_iter().chain([copy.as_os_str()]))
        .success();
    assert_same(&image, &copy);
    room.page()
        .has(&["Copied", "done before"])
        .lacks(&["not copied"]);
}

#[test]
fn a_copy_that_is_refused_has_a_page_without_charts() {
    let room = Room::new();
    let image = room.image();
    fs::write(room.at("small"), [0; 512]).expect("written");
    let outcome = room.copy([
        OsStr::new("-n"),
        image.as_os_str(),
        room.at("small").as_os_str(),
    ]);
    assert_ne!(outcome.code, 0);
    room.page()
        .has(&["Failed", "class=\"trouble\""])
        .lacks(&["Throughput"]);
    let copy = room.at("copy");
    room.copy([room.at("none").as_os_str(), copy.as_os_str()])
        .failure(1, &["No such file", "page.html shows"]);
    room.page().has(&["No such file"]);
}

#[test]
fn nothing_is_ever_taken_for_a_page_and_replaced() {
    let room = Room::new();
    let image = room.image();
    let before = fs::read(&image).expect("readable");
    let copy = room.at("copy");
    fs::write(room.at("notes"), "precious").expect("written");
    for (page, code, word) in [
        (&image, 2, "one of the copy"),
        (&copy, 2, "one of the copy"),
        (&room.at("notes"), 1, "no report"),
        (&room.at("none/page.html"), 1, "No such file"),
        (&PathBuf::from("/dev/null"), 1, "not a regular file"),
    ] {
        let mut command = blockferry(["copy", "--report"]);
        let outcome = run(command.arg(page).arg(&image).arg(&copy));
        outcome.failure(code, &["--report", word]);
        assert!(!copy.exists(), "the copy was begun");
    }
    assert_eq!(fs::read(&image).expect("readable"), before);
    assert_eq!(fs::read(room.at("notes")).expect("readable"), b"precious");
}

#[test]
fn a_page_that_cannot_be_written_in_the_end_fails_and_says_that_the_copy_is_whole() {
    let room = Room::new();
    let (image, copy) = (room.image(), room.at("copy"));
    fs::create_dir(room.at("pages")).expect("made");
    let page = room.at("pages/page.html");
    let child = blockferry(["copy", "--rate=1M", "--checksum", "--report"])
        .arg(&page)
        .arg(&image)
        .arg(&copy)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    until_it_writes(&child, room.0.path());
    fs::remove_dir(room.at("pages")).expect("it is empty while the copy runs");
    let outcome = finish(child);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    // In the system's words: the page was to have another name at first, which is nobody's business.
    for said in [
        "it cannot be written: No such file or directory\n",
        "the copy itself is whole",
    ] {
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
    }
    assert!(outcome.text().contains("image.raw"), "the digest is lost");
    assert_same(&image, &copy);
}

#[test]
fn whatever_names_and_servers_say_is_text_on_the_page() {
    let room = Room::new();
    let image = room.at("<script>alert(1)<\u{202e}\">&'.raw");
    fs::write(&image, vec![1; 4096]).expect("written");
    let copy = room.at("<img src=x onerror=alert(2)>");
    room.copy([&image, &copy]).success();
    let harmless = ["&lt;script&gt;alert(1)", "\\u{202e}", "&lt;img src=x"];
    room.page()
        .has(&harmless)
        .lacks(&["<script", "<img", "\u{202e}"]);

    // The name of an export, which the server says again.
    let peer = Peer::qemu_nbd(room.0.path(), "raw", &room.image(), &["-x", "disk"]);
    let uri = peer.uri().replacen("/?", "/%3Cscript%3Ealert(3)?", 1);
    let outcome = room.copy([OsStr::new(&uri), room.at("other").as_os_str()]);
    outcome.failure(1, &["<script>alert(3)"]);
    room.page()
        .has(&["Failed", "&lt;script&gt;alert(3)"])
        .lacks(&["<script"]);
}
