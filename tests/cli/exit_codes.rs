//! The exit codes are the same in all commands, and those that differ say so in their help.

use std::{net::TcpListener, path::Path, process::Stdio, thread};

use tempfile::tempdir;

use crate::support::{
    blockferry, run,
    run::{finish, signal, until_it_writes},
    sparse_image,
};

/// Every command with an image in its place, which `IMAGE` stands for, and the code for one that cannot be opened
/// and for one that may be there later.
const COMMANDS: &[(&[&str], i32, i32)] = &[
    (&["copy", "IMAGE", "null:"], 1, 75),
    (&["convert", "-O", "qcow2", "IMAGE", "new.qcow2"], 1, 75),
    (&["info", "IMAGE"], 1, 75),
    (&["map", "IMAGE"], 1, 75),
    (&["map", "--picture", "IMAGE"], 1, 75),
    (&["checksum", "IMAGE"], 1, 75),
    (&["measure", "IMAGE"], 1, 75),
    (&["snapshot", "-f", "qcow2", "IMAGE"], 1, 75),
    (&["bitmap", "-f", "qcow2", "IMAGE"], 1, 75),
    (&["check", "-f", "qcow2", "IMAGE"], 1, 75),
    (&["dd", "if=IMAGE", "of=new.raw"], 1, 75),
    (&["serve", "IMAGE", "--run", "true"], 1, 75),
    // 1 is an answer there.
    (&["compare", "IMAGE", "disk.raw"], 2, 75),
];

fn code(words: &[&str], image: &str, directory: &Path) -> (i32, String) {
    let words: Vec<_> = words
        .iter()
        .map(|word| word.replace("IMAGE", image))
        .collect();
    let outcome = run(blockferry(&words).current_dir(directory));
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    (outcome.code, outcome.stderr)
}

#[test]
fn what_cannot_be_opened_is_1_and_what_may_pass_is_75() {
    let desk = tempdir().expect("a directory");
    sparse_image(&desk.path().join("disk.raw"), 1 << 20);
    // A server that hangs up on everybody.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let uri = format!("nbd://{}/", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        while let Ok(client) = listener.accept() {
            drop(client);
        }
    });
    for (words, missing, passing) in COMMANDS {
        let (found, told) = code(words, "no-such-file", desk.path());
        assert_eq!(found, *missing, "{words:?}: {told}");
        assert!(told.contains("no-such-file"), "{words:?}: {told}");
        let (found, told) = code(words, &uri, desk.path());
        assert_eq!(found, *passing, "{words:?}: {told}");
        assert!(
            told.contains("hint: this may pass: try again"),
            "{words:?}: {told}"
        );
    }
}

#[test]
fn wrong_usage_is_2_in_every_command() {
    let desk = tempdir().expect("a directory");
    for (words, _, _) in COMMANDS {
        let words = [&words[..1], &["--no-such-option"]].concat();
        assert_eq!(code(&words, "", desk.path()).0, 2, "{words:?}");
    }
    for words in [
        &[][..],
        &["no-such-command"],
        &["create", "--no-such-option"],
        &["resize", "disk.raw", "large"],
        &["relay", "nowhere", "tcp:localhost:1"],
        &["doctor", "nbd://localhost/"],
        &["completions", "no-such-shell"],
        &["info", "nbd+unix:///"],
        &["copy", "--filter=no-such-filter", "disk.raw", "null:"],
    ] {
        assert_eq!(code(words, "", desk.path()).0, 2, "{words:?}");
    }
}

#[test]
fn an_answer_has_a_code_of_its_own_where_a_command_answers() {
    let desk = tempdir().expect("a directory");
    sparse_image(&desk.path().join("disk.raw"), 1 << 20);
    for (words, expected) in [
        (&["compare", "disk.raw", "disk.raw"][..], 0),
        (&["compare", "disk.raw", "pattern:1M"], 1),
        (&["check", "disk.raw"], 63),
        (&["checksum", "disk.raw"], 0),
        (
            &[
                "checksum",
                "disk.raw",
                "--expect",
                &format!("sha256:{}", "0".repeat(64)),
            ],
            1,
        ),
        (&["serve", "disk.raw", "--run", "exit 7"], 7),
    ] {
        let (found, told) = code(words, "", desk.path());
        assert_eq!(found, expected, "{words:?}: {told}");
    }
}

#[test]
fn who_is_asked_to_end_says_by_which_signal_unless_ending_is_its_task() {
    for (name, expected) in [("INT", 130), ("TERM", 143)] {
        let desk = tempdir().expect("a directory");
        let words = ["copy", "--rate=1M", "sample:1G,data=100", "new.raw"];
        let copy = blockferry(words)
            .current_dir(desk.path())
            .stderr(Stdio::piped())
            .spawn();
        let copy = copy.expect("started");
        until_it_writes(&copy, desk.path());
        signal(&copy, name);
        assert_eq!(finish(copy).code, expected);
    }
    let desk = tempdir().expect("a directory");
    let socket = desk.path().join("socket");
    let mut serve = blockferry(["serve", "null:1M", "--unix"]);
    let serve = serve
        .arg(&socket)
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    crate::support::run::until("the server", || socket.exists());
    signal(&serve, "TERM");
    assert_eq!(finish(serve).code, 0);
}

#[test]
fn the_codes_are_told_in_the_help_of_every_command() {
    for (words, _, _) in COMMANDS {
        let help = run(&mut blockferry([words[0], "--help"])).success();
        let text = help.text();
        let (_, codes) = text.split_once("\nExit codes:\n").expect("exit codes");
        for code in ["0 ", "1 ", "2 ", "75 ", "130 "] {
            assert!(
                codes
                    .lines()
                    .any(|line| line.trim_start().starts_with(code)),
                "{code}: {codes}"
            );
        }
    }
}
