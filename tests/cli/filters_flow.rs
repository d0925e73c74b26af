//! Filters that change how requests flow (blocksize, readahead, retry, rate), with other people's clients and servers.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    images::{assert_same, random_image},
    peers::Peer,
    run::{blockferry, run},
};

/// A disk in `$DISK` that cannot be read the first three times, and after that.
const SICK: &str = r#"#!/bin/sh
case "$1" in
thread_model) echo serialize_all_requests ;;
open) echo open >> "$LOG"; echo h ;;
get_size) stat -L -c %s "$DISK" ;;
can_write|can_flush|can_fua) exit 3 ;;
pread)
    echo pread >> "$LOG"
    if [ "$(grep -c pread "$LOG")" -le 3 ]; then echo EIO >&2; exit 1; fi
    dd if="$DISK" iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=1M status=none ;;
*) exit 2 ;;
esac
"#;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A room with a disk of random bytes in it.
fn room(length: usize) -> (TempDir, PathBuf) {
    let room = tempdir().expect("a directory");
    let disk = room.path().join("disk.raw");
    random_image(&disk, length);
    (room, disk)
}

/// Our server with a filter in front of `source`, running `client`, a shell command that finds its URI in `$uri`.
fn through(filter: &str, source: &str, client: &str) -> Command {
    blockferry([
        "serve", "--quiet", "--filter", filter, source, "--run", client,
    ])
}

#[test]
fn a_server_that_insists_on_its_blocks_takes_any_bytes_through_blocksize() {
    let (room, disk) = room(1 << 20);
    let strict = [
        "--filter=blocksize-policy",
        "file",
        text(&disk),
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=65536",
        "blocksize-error-policy=error",
    ];
    let mut expected = fs::read(&disk).expect("read");
    let server = Peer::nbdkit(room.path(), &strict);
    let client = "qemu-io -f raw \
                  -c 'write -P 7 1 5000' -c 'write -P 8 10000 3' -c 'write -P 9 123456 500000' \
                  -c 'write -z 700001 100001' -c 'discard 900001 9000' -c 'read -P 9 123457 499999' \
                  -c 'read -P 0 700001 100001' -c flush \"$uri\"";
    let outcome = run(&mut through("blocksize", &server.uri(), client)).success();
    assert!(
        !outcome.text().contains("verification failed"),
        "{}",
        outcome.text()
    );
    expected[1..5001].fill(7);
    expected[10_000..10_003].fill(8);
    expected[123_456..623_456].fill(9);
    expected[700_001..800_002].fill(0);
    let found = fs::read(&disk).expect("read");
    // What was discarded is anything.
    assert!(found[..900_001] == expected[..900_001]);
    assert!(found[909_001..] == expected[909_001..]);
    // And out again, many bytes at a time.
    let copy = room.path().join("copy.raw");
    let client = format!("nbdcopy \"$uri\" {}", text(&copy));
    run(&mut through("blocksize", &server.uri(), &client)).success();
    assert_same(&disk, &copy);
}

#[test]
fn a_source_that_fails_three_times_is_read_through_retry() {
    let (room, disk) = room(3 << 20);
    let (script, log) = (room.path().join("script"), room.path().join("log"));
    fs::write(&script, SICK).expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("executable");
    let copy = room.path().join("copy.raw");
    let client = format!(
        "nbdcopy --requests=1 --connections=1 \"$uri\" {}",
        text(&copy)
    );
    let source = format!("sh:{}", script.display());
    let serve = |filter: &str| {
        let mut command = through(filter, &source, &client);
        command.env("DISK", &disk).env("LOG", &log);
        fs::write(&log, "").expect("written");
        run(&mut command)
    };
    serve("retry:delay=1ms,retries=4").success();
    assert_same(&disk, &copy);
    let log_text = fs::read_to_string(&log).expect("read");
    let opens = log_text.lines().filter(|line| *line == "open").count();
    assert!(opens >= 4, "each time it is opened anew: {log_text}");
    let once = serve("retry:delay=1ms,retries=1");
    assert_ne!(once.code, 0, "that is not enough");
}

#[test]
fn a_stream_of_reads_gets_the_same_bytes_ahead_or_limited() {
    let (room, disk) = room(5 << 20);
    let delayed = ["-r", "--filter=delay", "file", text(&disk), "rdelay=1ms"];
    let server = Peer::nbdkit(room.path(), &delayed);
    let (copy, limit) = (room.path().join("copy.raw"), room.path().join("limit"));
    fs::write(&limit, "1G").expect("written");
    let client = format!(
        "nbdcopy --synchronous --request-size=65536 \"$uri\" {}",
        text(&copy)
    );
    for filter in [
        "readahead",
        "readahead:size=256K,request-size=64K,requests=2",
    ] {
        run(&mut through(filter, &server.uri(), &client)).success();
        assert_same(&disk, &copy);
        fs::remove_file(&copy).expect("removed");
    }
    let filter = format!("rate:4K,connection-rate=512M,file={}", text(&limit));
    run(&mut through(&filter, &server.uri(), &client)).success();
    assert_same(&disk, &copy);
}
