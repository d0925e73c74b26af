//! Images whose clusters are compressed.

use std::{sync::Arc, time::Duration};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, ErrorKind, MemoryDevice, Operation, WriteFlags, is_zero,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use blockferry_format::{
    NewImage,
    qcow2::{self, Compression, CreateOptions},
};

use crate::support::{Place, Random, assert_image, contents, make, memory, options, read_all};

fn compressed(change: impl FnOnce(&mut CreateOptions)) -> CreateOptions {
    options(|options| {
        options.compress = true;
        change(options);
    })
}

fn shapes() -> Vec<(String, CreateOptions)> {
    let mut shapes = Vec::new();
    for cluster_size in [512, 4096, 64 << 10, 2 << 20] {
        for compression in [Compression::Zlib, Compression::Zstd] {
            for in_order in [true, false] {
                let name = format!("{cluster_size} {compression:?} in order {in_order}");
                let shape = compressed(|options| {
                    options.cluster_size = cluster_size;
                    options.compression = compression;
                    options.in_order = in_order;
                });
                shapes.push((name, shape));
            }
        }
    }
    for refcount_bits in [2, 4, 8, 32, 64] {
        let shape = compressed(|options| {
            options.refcount_bits = refcount_bits;
            options.cluster_size = 16 << 10;
            options.extended_l2 = refcount_bits == 8;
        });
        shapes.push((format!("refcounts of {refcount_bits} bits"), shape));
    }
    let old = compressed(|options| options.version = 2);
    shapes.push(("version 2".to_owned(), old));
    let wide = compressed(|options| options.compression_window = 32768);
    shapes.push(("a window of 32k".to_owned(), wide));
    shapes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn qemu_reads_what_many_tasks_compressed_out_of_order() {
    for (number, (name, shape)) in shapes().into_iter().enumerate() {
        let seed = 100 + number as u64;
        let cluster = shape.cluster_size as usize;
        let size = cluster * ((1 << 20) / cluster).clamp(5, 80) + [0, 1, 511, 4095][number % 4];
        let bytes = contents(size, cluster, seed);
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
    }
}

/// Writes all of `bytes` in order, in pieces of lengths that depend on `seed`.
async fn write_in_order(image: &dyn NewImage, bytes: &[u8], seed: u64) {
    let mut random = Random(seed);
    let cluster = image.info().limits.minimum as usize;
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + (1 + random.below(8) as usize) * cluster).min(bytes.len());
        if !is_zero(&bytes[at..end]) {
            let data = Buffer::from(&bytes[at..end]);
            let write = image.write(at as u64, data, WriteFlags::empty());
            write.await.expect("written");
        }
        at = end;
    }
}

#[tokio::test]
async fn the_same_contents_in_order_make_the_same_file_whatever_threads_there_are() {
    for (compression, cluster_size) in [(Compression::Zlib, 65536), (Compression::Zstd, 4096)] {
        let bytes = contents(3 << 20, cluster_size as usize, 5);
        let mut files = Vec::new();
        for threads in [1, 2, 7, 0] {
            let shape = compressed(|options| {
                options.size = Some(bytes.len() as u64);
                options.cluster_size = cluster_size;
                options.compression = compression;
                options.threads = threads;
            });
            let below = Arc::new(MemoryDevice::new(0).growable());
            let image = qcow2::create(Arc::clone(&below) as _, shape).await;
            let image = image.expect("begun");
            write_in_order(&*image, &bytes, threads as u64).await;
            image.finish().await.expect("finished");
            files.push(below.contents());
        }
        assert!(files[0].len() < bytes.len() * 3 / 4, "{}", files[0].len());
        assert!(
            files.iter().all(|file| *file == files[0]),
            "{compression:?}"
        );
    }
}

#[tokio::test]
async fn what_is_compressed_takes_no_more_space_than_it_must() {
    // Text in one half, noise in the other, cluster by cluster.
    let mut random = Random(1);
    let mut bytes = vec![0; 4 << 20];
    for (index, cluster) in bytes.chunks_mut(65536).enumerate() {
        for byte in cluster.iter_mut() {
            *byte = match index % 2 {
                0 => b'a' + (random.next() % 4) as u8,
                _ => random.next() as u8,
            };
        }
    }
    let shape = compressed(|options| options.size = Some(4 << 20));
    let place = Place::new();
    let image = qcow2::create(place.file("new.qcow2"), shape)
        .await
        .expect("begun");
    write_in_order(&*image, &bytes, 1).await;
    image.finish().await.expect("finished");
    assert_image(&place, "new.qcow2", &bytes, "text and noise");
    let length = std::fs::metadata(place.path("new.qcow2"))
        .expect("a file")
        .len();
    // Four letters take two bits each, and a little more; tables take six clusters.
    let least = (2 << 20) + (512 << 10);
    assert!(length < least + least / 8 + (6 << 16), "{length}");
}

