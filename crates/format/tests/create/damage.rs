//! Devices below that fail, hang and die: what is not whole is no image.

use std::{sync::Arc, time::Duration};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, ErrorKind, MemoryDevice, Operation, WriteFlags,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use blockferry_format::qcow2::{self, CreateOptions};

use crate::support::{contents, make};

fn options(size: u64) -> CreateOptions {
    let mut options = CreateOptions::default();
    options.size = Some(size);
    options
}

fn pattern(length: usize) -> Buffer {
    Buffer::from(&vec![7; length][..])
}

async fn begins_with_magic(device: &dyn BlockDevice) -> bool {
    match device.read(0, Buffer::zeroed(4)).await {
        Ok(bytes) => bytes[..] == *b"QFI\xfb",
        Err(_) => false,
    }
}

#[tokio::test]
async fn it_is_a_device_like_any_other() {
    for (seed, cluster_size) in [(1, 512), (2, 4096), (3, 65536)] {
        for size in [None, Some(300_000)] {
            for version in [2, 3] {
                let mut options = CreateOptions::default();
                options.cluster_size = cluster_size;
                options.size = size;
                options.version = version;
                options.extended_l2 = version == 3 && cluster_size == 65536;
                let below = Arc::new(MemoryDevice::new(0).growable());
                let image = qcow2::create(below, options).await.expect("begun");
                check_device(&*image, seed, 300).await;
                image.finish().await.expect("finished");
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_finished_is_no_image_whatever_was_there() {
    let old = Arc::new(MemoryDevice::from_bytes(
        [&b"QFI\xfb"[..], &[1; 500_000]].concat(),
    ));
    let below: Arc<dyn BlockDevice> = Arc::clone(&old) as _;
    let image = qcow2::create(below, options(300_000)).await.expect("begun");
    assert!(!begins_with_magic(old.as_ref()).await);
    image
        .write(0, pattern(65536), WriteFlags::empty())
        .await
        .expect("written");
    image.flush().await.expect("flushed");
    assert!(!begins_with_magic(old.as_ref()).await);
    image.finish().await.expect("finished");
    assert!(begins_with_magic(old.as_ref()).await);
}

#[tokio::test]
async fn a_failure_anywhere_leaves_no_image() {
    let bytes = contents(1_000_000, 50_000, 1);
    for operation in [Operation::Write, Operation::Flush, Operation::Resize] {
        for count in 0.. {
            let memory = Arc::new(MemoryDevice::new(0).growable());
            let faulty = Arc::new(
                FaultyDevice::new(Arc::clone(&memory) as _).with(
                    Rule::on(operation)
                        .after(count)
                        .times(1)
                        .fault(Fault::Error(ErrorKind::Io)),
                ),
            );
            let below: Arc<dyn BlockDevice> = Arc::clone(&faulty) as _;
            let image = qcow2::create(below, options(1_000_000))
                .await
                .expect("begun");
            let mut failed = false;
            for piece in ByteRange::between(0, 1_000_000).pieces(128 << 10) {
                let data = Buffer::from(&bytes[piece.start() as usize..piece.end() as usize]);
                let written = image.write(piece.start(), data, WriteFlags::empty()).await;
                if let Err(error) = written {
                    failed = true;
                    assert_eq!(
                        (error.offset(), error.length()),
                        (Some(piece.start()), Some(piece.len()))
                    );
                }
            }
            let finished = image.finish().await;
            if faulty.calls(operation) <= count {
                finished.expect("nothing went wrong");
                assert!(count > 0, "{operation:?} is never called");
                break;
            }
            assert!(finished.is_err() || !failed, "{operation:?} {count}");
            // The last flush comes behind the header: then it may be there, but is not said to be.
            let is_last = operation == Operation::Flush && begins_with_magic(memory.as_ref()).await;
            assert!(finished.is_err(), "{operation:?} {count}");
            assert!(is_last || !begins_with_magic(memory.as_ref()).await);
            let again = image.finish().await.expect_err("as before");
            assert_eq!(again.kind(), finished.expect_err("failed").kind());
            if count == 0 && operation == Operation::Resize {
                break;
            }
        }
    }
}

#[tokio::test]
async fn what_failed_and_was_written_again_is_whole() {
    let memory = Arc::new(MemoryDevice::new(0).growable());
    let faulty = FaultyDevice::new(Arc::clone(&memory) as _).with(
        Rule::on(Operation::Write)
            .times(3)
            .fault(Fault::Error(ErrorKind::TimedOut)),
    );
    let bytes = contents(700_000, 70_000, 2);
    let below: Arc<dyn BlockDevice> = Arc::new(faulty);
    let image = qcow2::create(below, options(700_000)).await.expect("begun");
    for piece in ByteRange::between(0, 700_000).pieces(128 << 10) {
        let data = || Buffer::from(&bytes[piece.start() as usize..piece.end() as usize]);
        while image
            .write(piece.start(), data(), WriteFlags::empty())
            .await
            .is_err()
        {}
    }
    image.finish().await.expect("all was written");
    let reference: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(0).growable());
    let reference = make(&reference, options(700_000), &bytes, 2).await;
    let read = crate::support::read_all(&*image, 700_000).await;
    assert!(read == bytes && crate::support::read_all(reference.as_ref(), 700_000).await == read);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_given_up_is_not_forgotten() {
    let memory: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(0).growable());
    let faulty =
        FaultyDevice::new(memory).with(Rule::on(Operation::Write).times(1).fault(Fault::Hang));
    let image = qcow2::create(Arc::new(faulty), options(1 << 20))
        .await
        .expect("begun");
    let hanging = image.write(65536, pattern(65536), WriteFlags::empty());
    let waited = tokio::time::timeout(Duration::from_secs(1), hanging).await;
    assert!(waited.is_err(), "it hangs");
    let error = image.finish().await.expect_err("a write is missing");
    assert_eq!((error.offset(), error.length()), (Some(65536), Some(65536)));
}
