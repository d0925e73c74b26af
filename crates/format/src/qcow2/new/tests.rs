//! Tables in little memory.

use blockferry_block::{
    Buffer, Context, CopyFlags, FileRange, MemoryDevice, WriteFlags, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule, check_device},
};

use super::*;
use crate::{
    NewImage as _, NoRelatives,
    qcow2::{Image, OpenOptions, check},
};

/// Room for so many tables of clusters of 512 bytes.
const TABLES: usize = 16;
const MEMORY: u64 = TABLES as u64 * 700;
const SIZE: u64 = 4 << 20;

fn options() -> CreateOptions {
    CreateOptions {
        size: Some(SIZE),
        cluster_size: 512,
        ..Default::default()
    }
}

/// The contents of the cluster at `offset`: none are alike, and some are zero.
fn contents(range: ByteRange) -> Buffer {
    let mut bytes = Buffer::zeroed(range.len() as usize);
    for (piece, bytes) in range.pieces(512).zip(bytes.chunks_mut(512)) {
        let number = piece.start() / 512;
        if number % 7 != 3 {
            bytes.fill((number % 255) as u8 + 1);
            bytes[..8].copy_from_slice(&number.to_be_bytes());
        }
    }
    bytes
}

/// Pieces of the disk in an order that comes back to every table again and again.
fn pieces() -> Vec<ByteRange> {
    let disk = ByteRange::between(0, SIZE);
    let pieces: Vec<_> = disk.pieces(5 * 512).collect();
    let count = pieces.len();
    (0..count).map(|at| pieces[at * 401 % count]).collect()
}

async fn assert_whole(below: &Arc<dyn BlockDevice>) {
    let size = below.info().size;
    let report = check(below.as_ref()).await;
    let report = report.expect("checked");
    assert!(report.is_clean(), "{report:?}");
    let options = OpenOptions::default();
    let image = Image::open(Arc::clone(below), &NoRelatives, &options);
    let image = image.await.expect("an image");
    for piece in ByteRange::between(0, SIZE).pieces(1 << 20) {
        let read = image.read(piece.start(), Buffer::zeroed(piece.len() as usize));
        assert!(read.await.expect("read")[..] == contents(piece)[..]);
    }
    assert!(size > 0);
}

/// What is in `memory`, as a device that says how long it is.
fn fixed(memory: &MemoryDevice) -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::from_bytes(memory.contents()))
}

#[tokio::test]
async fn tables_without_room_are_written_early_and_read_again() {
    let memory = Arc::new(MemoryDevice::new(0).growable());
    let image = NewImage::create(Arc::clone(&memory) as _, options(), MEMORY).await;
    let image = image.expect("begun");
    for piece in pieces() {
        let write = image.write(piece.start(), contents(piece), WriteFlags::empty());
        write.await.expect("written");
        // A piece touches two tables at most.
        assert!(image.0.map.held() <= TABLES + 2, "{}", image.0.map.held());
    }
    for piece in pieces().into_iter().step_by(3) {
        let read = image.read(piece.start(), Buffer::zeroed(piece.len() as usize));
        assert!(read.await.expect("read")[..] == contents(piece)[..]);
        assert!(image.0.map.held() <= TABLES + 2);
    }
    image.finish().await.expect("finished");
    assert_whole(&fixed(&memory)).await;
}

#[tokio::test]
async fn with_little_memory_it_is_a_device_like_any_other() {
    for compress in [false, true] {
        for seed in 0..4 {
            let options = CreateOptions {
                compress,
                size: Some(1 << 20),
                ..options()
            };
            let below = Arc::new(MemoryDevice::new(0).growable());
            let image = NewImage::create(below, options, 0).await;
            let image = image.expect("begun");
            check_device(&image, seed, 200).await;
            image.finish().await.expect("finished");
        }
    }
}

