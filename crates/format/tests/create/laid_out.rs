//! Files that are computed in advance.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, ErrorKind, FileDevice, Mapping, MemoryDevice,
    Operation, Status, WriteFlags,
    testing::{Fault, FaultyDevice, Rule, answers, check_device},
};
use blockferry_format::qcow2::{CreateOptions, LaidOut, Preallocation};

use crate::support::{Place, assert_image, contents, options, read_all};

fn shapes() -> Vec<(String, CreateOptions)> {
    let mut shapes = Vec::new();
    for cluster_size in [512, 4096, 64 << 10, 2 << 20] {
        for version in [2, 3] {
            let shape = options(|options| {
                options.cluster_size = cluster_size;
                options.version = version;
            });
            shapes.push((format!("clusters of {cluster_size}, {version}"), shape));
        }
    }
    for refcount_bits in [1, 8, 64] {
        let shape = options(|options| {
            options.cluster_size = 16 << 10;
            options.refcount_bits = refcount_bits;
            options.extended_l2 = refcount_bits == 8;
        });
        shapes.push((format!("refcounts of {refcount_bits} bits"), shape));
    }
    let full = options(|options| options.preallocation = Preallocation::Full);
    shapes.push(("allocated".to_owned(), full));
    shapes
}

fn source(bytes: &[u8]) -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::from_bytes(bytes))
}

#[tokio::test]
async fn qemu_reads_what_was_streamed() {
    for (number, (name, shape)) in shapes().into_iter().enumerate() {
        let size = (3 << 20) + [0, 1, 511, 40_000][number % 4];
        let mut bytes = contents(size, 100_000, 50 + number as u64);
        bytes[70_000..300_000].fill(0);
        let file = LaidOut::new(source(&bytes), &shape)
            .await
            .expect("laid out");
        let length = file.info().size as usize;
        let streamed = read_all(&file, length).await;
        let place = Place::new();
        std::fs::write(place.path("streamed.qcow2"), &streamed).expect("written");
        assert_image(&place, "streamed.qcow2", &bytes, &name);
        check_device(&file, number as u64, 100).await;
    }
}

#[tokio::test]
async fn odd_sizes_are_padded() {
    for cluster in [512, 65536_usize] {
        for size in [0, 1, 511, 512, cluster - 1, cluster, cluster + 1] {
            let shape = options(|options| options.cluster_size = cluster as u32);
            let bytes: Vec<u8> = (0..size).map(|at| at as u8 | 1).collect();
            let file = LaidOut::new(source(&bytes), &shape)
                .await
                .expect("laid out");
            let streamed = read_all(&file, file.info().size as usize).await;
            assert_eq!(streamed.len() % cluster, 0);
            let place = Place::new();
            std::fs::write(place.path("streamed.qcow2"), &streamed).expect("written");
            assert_image(
                &place,
                "streamed.qcow2",
                &bytes,
                &format!("{size} in {cluster}"),
            );
        }
    }
}

#[tokio::test]
async fn holes_of_the_source_are_not_in_the_file() {
    let memory = MemoryDevice::new(1 << 40);
    for at in [0, 1 << 30, (1 << 40) - 65536] {
        let data = Buffer::from(&[7; 65536][..]);
        memory
            .write(at, data, WriteFlags::empty())
            .await
            .expect("written");
    }
    let shape = CreateOptions::default();
    let file = LaidOut::new(Arc::new(memory), &shape)
        .await
        .expect("laid out");
    // The header, refcounts in two, the L1 table, an L2 table and a cluster of data for each.
    assert_eq!(file.info().size, (4 + 3 + 3) << 16);
    // What does not say where its data is has it everywhere.
    let silent = FaultyDevice::new(source(&vec![0; 1 << 20]))
        .with(Rule::on(Operation::Extents).fault(Fault::Error(ErrorKind::Io)));
    let file = LaidOut::new(Arc::new(silent), &shape)
        .await
        .expect("laid out");
    assert!(file.info().size > 1 << 20);
    for strange in [
        answers::empty,
        answers::of_no_length,
        answers::with_gap,
        answers::outside,
    ] {
        let source = FaultyDevice::new(source(&vec![1; 1 << 20]))
            .with(Rule::on(Operation::Extents).fault(Fault::Extents(strange)));
        LaidOut::new(Arc::new(source), &shape)
            .await
            .expect("laid out");
    }
}

#[tokio::test]
async fn data_is_mapped_where_the_source_is() {
    let place = Place::new();
    let bytes = contents(1 << 20, 1 << 20, 4)
        .iter()
        .map(|byte| byte | 1)
        .collect::<Vec<_>>();
    std::fs::write(place.path("disk.raw"), &bytes).expect("written");
    let disk = place.path("disk.raw");
    let disk = FileDevice::open(&disk, blockferry_block::Access::ReadOnly).expect("opened");
    let file = LaidOut::new(Arc::new(disk), &CreateOptions::default())
        .await
        .expect("laid out");
    let size = file.info().size;
    let data = size - (1 << 20);
    assert!(matches!(
        file.mapping(ByteRange::between(0, size)),
        Mapping::Opaque
    ));
    match file.mapping(ByteRange::between(data + 5, size)) {
        Mapping::File { offset, length, .. } => assert_eq!((offset, length), (5, (1 << 20) - 5)),
        other => panic!("{other:?}"),
    }
    let extents = file
        .extents(ByteRange::between(0, size), &Context::Allocation)
        .await;
    assert!(
        extents
            .expect("an answer")
            .iter()
            .all(|extent| extent.status == Status::DATA)
    );
}

#[tokio::test]
async fn what_cannot_be_known_in_advance_is_refused() {
    let compressed = options(|options| options.compress = true);
    let error = LaidOut::new(source(&[1; 512]), &compressed)
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("compressed clusters"), "{error}");
    let blocks = FaultyDevice::new(source(&[1; 4096])).with_info(|info| info.limits.minimum = 4096);
    let small = options(|options| options.cluster_size = 512);
    LaidOut::new(Arc::new(blocks), &small)
        .await
        .expect_err("its blocks are longer");
    let huge = Arc::new(MemoryDevice::new(1 << 50));
    LaidOut::new(huge, &small)
        .await
        .expect_err("an L1 table can be no longer");
}

#[tokio::test]
async fn a_failing_source_fails_at_the_place_in_the_file() {
    let faulty = FaultyDevice::new(source(&vec![1; 1 << 20]))
        .with(Rule::on(Operation::Read).fault(Fault::Error(ErrorKind::Io)));
    let file = LaidOut::new(Arc::new(faulty), &CreateOptions::default())
        .await
        .expect("laid out");
    let at = file.info().size - 65536;
    let error = file
        .read(at, Buffer::zeroed(512))
        .await
        .expect_err("a fault");
    assert_eq!((error.offset(), error.length()), (Some(at), Some(512)));
    file.read(0, Buffer::zeroed(65536))
        .await
        .expect("the header needs no source");
}
