//! The same script behind nbdkit and behind us: clients see the same, and the script is called the same way.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::{TempDir, tempdir};

use crate::support::{Outcome, assert_same, blockferry, run, run::until, sparse_image};

/// Writes each call down, then answers.
const LOGGED: &str = "#!/bin/sh\necho \"$*\" >> \"$LOG\"\ncase \"$1\" in\n";

/// A disk in the file `$DISK`, as good as a script can be.
const DISK: &str = r#"
thread_model) echo parallel ;;
open) echo h ;;
get_size) stat -L -c %s "$DISK" ;;
can_write|can_flush|can_trim|can_zero|can_extents|can_multi_conn) exit 0 ;;
can_fua) echo native ;;
can_cache) echo emulate ;;
pread) dd if="$DISK" iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=1M status=none ;;
pwrite) dd of="$DISK" oflag=seek_bytes seek="$4" bs=64K conv=notrunc iflag=fullblock status=none ;;
zero) case ",$5," in *,may_trim,*) fallocate -p -o "$4" -l "$3" -n "$DISK" ;; *) echo ENOTSUP >&2; exit 1 ;; esac ;;
trim) fallocate -p -o "$4" -l "$3" -n "$DISK" ;;
flush) ;;
extents) echo "0 1M"; echo "1M 1G hole,zero" ;;
*) exit 2 ;;
esac
"#;

/// Requests, as opposed to questions: how often questions are asked depends on what a client wants to know.
const REQUESTS: [&str; 7] = [
    "pread", "pwrite", "flush", "trim", "zero", "cache", "extents",
];

/// A script and what one server made of it.
struct Room {
    directory: TempDir,
}

/// Who runs the script.
#[derive(Clone, Copy, Debug)]
enum Server {
    Nbdkit,
    Ours,
}