#[tokio::test]
async fn a_table_that_could_not_be_written_early_is_not_lost() {
    for fault in [Fault::Error(ErrorKind::Io), Fault::Hang] {
        let memory = Arc::new(MemoryDevice::new(0).growable());
        let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as _));
        let image = NewImage::create(Arc::clone(&faulty) as _, options(), MEMORY).await;
        let image = image.expect("begun");
        for (number, piece) in pieces().into_iter().enumerate() {
            if number % 50 == 49 {
                faulty.add(Rule::on_all().times(1).fault(fault));
            }
            loop {
                let mut write = image.write(piece.start(), contents(piece), WriteFlags::empty());
                // Nothing waits but what hangs.
                match futures_util::poll!(&mut write) {
                    std::task::Poll::Ready(Ok(_)) => break,
                    std::task::Poll::Ready(Err(_)) => {}
                    std::task::Poll::Pending => drop(write),
                }
                faulty.heal();
                // Whatever waited for nothing else than its share of the runtime gets it.
                tokio::task::yield_now().await;
            }
        }
        image.finish().await.expect("all was written in the end");
        assert_whole(&fixed(&memory)).await;
    }
}

#[tokio::test]
async fn a_table_that_waits_for_a_write_that_fails_is_not_lost() {
    let memory = Arc::new(MemoryDevice::new(0).growable());
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as _));
    let image = NewImage::create(Arc::clone(&faulty) as _, options(), 8 * 700).await;
    let image = image.expect("begun");
    // A cluster with data, of those that a table maps.
    let cluster = |table: u64, number: u64| (table * 64).next_multiple_of(7) + number;
    let place = |cluster: u64| ByteRange::between(cluster * 512, cluster * 512 + 512);
    let write = |cluster: u64| {
        let range = place(cluster);
        image.write(range.start(), contents(range), WriteFlags::empty())
    };
    // In the end the two that were not used for longest are 1, which has no place, and 10, which has one.
    let order = (10..19).map(|table| cluster(table, 0));
    let order = order.chain([cluster(10, 1), cluster(1, 0)]);
    for cluster in order.chain((14..20).map(|table| cluster(table, 2))) {
        write(cluster).await.expect("written");
    }
    let fault = Fault::Error(ErrorKind::Io);
    faulty.add(Rule::on(Operation::Write).times(1).fault(fault));
    let failed = write(cluster(20, 0)).await;
    failed.expect_err("a table could not be written");
    let written = write(cluster(20, 0)).await;
    written.expect("it was written in the end");
    for cluster in [cluster(1, 0), cluster(10, 0), cluster(10, 1)] {
        let range = place(cluster);
        let read = image.read(range.start(), Buffer::zeroed(512)).await;
        assert!(read.expect("read")[..] == contents(range)[..], "{cluster}");
    }
    image.finish().await.expect("finished");
}

#[tokio::test]
async fn what_goes_wrong_with_compressed_clusters_is_told_to_all_that_follow() {
    let memory = Arc::new(MemoryDevice::new(0).growable());
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as _));
    let options = CreateOptions {
        compress: true,
        ..options()
    };
    let image = NewImage::create(Arc::clone(&faulty) as _, options, TABLE_MEMORY).await;
    let image = image.expect("begun");
    let range = ByteRange::between(0, 64 << 10);
    let write = image.write(0, contents(range), WriteFlags::empty());
    write.await.expect("taken");
    faulty.add(
        Rule::on(Operation::Write)
            .times(1)
            .fault(Fault::Error(ErrorKind::Io)),
    );
    for _ in 0..3 {
        let error = image.flush().await.expect_err("not all is there");
        assert_eq!(error.kind(), ErrorKind::Io);
    }
    let read = image.read(0, Buffer::zeroed(512)).await;
    assert_eq!(read.expect_err("it is lost").kind(), ErrorKind::Io);
    image.finish().await.expect_err("no image");
}

