//! What is shown of one export and of all, and the answers to questions.

use std::fs;

use serde_json::Value;
use tempfile::tempdir;

use super::{Served, run_as, same, servers};
use crate::support::{
    Peer,
    dropin::{Who, words},
    sparse_image,
};

#[test]
fn every_server_is_shown_as_theirs_shows_it() {
    for server in servers() {
        let uri = server.uri("");
        for options in [
            "",
            "--json",
            "--no-content",
            "--content --json",
            "--color",
            "--colour --no-content",
            "--color --json",
            "--color --no-colors",
            "--size",
            "--size --json",
            "--size --content",
        ] {
            let outcome = same(&[words(options), vec![&uri]].concat());
            assert_eq!(outcome.code, 0, "{options} {}", outcome.stderr);
        }
    }
}

#[test]
fn every_list_is_theirs() {
    for server in servers() {
        let uri = server.uri("");
        for options in [
            "--list",
            "-L --json",
            "--list --content",
            "--list --content --json",
            "-L --color",
            "--list --no-content",
        ] {
            same(&[words(options), vec![&uri]].concat());
        }
    }
}

#[test]
fn every_question_has_their_answer() {
    let features = "cache connect df fast-zero flush fua multi-conn read structured-reply trim write zero \
                    tls read-only rotational fastzero fast_zero READONLY sr multi_conn nonsense";
    for server in servers() {
        let uri = server.uri("");
        for (index, feature) in words(features).into_iter().enumerate() {
            same(&[["--can", "--is"][index % 2], feature, &uri]);
        }
    }
    let server = Served::nbdkit("null 1M");
    for feature in ["structured reply", ""] {
        same(&["--can", feature, &server.uri("")]);
    }
}

#[test]
fn questions_that_are_turned_round_have_the_opposite_answer() {
    let writable = Served::nbdkit("memory 1M");
    let read_only = Served::nbdkit("-r memory 1M");
    let old = Served::nbdkit("-o memory 1M");
    for (server, option, feature, code) in [
        (&read_only, "--cannot", "write", 0),
        (&writable, "--cannot", "write", 2),
        (&writable, "--isnt", "read-only", 0),
        (&read_only, "--isnt", "read-only", 2),
        (&old, "--hasnt", "extended-headers", 0),
        (&old, "--has", "structured-reply", 2),
        (&writable, "--has", "structured-reply", 0),
        (&writable, "--cannot", "block-status-payload", 0),
        (&writable, "--cannot", "nonsense", 1),
    ] {
        let outcome = run_as(Who::Ours, &[option, feature, &server.uri("")]);
        assert_eq!(outcome.code, code, "{option} {feature}: {}", outcome.stderr);
        assert_eq!(outcome.text(), "");
    }
}

#[test]
fn extended_headers_are_told() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 10 << 20);
    let peer = Peer::qemu_nbd(dir.path(), "raw", &image, &[]);
    let shown = run_as(Who::Ours, &[&peer.uri()]).success();
    let json = run_as(Who::Ours, &["--json", &peer.uri()]).success();
    let json: Value = serde_json::from_str(json.text()).expect("JSON");
    let extended = json["extended"] == true;
    let packets = if extended { "extended" } else { "structured" };
    assert!(
        shown.text().contains(&format!("using {packets} packets")),
        "{}",
        shown.text()
    );
    let code = if extended { 0 } else { 2 };
    for option in ["--has", "--can"] {
        let outcome = run_as(Who::Ours, &[option, "extended-headers", &peer.uri()]);
        assert_eq!(outcome.code, code);
    }
}

#[test]
fn exports_have_their_names_descriptions_and_uris() {
    let dir = tempdir().expect("a directory");
    let names = [
        "hello",
        "with space",
        "q\"u\\o",
        "new\nline",
        "%%",
        "リソース",
        "a#b?c&d=e+f",
    ];
    for name in names {
        fs::write(dir.path().join(name), name).expect("written");
    }
    let argument = format!("dir={}", dir.path().display());
    let server = Served::nbdkit_with(&["file", &argument]);
    let list = same(&["--list", "--content", "--json", &server.uri("ignored")]).success();
    same(&["--list", &server.uri("")]).success();
    let list: Value = serde_json::from_str(list.text()).expect("JSON");
    let exports = list["exports"].as_array().expect("a list");
    assert_eq!(exports.len(), names.len());
    for export in exports {
        // The URI leads back to the export.
        let uri = export["uri"].as_str().expect("a URI");
        let one = same(&["--json", "--no-content", uri]).success();
        let one: Value = serde_json::from_str(one.text()).expect("JSON");
        assert_eq!(one["exports"][0]["export-name"], export["export-name"]);
        assert_eq!(one["exports"][0]["uri"], export["uri"]);
    }

    let dir = tempdir().expect("a directory");
    let argument = format!("dir={}", dir.path().display());
    // The one before may still be leaving.
    let server = Served::nbdkit_with(&["ondemand", &argument, "size=1M", "wait=true"]);
    same(&[&server.uri("new")]).success();
    same(&["--list", &server.uri("")]).success();

    let server = Served::nbdkit(
        "--filter=exportname memory 1M default-export=hello exportname=hello exportname=goodbye \
         exportname-list=explicit exportname-strict=true exportdesc=fixed:world",
    );
    for name in ["hello", "goodbye"] {
        same(&[&server.uri(name)]).success();
        same(&["--list", "--json", &server.uri(name)]).success();
    }
    let server = Served::nbdkit("-e disk memory 1M");
    same(&[&server.uri("disk")]).success();
}