#[tokio::test]
async fn it_is_a_device_like_any_other() {
    for (seed, cluster_size) in [(1, 512), (2, 4096), (3, 65536)] {
        for in_order in [true, false] {
            let shape = compressed(|options| {
                options.cluster_size = cluster_size;
                options.size = Some(300_001);
                options.in_order = in_order;
            });
            let image = qcow2::create(memory(), shape).await.expect("begun");
            check_device(&*image, seed, 300).await;
            image.finish().await.expect("finished");
        }
    }
}

#[tokio::test]
async fn a_cluster_that_is_written_again_is_counted_once() {
    for in_order in [true, false] {
        let place = Place::new();
        let shape = compressed(|options| {
            options.size = Some(4 << 20);
            options.in_order = in_order;
        });
        let image = qcow2::create(place.file("new.qcow2"), shape)
            .await
            .expect("begun");
        write_in_order(&*image, &contents(4 << 20, 65536, 8), 1).await;
        let zeroes = blockferry_block::ZeroFlags::empty();
        image
            .zero(ByteRange::between(0, 4 << 20), zeroes)
            .await
            .expect("zeroed");
        let bytes = contents(4 << 20, 65536, 9);
        write_in_order(&*image, &bytes, 2).await;
        write_in_order(&*image, &bytes, 3).await;
        image.finish().await.expect("finished");
        assert_image(&place, "new.qcow2", &bytes, "written twice");
    }
}

#[tokio::test]
async fn a_late_failure_is_told_by_the_next_and_by_the_end() {
    let memory: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(0).growable());
    let faulty = Arc::new(
        FaultyDevice::new(Arc::clone(&memory)).with(
            Rule::on(Operation::Write)
                .times(1)
                .fault(Fault::Error(ErrorKind::NoSpace)),
        ),
    );
    let shape = compressed(|options| options.size = Some(8 << 20));
    let image = qcow2::create(Arc::clone(&faulty) as _, shape)
        .await
        .expect("begun");
    let noise = contents(8 << 20, 8 << 20, 2);
    let noise: Vec<u8> = noise.iter().map(|byte| byte | 1).collect();
    let mut failed = None;
    for (at, piece) in noise.chunks(256 << 10).enumerate() {
        let write = image.write(
            at as u64 * (256 << 10),
            Buffer::from(piece),
            WriteFlags::empty(),
        );
        failed = failed.or(write.await.err());
    }
    let flushed = image
        .flush()
        .await
        .expect_err("what failed is not forgotten");
    let finished = image.finish().await.expect_err("nor is it now");
    let kinds = failed
        .map(|error| error.kind())
        .into_iter()
        .chain([flushed.kind(), finished.kind()]);
    assert!(kinds.into_iter().all(|kind| kind == ErrorKind::NoSpace));
    let first = memory.read(0, Buffer::zeroed(4)).await;
    assert!(first.is_err() || first.is_ok_and(|bytes| bytes[..] != *b"QFI\xfb"));
}

#[tokio::test]
async fn a_flush_that_was_given_up_is_not_forgotten() {
    let memory: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(0).growable());
    let faulty =
        FaultyDevice::new(memory).with(Rule::on(Operation::Write).times(1).fault(Fault::Hang));
    let faulty = Arc::new(faulty);
    let shape = compressed(|options| options.size = Some(1 << 20));
    let image = qcow2::create(Arc::clone(&faulty) as _, shape)
        .await
        .expect("begun");
    let data = Buffer::from(&[7; 65536][..]);
    image
        .write(0, data, WriteFlags::empty())
        .await
        .expect("taken");
    let mut flush = image.flush();
    while faulty.calls(Operation::Write) == 0 {
        let soon = tokio::time::timeout(Duration::from_millis(1), &mut flush);
        soon.await.expect_err("it hangs");
    }
    drop(flush);
    image.finish().await.expect_err("a write is missing");
}
