//! `nbdcopy --blkhash`: the digests that libnbd's own tests expect, printed as it prints them.

use std::fs;

use tempfile::tempdir;

use crate::support::{
    dropin::{Who, words},
    run,
    run::run_with_input,
};

/// What nbdkit's data plugin is to serve, the algorithm, and the digest.
const KNOWN: [(&str, &str, &str); 7] = [
    (
        "",
        "sha256",
        "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc",
    ),
    ("\"hello\"", "md5", "f741ac9ce55f5325906bb14e9c05d467"),
    (
        "\"hello\"",
        "sha256",
        "337355feb53a5309d5aba92796223c2c84ffab930e706c01fef573a2722545e6",
    ),
    (
        "\"hello\"",
        "sha512",
        "eca04a593cf12ec4132993da709048e25a2f1be3526e132fb521ec9d41f023ec4018b3fd07b014a33e36bb5fa145b36991f431e62f9e1a93bebea6c9565682c1",
    ),
    (
        "\"hello\" @1048576 \"goodbye\"",
        "sha256/64k",
        "61b8f3a8cea76e16eeff7ce27f1b7711c1f1e437f5038cec17773772a4bded28",
    ),
    (
        "\"12345678\"*512*256",
        "md5",
        "84fc21ac2f49ac283ff399378d834d1a",
    ),
    (
        "\"12345678\"*512*256",
        "sha512/512k",
        "379f7eb1628058c7abbc4c96941ac972074815ea9ef4aca95eefb2b4f9c29f64023fff8d966e9fddf08d07bdba548e75298917f10268fdf9ba636c2321a2214e",
    ),
];

#[test]
fn digests_are_those_that_libnbd_knows() {
    let dir = tempdir().expect("a directory");
    let file = dir.path().join("digest");
    let to_file = format!("--blkhash-file={}", file.display());
    for (data, algorithm, digest) in KNOWN {
        let option = format!("--blkhash={algorithm}");
        let data = format!("data={data}");
        let copy = ["--", "[", "nbdkit", "data", &data, "]", "null:"];
        let outcome = run(&mut Who::Ours.nbdcopy([&[&*option], &copy[..]].concat())).success();
        assert_eq!(outcome.text(), format!("{digest}\n"), "{data} {algorithm}");
        assert_eq!(outcome.stderr, "");
        let quiet = run(&mut Who::Ours.nbdcopy([&[&*option, &to_file], &copy[..]].concat()));
        assert_eq!(quiet.success().text(), "");
        let written = fs::read_to_string(&file).expect("a digest");
        assert_eq!(written, format!("{digest}\n"), "{data} {algorithm}");
    }
}

#[test]
fn digests_do_not_depend_on_how_an_image_is_copied() {
    let dir = tempdir().expect("a directory");
    let copy = dir.path().join("copy.raw").display().to_string();
    let digest = |options: &str, destination: &str| {
        let line = format!("--blkhash {options} -- [ nbdkit sparse-random 100M seed=4 ]");
        let arguments = words(&line).into_iter().chain([destination]);
        let outcome = run(&mut Who::Ours.nbdcopy(arguments)).success();
        outcome.text().to_owned()
    };
    let first = digest("", "null:");
    assert_eq!(first.len(), 65);
    for options in [
        "--no-extents",
        "-S 0",
        "--synchronous",
        "--request-size=4k -R 2",
        "--request-size=1M -C1",
        "--allocated",
    ] {
        assert_eq!(digest(options, &copy), first, "{options}");
    }
    let image = fs::read(&copy).expect("there");
    let mut from_pipe = Who::Ours.nbdcopy(["--blkhash", "-", "null:"]);
    assert_eq!(
        run_with_input(&mut from_pipe, &image).success().text(),
        first
    );
}

#[test]
fn what_is_no_digest_is_refused_under_the_options_name() {
    for option in [
        "--blkhash=sha3",
        "--blkhash=",
        "--blkhash=sha256/",
        "--blkhash=sha256/1000",
        "--blkhash=/64k",
    ] {
        run(&mut Who::Ours.nbdcopy([option, "/dev/null", "null:"]))
            .failure(1, &["nbdcopy: --blkhash: "]);
    }
    run(&mut Who::Ours.nbdcopy(words(
        "--blkhash --blkhash-file=/nonexistent/digest /dev/null null:",
    )))
    .failure(1, &["nbdcopy: /nonexistent/digest: "]);
}

#[test]
fn an_image_that_goes_to_standard_output_gets_no_digest_into_it() {
    let outcome = run(&mut Who::Ours.nbdcopy(words("--blkhash=md5 -- [ nbdkit null 70000 ] -")));
    let outcome = outcome.success();
    assert!(outcome.stdout == [0; 70_000]);
    assert_eq!(outcome.stderr.trim_end().len(), 32, "{}", outcome.stderr);
}
