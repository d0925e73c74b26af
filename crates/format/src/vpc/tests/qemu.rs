//! Images that qemu-img made, and what it says of ours.

use std::{fs, sync::Arc};

use blockferry_block::{
    Access, BlockDevice, Buffer, ByteRange, FileDevice, MemoryDevice, WriteFlags, ZeroFlags,
    testing::check_device,
};

use super::{contents, details};
use crate::{
    Image, NewImage, NoRelatives, OpenOptions,
    qemu::{is_installed, qemu_img},
    testing::pattern,
    vpc::{CreateOptions, Details, Kind, create},
};

pub(super) async fn open_file(path: &std::path::Path) -> Arc<dyn Image> {
    let below: Arc<dyn BlockDevice> =
        Arc::new(FileDevice::open(path, Access::ReadOnly).expect("it is there"));
    let opened = crate::vpc::open(below, &NoRelatives, &OpenOptions::default()).await;
    opened.expect("sound")
}

#[tokio::test]
async fn images_of_qemu_img_are_read() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    for size in [512, 70_000, 5 << 20, (9 << 20) + 1536] {
        fs::write(path.join("raw"), pattern(size)).expect("written");
        for options in [
            "subformat=dynamic",
            "subformat=fixed",
            "subformat=dynamic,force_size=on",
            "subformat=fixed,force_size=on",
        ] {
            qemu_img(
                path,
                &format!("convert -f raw -O vpc -o {options} raw image"),
            );
            qemu_img(path, "convert -f vpc -O raw image back");
            let image = open_file(&path.join("image")).await;
            let back = fs::read(path.join("back")).expect("converted");
            assert!(contents(&*image).await == back, "{size} {options}");
            assert_eq!(details(&*image).virtual_size, back.len() as u64);
            check_device(&*image, 5, 60).await;
        }
    }
}

/// Writes what is no zeroes.
async fn write_all(new: &dyn NewImage, bytes: &[u8]) {
    for piece in ByteRange::between(0, bytes.len() as u64).pieces(2 << 20) {
        let part = &bytes[piece.start() as usize..piece.end() as usize];
        if blockferry_block::is_zero(part) {
            new.zero(piece, ZeroFlags::empty()).await.expect("zeroed");
            continue;
        }
        let written = new.write(piece.start(), Buffer::from(part), WriteFlags::empty());
        written.await.expect("written");
    }
}

async fn make(path: &std::path::Path, bytes: &[u8], mut options: CreateOptions) {
    options.size = Some(bytes.len() as u64);
    let below = FileDevice::create(path).expect("a file").growable();
    let new = create(Arc::new(below), options).await.expect("begun");
    write_all(&*new, bytes).await;
    new.finish().await.expect("finished");
}

/// The bytes of an image without those that are never the same twice: times, identities, checksums.
fn comparable(mut bytes: Vec<u8>, kind: Kind) -> Vec<u8> {
    let end = bytes.len() - 512;
    let footers = match kind {
        Kind::Fixed => vec![end],
        _ => vec![0, end],
    };
    for start in footers {
        bytes[start + 24..start + 28].fill(0);
        bytes[start + 64..start + 84].fill(0);
    }
    bytes
}

#[tokio::test]
async fn images_are_those_of_qemu_img_byte_for_byte() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    for size in [512, 70_144, 5 << 20, (9 << 20) + 1536] {
        let bytes = pattern(size);
        fs::write(path.join("raw"), &bytes).expect("written");
        for kind in [Kind::Fixed, Kind::Dynamic] {
            for force_size in [false, true] {
                let subformat = if kind == Kind::Fixed {
                    "fixed"
                } else {
                    "dynamic"
                };
                let force = if force_size { ",force_size=on" } else { "" };
                qemu_img(
                    path,
                    &format!(
                        "convert -S 2M -f raw -O vpc -o subformat={subformat}{force} raw theirs"
                    ),
                );
                let options = CreateOptions {
                    kind,
                    force_size,
                    ..CreateOptions::default()
                };
                make(&path.join("ours"), &bytes, options).await;
                let [ours, theirs] = ["ours", "theirs"]
                    .map(|name| comparable(fs::read(path.join(name)).expect("there"), kind));
                assert_eq!(ours.len(), theirs.len(), "{size} {kind:?} {force_size}");
                let differs = ours.iter().zip(&theirs).position(|(own, its)| own != its);
                assert_eq!(differs, None, "{size} {kind:?} {force_size}");
                let disk = contents(&*open_file(&path.join("ours")).await).await;
                assert!(disk[..size] == bytes);
                assert!(disk[size..].iter().all(|byte| *byte == 0));
                qemu_img(path, "compare -f vpc -F raw ours raw");
            }
        }
    }
}

