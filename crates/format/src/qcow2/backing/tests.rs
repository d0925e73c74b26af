//! Headers of every kind whose backing file is named anew: cut anywhere, and as qemu-img finds them.

use std::fs;

use blockferry_block::{
    MemoryDevice,
    testing::{ForgetfulDevice, Survival},
};

use super::*;
use crate::qcow2::{
    Details, check as check_image,
    header::{BitmapsExtension, Compression, Incompatible},
    qemu::{is_installed, qemu_img},
    testing::ImageBuilder,
    write::tests::{backed, everything},
};

fn backing(name: &[u8], format: Option<&str>) -> Backing {
    Backing {
        name: name.to_vec(),
        format: format.map(str::to_owned),
        device: None,
    }
}

/// What the image in `bytes` says is behind it.
async fn said(bytes: Vec<u8>) -> Option<(Vec<u8>, Option<String>)> {
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes(bytes));
    let details = Details::read(&below).await.expect("an image");
    details.backing.map(|file| (file.name, file.format))
}

fn told(backing: Option<&Backing>) -> Option<(Vec<u8>, Option<String>)> {
    backing.map(|backing| (backing.name.clone(), backing.format.clone()))
}

/// Images with headers of every kind.
fn images() -> Vec<(String, Vec<u8>)> {
    let mut images = Vec::new();
    for bits in [9, 10, 11, 12, 16] {
        for version in [2, 3] {
            for name in [None, Some(&b"base.raw"[..]), Some(&[b'o'; 190][..])] {
                let mut image = ImageBuilder::new(bits, 10 << bits);
                image.geometry.version = version;
                image.backing = name.map(|name| (name.to_vec(), "raw".to_owned()));
                let length = name.map_or(0, <[u8]>::len);
                images.push((
                    format!("2^{bits}, version {version}, {length}"),
                    image.build(),
                ));
            }
        }
    }
    images
}

#[tokio::test]
async fn a_cut_leaves_the_old_name_or_the_new_one() {
    let names = [
        None,
        Some(backing(b"x", Some("qcow2"))),
        Some(backing(b"another.qcow2", None)),
        Some(backing(&[b'l'; 300], Some("raw"))),
        Some(backing(&[b'm'; 1023], Some("a rather long format"))),
    ];
    let mut done = 0;
    for (what, bytes) in images() {
        let before = said(bytes.clone()).await;
        for name in &names {
            let name = name.as_ref();
            let below = Arc::new(ForgetfulDevice::new(bytes.clone()));
            let what = format!("{what}, to {:?}", name.map(|name| name.name.len()));
            match set_backing(below.clone(), name).await {
                Ok(()) => done += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}: {error}");
                    assert_eq!(below.events(), 0, "{what}");
                    assert!(name.is_some_and(|it| it.name.len() >= 300), "{what}");
                    continue;
                }
            }
            for events in 0..=below.events() {
                for seed in 0..8 {
                    let survival = match seed {
                        0 => Survival::Everything,
                        1 => Survival::Nothing,
                        2 | 3 => Survival::Events(seed),
                        _ => Survival::Sectors(seed),
                    };
                    let found = said(below.cut(events, survival)).await;
                    let is_right = found == before || found == told(name);
                    assert!(is_right, "{what}, cut after {events}: {found:?}");
                }
            }
            let after = below.cut(usize::MAX, Survival::Nothing);
            assert_eq!(said(after.clone()).await, told(name), "{what}");
            let cluster = 1 << bytes[23];
            assert!(after[cluster..] == bytes[cluster..], "{what}");
            let report = check_image(&MemoryDevice::from_bytes(after)).await;
            assert!(report.expect("checked").is_clean(), "{what}");
        }
    }
    assert!(done > 120, "{done}");
}

