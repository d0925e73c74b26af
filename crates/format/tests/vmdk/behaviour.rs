//! What every device must get right, of images that are read.

use std::{sync::Arc, time::Duration};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, ErrorKind, MemoryDevice, Operation, WriteFlags,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use blockferry_format::{
    Image, NoRelatives, OpenOptions,
    vmdk::{self, CreateOptions, Subformat},
};

use crate::support::varied;

/// An image of `bytes`.
async fn image(bytes: &[u8], subformat: Subformat) -> Vec<u8> {
    let below = Arc::new(MemoryDevice::new(0).growable());
    let mut options = CreateOptions::default();
    (options.subformat, options.size) = (subformat, Some(bytes.len() as u64));
    let image = vmdk::create(below.clone(), options).await.expect("begun");
    for piece in ByteRange::between(0, bytes.len() as u64).pieces(1 << 20) {
        let data = Buffer::from(&bytes[piece.start() as usize..piece.end() as usize]);
        let written = image.write(piece.start(), data, WriteFlags::empty());
        written.await.expect("written");
    }
    image.finish().await.expect("finished");
    below.contents()
}

async fn open(below: Arc<dyn BlockDevice>) -> Arc<dyn Image> {
    let opened = vmdk::open(below, &NoRelatives, &OpenOptions::default()).await;
    opened.expect("sound")
}

const SUBFORMATS: [Subformat; 2] = [Subformat::StreamOptimized, Subformat::MonolithicSparse];

#[tokio::test]
async fn an_image_is_like_a_row_of_bytes_whatever_is_below() {
    let bytes = varied((3 << 20) + 512, 3);
    for subformat in SUBFORMATS {
        let file = image(&bytes, subformat).await;
        for (seed, minimum, maximum) in [(1, 1, 32 << 20), (2, 512, 64 << 10), (3, 4096, 4096)] {
            let below = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&file)));
            let below = below.with_info(|info| {
                info.limits.minimum = minimum;
                info.limits.maximum = maximum;
            });
            let image = open(Arc::new(below)).await;
            check_device(&*image, seed, 100).await;
        }
    }
}

#[tokio::test]
async fn a_failed_read_is_told_where_it_was_asked_for_and_spoils_nothing() {
    let bytes = varied(3 << 20, 5);
    for subformat in SUBFORMATS {
        let file = image(&bytes, subformat).await;
        for skip in 0..12 {
            let below = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&file)));
            let below = Arc::new(below);
            let image = open(below.clone()).await;
            let rule = Rule::on(Operation::Read).after(skip).times(1);
            below.add(rule.fault(Fault::Error(ErrorKind::Io)));
            for _ in 0..2 {
                for piece in ByteRange::between(1000, 3 << 20).pieces(300_000) {
                    let buffer = Buffer::zeroed(piece.len() as usize);
                    match image.read(piece.start(), buffer).await {
                        Ok(read) => {
                            let own = &bytes[piece.start() as usize..piece.end() as usize];
                            assert!(read[..] == *own);
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Io);
                            let place = (error.offset(), error.length());
                            assert_eq!(place, (Some(piece.start()), Some(piece.len())));
                        }
                    }
                }
            }
            let read = image
                .read(0, Buffer::zeroed(3 << 20))
                .await
                .expect("once is once");
            assert!(read[..] == bytes[..]);
        }
    }
}

#[tokio::test]
async fn a_read_that_is_given_up_holds_nobody_up() {
    let bytes = varied(2 << 20, 7);
    for subformat in SUBFORMATS {
        let file = image(&bytes, subformat).await;
        let below = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&file)));
        let below = Arc::new(below);
        let image = open(below.clone()).await;
        below.add(Rule::on(Operation::Read).times(1).fault(Fault::Hang));
        let hanging = image.read(70_000, Buffer::zeroed(100));
        let given_up = tokio::time::timeout(Duration::from_millis(5), hanging).await;
        given_up.expect_err("it hangs");
        let read = image.read(70_000, Buffer::zeroed(100)).await.expect("read");
        assert!(read[..] == bytes[70_000..70_100]);
    }
}

#[test]
fn many_threads_read_at_once() {
    let runtime = || {
        let builder = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        builder.expect("a runtime")
    };
    let bytes = Arc::new(varied(4 << 20, 9));
    for subformat in SUBFORMATS {
        let file = runtime().block_on(image(&bytes, subformat));
        let below = Arc::new(MemoryDevice::from_bytes(file));
        let image = Arc::new(runtime().block_on(open(below)));
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (image, bytes) = (Arc::clone(&image), Arc::clone(&bytes));
                scope.spawn(move || {
                    runtime().block_on(async {
                        for step in 0..40_u64 {
                            let start = (thread * 977 + step * 104_729) % (3 << 20);
                            let length = 1 + (step * 7919) as usize % 400_000;
                            let read = image.read(start, Buffer::zeroed(length)).await;
                            let own = &bytes[start as usize..][..length];
                            assert!(read.expect("read")[..] == *own);
                            let range = ByteRange::between(start, start + length as u64);
                            let known = image.extents(range, &Context::Allocation).await;
                            assert!(!known.expect("an answer").is_empty());
                        }
                    });
                });
            }
        });
    }
}

#[tokio::test]
async fn what_is_not_on_the_disk_is_refused() {
    let file = image(&varied(1 << 20, 1), Subformat::MonolithicSparse).await;
    let image = open(Arc::new(MemoryDevice::from_bytes(file))).await;
    for offset in [(1 << 20) - 1, 1 << 20, u64::MAX - 1] {
        let error = image.read(offset, Buffer::zeroed(2)).await;
        assert_eq!(error.expect_err("nothing").kind(), ErrorKind::OutOfBounds);
    }
    let written = image
        .write(0, Buffer::zeroed(512), WriteFlags::empty())
        .await;
    assert_eq!(written.expect_err("read-only").kind(), ErrorKind::ReadOnly);
}
