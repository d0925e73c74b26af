use std::process::Command;

use blockferry_block::{
    Capabilities, MemoryDevice,
    testing::{Fault, FaultyDevice, Rule, check_device},
};

use super::*;
use crate::{
    images::archive::{Archive, Entry},
    testing::{refusal, through},
};

/// What the member has in it.
async fn contents(archive: &Archive, filter: &str) -> Vec<u8> {
    let device = through(
        &[filter],
        Arc::new(MemoryDevice::from_bytes(&archive.bytes)),
    )
    .await;
    let buffer = Buffer::zeroed(device.info().size as usize);
    device.read(0, buffer).await.expect("its bytes").to_vec()
}

async fn why(archive: &Archive, filter: &str) -> (ErrorKind, String) {
    let device = MemoryDevice::from_bytes(&archive.bytes);
    let error = refusal(&[filter], Arc::new(device)).await;
    (error.kind(), error.to_string())
}

fn usual() -> Archive {
    let mut archive = Archive::default();
    archive
        .header(&Entry::new(b"./", b'5', 0))
        .file("./box.ovf", b"<xml/>")
        .file("./disk-1.vmdk", &[7; 3000])
        .header(&Entry::new(b"./link", b'2', 0))
        .file("./disk-2.vmdk", &[9; 512])
        .file("empty", b"")
        .end();
    archive
}

#[tokio::test]
async fn a_member_is_found_by_its_name() {
    let archive = usual();
    for (filter, expected) in [
        ("tar:disk-1.vmdk", vec![7; 3000]),
        ("tar:./disk-1.vmdk", vec![7; 3000]),
        ("tar:././disk-2.vmdk", vec![9; 512]),
        ("tar:member=box.ovf", b"<xml/>".to_vec()),
        ("tar:./empty", Vec::new()),
    ] {
        assert_eq!(contents(&archive, filter).await, expected, "{filter}");
    }
}

#[tokio::test]
async fn a_member_can_be_written_and_nothing_else_changes() {
    let archive = usual();
    for seed in 0..4 {
        let whole = Arc::new(MemoryDevice::from_bytes(&archive.bytes));
        let device = through(&["tar:disk-1.vmdk"], whole.clone()).await;
        assert!(!device.info().can(Capabilities::RESIZE));
        check_device(&*device, seed, 300).await;
        let after = whole.contents();
        // A directory, a file of a block, and the header of this one.
        assert_eq!(after[..2048], archive.bytes[..2048]);
        assert_eq!(after[2048 + 3000..], archive.bytes[2048 + 3000..]);
    }
}

#[tokio::test]
async fn what_is_not_there_is_answered_with_what_is() {
    let (kind, text) = why(&usual(), "tar:disk.img").await;
    assert_eq!(kind, ErrorKind::NotFound);
    assert_eq!(
        text,
        "tar: open: there is no 'disk.img' in the archive: there are './box.ovf', './disk-1.vmdk', \
         './disk-2.vmdk', 'empty'"
    );
    let (_, text) = why(Archive::default().end(), "tar:x").await;
    assert!(
        text.ends_with("there is no 'x' in the archive: there are no files"),
        "{text}"
    );
    let mut many = Archive::default();
    for at in 0..200 {
        many.file(&format!("{at}\x1b[2J{}", "\u{7f}".repeat(80)), b"");
    }
    let (_, text) = why(&many, "tar:x").await;
    assert!(text.ends_with(", 184 more") && text.len() < 3000, "{text}");
    assert!(!text.contains(char::is_control), "{text}");
    let (kind, text) = why(&many, "tar:x,limit=100").await;
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(text.contains("not within the first 100 headers"), "{text}");
    for name in [".", "./link"] {
        let (kind, text) = why(&usual(), &format!("tar:{name}")).await;
        let is_refused = matches!(kind, ErrorKind::InvalidInput | ErrorKind::NotFound);
        assert!(is_refused, "{name}: {text}");
    }
}

