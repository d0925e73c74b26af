//! The command line itself: spellings, mistakes, versions.

use std::process::Command;

use tempfile::tempdir;

use super::{Served, run_as, same};
use crate::support::{
    dropin::{BOTH, Who, words},
    run,
};

#[test]
fn the_version_has_the_same_shape() {
    for option in ["--version", "-V", "--vers", "-LV"] {
        for who in BOTH {
            let outcome = run_as(who, &[option]).success();
            let lines: Vec<_> = outcome.text().lines().collect();
            let [tool, library] = lines[..] else {
                panic!("{who:?}: {lines:?}")
            };
            let version = tool.strip_prefix("nbdinfo 1.").expect("the tool's name");
            assert_eq!(library.strip_prefix("libnbd 1."), Some(version));
        }
    }
}

#[test]
fn every_option_of_theirs_is_listed_in_their_order_and_explained() {
    let help = run_as(Who::Ours, &["--help"]).success();
    for list in ["--long-options", "--short-options"] {
        let [theirs, ours] = BOTH.map(|who| run_as(who, &[list]).success());
        let mut rest = ours.text().lines();
        for option in theirs.text().lines() {
            assert!(rest.any(|own| own == option), "{option} in {}", ours.text());
        }
    }
    for option in [
        "-L",
        "--map",
        "--totals",
        "--can",
        "--isnt",
        "--uri",
        "--no-content",
    ] {
        assert!(help.text().contains(option), "{option}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let server = Served::nbdkit("null 1M");
    let uri = &server.uri("");
    for mistake in [
        "--bogus URI",
        "-Z URI",
        "",
        "URI URI",
        "[ nbdkit",
        "[ ]",
        "--co URI",
        "--color=yes URI",
        "--json=x URI",
        "--can",
        "--can URI",
        "--size --list URI",
        "--size --map URI",
        "--map --can read URI",
        "--list --can read URI",
        "--content --no-content URI",
        "--totals URI",
        "--totals --size URI",
        "disk.raw",
        "-",
        "http://localhost/",
        "nbd://localhost:99999/",
        "nbd+unix:///disk",
    ] {
        let arguments: Vec<_> = words(mistake)
            .into_iter()
            .map(|word| if word == "URI" { uri } else { word })
            .collect();
        let outcome = same(&arguments);
        assert_eq!((outcome.code, outcome.text()), (1, ""), "{mistake}");
    }
    same(&[""]);
}

#[test]
fn options_stand_anywhere_and_may_be_cut_short() {
    let server = Served::nbdkit("null 1M");
    let uri = server.uri("");
    for arguments in [
        &[&uri, "--size"][..],
        &["--si", &uri],
        &["--js", &uri, "--no-con"],
        &["-L", &uri, "--json"],
        &["--can=flush", &uri],
        &["--tot", "--map", &uri],
        &["--size", "--", &uri],
        &["--can", "write", "--is", "read-only", &uri],
        &["--json", "--json", &uri],
        &["--no-color", "--color", "--color", &uri],
        &["--map=foo", "--map", &uri],
    ] {
        same(arguments);
    }
}

#[test]
fn a_link_of_that_name_is_enough() {
    let dir = tempdir().expect("a directory");
    let link = Who::Ours.path("nbdinfo", dir.path());
    let outcome = run(Command::new(link).args(words("--size [ nbdkit null 3M ]"))).success();
    assert_eq!(outcome.text(), "3145728\n");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    for options in ["", "--map", "--size"] {
        let arguments = [words(options), words("-- [ nbdkit null 1M ]")].concat();
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut command = Who::Ours.tool("nbdinfo", arguments);
        command.stdout(full.expect("a device that is full"));
        command.stderr(std::process::Stdio::null());
        assert_eq!(command.status().expect("run").code(), Some(1));
    }
}
