//! Wrong usage: exit code 2, and words that help.

use crate::support::{blockferry, run};

#[test]
fn wrong_options_are_named() {
    let cases: [(&[&str], &str); 9] = [
        (&["copy"], "SOURCE"),
        (&["copy", "a"], "DESTINATION"),
        (&["copy", "--no-such-option", "a", "b"], "--no-such-option"),
        (
            &["copy", "--request-size=3", "sample:1M", "null:"],
            "--request-size",
        ),
        (
            &["copy", "--request-size=1G", "sample:1M", "null:"],
            "--request-size",
        ),
        (
            &["copy", "--requests=0", "sample:1M", "null:"],
            "--requests",
        ),
        (&["copy", "--sparse=1000", "sample:1M", "null:"], "--sparse"),
        (&["copy", "sample:banana", "null:"], "banana"),
        (&["no-such-command"], "no-such-command"),
    ];
    for (arguments, word) in cases {
        let outcome = run(&mut blockferry(arguments));
        assert_eq!(outcome.code, 2, "{arguments:?}: {}", outcome.stderr);
        outcome.failure(2, &[word]);
    }
}

#[test]
fn a_source_cannot_be_written_and_null_cannot_be_read_by_mistake() {
    run(&mut blockferry(["copy", "sample:1M", "sample:1M"])).failure(2, &["sample"]);
}

#[test]
fn help_and_version_are_for_standard_output() {
    for arguments in [
        &["--version"][..],
        &["--help"],
        &["copy", "--help"],
        &["serve", "--help"],
    ] {
        let outcome = run(&mut blockferry(arguments)).success();
        assert!(outcome.text().contains("blockferry") && outcome.stderr.is_empty());
    }
}
