//! `checksum` and `copy --checksum`, with coreutils as the oracle.

use std::{fs, path::Path, process::Command};

use tempfile::tempdir;

use crate::support::{
    Peer, Proxy, assert_same, blockferry, random_image, run,
    run::{run_with_input, tool},
    sparse_image,
};

/// The digest by its definition, computed by other programs: of the digests of all blocks and the size.
fn oracle(algorithm: &str, block_size: u64, image: &Path) -> String {
    let script = r#"
        { split -b "$2" --filter="$1sum" "$3" | cut -d' ' -f1 | tr -d '\n'
          printf %016x "$(stat -c %s "$3")" | fold -w2 | tac | tr -d '\n'
        } | tr a-f A-F | basenc --base16 -d | "$1sum" | cut -d' ' -f1"#;
    let block_size = block_size.to_string();
    let image = image.to_str().expect("a name");
    let arguments = ["-c", script, "sh", algorithm, &block_size, image];
    tool("sh", &arguments).trim().to_owned()
}

/// A sparse image with an odd size, and its digest.
fn odd_image(path: &Path) -> String {
    sparse_image(path, (6 << 20) + 4321);
    oracle("sha256", 65_536, path)
}

#[test]
fn every_algorithm_and_block_size_gives_what_other_tools_compute() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    odd_image(&image);
    for (text, algorithm, block_size) in [
        ("md5", "md5", 65_536),
        ("sha1/16k", "sha1", 16 << 10),
        ("SHA256/1M", "sha256", 1 << 20),
        ("sha512/32M", "sha512", 32 << 20),
    ] {
        let digest = oracle(algorithm, block_size, &image);
        let outcome = run(blockferry(["checksum", "-a", text]).arg(&image)).success();
        assert_eq!(outcome.text(), format!("{digest}  {}\n", image.display()));
    }
}

#[test]
fn the_digest_is_the_contents_and_nothing_else() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    let digest = odd_image(&image);
    let name = image.to_str().expect("a name");
    let peers = ["kit", "ours"].map(|name| {
        let peer = dir.path().join(name);
        fs::create_dir(&peer).expect("made");
        peer
    });
    let file = format!("file={name}");
    let kit = Peer::nbdkit(&peers[0], &["file", &file]);
    let ours = Peer::blockferry(&peers[1], &image);
    for arguments in [
        vec!["--no-extents", name],
        vec![&kit.uri()],
        vec!["-C1", &kit.uri()],
        vec!["--no-extents", &ours.uri()],
        vec!["[", "nbdkit", "file", &file, "]"],
    ] {
        let outcome = run(blockferry(["checksum"]).args(&arguments)).success();
        let found = outcome.text().split("  ").next();
        assert_eq!(found, Some(&*digest), "{arguments:?}");
    }
    let bytes = fs::read(&image).expect("readable");
    let outcome = run_with_input(&mut blockferry(["checksum", "-"]), &bytes);
    assert_eq!(outcome.success().text(), format!("{digest}  -\n"));
}

#[test]
fn a_copy_prints_the_same_digest_in_every_way() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    let digest = odd_image(&image);
    let expected = format!("{digest}  {}\n", image.display());
    for (number, flags) in [
        vec![],
        vec!["--in-order"],
        vec!["--no-extents", "--sparse=0"],
        vec!["--request-size=4k", "-R1"],
        vec!["--allocated", "--verify"],
    ]
    .into_iter()
    .enumerate()
    {
        let copy = dir.path().join(format!("copy{number}.raw"));
        let copied = run(blockferry(["copy", "--checksum"])
            .args(&flags)
            .arg(&image)
            .arg(&copy));
        assert_eq!(copied.success().text(), expected, "{flags:?}");
        assert_same(&image, &copy);
    }
    let nowhere = run(blockferry(["copy", "--checksum=sha256/64k"])
        .arg(&image)
        .arg("null:"));
    assert_eq!(nowhere.success().text(), expected);

    let piped = run(blockferry(["copy", "--checksum"]).arg(&image).arg("-")).success();
    assert!(piped.stdout == fs::read(&image).expect("readable"));
    assert!(
        piped.stderr.contains(expected.trim_end()),
        "{}",
        piped.stderr
    );

    let copy = dir.path().join("json.raw");
    let report = run(blockferry(["copy", "--checksum=md5", "--json"])
        .arg(&image)
        .arg(&copy))
    .success();
    let report: serde_json::Value = serde_json::from_str(report.text()).expect("JSON");
    let md5 = oracle("md5", 65_536, &image);
    let expected = serde_json::json!({"algorithm": "md5", "block-size": 65_536, "digest": md5});
    assert_eq!(report["checksum"], expected);
    assert_eq!(report["verified"], false);
}