#[test]
fn a_uri_over_tcp_names_its_port() {
    let peer = Peer::nbdkit_on_tcp(&["-i", "127.0.0.1", "memory", "1M"]);
    let local = peer.uri().replace("localhost", "127.0.0.1");
    for uri in [
        local.trim_end_matches('/'),
        &local,
        &format!("{local}x%20y/z"),
    ] {
        same(&[uri]).success();
        same(&["--json", uri]).success();
    }
    let outcome = run_as(Who::Ours, &["--uri", local.trim_end_matches('/')]).success();
    assert_eq!(outcome.text(), format!("{local}\n"));
    let outcome = run_as(Who::Ours, &["--uri", "--json", &local]).success();
    assert_eq!(outcome.text(), format!("\"{local}\"\n"));
}

#[test]
fn contents_are_described_as_theirs_describes_them() {
    let dir = tempdir().expect("a directory");
    let mut boot_sector = vec![0; 4096];
    boot_sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    let files: [(&str, &[u8]); 6] = [
        ("script", b"#!/bin/sh\necho hello\n"),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03abcdefgh"),
        ("boot", &boot_sector),
        ("empty", b""),
        ("byte", b"x"),
        ("text", &b"words and words\n".repeat(1000)),
    ];
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).expect("written");
    }
    let program = std::env::current_exe().expect("this test");
    std::os::unix::fs::symlink(program, dir.path().join("program")).expect("a link");
    let image = dir.path().join("disk.qcow2");
    let image = image.to_str().expect("UTF-8");
    crate::support::run::tool("qemu-img", &["create", "-f", "qcow2", image, "1G"]);
    let argument = format!("dir={}", dir.path().display());
    let server = Served::nbdkit_with(&["-r", "file", &argument]);
    for (name, _) in files {
        let outcome = same(&[&server.uri(name)]).success();
        assert!(outcome.text().contains("\n\tcontent: "), "{name}");
    }
    for name in ["program", "disk.qcow2"] {
        same(&["--json", &server.uri(name)]).success();
    }
}

#[test]
fn contents_are_read_in_blocks_of_the_servers_size() {
    let server = Served::nbdkit(
        "--filter=blocksize-policy memory 2M blocksize-minimum=65536 blocksize-preferred=131072 \
         blocksize-maximum=4294967295 blocksize-error-policy=error",
    );
    same(&["--no-content", &server.uri("")]).success();
    // Theirs reads less than a block, and knows nothing then.
    let outcome = run_as(Who::Ours, &[&server.uri("")]).success();
    assert!(
        outcome.text().contains("\n\tcontent: data\n"),
        "{}",
        outcome.text()
    );
}

#[test]
fn sizes_have_the_largest_unit_that_fits() {
    for size in [
        "1023", "1024", "1536", "1048575", "3G", "1500M", "1T", "5P", "7E",
    ] {
        for options in ["--no-content", "--json --no-content", "--size"] {
            let command = [words("-- [ nbdkit null"), vec![size, "]"]].concat();
            same(&[words(options), command].concat()).success();
        }
    }
}

#[test]
fn a_server_that_is_started_has_no_uri() {
    for options in [
        "",
        "--json",
        "--size",
        "--list",
        "--list --json",
        "--can flush",
        "--map",
    ] {
        let command = words("-- [ nbdkit -r memory 1M ]");
        same(&[words(options), command].concat()).success();
    }
    // Without the dashes, their options may not be taken for ours.
    let outcome = run_as(Who::Ours, &words("--size [ nbdkit -r memory 2M ]")).success();
    assert_eq!(outcome.text(), "2097152\n");
    let outcome = run_as(Who::Ours, &words("--uri -- [ nbdkit -r memory 1M ]"));
    outcome.failure(1, &["has no URI"]);
}
