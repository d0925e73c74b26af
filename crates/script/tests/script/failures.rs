//! Scripts that fail, say too much or too little, hang, or ask for more than an answer.

use std::{fs, path::Path, time::Duration};

use blockferry_block::{
    Buffer, ByteRange, Context, ErrorKind, Exports as _, Wish, WriteFlags, ZeroFlags,
};
use blockferry_script::{Program, Script, ScriptOptions};

use crate::support::{Room, eval, eval_script, lines, open, refusal};

/// Reads 512 bytes from a device whose `pread` is `text`: the error.
async fn read_failure(text: &str) -> blockferry_block::Error {
    let (_script, device) = eval(&[("get_size", "echo 1M"), ("pread", text)]).await;
    device
        .read(1024, Buffer::zeroed(512))
        .await
        .expect_err("a script that fails")
}

#[tokio::test]
async fn the_first_word_on_standard_error_says_which_error_it_is() {
    for (word, kind) in [
        ("EPERM", ErrorKind::NotPermitted),
        ("EIO", ErrorKind::Io),
        ("ENOMEM", ErrorKind::OutOfMemory),
        ("EINVAL", ErrorKind::InvalidInput),
        ("ENOSPC", ErrorKind::NoSpace),
        ("EDQUOT", ErrorKind::NoSpace),
        ("EFBIG", ErrorKind::NoSpace),
        ("EOVERFLOW", ErrorKind::Overflow),
        ("ESHUTDOWN", ErrorKind::ShuttingDown),
        ("ENOTSUP", ErrorKind::Unsupported),
        ("EOPNOTSUPP", ErrorKind::Unsupported),
        ("EROFS", ErrorKind::ReadOnly),
        ("enospc", ErrorKind::NoSpace),
        ("EINVALID", ErrorKind::Io),
        ("oops", ErrorKind::Io),
        ("", ErrorKind::Io),
    ] {
        let error = read_failure(&format!("echo '{word} the words' >&2; exit 1")).await;
        assert_eq!(error.kind(), kind, "{word}");
        assert!(error.to_string().contains("the words"), "{error}");
    }
}

#[tokio::test]
async fn an_error_names_script_method_range_and_the_scripts_own_words() {
    let text = r#"printf 'EIO the disk\tis on fire\nand more\n' >&2; exit 1"#;
    assert_eq!(
        read_failure(text).await.to_string(),
        "eval: read of 512 bytes at offset 1024: pread: the disk\\tis on fire"
    );
}

#[tokio::test]
async fn codes_that_mean_nothing_are_errors_and_said() {
    for code in [1, 9, 15, 16, 127, 255] {
        let error = read_failure(&format!("exit {code}")).await;
        let words = format!("pread: it ended with code {code} and said nothing");
        assert!(error.to_string().ends_with(&words), "{error}");
        assert_eq!(error.kind(), ErrorKind::Io);
    }
    let error = read_failure("exit 3").await;
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("code 3"), "{error}");
    let error = read_failure("exit 2").await;
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("does not know"), "{error}");
}

#[tokio::test]
async fn death_by_a_signal_is_an_error_whatever_was_said_before() {
    let error = read_failure("head -c $3 /dev/zero; echo ENOSPC hm >&2; kill -9 $$").await;
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("by signal 9"), "{error}");
}

#[tokio::test]
async fn codes_that_ask_for_more_are_wishes() {
    for (code, wish, fails) in [
        (4, Wish::ShutDown, false),
        (5, Wish::ShutDown, true),
        (6, Wish::Drop, true),
        (7, Wish::Disconnect, false),
        (8, Wish::Disconnect, true),
    ] {
        let pread = format!("head -c $3 /dev/zero; echo 'ENOSPC words' >&2; exit {code}");
        let methods = [("get_size", "echo 1M"), ("pread", pread.as_str())];
        let script = eval_script(&methods).await.expect("a script");
        let export = open(&script, "").await.expect("an export");
        let wishes = export.wishes.expect("a place for wishes");
        assert_eq!(wishes.current(), None);
        let result = export.device.read(0, Buffer::zeroed(512)).await;
        assert_eq!(wishes.current(), Some(wish), "{code}");
        assert_eq!(result.is_err(), fails, "{code}");
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::ShuttingDown);
            assert!(error.to_string().contains("words"), "{error}");
        }
        assert_eq!(script.wish(), None);
    }
}

#[tokio::test]
async fn a_wish_to_shut_down_before_anything_is_open_reaches_those_who_open_later() {
    let room = Room::cases("preconnect) exit 4 ;;");
    let script = room.start().await;
    let client = blockferry_block::ClientFacts::default();
    script.connecting(client).await.expect("a connection");
    assert_eq!(script.wish(), Some(Wish::ShutDown));
    let export = open(&script, "").await.expect("an export");
    let wishes = export.wishes.expect("a place for wishes");
    assert_eq!(wishes.current(), Some(Wish::ShutDown));
}