#[tokio::test]
async fn bytes_that_are_not_taken_over_take_no_places() {
    const PIECE: u64 = 1 << 20;
    let source = tempfile::tempfile().expect("a file");
    let source: std::os::fd::OwnedFd = source.into();
    let source = FileRange::new(source, ByteRange::between(0, PIECE));
    let mut lengths = Vec::new();
    for tries in [false, true] {
        let memory = Arc::new(MemoryDevice::new(0).growable());
        let slowly = Fault::Delay(std::time::Duration::from_millis(5));
        let faulty = FaultyDevice::new(Arc::clone(&memory) as _)
            .with(Rule::on(Operation::Copy).fault(slowly))
            .with_info(|info| info.capabilities |= Capabilities::COPY_FROM);
        let faulty = Arc::new(faulty);
        let image = NewImage::create(Arc::clone(&faulty) as _, options(), TABLE_MEMORY).await;
        let image = image.expect("begun");
        let pieces: Vec<_> = ByteRange::between(0, SIZE).pieces(PIECE).collect();
        if tries {
            let copies = pieces
                .iter()
                .map(|piece| image.copy_from(piece.start(), source.clone(), CopyFlags::empty()));
            for copied in futures_util::future::join_all(copies).await {
                let error = copied.expect_err("memory takes nothing over");
                assert_eq!(error.kind(), ErrorKind::Unsupported);
            }
            assert_eq!(faulty.calls(Operation::Copy), 1, "one shows it");
        }
        for piece in pieces {
            let write = image.write(piece.start(), contents(piece), WriteFlags::empty());
            write.await.expect("written");
        }
        image.finish().await.expect("finished");
        assert_whole(&fixed(&memory)).await;
        lengths.push(memory.contents().len());
    }
    assert_eq!(lengths[0], lengths[1]);
}

#[tokio::test]
async fn the_order_of_what_is_compressed_decides_alone_where_tables_go() {
    let mut files = Vec::new();
    for threads in [1, 2, 5] {
        let memory = Arc::new(MemoryDevice::new(0).growable());
        let options = CreateOptions {
            compress: true,
            threads,
            ..options()
        };
        let image = NewImage::create(Arc::clone(&memory) as _, options, MEMORY).await;
        let image = image.expect("begun");
        let disk = ByteRange::between(0, SIZE);
        for piece in disk.pieces((7 + threads as u64) * 512) {
            let write = image.write(piece.start(), contents(piece), WriteFlags::empty());
            write.await.expect("written");
        }
        image.finish().await.expect("finished");
        assert_whole(&fixed(&memory)).await;
        files.push(memory.contents());
    }
    assert!(files.iter().all(|file| *file == files[0]));
}

#[tokio::test]
async fn a_huge_disk_with_little_in_it_takes_little() {
    let memory = Arc::new(MemoryDevice::new(0).growable());
    let options = CreateOptions {
        size: Some(16 << 40),
        ..Default::default()
    };
    let image = NewImage::create(Arc::clone(&memory) as _, options, TABLE_MEMORY).await;
    let image = image.expect("begun");
    for at in [0, 8 << 40, (16 << 40) - 65536] {
        let data = Buffer::from(&[7; 65536][..]);
        image
            .write(at, data, WriteFlags::empty())
            .await
            .expect("written");
    }
    let everything = ByteRange::between(0, 16 << 40);
    let zeroed = ByteRange::between(1 << 40, 7 << 40);
    image
        .zero(zeroed, ZeroFlags::empty())
        .await
        .expect("zeroed");
    let extents = image.extents(everything, &Context::Allocation).await;
    assert_eq!(extents.expect("an answer").len(), 5);
    assert_eq!(image.0.map.held(), 3);
    image.finish().await.expect("finished");
    // The header, three clusters and their tables, 256 KiB of L1 table, two of refcounts.
    assert_eq!(memory.contents().len(), (1 + 6 + 4 + 2) << 16);
}
