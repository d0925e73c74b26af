//! Servers that fail, and what is left on standard output then.

use serde_json::Value;
use tempfile::tempdir;

use super::{Served, run_as, same};
use crate::support::dropin::{BOTH, Who, words};

const QUESTIONS: [&str; 9] = [
    "",
    "--json",
    "--no-content",
    "--list",
    "--list --json",
    "--size",
    "--map",
    "--map --totals --json",
    "--can connect",
];

#[test]
fn a_server_that_is_not_there_fails_every_question() {
    let dir = tempdir().expect("a directory");
    let socket = dir.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    let dead = format!("nbd+unix:///?socket={}", socket.display());
    let missing = format!("nbd+unix:///?socket={}/missing", dir.path().display());
    for question in QUESTIONS {
        for uri in [
            &*dead,
            &missing,
            "nbd://127.0.0.1:1/",
            "nbd://localhost:1/disk",
        ] {
            let outcome = same(&[words(question), vec![uri]].concat());
            assert_eq!((outcome.code, outcome.text()), (1, ""));
        }
        for command in ["-- [ false ]", "-- [ no-such-server-anywhere ]"] {
            let outcome = same(&[words(question), words(command)].concat());
            assert_eq!((outcome.code, outcome.text()), (1, ""));
        }
    }
}

#[test]
fn an_export_that_is_not_there_leaves_nothing_on_standard_output() {
    let server = Served::nbdkit(
        "-e disk --filter=exportname memory 1M exportname=disk exportname-strict=true",
    );
    let uri = server.uri("other");
    for question in ["--size", "--map", "--map --json", "--can write"] {
        let outcome = same(&[words(question), vec![&uri]].concat());
        assert_eq!((outcome.code, outcome.text()), (1, ""), "{question}");
    }
    // Theirs prints what it knows of the server first: a line that looks like an answer, and JSON without its end.
    for question in ["", "--json"] {
        let arguments = [words(question), vec![&uri]].concat();
        let [theirs, ours] = BOTH.map(|who| run_as(who, &arguments));
        assert_eq!(ours.code, theirs.code);
        assert_eq!(ours.text(), "");
        ours.failure(1, &["nbdinfo: ", &uri, "no such export"]);
    }
}

#[test]
fn one_bad_export_does_not_hide_the_others_and_fails_the_list() {
    let server = Served::nbdkit_with(&[
        "eval",
        "list_exports=echo NAMES; echo first; echo bad; echo last",
        "open=test \"$3\" != bad || { echo ENOENT gone >&2; exit 1; }",
        "get_size=echo 1048576",
        "pread=exit 1",
    ]);
    let outcome = same(&["--list", &server.uri("")]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("bad"), "{}", outcome.stderr);
    // Theirs forgets the end of the list.
    let theirs = run_as(Who::Theirs, &["--list", "--json", &server.uri("")]);
    let ours = run_as(Who::Ours, &["--list", "--json", &server.uri("")]);
    assert_eq!((ours.code, theirs.code), (1, 1));
    let list: Value = serde_json::from_str(ours.text()).expect("JSON");
    let exports = list["exports"].as_array().expect("a list");
    let names: Vec<_> = exports
        .iter()
        .map(|export| &export["export-name"])
        .collect();
    assert_eq!(names, ["first", "last"]);
}

#[test]
fn lists_that_are_refused_or_empty_are_told_as_theirs_tells_them() {
    let empty = Served::nbdkit_with(&[
        "eval",
        "list_exports=echo -n",
        "get_size=echo 1024",
        "pread=exit 1",
    ]);
    let refused = Served::nbdkit_with(&[
        "eval",
        "list_exports=echo ENOENT >&2; exit 1",
        "get_size=echo 1024",
        "pread=exit 1",
    ]);
    let old = Served::nbdkit("-o null 1M");
    let unfixed = Served::nbdkit("--mask-handshake=2 null 1M");
    for option in ["--list", "--list --json", "--list --content"] {
        let list = |server: &Served| {
            let uri = server.uri("");
            same(&[words(option), vec![&*uri]].concat())
        };
        assert_eq!(list(&empty).code, 0);
        for server in [&refused, &old, &unfixed] {
            let outcome = list(server);
            assert_eq!((outcome.code, outcome.text()), (1, ""), "{option}");
        }
    }
}

#[test]
fn a_failure_in_the_middle_leaves_nothing_on_standard_output() {
    let open = Served::nbdkit_with(&["eval", "open=echo EIO fail >&2; exit 1", "get_size=echo 1"]);
    let extents = Served::nbdkit_with(&[
        "eval",
        "get_size=echo 1048576",
        "pread=dd if=/dev/zero count=$3 iflag=count_bytes",
        "can_extents=exit 0",
        "extents=test $4 = 0 || { echo EIO fail >&2; exit 1; }; echo 0 65536",
    ]);
    let size = same(&["--size", &open.uri("")]);
    assert_eq!((size.code, size.text()), (1, ""));
    for shape in ["", "--json", "--totals", "--totals --json"] {
        let map = same(&[&["--map"], &words(shape)[..], &[&extents.uri("")]].concat());
        assert_eq!((map.code, map.text()), (1, ""));
    }
}

#[test]
fn an_oldstyle_server_is_not_taken_for_an_export_by_name() {
    let server = Served::nbdkit("-o memory 1M");
    same(&[&server.uri("")]).success();
    // Theirs shows the one export under any name.
    for question in ["", "--size", "--can write"] {
        let uri = server.uri("disk");
        let arguments = [words(question), vec![&uri]].concat();
        let outcome = run_as(Who::Ours, &arguments);
        assert_eq!(outcome.text(), "");
        outcome.failure(1, &["oldstyle", "export names"]);
    }
}
