//! Images before a backing file, images whose data lies in another file, and subclusters.

use std::{path::Path, sync::Arc};

use blockferry_block::{
    BlockDevice, ByteRange, Capabilities, MemoryDevice, ZeroFlags, testing::check_device,
};
use blockferry_format::{
    NewImage,
    qcow2::{self, Backing, CreateOptions, DataFile, Preallocation},
};

use crate::support::{
    Place, assert_image, contents, has_qemu_img, make, memory, options, qemu_img, read_all, text,
};

fn backing(name: &str, bytes: Option<&[u8]>) -> Option<Backing> {
    Some(Backing {
        name: name.as_bytes().to_vec(),
        format: Some("raw".to_owned()),
        device: bytes.map(|bytes| Arc::new(MemoryDevice::from_bytes(bytes)) as _),
    })
}

/// The base, and what is to be in the image: here as the base, there zero, there something else.
fn pair(size: usize, base: usize) -> (Vec<u8>, Vec<u8>) {
    let base = contents(base, 5000, 1)
        .iter()
        .map(|byte| byte | 1)
        .collect::<Vec<_>>();
    let mut bytes = base.clone();
    bytes.resize(size, 0);
    let other = contents(size, 30_000, 2);
    for (index, (part, other)) in bytes
        .chunks_mut(50_000)
        .zip(other.chunks(50_000))
        .enumerate()
    {
        match index % 3 {
            0 => {}
            1 => part.fill(0),
            _ => part.copy_from_slice(other),
        }
    }
    (base, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn only_what_differs_from_the_backing_file_is_written() {
    for (number, (version, cluster_size, compress, extended)) in [
        (3, 4096, false, false),
        (2, 4096, false, false),
        (3, 65536, false, false),
        (3, 4096, true, false),
        (2, 4096, true, false),
        (3, 16384, false, true),
        (3, 16384, true, true),
    ]
    .into_iter()
    .enumerate()
    {
        // The base ends before the image, the image before the base, and within a cluster.
        for (size, base) in [(1 << 20, 1 << 20), (1 << 20, 600_001), (600_064, 1 << 20)] {
            let (base, bytes) = pair(size, base);
            let place = Place::new();
            std::fs::write(place.path("base.raw"), &base).expect("written");
            let shape = options(|options| {
                options.version = version;
                options.cluster_size = cluster_size;
                options.compress = compress;
                options.extended_l2 = extended;
                options.size = Some(size as u64);
                options.backing = backing("base.raw", Some(&base));
            });
            let what = format!("{version} {cluster_size} {compress} {extended} {size}");
            let image = make(&place.file("new.qcow2"), shape, &bytes, number as u64).await;
            assert!(!image.info().can(Capabilities::BORN_ZERO));
            assert!(read_all(image.as_ref(), size).await == bytes, "{what}");
            image.finish().await.expect("finished");
            assert_image(&place, "new.qcow2", &bytes, &what);
            if version == 3 && size == 1 << 20 && cluster_size == 4096 {
                let length = std::fs::metadata(place.path("new.qcow2"))
                    .expect("a file")
                    .len();
                assert!(
                    length < 450_000,
                    "{what}: a third differs and is no zeroes: {length}"
                );
            }
        }
    }
}

#[tokio::test]
async fn before_a_backing_file_that_is_not_known_zeroes_hide_it() {
    for version in [2, 3] {
        let place = Place::new();
        std::fs::write(place.path("base.raw"), vec![7; 300_032]).expect("written");
        let shape = options(|options| {
            options.version = version;
            options.size = Some(300_032);
            options.backing = backing("base.raw", None);
        });
        let image = qcow2::create(place.file("new.qcow2"), shape)
            .await
            .expect("begun");
        let zero = ByteRange::between(65536, 196_608);
        image.zero(zero, ZeroFlags::empty()).await.expect("zeroed");
        image.finish().await.expect("finished");
        let mut bytes = vec![7; 300_032];
        bytes[65536..196_608].fill(0);
        assert_image(
            &place,
            "new.qcow2",
            &bytes,
            "zeroes before the backing file",
        );
    }
}

#[tokio::test]
async fn with_a_backing_file_it_is_a_device_like_any_other() {
    let (base, _) = pair(300_000, 200_001);
    for (seed, extended) in [(1, false), (2, true), (3, false)] {
        let shape = options(|options| {
            options.size = Some(300_000);
            options.cluster_size = 16384;
            options.extended_l2 = extended;
            options.version = if seed == 3 { 2 } else { 3 };
            options.backing = backing("base.raw", Some(&base));
        });
        let image = qcow2::create(memory(), shape).await.expect("begun");
        check_device(&*image, seed, 300).await;
        image.finish().await.expect("finished");
    }
}

async fn with_data_file(
    place: &Place,
    bytes: &[u8],
    raw: bool,
    change: impl FnOnce(&mut CreateOptions),
) -> Arc<dyn NewImage> {
    let data: Arc<dyn BlockDevice> = place.file("disk.data");
    let shape = options(|options| {
        options.data_file = Some(DataFile {
            // qemu takes it as relative to where it was started.
            name: text(&place.path("disk.data")).as_bytes().to_vec(),
            raw,
            device: data,
        });
        change(options);
    });
    make(&place.file("new.qcow2"), shape, bytes, 6).await
}

#[tokio::test]
async fn data_may_lie_in_a_file_of_its_own() {
    for raw in [false, true] {
        for (number, cluster_size) in [4096, 65536].into_iter().enumerate() {
            for extended in [false, true] {
                let place = Place::new();
                let bytes = contents(1_000_000 + number, 50_000, 6);
                let image = with_data_file(&place, &bytes, raw, |options| {
                    options.cluster_size = cluster_size.max(if extended { 16384 } else { 0 });
                    options.extended_l2 = extended;
                });
                let image = image.await;
                image.finish().await.expect("finished");
                assert!(read_all(image.as_ref(), bytes.len()).await == bytes);
                let what = format!("a data file, raw {raw}, {cluster_size}, {extended}");
                assert_image(&place, "new.qcow2", &bytes, &what);
                if raw {
                    let data = std::fs::read(place.path("disk.data")).expect("a file");
                    assert!(data[..bytes.len()] == bytes && data.len() < bytes.len() + 512);
                }
            }
        }
    }
}

#[tokio::test]
async fn qemu_maps_images_with_a_data_file_as_its_own() {
    if !has_qemu_img() {
        return;
    }
    for raw in [false, true] {
        let place = Place::new();
        let theirs = place.path("theirs.qcow2");
        let data = place.path("theirs.data");
        let option = format!(
            "data_file={},data_file_raw={}",
            text(&data),
            if raw { "on" } else { "off" }
        );
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &option,
            text(&theirs),
            "3M",
        ]);
        let zeroes = vec![0; 3 << 20];
        let image = with_data_file(&place, &zeroes, raw, |options| {
            options.size = Some(3 << 20);
        });
        image.await.finish().await.expect("finished");
        let map = |path: &Path| qemu_img(&["map", "--output=json", text(path)]);
        assert_eq!(map(&place.path("new.qcow2")), map(&theirs), "raw {raw}");
    }
}