#[tokio::test]
async fn too_little_too_much_and_endlessly_much_are_errors() {
    for (text, words) in [
        ("", "printed 0 bytes instead of 512"),
        ("head -c 511 /dev/zero", "printed 511 bytes instead of 512"),
        ("head -c 513 /dev/zero", "more than 512 bytes"),
        ("cat /dev/zero", "more than 512 bytes"),
    ] {
        let error = read_failure(text).await;
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn what_is_said_endlessly_on_standard_error_is_not_kept() {
    let text = "echo ENOSPC first >&2; head -c 20000000 /dev/zero >&2; exit 1";
    let error = read_failure(text).await;
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().ends_with("pread: first"), "{error}");
    let text = "tr '\\0' x < /dev/zero | head -c 20000000 >&2; exit 1";
    let error = read_failure(text).await;
    assert!(error.to_string().len() < 4096, "{error}");
}

#[tokio::test]
async fn answers_that_make_no_sense_are_quoted() {
    for (method, answer, words) in [
        ("get_size", "echo; echo 1M", ""),
        ("get_size", "echo -1", "not a size"),
        ("get_size", "printf '1\\0331'", "\\u{1b}"),
        ("get_size", "echo 9E", "not a size"),
        ("get_size", "cat /dev/zero", "more than"),
        ("can_cache", "echo maybe", "not none, emulate or native"),
        ("block_size", "echo 3 4096 8192", "block size"),
        ("block_size", "echo 1", "block size"),
        ("open", "printf 'a\\0b'", "null byte"),
        ("default_export", "head -c 5000 /dev/zero", "4096"),
        (
            "can_extents",
            "echo EPERM not for you >&2; exit 1",
            "not for you",
        ),
        ("can_flush", "kill -9 $$", "signal"),
    ] {
        let mut methods = vec![("pread", "exit 1"), (method, answer)];
        if method != "get_size" {
            methods.push(("get_size", "echo 1M"));
        }
        let script = eval_script(&methods).await.expect("a script");
        let result = open(&script, "").await;
        if words.is_empty() {
            result.map(drop).expect("white space does not matter");
            continue;
        }
        let error = refusal(result);
        let text = error.to_string();
        let method = if method == "open" {
            "open: open"
        } else {
            method
        };
        assert!(text.contains(method), "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[tokio::test]
async fn extents_that_make_no_sense_fail_the_request() {
    for answer in [
        "",
        "echo 0",
        "echo 512 512",
        "echo 0 4; echo 5 9",
        "cat /dev/zero",
    ] {
        let methods = [
            ("get_size", "echo 1M"),
            ("pread", "exit 1"),
            ("extents", answer),
        ];
        let (_script, device) = eval(&methods).await;
        let range = ByteRange::between(0, 4096);
        let error = device.extents(range, &Context::Allocation).await;
        let error = error.expect_err(answer);
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("extents: it printed"), "{error}");
    }
}

#[tokio::test]
async fn a_script_that_cannot_be_run_says_so() {
    let room = Room::new("#!/bin/sh\nexit 2\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(room.script(), mode).expect("set");
    let error = Script::start(room.options())
        .await
        .expect_err("not executable");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(
        error
            .to_string()
            .contains("it cannot be run: Permission denied"),
        "{error}"
    );

    let room = Room::new("#!/no/such/interpreter\n");
    let error = Script::start(room.options())
        .await
        .expect_err("no interpreter");
    assert!(
        error.to_string().contains("sh:script: open: load:"),
        "{error}"
    );

    let program = Program::File(room.file("nothing"));
    let options = ScriptOptions::new(program, "sh:nothing");
    let error = Script::start(options).await.expect_err("no file");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// A `pread` that hangs with a child of its own, whose numbers it leaves behind.
const HANGS: &str = r#"
pread) sleep 1000 & echo "$$ $!" > "$here/ids.new"; mv "$here/ids.new" "$here/ids"; wait ;;
"#;

/// Waits until none of the processes is there any more. A zombie is not.
async fn wait_until_gone(ids: &Path) {
    let ids = lines(ids).join(" ");
    for id in ids.split(' ') {
        let status = format!("/proc/{id}/stat");
        while fs::read_to_string(&status).is_ok_and(|text| !text.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_takes_its_processes_with_it() {
    let room = Room::cases(HANGS);
    let (_script, export) = room.open().await;
    let read = export.device.read(0, Buffer::zeroed(512));
    tokio::select! {
        _ = read => panic!("it hangs"),
        () = room.wait_for("ids") => {}
    }
    wait_until_gone(&room.file("ids")).await;
}

#[tokio::test]
async fn a_script_that_hangs_is_ended_when_its_time_is_up() {
    let room = Room::cases(HANGS);
    let mut options = room.options();
    options.timeout = Some(Duration::from_secs(5));
    let script = Script::start(options).await.expect("a script");
    let export = open(&script, "").await.expect("an export");
    let error = export.device.read(0, Buffer::zeroed(512)).await;
    let error = error.expect_err("it hangs");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("within 5 s"), "{error}");
    wait_until_gone(&room.file("ids")).await;
}

#[tokio::test]
async fn a_script_that_does_not_read_what_is_written_is_no_failure() {
    let methods = [
        ("get_size", "echo 64M"),
        ("pread", "exit 1"),
        ("pwrite", "exec <&-; exit 0"),
    ];
    let (_script, device) = eval(&methods).await;
    for length in [1, 3 << 20] {
        let data = Buffer::zeroed(length);
        let written = device.write(0, data, WriteFlags::empty()).await;
        assert_eq!(written.expect("no failure").len(), length);
    }
}

#[tokio::test]
async fn requests_beyond_the_device_do_not_reach_the_script() {
    let room = Room::cases("can_write) exit 0 ;;\n");
    let (_script, export) = room.open().await;
    let before = room.calls();
    let end = 1 << 20;
    let read = export.device.read(end - 1, Buffer::zeroed(2)).await;
    assert_eq!(read.expect_err("outside").kind(), ErrorKind::OutOfBounds);
    let read = export.device.read(u64::MAX, Buffer::zeroed(2)).await;
    assert_eq!(read.expect_err("outside").kind(), ErrorKind::OutOfBounds);
    let range = ByteRange::between(end, end + 1);
    let zero = export.device.zero(range, ZeroFlags::empty()).await;
    assert_eq!(zero.expect_err("outside").kind(), ErrorKind::OutOfBounds);
    assert_eq!(room.calls(), before);
}
