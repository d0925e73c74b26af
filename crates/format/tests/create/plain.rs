//! Images that are not compressed, without anything behind them.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Buffer, ByteRange, Context, Status, WriteFlags, ZeroFlags};
use blockferry_format::qcow2::{self, CreateOptions, Preallocation};

use crate::support::{
    Place, assert_image, contents, has_qemu_img, make, memory, options, qemu_img, read_all, text,
};

/// Every shape of image that these tests make, by name.
fn shapes() -> Vec<(String, CreateOptions)> {
    let mut shapes = Vec::new();
    for cluster_size in [512, 4096, 64 << 10, 2 << 20] {
        for version in [2, 3] {
            let name = format!("clusters of {cluster_size}, version {version}");
            let shape = options(|options| {
                options.cluster_size = cluster_size;
                options.version = version;
            });
            shapes.push((name, shape));
        }
    }
    for refcount_bits in [1, 2, 4, 8, 32, 64] {
        let name = format!("refcounts of {refcount_bits} bits");
        let shape = options(|options| {
            options.cluster_size = 4096;
            options.refcount_bits = refcount_bits;
            options.lazy_refcounts = refcount_bits > 8;
        });
        shapes.push((name, shape));
    }
    for (cluster_size, preallocation) in [
        (64 << 10, Preallocation::Metadata),
        (64 << 10, Preallocation::Falloc),
        (4096, Preallocation::Full),
    ] {
        let name = format!("clusters of {cluster_size}, {preallocation:?}");
        let shape = options(|options| {
            options.cluster_size = cluster_size;
            options.preallocation = preallocation;
        });
        shapes.push((name, shape));
    }
    for cluster_size in [16 << 10, 64 << 10] {
        let shape = options(|options| {
            options.cluster_size = cluster_size;
            options.extended_l2 = true;
        });
        shapes.push((format!("subclusters of {cluster_size}"), shape));
    }
    shapes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn qemu_reads_what_many_tasks_wrote_out_of_order() {
    for (number, (name, shape)) in shapes().into_iter().enumerate() {
        let seed = number as u64;
        let cluster = shape.cluster_size as usize;
        let size = cluster * ((1 << 20) / cluster).clamp(5, 80) + [0, 1, 511, 4095][number % 4];
        let bytes = contents(size, cluster / 2, seed);
        let place = Place::new();
        let image = make(&place.file("new.qcow2"), shape, &bytes, seed).await;
        assert!(
            read_all(image.as_ref(), size).await == bytes,
            "{name}: before the end"
        );
        image
            .finish()
            .await
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(
            read_all(image.as_ref(), size).await == bytes,
            "{name}: after the end"
        );
        assert_image(&place, "new.qcow2", &bytes, &name);
        let length = std::fs::metadata(place.path("new.qcow2"))
            .expect("a file")
            .len();
        assert_eq!(length % cluster as u64, 0, "{name}: whole clusters");
    }
}

#[tokio::test]
async fn odd_sizes_end_where_they_should() {
    for cluster in [512, 65536_usize] {
        for size in [
            0,
            1,
            511,
            512,
            cluster - 1,
            cluster,
            cluster + 1,
            3 * cluster - 1,
        ] {
            for sized in [false, true] {
                let place = Place::new();
                let shape = options(|options| {
                    options.cluster_size = cluster as u32;
                    options.size = sized.then_some(size as u64);
                });
                let bytes: Vec<u8> = (0..size).map(|at| at as u8 | 1).collect();
                let what = format!("{size} bytes in clusters of {cluster}");
                let image = make(&place.file("new.qcow2"), shape, &bytes, 1).await;
                image.finish().await.expect("finished");
                assert!(read_all(image.as_ref(), size).await == bytes, "{what}");
                assert_image(&place, "new.qcow2", &bytes, &what);
            }
        }
    }
}

#[tokio::test]
async fn what_was_never_written_and_what_is_zero_takes_no_place() {
    let place = Place::new();
    let shape = options(|options| options.size = Some(1 << 30));
    let image = qcow2::create(place.file("new.qcow2"), shape)
        .await
        .expect("begun");
    for at in [0, 512 << 20] {
        let write = image.write(at, Buffer::zeroed(4 << 20), WriteFlags::empty());
        write.await.expect("written");
    }
    let mut one = Buffer::zeroed(65536);
    one[1] = 1;
    image
        .write(65536, one, WriteFlags::empty())
        .await
        .expect("written");
    let disk = ByteRange::between(0, 1 << 30);
    let extents = image
        .extents(disk, &Context::Allocation)
        .await
        .expect("an answer");
    let told: Vec<_> = extents
        .iter()
        .map(|it| (it.range.start(), it.status))
        .collect();
    let expected = [
        (0, Status::HOLE_ZERO),
        (65536, Status::DATA),
        (131_072, Status::HOLE_ZERO),
    ];
    assert_eq!(told, expected);
    image.finish().await.expect("finished");
    let length = std::fs::metadata(place.path("new.qcow2"))
        .expect("a file")
        .len();
    assert_eq!(
        length,
        6 << 16,
        "header, data, an L2 table, the L1 table, a block, the table"
    );
}

#[tokio::test]
async fn a_cluster_keeps_its_place_when_it_is_written_again() {
    let place = Place::new();
    let shape = options(|options| options.size = Some(256 << 10));
    let image = qcow2::create(place.file("new.qcow2"), shape)
        .await
        .expect("begun");
    let mut bytes = vec![1; 256 << 10];
    let write =
        |at: u64, bytes: Vec<u8>| image.write(at, Buffer::from(&bytes[..]), WriteFlags::empty());
    write(128 << 10, vec![7; 64 << 10]).await.expect("written");
    write(0, bytes.clone()).await.expect("written around it");
    write(64 << 10, vec![2; 128 << 10])
        .await
        .expect("written again");
    bytes[64 << 10..192 << 10].fill(2);
    // What is zeroed gives its place back: the file has a cluster that nobody refers to.
    image
        .zero(ByteRange::between(0, 64 << 10), ZeroFlags::empty())
        .await
        .expect("zeroed");
    bytes[..64 << 10].fill(0);
    image.finish().await.expect("finished");
    assert_image(&place, "new.qcow2", &bytes, "written again");
}

#[tokio::test]
async fn zeroes_that_are_to_be_allocated_are() {
    if !has_qemu_img() {
        return;
    }
    let place = Place::new();
    let shape = options(|options| options.size = Some(1 << 20));
    let image = qcow2::create(place.file("new.qcow2"), shape)
        .await
        .expect("begun");
    let half = ByteRange::between(0, 512 << 10);
    image
        .zero(half, ZeroFlags::NO_HOLE)
        .await
        .expect("allocated");
    image.finish().await.expect("finished");
    assert_image(&place, "new.qcow2", &vec![0; 1 << 20], "zeroes");
    let map = qemu_img(&["map", "--output=json", text(&place.path("new.qcow2"))]);
    let first = map.lines().next().expect("a line");
    assert!(
        first.contains("\"length\": 524288") && first.contains("\"present\": true"),
        "{map}"
    );
    assert!(map.lines().count() == 2, "{map}");
}

#[tokio::test]
async fn qemu_maps_preallocated_images_as_its_own() {
    if !has_qemu_img() {
        return;
    }
    for (word, preallocation) in [
        ("metadata", Preallocation::Metadata),
        ("falloc", Preallocation::Falloc),
        ("full", Preallocation::Full),
    ] {
        let place = Place::new();
        let theirs = place.path("theirs.qcow2");
        let option = format!("preallocation={word}");
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
        let shape = options(|options| {
            options.size = Some(3 << 20);
            options.preallocation = preallocation;
        });
        let image = qcow2::create(place.file("ours.qcow2"), shape)
            .await
            .expect("begun");
        image.finish().await.expect("finished");
        assert_image(&place, "ours.qcow2", &vec![0; 3 << 20], word);
        let map = |path: &std::path::Path| {
            let map = qemu_img(&["map", "--output=json", text(path)]);
            let (before, _) = map.split_once("\"offset\"").expect("one extent");
            before.to_owned()
        };
        assert_eq!(map(&place.path("ours.qcow2")), map(&theirs), "{word}");
    }
}

#[tokio::test]
async fn an_image_may_be_in_memory_and_in_a_device_of_a_fixed_size() {
    use blockferry_block::MemoryDevice;
    let bytes = contents(3_000_000, 40_000, 3);
    let shape = || options(|options| options.size = Some(3_000_000));
    let growing = memory();
    make(&growing, shape(), &bytes, 3)
        .await
        .finish()
        .await
        .expect("finished");
    // What was there before shows nowhere.
    let used = Arc::new(MemoryDevice::from_bytes(vec![0xa5; 4 << 20]));
    let device: Arc<dyn BlockDevice> = Arc::clone(&used) as _;
    make(&device, shape(), &bytes, 3)
        .await
        .finish()
        .await
        .expect("finished");
    let small: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(1 << 20));
    let image = qcow2::create(small, shape()).await.expect("begun");
    let mut error = None;
    for at in (0..20).map(|at| at << 16) {
        let data = Buffer::from(&[1; 65536][..]);
        error = image.write(at, data, WriteFlags::empty()).await.err();
    }
    let error = error.expect("no room");
    assert_eq!(error.kind(), blockferry_block::ErrorKind::NoSpace);
    image
        .finish()
        .await
        .expect_err("what was not written is missing");

    let place = Place::new();
    let path = place.path("used.qcow2");
    std::fs::write(&path, used.contents()).expect("written");
    assert_image(&place, "used.qcow2", &bytes, "in a device of a fixed size");
}
