//! Under the name nbdinfo the program speaks its command line: each option beside the real tool, on the same
//! servers, compared byte for byte.

mod failures;
mod maps;
mod shown;
mod voice;

use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome, Peer,
    dropin::{BOTH, Who, words},
    run, sparse_image,
};

/// What newer tools print and older ones do not, taken out of both.
fn common(text: &str) -> String {
    let mut common = String::new();
    // The end of a line's colour stands at the beginning of the next one.
    let mut reset = "";
    for line in text.split_inclusive('\n') {
        let line = line.strip_prefix(reset).unwrap_or(line);
        reset = "";
        // Both since libnbd 1.18.
        if line.contains("can_block_status_payload") {
            reset = if line.starts_with('\x1b') {
                "\x1b[0m"
            } else {
                ""
            };
            continue;
        }
        if line.starts_with("\"extended\":") {
            continue;
        }
        // Extended headers are asked for since 1.18.
        let line = line.replace("using extended packets", "using structured packets");
        // Block sizes have a unit since 1.20.
        match line.split_once(" (") {
            Some((size, unit)) if size.contains("block_size_") && unit.ends_with(")\n") => {
                common += size;
                common.push('\n');
            }
            _ => common += &line,
        }
    }
    common
}

fn run_as(who: Who, arguments: &[&str]) -> Outcome {
    run(&mut who.tool("nbdinfo", arguments))
}

/// Runs both, which must agree: in what they print, in the exit code, and in whether they complain.
#[track_caller]
fn same(arguments: &[&str]) -> Outcome {
    let [theirs, ours] = BOTH.map(|who| run_as(who, arguments));
    assert_eq!(
        common(ours.text()),
        common(theirs.text()),
        "{arguments:?}: {} {}",
        ours.stderr,
        theirs.stderr
    );
    assert_eq!(ours.code, theirs.code, "{arguments:?}: {}", ours.stderr);
    if ours.code == 1 {
        assert!(ours.stderr.contains("nbdinfo: "), "{}", ours.stderr);
    }
    ours
}

/// A server and the directory that it lives in.
struct Served {
    peer: Peer,
    _dir: TempDir,
}

impl Served {
    fn nbdkit(arguments: &str) -> Self {
        Self::nbdkit_with(&words(arguments))
    }

    fn nbdkit_with(arguments: &[&str]) -> Self {
        let dir = tempdir().expect("a directory");
        let peer = Peer::nbdkit(dir.path(), arguments);
        Self { peer, _dir: dir }
    }

    /// The URI of the export `name`, which needs no encoding.
    fn uri(&self, name: &str) -> String {
        self.peer.uri().replace("///", &format!("///{name}"))
    }
}

/// Servers of many kinds, each with a default export.
fn servers() -> Vec<Served> {
    let mut servers: Vec<_> = [
        "null 1M",
        "null 0",
        "memory 513",
        "-r memory 1500K",
        "pattern 5G",
        "--no-sr null 1M",
        "-o memory 1M",
        "--mask-handshake=0 null 1M",
        "--mask-handshake=2 null 1M",
        "-r --filter=blocksize-policy memory 2M blocksize-minimum=512 blocksize-preferred=4096 \
         blocksize-maximum=1M",
        "--filter=exportname memory 1M exportname=hello exportname=goodbye \
         exportname-list=explicit exportdesc=fixed:world",
        "data data=1 size=98304",
    ]
    .into_iter()
    .map(Served::nbdkit)
    .collect();
    servers.push(Served::nbdkit_with(&[
        "eval",
        "get_size=echo 3145728",
        "pread=echo EIO sorry >&2; exit 1",
        "is_rotational=exit 0",
        "can_write=exit 3",
        "export_description=echo 'a \"spinning\" \\disk'",
    ]));
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 10 << 20);
    let peer = Peer::qemu_nbd(dir.path(), "raw", &image, &["-D", "a \"fine\" disk"]);
    servers.push(Served { peer, _dir: dir });
    servers
}