#[tokio::test]
async fn everything_else_in_the_header_stays() {
    let mut header = crate::qcow2::header::tests::header(3);
    header.backing_format = Some("raw".to_owned());
    header.bitmaps = Some(BitmapsExtension {
        count: 2,
        directory: blockferry_block::ByteRange::between(9 << 16, (9 << 16) + 80),
    });
    header.incompatible = Incompatible::COMPRESSION;
    header.compression = Compression::Zstd;
    header.unknown = vec![(0x1234_5678, vec![1, 2, 3]), (7, vec![9; 40])];
    let mut bytes = header.encode().expect("short names");
    bytes.resize(1 << 16, 0);
    // A feature that is not known here does not hold any more.
    bytes[88] = 0x80;
    let names = |bytes: &[u8]| bytes.windows(9).any(|part| part == b"dirty bit");
    assert!(names(&bytes));
    for name in [
        b"longer than before.qcow2".to_vec(),
        b"b".to_vec(),
        Vec::new(),
    ] {
        let new = Some(backing(&name, Some("qcow2"))).filter(|_| !name.is_empty());
        let below = Arc::new(MemoryDevice::from_bytes(bytes.clone()).growable());
        set_backing(below.clone(), new.as_ref()).await.expect("set");
        let after = below.contents();
        let found = Header::parse(&after).expect("valid");
        let expected = Header {
            backing: new.as_ref().map(|new| new.name.clone()),
            backing_format: new.as_ref().and_then(|new| new.format.clone()),
            ..header.clone()
        };
        assert_eq!(found, expected);
        assert!(names(&after));
        assert_eq!(after[88], 0);
        assert!(!after.windows(8).any(|part| part == b"base.raw"));
        bytes = after;
        bytes[88] = 0x80;
        header = expected;
    }
}

#[tokio::test]
async fn what_cannot_be_changed_in_one_step_is_refused_and_stays() {
    let mut many = crate::qcow2::header::tests::header(3);
    many.unknown = vec![(7, vec![9; 400])];
    let mut raw = crate::qcow2::header::tests::header(3);
    raw.geometry.data_file = true;
    raw.incompatible = Incompatible::DATA_FILE;
    raw.autoclear = Autoclear::RAW_DATA_FILE;
    raw.data_file = Some(b"data".to_vec());
    let mut damaged = crate::qcow2::header::tests::header(3);
    damaged.incompatible = Incompatible::CORRUPT;
    for (header, kind) in [
        (many, ErrorKind::Unsupported),
        (raw, ErrorKind::Unsupported),
        (damaged, ErrorKind::ReadOnly),
    ] {
        let mut bytes = header.encode().expect("short names");
        bytes.resize(1 << 16, 0);
        let below = Arc::new(MemoryDevice::from_bytes(bytes.clone()).growable());
        let refused = set_backing(below.clone(), Some(&backing(b"b", Some("raw")))).await;
        assert_eq!(refused.expect_err("refused").kind(), kind);
        assert!(below.contents() == bytes);
    }
}

#[tokio::test]
async fn headers_that_lie_are_refused_or_changed_without_harm() {
    let image = backed(everything(9, 20)).build();
    let mut state = 1_u64;
    for _ in 0..4000 {
        let mut bytes = image.clone();
        for _ in 0..3 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let at = (state >> 33) as usize % 200;
            bytes[at] = (state >> 24) as u8;
        }
        let below = Arc::new(MemoryDevice::from_bytes(bytes).growable());
        let new = backing(b"new", Some("qcow2"));
        if set_backing(below.clone(), Some(&new)).await.is_ok() {
            let header = Header::parse(&below.contents()[..512]).expect("valid");
            assert_eq!(header.backing.as_deref(), Some(&b"new"[..]));
        }
    }
}

#[tokio::test]
async fn qemu_finds_the_new_name_in_its_own_images() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let path = directory.join("image");
    for options in [
        "cluster_size=512",
        "cluster_size=4096",
        "cluster_size=65536",
        "compat=0.10",
        "extended_l2=on",
        "compression_type=zstd",
    ] {
        let create = format!("create -q -u -f qcow2 -b old.raw -F raw -o {options} image 5M");
        qemu_img(directory, &create);
        for new in [
            Some(backing(b"a-longer-name.qcow2", Some("qcow2"))),
            None,
            Some(backing(b"x", Some("vmdk"))),
        ] {
            let bytes = fs::read(&path).expect("there");
            let below = Arc::new(MemoryDevice::from_bytes(bytes).growable());
            let set = set_backing(below.clone(), new.as_ref()).await;
            set.expect(options);
            fs::write(&path, below.contents()).expect("room");
            let said = qemu_img(directory, "info image");
            match &new {
                Some(new) => {
                    let name = String::from_utf8_lossy(&new.name);
                    assert!(said.contains(&format!("backing file: {name}")), "{said}");
                    let format = new.format.as_deref().expect("said");
                    let format = format!("backing file format: {format}\n");
                    assert!(said.contains(&format), "{said}");
                }
                None => assert!(!said.contains("backing"), "{said}"),
            }
            qemu_img(directory, "rebase -u -b  image");
            qemu_img(directory, "rebase -u -b old.raw -F raw image");
        }
    }
}