#[test]
fn what_is_read_again_after_a_loss_counts_once() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 32 << 20);
    let digest = oracle("sha256", 65_536, &image);
    // nbdkit 1.32 may fail an assertion when a connection ends that still has requests in flight.
    let server = Peer::blockferry(dir.path(), &image);
    let proxy = Proxy::cutting(dir.path(), server.socket(), 4, |number| {
        (number > 0).then_some(3 << 20)
    });
    let copy = dir.path().join("copy.raw");
    let outcome = run(blockferry(["copy", "--checksum", "--verify", &proxy.uri()]).arg(&copy));
    let outcome = outcome.success();
    assert!(outcome.text().starts_with(&digest), "{}", outcome.text());
    assert!(proxy.cut() > 0, "no connection was lost");
    assert_same(&image, &copy);
}

#[test]
fn an_image_that_is_as_expected_is_a_success_and_another_a_failure() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    let digest = odd_image(&image);
    let wrong = digest.replace(['0', '1'], "2");
    let upper = digest.to_uppercase();
    run(blockferry(["checksum", "--expect", &upper]).arg(&image)).success();
    run(blockferry(["checksum", "--expect", &wrong]).arg(&image)).failure(1, &[&digest, &wrong]);

    let md5 = format!("md5/1M:{}", oracle("md5", 1 << 20, &image));
    run(blockferry(["checksum", "--expect", &md5]).arg(&image)).success();

    let copy = dir.path().join("copy.raw");
    run(blockferry(["copy", "--expect", &md5, "--checksum"]).args([&image, &copy])).success();
    assert_same(&image, &copy);
    fs::remove_file(&copy).expect("there");

    let outcome = run(blockferry(["copy", "--expect", &wrong]).args([&image, &copy]));
    let outcome = outcome.failure(1, &[&digest, &wrong, "not kept"]);
    assert_eq!(outcome.text(), "");
    assert!(!copy.exists());
    let left = fs::read_dir(dir.path()).expect("a directory").count();
    assert_eq!(left, 1, "only the image is left");
}

#[test]
fn what_is_not_as_expected_is_not_gone_on_with() {
    let dir = tempdir().expect("a directory");
    let (image, copy) = (dir.path().join("image.raw"), dir.path().join("copy.raw"));
    let checkpoint = dir.path().join("checkpoint");
    let digest = odd_image(&image);
    let wrong = digest.replace(['0', '1'], "2");
    let copy_expecting = |digest: &str| {
        let mut command = blockferry(["copy", "--verify", "--expect", digest]);
        command
            .arg("--checkpoint")
            .args([&checkpoint, &image, &copy]);
        run(&mut command)
    };
    let names = || {
        let files = fs::read_dir(dir.path()).expect("a directory");
        let names = files.map(|file| file.expect("an entry").file_name());
        let mut names: Vec<_> = names
            .map(|name| name.into_string().expect("text"))
            .collect();
        names.sort();
        names
    };
    copy_expecting(&wrong).failure(1, &[&digest, &wrong]);
    assert_eq!(names(), ["image.raw"]);
    copy_expecting(&digest).success();
    assert_eq!(names(), ["copy.raw", "image.raw"]);
    assert_same(&image, &copy);
}

#[test]
fn digests_that_make_no_sense_are_wrong_usage() {
    let md5 = "0".repeat(32);
    let md5_of_another = format!("md5/1M:{md5}");
    for (arguments, word) in [
        (vec!["checksum", "-a", "crc32", "sample:1M"], "crc32"),
        (
            vec!["checksum", "-a", "md5/3k", "sample:1M"],
            "power of two",
        ),
        (vec!["checksum", "--expect", "0123", "sample:1M"], "digits"),
        (
            vec!["checksum", "--expect", &md5, "sample:1M"],
            "sha256/64k",
        ),
        (
            vec![
                "checksum",
                "-a",
                "md5",
                "--expect",
                &md5_of_another,
                "sample:1M",
            ],
            "md5/1M",
        ),
        (
            vec!["copy", "--checksum=sha3", "sample:1M", "null:"],
            "sha3",
        ),
        (vec!["checksum", "null:"], "destination"),
    ] {
        run(&mut blockferry(&arguments)).failure(2, &[word]);
    }
}

#[test]
fn the_name_nbdcopy_prints_the_digest_alone() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    let digest = odd_image(&image);
    let nbdcopy = dir.path().join("nbdcopy");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_blockferry"), &nbdcopy).expect("linked");
    let outcome = run(Command::new(&nbdcopy)
        .arg("--blkhash")
        .arg(&image)
        .arg("null:"));
    assert_eq!(outcome.success().text(), format!("{digest}\n"));
    let file = dir.path().join("digest");
    let to_file = format!("--blkhash-file={}", file.display());
    let outcome = run(Command::new(&nbdcopy)
        .args(["--blkhash=md5/1M", &to_file])
        .arg(&image)
        .arg("null:"));
    assert_eq!(outcome.success().text(), "");
    let written = fs::read_to_string(&file).expect("written");
    assert_eq!(written, format!("{}\n", oracle("md5", 1 << 20, &image)));
}