#[tokio::test]
async fn every_way_to_write_a_long_name_is_read() {
    let long = "a".repeat(150) + "/disk.img";
    let filter = format!("tar:{long}");
    let mut gnu = Archive::default();
    let size = long.len() as u64 + 1;
    gnu.header(&Entry::new(b"././@LongLink", b'L', size))
        .data(long.as_bytes())
        .header(&Entry::new(b"././@LongLink", b'K', size))
        .data(b"not this one")
        .file("aaaa", b"gnu")
        .file("aaaa", b"next");
    assert_eq!(contents(&gnu, &filter).await, b"gnu");
    assert_eq!(contents(&gnu, "tar:aaaa").await, b"next");
    let mut pax = Archive::default();
    pax.header(&Entry::new(b"global", b'g', 5))
        .data(b"lies!")
        .pax(&[("mtime", "1.5"), ("path", &long)])
        .file("aaaa", b"pax")
        .file("aaaa", b"next");
    assert_eq!(contents(&pax, &filter).await, b"pax");
    assert_eq!(contents(&pax, "tar:aaaa").await, b"next");
    let mut ustar = Archive::default();
    let entry = Entry::new(b"disk.img", b'0', 5).with(345, &[b'a'; 150]);
    ustar.header(&entry).data(b"ustar");
    assert_eq!(contents(&ustar, &filter).await, b"ustar");
    // GNU keeps other things there.
    let mut old = Archive::default();
    old.header(&entry.with(257, b"ustar  \0")).data(b"other");
    assert_eq!(contents(&old, "tar:disk.img").await, b"other");
    // A name may fill its field, without a NUL, and so may what precedes it.
    let mut full = Archive::default();
    let entry = Entry::new(&[b'n'; 100], b'0', 4).with(345, &[b'p'; 155]);
    full.header(&entry).data(b"full");
    let name = format!("tar:{}/{}", "p".repeat(155), "n".repeat(100));
    assert_eq!(contents(&full, &name).await, b"full");
}

#[tokio::test]
async fn every_way_to_write_a_size_is_read() {
    let mut archive = Archive::default();
    let entry = Entry::new(b"one", b'0', 0).with(124, b"\x80\0\0\0\0\0\0\0\0\0\x02\x01");
    archive
        .header(&entry)
        .data(&[1; 513])
        .pax(&[("size", "700")])
        .header(&Entry::new(b"two", b'0', 0))
        .data(&[2; 700])
        .header(&Entry::new(b"link", b'1', 999_999))
        .header(&Entry::new(b"directory/", b'0', 0))
        .header(&Entry::new(b"three", b'7', 0).with(124, b"       1000 "))
        .data(&[3; 512]);
    assert_eq!(contents(&archive, "tar:one").await, [1; 513]);
    assert_eq!(contents(&archive, "tar:two").await, [2; 700]);
    assert_eq!(contents(&archive, "tar:three").await, [3; 512]);
    let (_, text) = why(&archive, "tar:directory/").await;
    assert!(text.contains("not a plain file"), "{text}");
}

#[tokio::test]
async fn files_without_their_holes_are_refused_and_passed_over() {
    let mut archive = Archive::default();
    let mut map = [0; 512];
    map[504] = 1;
    archive
        .header(&Entry::new(b"old", b'S', 600).with(482, &[1]))
        .data(&map)
        .data(&[0; 512])
        .data(&[5; 600])
        .pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.name", "new")])
        .file("GNUSparseFile.1/new", &[6; 100])
        .file("plain", b"plain");
    for name in ["old", "new"] {
        let (kind, text) = why(&archive, &format!("tar:{name}")).await;
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(text.contains("without its holes"), "{text}");
    }
    assert_eq!(contents(&archive, "tar:plain").await, b"plain");
}