#[tokio::test]
async fn sizes_are_rounded_as_qemu_img_rounds_them() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    for size in [
        0_u64,
        1,
        513,
        17 << 20,
        (504 << 20) + 512,
        (1 << 30) + 512,
        (8 << 30) - 512,
        (40 << 30) + 512,
        127 << 30,
        (127 << 30) + (512 << 20),
        200 << 30,
        2040 << 30,
    ] {
        qemu_img(path, &format!("create -f vpc theirs {size}"));
        let options = CreateOptions {
            size: Some(size),
            ..CreateOptions::default()
        };
        let below = Arc::new(MemoryDevice::new(0).growable());
        let new = create(below.clone(), options).await.expect("begun");
        new.finish().await.expect("finished");
        let ours = comparable(below.contents(), Kind::Dynamic);
        let theirs = comparable(fs::read(path.join("theirs")).expect("there"), Kind::Dynamic);
        assert!(ours == theirs, "{size}");
        let details = Details::read(&super::memory(below.contents())).await;
        let info = qemu_img(path, "info -f vpc --output=json theirs");
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        assert_eq!(info["virtual-size"], details.expect("sound").virtual_size);
    }
    let options = CreateOptions {
        size: Some((2040 << 30) + 1),
        ..CreateOptions::default()
    };
    let refused = create(Arc::new(MemoryDevice::new(0).growable()), options).await;
    assert!(
        refused
            .expect_err("too large")
            .to_string()
            .contains("2040 GiB")
    );
}

#[tokio::test]
async fn azure_gets_whole_mebibytes_and_a_footer() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    for size in [1, 1 << 20, (2 << 20) + 512] {
        let options = CreateOptions {
            azure: true,
            ..CreateOptions::default()
        };
        let bytes = pattern(size);
        make(&path, &bytes, options).await;
        let image = open_file(&path).await;
        let told = details(&*image);
        let whole = (size as u64).next_multiple_of(1 << 20);
        assert_eq!((told.kind, told.virtual_size), (Kind::Fixed, whole));
        assert_eq!(fs::metadata(&path).expect("there").len(), whole + 512);
        let disk = contents(&*image).await;
        assert!(disk[..size] == bytes && disk[size..].iter().all(|byte| *byte == 0));
        if is_installed() {
            let info = qemu_img(directory.path(), "info -f vpc --output=json image");
            let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
            assert_eq!(info["virtual-size"], whole);
        }
    }
}

#[tokio::test]
async fn an_image_of_a_stream_is_as_long_as_that() {
    for kind in [Kind::Fixed, Kind::Dynamic] {
        let below = Arc::new(MemoryDevice::new(0).growable());
        let options = CreateOptions {
            kind,
            force_size: true,
            ..CreateOptions::default()
        };
        let new = create(below.clone(), options).await.expect("begun");
        let bytes = pattern(3 << 20);
        write_all(&*new, &bytes).await;
        new.resize((3 << 20) + 512).await.expect("grown");
        new.finish().await.expect("finished");
        let image = super::open(below.contents()).await.expect("sound");
        assert_eq!(image.info().size, (3 << 20) + 512);
        assert!(contents(&*image).await[..3 << 20] == bytes);
    }
}

#[tokio::test]
async fn a_fixed_image_needs_its_end_where_the_device_ends() {
    let (size, end) = (68 * 512, 69 * 512);
    let options = || CreateOptions {
        size: Some(size),
        kind: Kind::Fixed,
        ..CreateOptions::default()
    };
    let fitting = Arc::new(MemoryDevice::from_bytes(vec![7; end]));
    let new = create(fitting.clone(), options()).await.expect("begun");
    new.finish().await.expect("finished");
    let image = super::open(fitting.contents()).await.expect("sound");
    assert!(contents(&*image).await.iter().all(|byte| *byte == 0));
    let longer = Arc::new(MemoryDevice::from_bytes(vec![7; end + 512]));
    let error = create(longer, options()).await.expect_err("refused");
    assert!(
        error.to_string().contains("ends with its footer"),
        "{error}"
    );
}

#[tokio::test]
async fn what_no_image_can_be_is_refused() {
    let options = CreateOptions {
        size: Some(512),
        kind: Kind::Differencing,
        ..CreateOptions::default()
    };
    let refused = create(Arc::new(MemoryDevice::new(0).growable()), options).await;
    assert!(refused.is_err());
}