#[tokio::test]
async fn subclusters_may_be_allocated_before_a_backing_file() {
    let (base, bytes) = pair(1 << 20, 600_064);
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        let place = Place::new();
        std::fs::write(place.path("base.raw"), &base).expect("written");
        let shape = options(|options| {
            options.size = Some(1 << 20);
            options.extended_l2 = true;
            options.preallocation = preallocation;
            options.backing = backing("base.raw", Some(&base));
        });
        let image = make(&place.file("new.qcow2"), shape, &bytes, 7).await;
        image.finish().await.expect("finished");
        assert_image(
            &place,
            "new.qcow2",
            &bytes,
            "allocated before a backing file",
        );
        let length = std::fs::metadata(place.path("new.qcow2"))
            .expect("a file")
            .len();
        assert!(length > 1 << 20, "{length}");
    }
}

#[tokio::test]
async fn names_and_flags_are_as_qemu_shows_them() {
    if !has_qemu_img() {
        return;
    }
    let place = Place::new();
    std::fs::write(place.path("base.raw"), vec![1; 65536]).expect("written");
    let shape = options(|options| {
        options.size = Some(1 << 30);
        options.lazy_refcounts = true;
        options.refcount_bits = 8;
        options.compression = blockferry_format::qcow2::Compression::Zstd;
        options.backing = backing("base.raw", None);
    });
    let image = qcow2::create(place.file("new.qcow2"), shape)
        .await
        .expect("begun");
    image.finish().await.expect("finished");
    let info = qemu_img(&["info", text(&place.path("new.qcow2"))]);
    for line in [
        "virtual size: 1 GiB",
        "backing file: base.raw",
        "backing file format: raw",
        "compat: 1.1",
        "compression type: zstd",
        "lazy refcounts: true",
        "refcount bits: 8",
        "corrupt: false",
    ] {
        assert!(info.contains(line), "{line}: {info}");
    }
}