impl Room {
    fn new(script: &str) -> Self {
        let directory = tempdir().expect("a directory");
        let path = directory.path().join("script");
        fs::write(&path, script).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `client`, a shell command that finds the server's URI in `$uri`.
    fn run(&self, server: Server, client: &str) -> Outcome {
        let script = self.path("script");
        let mut command = match server {
            Server::Nbdkit => {
                let mut command = Command::new("nbdkit");
                command.args(["-U", "-", "sh"]).arg(script);
                command
            }
            Server::Ours => {
                let mut command = blockferry(["serve", "--quiet"]);
                command.arg(format!("sh:{}", script.display()));
                command
            }
        };
        command
            .args(["--run", client])
            .env("LC_ALL", "C")
            .env("LOG", self.path("log"))
            .env("DISK", self.path("disk"));
        run(&mut command)
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The calls that are requests.
    fn requests(&self) -> Vec<String> {
        let mut calls = self.calls();
        calls.retain(|call| REQUESTS.contains(&call.split(' ').next().unwrap_or_default()));
        calls
    }
}

/// What a client prints that is the same whoever serves it: without the place, the speed, and the block sizes
/// that nbdkit leaves unsaid.
fn essence(outcome: &Outcome) -> Vec<String> {
    let lines = outcome.text().lines();
    lines
        .filter(|line| {
            !["uri:", "block_size_", " ops"]
                .iter()
                .any(|it| line.contains(it))
        })
        .map(str::to_owned)
        .collect()
}

/// Runs `client` against both servers of `script`: what it prints is the same. Returns that, and the requests
/// that nbdkit and we made of it.
#[track_caller]
fn same_output(script: &str, client: &str) -> (Vec<String>, [Vec<String>; 2]) {
    let [(nbdkits, nbdkits_requests), (ours, requests)] =
        [Server::Nbdkit, Server::Ours].map(|server| {
            let room = Room::new(script);
            sparse_image(&room.path("disk"), 8 << 20);
            let outcome = room.run(server, client);
            (essence(&outcome), room.requests())
        });
    assert_eq!(ours, nbdkits);
    (ours, [nbdkits_requests, requests])
}

/// The same, and the requests are the same too.
#[track_caller]
fn same(script: &str, client: &str) -> (Vec<String>, Vec<String>) {
    let (printed, [nbdkits_requests, requests]) = same_output(script, client);
    assert_eq!(requests, nbdkits_requests);
    (printed, requests)
}

#[test]
fn each_request_of_qemu_io_becomes_the_call_that_nbdkit_makes_of_it() {
    let client = r#"qemu-io -t writeback -f raw "$uri" -c "read -P 0 7M 4k" -c "write -P 7 4k 100k" -c "write -f 512 512" \
        -c "write -z 0 100k" -c "write -z -u 1M 64k" -c "write -z -u -f 2M 64k" -c "write -z -n 0 4k" \
        -c "discard 3M 1M" -c flush -c "read -P 7 102400 2048""#;
    let (_, requests) = same(&format!("{LOGGED}{DISK}"), client);
    let has = |call: &str| requests.iter().any(|made| made == call);
    assert!(has("pwrite h 102400 4096 "), "{requests:?}");
    assert!(has("zero h 65536 2097152 fua,may_trim"), "{requests:?}");
}

#[test]
fn nbdinfo_prints_the_same_of_both() {
    for cases in [
        "",
        "can_fast_zero|is_rotational) exit 0 ;;\n",
        "can_write) exit 3 ;;\n",
        "can_cache) echo none ;;\n",
        "can_fua) exit 2 ;;\n",
        "block_size) echo 512 64K 1M ;;\n",
        "export_description) echo 'a disk of words' ;;\n",
        "default_export) echo it ;;\n",
        "list_exports) echo INTERLEAVED; echo a; echo first; echo b; echo second ;;\n",
        "list_exports) echo x; echo y ;;\n",
        "extents) echo '0 64K hole'; echo '64K 64K zero'; echo '128K 1G 3' ;;\n",
        "can_extents) exit 3 ;;\n",
    ] {
        let client =
            r#"nbdinfo "$uri"; nbdinfo --list "$uri"; nbdinfo --map "$uri"; nbdinfo --size "$uri""#;
        let (printed, _) = same(&format!("{LOGGED}{cases}{DISK}"), client);
        assert!(printed.iter().any(|line| line == "8388608"), "{printed:?}");
    }
}

#[test]
fn errors_reach_the_client_as_the_same_numbers() {
    // Not ENOTSUP: nbdkit does not come back from some of these.
    for word in [
        "EPERM",
        "EIO",
        "ENOMEM",
        "EINVAL",
        "ENOSPC",
        "ESHUTDOWN",
        "EROFS",
        "EDQUOT",
        "EFBIG",
        "EOVERFLOW",
        "nothing",
    ] {
        let cases = format!(
            "pread|pwrite|trim|flush|zero) [ $1 = pwrite ] && cat > /dev/null; echo '{word} no' >&2; exit 1 ;;\n"
        );
        let client = r#"for request in "write 0 4k" "discard 0 4k" "write -z -u 0 4k" "write -z -n 0 4k" flush; do
            qemu-io -f raw "$uri" -c "$request"; done 2>&1 | grep -v '^nbdkit\|^warning\|^blockferry'
            nbdcopy "$uri" null: 2>&1 | grep -o 'failed: [A-Z].*' | head -n 1"#;
        let (printed, _) = same_output(&format!("{LOGGED}{cases}{DISK}"), client);
        assert!(printed.len() >= 4, "{word}: {printed:?}");
    }
}

#[test]
fn nbdcopy_and_qemu_img_copy_through_a_script() {
    let room = Room::new(&format!("{LOGGED}{DISK}"));
    let (image, disk, back) = (room.path("image"), room.path("disk"), room.path("back"));
    sparse_image(&image, 8 << 20);
    fs::write(&disk, vec![0x55; 8 << 20]).expect("written");
    let quoted = |path: &Path| format!("'{}'", path.display());
    let client = format!("nbdcopy --flush {} \"$uri\"", quoted(&image));
    room.run(Server::Ours, &client).success();
    assert_same(&image, &disk);
    let client = format!("qemu-img convert -f raw -O raw \"$uri\" {}", quoted(&back));
    // Without extents all of it is read.
    let everything = DISK.replace("can_extents|", "");
    fs::write(room.path("script"), format!("{LOGGED}{everything}")).expect("written");
    room.run(Server::Ours, &client).success();
    assert_same(&image, &back);
}

#[test]
fn a_script_is_loaded_first_and_unloaded_last() {
    let client = r#"nbdinfo "$uri" > /dev/null"#;
    let of = |server| {
        let room = Room::new(&format!("{LOGGED}{DISK}"));
        sparse_image(&room.path("disk"), 1 << 20);
        room.run(server, client).success();
        let mut calls = room.calls();
        // nbdkit's may end before it has closed all.
        if matches!(server, Server::Ours) {
            let count = |call: &str| calls.iter().filter(|one| one.starts_with(call)).count();
            assert_eq!(count("open "), count("close "));
        }
        let begin: Vec<_> = calls.drain(..10).collect();
        (begin, calls.pop())
    };
    assert_eq!(of(Server::Ours), of(Server::Nbdkit));
}

#[test]
fn too_little_and_too_much_fail_a_read_and_the_connection_lives_on() {
    for pread in ["head -c 100 /dev/zero", "cat /dev/zero", "kill -9 $$"] {
        let cases = format!(
            "pread) if [ \"$4\" = 0 ]; then {pread}; else head -c \"$3\" /dev/zero; fi ;;\n"
        );
        let room = Room::new(&format!("{LOGGED}{cases}{DISK}"));
        sparse_image(&room.path("disk"), 8 << 20);
        let client = r#"qemu-io -f raw "$uri" -c "read 0 4k" -c "read -P 0 4M 4k""#;
        let outcome = room.run(Server::Ours, client);
        let printed = outcome.text();
        assert!(
            printed.contains("read failed: Input/output error"),
            "{printed}"
        );
        assert!(
            printed.contains("read 4096/4096 bytes at offset 4194304"),
            "{printed}"
        );
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    }
}

#[test]
fn a_script_that_hangs_holds_up_no_other_client() {
    let cases = "pread) if [ \"$4\" = 0 ]; then : > \"$LOG.hangs\"; sleep 1000; else head -c \"$3\" /dev/zero; fi ;;\n";
    let room = Room::new(&format!("{LOGGED}{cases}{DISK}"));
    sparse_image(&room.path("disk"), 8 << 20);
    let client = r#"qemu-io -f raw "$uri" -c "read 0 4k" > /dev/null 2>&1 & hanging=$!
        while ! [ -e "$LOG.hangs" ]; do sleep 0.1; done
        qemu-io -f raw "$uri" -c "read -P 0 4M 4k" -c "write 0 4k" -c flush
        code=$?; kill -9 $hanging; exit $code"#;
    let printed = room.run(Server::Ours, client).success();
    assert!(
        printed.text().contains("wrote 4096/4096"),
        "{}",
        printed.text()
    );
}

#[test]
fn exit_codes_end_the_connection_or_the_server() {
    // Whether the request is answered well, and whether another client is served afterwards.
    for (code, answered, another) in [
        (4, true, false),
        (5, false, false),
        (6, false, true),
        (7, true, true),
        (8, false, true),
    ] {
        let cases = format!("flush) exit {code} ;;\n");
        let room = Room::new(&format!("{LOGGED}{cases}{DISK}"));
        sparse_image(&room.path("disk"), 1 << 20);
        // A server that ends takes the shell along, but not what the shell has started.
        let client = r#"(qemu-io -f raw "$uri" -c flush && touch "$LOG.flushed"; touch "$LOG.over") & wait
            sleep 0.5; nbdinfo --size "$uri" && echo served; exit 0"#;
        let outcome = room.run(Server::Ours, client);
        let printed = outcome.text();
        assert_eq!(printed.contains("served"), another, "{code}: {printed}");
        let said = format!("{code}: {printed} {}", outcome.stderr);
        until("the answer", || room.path("log.over").exists());
        assert_eq!(room.path("log.flushed").exists(), answered, "{said}");
        assert_eq!(
            room.calls().last().map(String::as_str),
            Some("unload"),
            "{code}"
        );
    }
}
