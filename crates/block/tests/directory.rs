//! A directory that is served: only what lies in it, and only images.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use blockferry_block::{
    Access, Buffer, Capabilities, ClientFacts, DirectoryExports, ErrorKind, Exports, WriteFlags,
};

struct Place {
    _directory: tempfile::TempDir,
    images: std::path::PathBuf,
}

/// A directory with two images, and a lot that is none.
fn place() -> Place {
    let directory = tempfile::tempdir().expect("a directory");
    let images = directory.path().join("images");
    fs::create_dir(&images).expect("made");
    fs::create_dir(images.join("sub")).expect("made");
    fs::write(directory.path().join("secret"), "secret").expect("written");
    fs::write(images.join("b.raw"), "bbbb").expect("written");
    fs::write(images.join("a raw"), "aaaa").expect("written");
    symlink("../secret", images.join("out")).expect("linked");
    symlink("/etc/passwd", images.join("passwd")).expect("linked");
    symlink("b.raw", images.join("link")).expect("linked");
    symlink("/dev/zero", images.join("zero")).expect("linked");
    let made = std::process::Command::new("mkfifo")
        .arg(images.join("pipe"))
        .status();
    assert!(made.expect("mkfifo").success());
    let _socket = std::os::unix::net::UnixListener::bind(images.join("socket")).expect("bound");
    Place {
        _directory: directory,
        images,
    }
}

#[tokio::test]
async fn images_are_listed_in_order_and_nothing_else() {
    let place = place();
    let exports = DirectoryExports::open(&place.images, Access::ReadWrite).expect("opened");
    let list = exports.list(ClientFacts::default()).await.expect("a list");
    let names: Vec<_> = list.iter().map(|entry| &*entry.name).collect();
    assert_eq!(names, ["a raw", "b.raw", "link"]);
}

#[tokio::test]
async fn a_name_leads_to_an_image_in_the_directory_or_nowhere() {
    let place = place();
    let exports = DirectoryExports::open(&place.images, Access::ReadWrite).expect("opened");
    for name in [
        "",
        ".",
        "..",
        "../secret",
        "sub",
        "sub/x",
        "/etc/passwd",
        "./b.raw",
        "b.raw/",
        "b.raw\0",
        "out",
        "passwd",
        "zero",
        // Nobody writes to it: an open that waits for somebody would never end.
        "pipe",
        "socket",
        "nothing",
        &"x".repeat(4096),
    ] {
        let opened = exports.open(name, ClientFacts::default()).await;
        let error = opened.err().unwrap_or_else(|| panic!("{name:?} opened"));
        assert_eq!(error.kind(), ErrorKind::NotFound, "{name:?}: {error}");
    }
    for (name, byte) in [("a raw", b'a'), ("b.raw", b'b'), ("link", b'b')] {
        let open = exports.open(name, ClientFacts::default()).await;
        let device = open.expect("an export").device;
        let read = device.read(0, Buffer::zeroed(4)).await.expect("read");
        assert_eq!(read[..], [byte; 4]);
    }
}

#[tokio::test]
async fn what_may_not_be_written_is_read() {
    let place = place();
    let path = place.images.join("b.raw");
    let open = async |access, read_only| {
        let exports = DirectoryExports::open(&place.images, access).expect("opened");
        let client = ClientFacts {
            read_only,
            ..ClientFacts::default()
        };
        let open = exports.open("b.raw", client).await.expect("an export");
        open.device
    };
    let device = open(Access::ReadWrite, false).await;
    let write = device.write(0, Buffer::from(&b"x"[..]), WriteFlags::FUA);
    write.await.expect("written");
    assert_eq!(fs::read(&path).expect("read"), b"xbbb");
    for device in [
        open(Access::ReadOnly, false).await,
        open(Access::ReadWrite, true).await,
    ] {
        assert!(!device.info().can(Capabilities::WRITE));
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("set");
    let device = open(Access::ReadWrite, false).await;
    // Root may write what nobody may.
    let may_write = fs::OpenOptions::new().write(true).open(&path).is_ok();
    assert_eq!(device.info().can(Capabilities::WRITE), may_write);
}
