//! qcow2 images under the name qemu-nbd, beside the real tool: found by their first bytes or named, their snapshots, and
//! overlays for a while.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    dropin::{BOTH, Who, words},
    run::{signal, tool, until, wait},
};

/// A server of a qcow2 image on a unix socket, in a directory of its own.
struct Served {
    child: Child,
    dir: TempDir,
}

impl Served {
    /// `qemu-nbd -t` with `arguments`, in front of an image with a snapshot `before`.
    fn start(who: Who, arguments: &str) -> Self {
        let dir = tempdir().expect("a directory");
        image(&dir.path().join("image"));
        let child = who
            .tool("qemu-nbd", ["-t", "-k"])
            .arg(dir.path().join("socket"))
            .args(words(arguments))
            .arg(dir.path().join("image"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a program");
        let served = Self { child, dir };
        until("the server", || {
            UnixStream::connect(served.path("socket")).is_ok()
        });
        served
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.path("socket").display())
    }

    /// What the server's disk has at `offset`, as a single byte that a MiB is filled with.
    fn has(&self, pattern: u8, offset: &str) {
        let read = format!("read -P {pattern} {offset} 1M");
        tool("qemu-io", &["-r", "-f", "raw", "-c", &read, &self.uri()]);
    }

    /// Lets the server end in good order.
    fn end(mut self) {
        signal(&self.child, "TERM");
        wait(&mut self.child);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// 8 MiB: 1 in the first MiB, 2 in the third one; before the snapshot it was 9 in the first.
fn image(path: &Path) {
    let path = path.to_str().expect("UTF-8");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", path, "8M"]);
    let io = |command: &str| tool("qemu-io", &["-f", "qcow2", "-c", command, path]);
    io("write -P 9 0 1M");
    tool("qemu-img", &["snapshot", "-c", "before", path]);
    io("write -P 1 0 1M");
    io("write -P 2 2M 1M");
}

#[test]
fn a_qcow2_image_is_found_by_how_it_begins_or_named() {
    for who in BOTH {
        for format in ["", "-f qcow2"] {
            let served = Served::start(who, &format!("-r {format}"));
            assert_eq!(tool("nbdinfo", &["--size", &served.uri()]), "8388608\n");
            served.has(1, "0");
            served.has(0, "1M");
            served.has(2, "2M");
            let map = tool("nbdinfo", &["--map", &served.uri()]);
            let lines = map.lines().map(|line| {
                let words: Vec<_> = line.split_whitespace().take(3).collect();
                words.join(" ")
            });
            assert_eq!(
                lines.collect::<Vec<_>>(),
                [
                    "0 1048576 0",
                    "1048576 1048576 3",
                    "2097152 1048576 0",
                    "3145728 5242880 3"
                ],
                "{who:?}"
            );
        }
    }
}

#[test]
fn the_bytes_of_a_qcow2_image_are_served_when_they_are_asked_for() {
    for who in BOTH {
        let served = Served::start(who, "-r -f raw");
        let length = fs::metadata(served.path("image")).expect("there").len();
        let size = tool("nbdinfo", &["--size", &served.uri()]);
        // Theirs is a whole number of sectors.
        assert_eq!(size.trim(), length.to_string(), "{who:?}");
    }
}

#[test]
fn an_internal_snapshot_is_served_by_its_name_or_id_and_cannot_be_written() {
    for who in BOTH {
        for snapshot in ["before", "1", "snapshot.name=before", "snapshot.id=1"] {
            let served = Served::start(who, &format!("-l {snapshot}"));
            served.has(9, "0");
            served.has(0, "2M");
            let read_only = tool("nbdinfo", &["--json", &served.uri()]);
            assert!(
                read_only.contains("\"is_read_only\": true"),
                "{who:?}: {read_only}"
            );
        }
    }
}

#[test]
fn what_is_written_to_a_temporary_overlay_is_gone_with_the_server() {
    for who in BOTH {
        let served = Served::start(who, "-s");
        let before = fs::read(served.path("image")).expect("there");
        let write = "write -P 7 0 1M";
        tool("qemu-io", &["-f", "raw", "-c", write, &served.uri()]);
        served.has(7, "0");
        let image = served.path("image");
        assert!(fs::read(&image).expect("there") == before, "{who:?}");
    }
}

#[test]
fn what_a_client_writes_is_in_the_image_when_the_server_has_ended() {
    for who in BOTH {
        let served = Served::start(who, "");
        let write = "write -P 7 1M 1M";
        tool("qemu-io", &["-f", "raw", "-c", write, &served.uri()]);
        let image = served.path("image");
        let kept = tempdir().expect("a directory");
        // The directory goes with the server.
        let copy = kept.path().join("copy");
        fs::hard_link(&image, &copy).expect("the same file system");
        served.end();
        let copy = copy.to_str().expect("UTF-8");
        tool("qemu-img", &["check", "-q", "-f", "qcow2", copy]);
        let reads = [
            "-c",
            "read -P 1 0 1M",
            "-c",
            "read -P 7 1M 1M",
            "-c",
            "read -P 2 2M 1M",
        ];
        tool("qemu-io", &[&["-f", "qcow2"], &reads[..], &[copy]].concat());
        let before = kept.path().join("before");
        let before = before.to_str().expect("UTF-8");
        let convert = ["convert", "-l", "before", "-O", "raw", copy, before];
        tool("qemu-img", &convert);
        tool("qemu-io", &["-f", "raw", "-c", "read -P 9 0 1M", before]);
    }
}

#[test]
fn bitmaps_and_the_depth_of_a_chain_are_told_to_those_who_ask() {
    for who in BOTH {
        let dir = tempdir().expect("a directory");
        let bitmap = dir.path().join("image");
        image(&bitmap);
        let bitmap = bitmap.to_str().expect("UTF-8");
        tool("qemu-img", &["bitmap", "--add", bitmap, "b0"]);
        tool(
            "qemu-io",
            &["-f", "qcow2", "-c", "write -P 3 4M 64k", bitmap],
        );
        let socket = dir.path().join("socket");
        let mut child = who
            .tool("qemu-nbd", ["-t", "-r", "-A", "-B", "b0", "-k"])
            .arg(&socket)
            .arg(bitmap)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a program");
        until("the server", || UnixStream::connect(&socket).is_ok());
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let map = |context: &str| {
            let map = tool("nbdinfo", &[&format!("--map={context}"), &uri]);
            let lines = map.lines().map(|line| {
                let words: Vec<_> = line.split_whitespace().take(3).collect();
                words.join(" ")
            });
            lines.collect::<Vec<_>>()
        };
        let dirty = ["0 4194304 0", "4194304 65536 1", "4259840 4128768 0"];
        assert_eq!(map("qemu:dirty-bitmap:b0"), dirty, "{who:?}");
        let depth = [
            "0 1048576 1",
            "1048576 1048576 0",
            "2097152 1048576 1",
            "3145728 1048576 0",
            "4194304 65536 1",
            "4259840 4128768 0",
        ];
        assert_eq!(map("qemu:allocation-depth"), depth, "{who:?}");
        signal(&child, "TERM");
        wait(&mut child);
        let refused = who
            .tool("qemu-nbd", ["-r", "-B", "b1", "-k"])
            .arg(&socket)
            .arg(bitmap)
            .output()
            .expect("a program");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            !refused.status.success() && said.contains("b1"),
            "{who:?}: {said}"
        );
    }
}

#[test]
fn a_backing_file_is_opened_where_the_environment_allows_it() {
    let dir = tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    image(path("base").as_ref());
    let (overlay, socket) = (path("overlay"), path("socket"));
    let create = ["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2"];
    tool("qemu-img", &[&create[..], &[&overlay]].concat());
    let qemu_nbd = || Who::Ours.tool("qemu-nbd", ["-r", "-t", "-k", &socket, &overlay]);
    let refused = qemu_nbd().output().expect("a program");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("\"base\""),
        "{said}"
    );
    let mut child = qemu_nbd()
        .env("BLOCKFERRY_ALLOW_BACKING", dir.path())
        .spawn()
        .expect("a program");
    until("the server", || UnixStream::connect(&socket).is_ok());
    let uri = format!("nbd+unix:///?socket={socket}");
    tool(
        "qemu-io",
        &["-r", "-f", "raw", "-c", "read -P 2 2M 1M", &uri],
    );
    signal(&child, "TERM");
    assert_eq!(wait(&mut child), 0);
}
