//! Our server with other people's clients.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
};

use tempfile::tempdir;

use crate::support::{Served, assert_same, blockferry, random_image, run, run::tool, sparse_image};

#[test]
fn nbdcopy_and_qemu_img_read_what_we_serve() {
    let dir = tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let (image, by_nbdcopy, by_qemu) = (path("image"), path("nbdcopy"), path("qemu"));
    sparse_image(Path::new(&image), 30 << 20);
    let served = Served::at(&dir.path().join("serve.sock"), &[&image]);
    tool("nbdcopy", &[&served.uri(), &by_nbdcopy]);
    tool(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "raw", &served.uri(), &by_qemu],
    );
    assert_same(Path::new(&image), Path::new(&by_nbdcopy));
    assert_same(Path::new(&image), Path::new(&by_qemu));
    tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &served.uri(), &image],
    );
}

#[test]
fn nbdcopy_and_qemu_img_write_through_us() {
    let dir = tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let (image, disk) = (path("image"), path("disk"));
    sparse_image(Path::new(&image), 30 << 20);
    random_image(Path::new(&disk), 30 << 20);
    let served = Served::at(&dir.path().join("serve.sock"), &[&disk]);
    tool("nbdcopy", &["--flush", &image, &served.uri()]);
    assert_same(Path::new(&image), Path::new(&disk));
    random_image(Path::new(&image), 30 << 20);
    tool(
        "qemu-img",
        &[
            "convert",
            "-n",
            "-f",
            "raw",
            "-O",
            "raw",
            &image,
            &served.uri(),
        ],
    );
    assert_same(Path::new(&image), Path::new(&disk));
}

#[test]
fn nbdinfo_finds_what_is_there() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 10 << 20);
    let image = image.to_str().expect("UTF-8");
    let served = Served::at(&dir.path().join("serve.sock"), &[image]);
    assert_eq!(
        tool("nbdinfo", &["--size", &served.uri()]).trim(),
        "10485760"
    );
    for ability in [
        "write",
        "flush",
        "fua",
        "trim",
        "zero",
        "df",
        "structured-reply",
    ] {
        tool("nbdinfo", &["--can", ability, &served.uri()]);
    }
    assert!(tool("nbdinfo", &["--map", &served.uri()]).contains("hole,zero"));
    assert!(tool("nbdinfo", &["--list", &served.uri()]).contains("export"));
    drop(served);
    fs::remove_file(dir.path().join("serve.sock")).expect("a killed server leaves its socket");
    let served = Served::at(&dir.path().join("serve.sock"), &["--read-only", image]);
    tool("nbdinfo", &["--is", "read-only", &served.uri()]);
}

#[test]
fn many_clients_read_at_once() {
    let dir = tempdir().expect("a directory");
    let served = Served::at(
        &dir.path().join("serve.sock"),
        &["sample:16M,data=60,seed=3"],
    );
    let digest = |source: &str| {
        let outcome = run(&mut blockferry(["copy", "--quiet", source, "-"])).success();
        outcome.stdout
    };
    let expected = digest("sample:16M,data=60,seed=3");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(digest(&served.uri()) == expected));
        }
    });
}

#[test]
fn tcp_with_port_0_prints_the_uri_that_it_got() {
    for (address, host) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
        if host == "[::1]" && std::net::TcpListener::bind("[::1]:0").is_err() {
            println!("skipped: no IPv6 here");
            continue;
        }
        let mut child = blockferry(["serve", "sample:1M", "--print-uri", "--listen", address])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary");
        let mut uri = String::new();
        BufReader::new(child.stdout.take().expect("a pipe"))
            .read_line(&mut uri)
            .expect("a line");
        assert!(uri.starts_with(&format!("nbd://{host}:")), "{uri}");
        let size = tool("nbdinfo", &["--size", uri.trim()]);
        child
            .kill()
            .and_then(|()| child.wait())
            .expect("a child of ours");
        assert_eq!(size.trim(), "1048576");
    }
}

#[test]
fn a_socket_in_use_is_not_taken_over() {
    let dir = tempdir().expect("a directory");
    let served = Served::at(&dir.path().join("serve.sock"), &["sample:1M"]);
    let socket = dir.path().join("serve.sock");
    run(blockferry(["serve", "sample:1M", "--unix"]).arg(&socket))
        .failure(1, &["serve.sock", "another server"]);
    assert_eq!(
        tool("nbdinfo", &["--size", &served.uri()]).trim(),
        "1048576"
    );

    // What is no socket is not removed.
    let file = dir.path().join("file");
    File::create(&file).expect("a writable directory");
    run(blockferry(["serve", "sample:1M", "--unix"]).arg(&file)).failure(1, &["file"]);
    assert!(file.exists());
}

#[test]
fn a_source_that_is_not_there_is_named_before_anyone_connects() {
    let dir = tempdir().expect("a directory");
    run(blockferry(["serve", "/nonexistent.raw", "--unix"]).arg(dir.path().join("s.sock")))
        .failure(1, &["/nonexistent.raw"]);
    run(&mut blockferry(["serve", "sample:1M"])).failure(2, &["--unix", "--listen"]);
}