#[tokio::test]
async fn an_archive_that_is_cut_off_says_so() {
    let mut archive = usual();
    for (length, name, expected) in [
        (2048 + 2999, "disk-1.vmdk", ErrorKind::UnexpectedEnd),
        (2048 + 2999, "disk-2.vmdk", ErrorKind::NotFound),
        (2048 - 1, "disk-1.vmdk", ErrorKind::NotFound),
        (100, "disk-1.vmdk", ErrorKind::NotFound),
        (0, "disk-1.vmdk", ErrorKind::NotFound),
    ] {
        archive.bytes.truncate(length);
        let (kind, text) = why(&archive, &format!("tar:{name}")).await;
        assert_eq!(kind, expected, "{text}");
        assert_eq!(
            length > 2048,
            text.contains("the archive is cut off"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn compressed_archives_are_told_by_what_unpacks_them() {
    for (magic, words) in [
        (&b"\x1f\x8b\x08"[..], "--filter tar:... --filter gzip"),
        (b"\xfd7zXZ\0", "the filter 'xz' behind"),
        (b"\x28\xb5\x2f\xfd", "the filter 'zstd' behind"),
        (b"BZh91AY", "the filter 'bzip2' behind"),
        (b"QFI\xfb", "it is not a tar archive"),
    ] {
        let mut archive = Archive::default();
        archive.data(magic);
        let (kind, text) = why(&archive, "tar:disk.img").await;
        assert_eq!(kind, ErrorKind::InvalidInput);
        assert!(text.contains(words), "{text}");
    }
}

#[tokio::test]
async fn hostile_archives_cost_nothing() {
    let of = |entry: Entry, data: &[u8]| {
        let mut archive = Archive::default();
        archive
            .file("first", b"")
            .header(&entry)
            .data(data)
            .file("x", b"x");
        archive
    };
    let named = |flag, size| Entry::new(b"y", flag, size);
    let huge = b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
    let wrong = {
        let mut archive = of(named(b'0', 0), b"");
        archive.bytes[512 + 10] = 1;
        archive
    };
    for (archive, words) in [
        (
            of(named(b'0', 0).with(124, huge), b""),
            "a member ends nowhere",
        ),
        (
            of(
                named(b'0', 0).with(124, b"\x80\0\0\0\x80\0\0\0\0\0\0\0"),
                b"",
            ),
            "a member ends nowhere",
        ),
        (
            of(named(b'0', 0).with(124, &[0xff; 12]), b""),
            "a size is not a number",
        ),
        (
            of(named(b'0', 0).with(124, b"99999999999\0"), b""),
            "a size is not a number",
        ),
        (
            of(named(b'L', 0).with(124, huge), b""),
            "a member ends nowhere",
        ),
        (of(named(b'L', 1 << 30), b""), "too long"),
        (of(named(b'x', (1 << 20) + 1), b""), "too long"),
        (of(named(b'x', 9), b"8 path=y\n"), "damaged at offset 512"),
        (
            of(named(b'x', 10), b"99 path=y\n"),
            "an extended header is malformed",
        ),
        (of(named(b'x', 10), b"9 size=-1\n"), "malformed"),
        (
            of(named(b'x', 10), b"10 size=x\n"),
            "a size is not a number",
        ),
        (wrong, "checksum"),
    ] {
        let (kind, text) = why(&archive, "tar:x").await;
        assert_eq!(kind, ErrorKind::InvalidInput, "{text}");
        assert!(
            text.contains("damaged at offset 512") && text.contains(words),
            "{words}: {text}"
        );
    }
    let mut sizes = Archive::default();
    sizes.pax(&[("size", "9223372036854775807")]).file("x", b"");
    assert!(why(&sizes, "tar:x").await.1.contains("ends nowhere"));
    // As many headers as one likes, none of which is a member.
    let mut asides = Archive::default();
    for _ in 0..2000 {
        asides.header(&Entry::new(b"a", b'g', 0));
    }
    let (_, text) = why(&asides, "tar:x,limit=1500").await;
    assert!(text.contains("first 1500 headers"), "{text}");
    let mut maps = Archive::default();
    maps.header(&Entry::new(b"old", b'S', 0).with(482, &[1]));
    maps.bytes.resize(1 << 20, 1);
    let (_, text) = why(&maps, "tar:x,limit=1500").await;
    assert!(text.contains("first 1500 headers"), "{text}");
    // A terabyte of names, in a file that has no bytes.
    let names = MemoryDevice::new(1 << 40);
    let entry = Entry::new(b"a", b'L', 1 << 20);
    let mut header = Archive::default();
    header.header(&entry);
    for at in 0..100 {
        let offset = at * ((1 << 20) + 512);
        let block = Buffer::from(&header.bytes[..]);
        names
            .write(offset, block, Default::default())
            .await
            .expect("room");
    }
    let error = refusal(&["tar:x"], Arc::new(names)).await;
    assert!(error.to_string().contains("too long"), "{error}");
}

#[tokio::test]
async fn a_source_that_fails_is_no_archive_without_the_member() {
    let mut archive = Archive::default();
    archive.file("a", &[1; 100_000]).file("b", &[2; 100_000]);
    for skip in 0..2 {
        let fault = Fault::Error(ErrorKind::ConnectionLost);
        let whole = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&archive.bytes)))
            .with(Rule::on(Operation::Read).after(skip).fault(fault));
        let error = refusal(&["tar:b"], Arc::new(whole)).await;
        assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    }
}

#[tokio::test]
#[allow(clippy::print_stderr, reason = "a test that does nothing says so")]
async fn what_gnu_tar_writes_is_read() {
    if Command::new("tar").arg("--version").output().is_err() {
        eprintln!("skipped: there is no tar");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let long = "d".repeat(120) + "/disk.img";
    std::fs::create_dir(dir.path().join("d".repeat(120))).expect("a directory");
    for name in ["small", &long] {
        std::fs::write(dir.path().join(name), name.repeat(100)).expect("room");
    }
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let names = if format == "v7" {
            vec!["small"]
        } else {
            vec!["small", &long]
        };
        let packed = Command::new("tar")
            .current_dir(dir.path())
            .args(["-cf", "-", "--format", format])
            .args(names.iter().map(|name| format!("./{name}")))
            .output();
        let packed = packed.expect("tar runs");
        assert!(packed.status.success(), "{packed:?}");
        let archive = Archive {
            bytes: packed.stdout,
        };
        for name in names {
            let found = contents(&archive, &format!("tar:{name}")).await;
            assert!(found == name.repeat(100).as_bytes(), "{format}: {name}");
        }
    }
}
