//! What is below an image fails, is full, or never answers; and images that are not written at all.

use std::time::Duration;

use blockferry_block::{
    ZeroFlags,
    testing::{Fault, Rule},
};
use futures_util::FutureExt;

use super::*;
use crate::qcow2::header::{be64, tests::header};

/// Changes of all kinds; those that fail may.
async fn change(image: &Image, seed: u64) {
    let size = image.info().size;
    for number in 0..40_u64 {
        let start = (number * 7919 + seed * 104_729) % size;
        let range = ByteRange::between(start, size.min(start + 1 + number * 333 % 9000));
        let failed = match number % 8 {
            0..=4 => {
                let data = Buffer::from(&vec![number as u8; range.len() as usize][..]);
                let written = image.write(range.start(), data, WriteFlags::empty()).await;
                written.map(drop)
            }
            5 => image.zero(range, ZeroFlags::empty()).await,
            6 => image.trim(range, WriteFlags::empty()).await,
            _ => image.flush().await,
        };
        if let Err(error) = failed {
            assert!(
                matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Io),
                "{error:?}"
            );
            let place = match number % 8 {
                7 => (None, None),
                _ => (Some(range.start()), Some(range.len())),
            };
            assert_eq!((error.offset(), error.length()), place, "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_failure_below_damages_nothing() {
    let images = [
        everything(9, 60),
        everything(12, 20),
        subclusters(10),
        with_order(ImageBuilder::new(9, 100_000), 6),
    ];
    let operations = [
        Operation::Write,
        Operation::Flush,
        Operation::Read,
        Operation::Trim,
    ];
    for (seed, image) in (0..).zip(images) {
        for operation in operations {
            for skipped in (0..60).step_by(7) {
                let below = memory(&image);
                let faulty = Arc::new(FaultyDevice::new(below.clone()));
                let image = open(faulty.clone()).await;
                let kind = match skipped % 2 {
                    0 => ErrorKind::NoSpace,
                    _ => ErrorKind::Io,
                };
                let fault = Rule::on(operation).fault(Fault::Error(kind));
                faulty.add(fault.after(skipped).times(1 + skipped % 3));
                change(&image, seed).await;
                faulty.heal();
                image.flush().await.expect("flushed");
                let report = check(&*copy(&below)).await.expect("checked");
                assert!(
                    report.is_consistent(),
                    "{operation:?} {skipped}: {report:?}"
                );
                let expected = contents(&image).await;
                image.close().await.expect("closed");
                check_clean(&below, &format!("{operation:?} {skipped}")).await;
                let again = open(copy(&below)).await;
                assert!(contents(&again).await == expected);
            }
        }
    }
}

#[tokio::test]
async fn a_failure_while_tables_grow_damages_nothing() {
    let image = with_order(ImageBuilder::new(9, 4 << 20), 6);
    let write = |image: Arc<Image>, at: u64| async move {
        let data = Buffer::from(&vec![at as u8 + 1; 1 << 17][..]);
        image
            .write(at << 17, data, WriteFlags::empty())
            .await
            .map(drop)
    };
    // Without a failure, to see when the table grows: it is the only one to write while nothing is flushed.
    for skipped in 0..14 {
        for operation in [Operation::Write, Operation::Flush] {
            let below = memory(&image);
            let faulty = Arc::new(FaultyDevice::new(below.clone()));
            let image = Arc::new(open(faulty.clone()).await);
            for at in 0..14 {
                write(image.clone(), at).await.expect("written");
            }
            image.flush().await.expect("flushed");
            let fault = Rule::on(operation).fault(Fault::Error(ErrorKind::NoSpace));
            faulty.add(fault.after(skipped).times(1));
            let mut failures = 0;
            for at in 14..28 {
                failures += usize::from(write(image.clone(), at).await.is_err());
                if write(image.clone(), at).await.is_err() {
                    write(image.clone(), at).await.expect("only once");
                }
                if at == 20 && image.flush().await.is_err() {
                    image.flush().await.expect("only once");
                }
            }
            assert!(failures <= 1);
            faulty.heal();
            image.flush().await.expect("flushed");
            let what = format!("{operation:?} {skipped}");
            let report = check(&*copy(&below)).await.expect("checked");
            assert!(report.is_consistent(), "{what}: {report:?}");
            image.close().await.expect("closed");
            check_clean(&below, &what).await;
            let written = contents(&*image).await;
            for at in 0..28 {
                let part = &written[at << 17..(at + 1) << 17];
                assert!(part.iter().all(|byte| *byte == at as u8 + 1), "{what} {at}");
            }
        }
    }
}

#[tokio::test]
async fn a_file_that_cannot_grow_is_full_until_something_is_freed() {
    let mut bytes = ImageBuilder::new(12, 1 << 20).build();
    bytes.resize(bytes.len() + 40 * 4096, 0);
    let below = Arc::new(MemoryDevice::from_bytes(bytes));
    let image = open(below.clone()).await;
    let write = |at: u64| {
        let data = Buffer::from(&[at as u8 + 1; 4096][..]);
        image.write(at * 4096, data, WriteFlags::empty())
    };
    let mut room = 0;
    while write(room).await.is_ok() {
        room += 1;
    }
    assert!((30..40).contains(&room), "{room}");
    let full = write(room).await.expect_err("full");
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    assert_eq!(full.offset(), Some(room * 4096));
    for at in 0..5 {
        let range = ByteRange::between(at * 4096, (at + 1) * 4096);
        image
            .trim(range, WriteFlags::empty())
            .await
            .expect("trimmed");
    }
    for at in 100..105 {
        write(at).await.expect("there is room again");
    }
    assert!(write(110).await.is_err());
    image.close().await.expect("closed");
    check_clean(&below, "full").await;
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_given_up_damage_nothing() {
    for seed in 0..20_u64 {
        let below = memory(&everything(9, 200));
        let slow = Rule::on_all().fault(Fault::Delay(Duration::from_millis(5)));
        let slow = slow.after(seed % 7);
        let faulty = Arc::new(FaultyDevice::new(below.clone()));
        let image = open(faulty.clone()).await;
        faulty.add(slow);
        for number in 0..60_u64 {
            let start = (number * 7919 + seed * 104_729) % image.info().size;
            let end = image.info().size.min(start + 1 + number * 333 % 5000);
            let range = ByteRange::between(start, end);
            let data = Buffer::from(&vec![number as u8; range.len() as usize][..]);
            let patience = Duration::from_millis((number * seed) % 60);
            let _ = match number % 6 {
                0..=2 => {
                    let written = image.write(range.start(), data, WriteFlags::empty());
                    let written = tokio::time::timeout(patience, written).await;
                    written.map(|it| it.map(drop))
                }
                3 => tokio::time::timeout(patience, image.zero(range, ZeroFlags::empty())).await,
                4 => tokio::time::timeout(patience, image.trim(range, WriteFlags::empty())).await,
                _ => tokio::time::timeout(patience, image.flush()).await,
            };
        }
        faulty.heal();
        image.flush().await.expect("flushed");
        let expected = contents(&image).await;
        image.close().await.expect("closed");
        let report = check(&*copy(&below)).await.expect("checked");
        assert!(report.is_consistent(), "{seed}: {report:?}");
        let again = open(copy(&below)).await;
        assert!(contents(&again).await == expected, "{seed}");
    }
}

#[tokio::test]
async fn a_write_that_hangs_holds_up_nobody_elsewhere() {
    let below = memory(&everything(12, 60));
    let faulty = Arc::new(FaultyDevice::new(below.clone()));
    let image = open(faulty.clone()).await;
    faulty.add(Rule::on(Operation::Write).times(1).fault(Fault::Hang));
    let data = || Buffer::from(&[9; 4096][..]);
    let mut hanging = image.write(0, data(), WriteFlags::empty());
    assert!((&mut hanging).now_or_never().is_none());
    image
        .write(20 * 4096, data(), WriteFlags::empty())
        .await
        .expect("elsewhere");
    image.flush().await.expect("flushed");
    drop(hanging);
    image
        .write(0, data(), WriteFlags::empty())
        .await
        .expect("its turn has come");
    image.close().await.expect("closed");
    let report = check(&*copy(&below)).await.expect("checked");
    assert!(report.is_consistent(), "{report:?}");
    assert_eq!(
        report.leaks, 1,
        "the place where a write may still arrive: {report:?}"
    );
}

#[tokio::test]
async fn what_was_freed_is_not_used_while_someone_may_read_it() {
    let below = memory(&everything(12, 60));
    let faulty = Arc::new(FaultyDevice::new(below.clone()));
    let image = open(faulty.clone()).await;
    let old = image.read(4096, Buffer::zeroed(4096)).await.expect("read");
    faulty.add(
        Rule::on(Operation::Read)
            .times(1)
            .fault(Fault::Delay(Duration::from_millis(50))),
    );
    let mut reading = image.read(4096, Buffer::zeroed(4096));
    assert!((&mut reading).now_or_never().is_none());
    let range = ByteRange::between(4096, 8192);
    image.zero(range, ZeroFlags::empty()).await.expect("zeroed");
    for at in 0..10 {
        image.flush().await.expect("flushed");
        let data = Buffer::from(&[0xee; 4096][..]);
        image
            .write((45 + at) * 4096, data, WriteFlags::empty())
            .await
            .expect("written");
    }
    let read = reading.await.expect("read");
    assert!(read[..] == old[..], "not what someone else wrote meanwhile");
    image.close().await.expect("closed");
    check_clean(&below, "read").await;
}

#[test]
fn images_that_are_damaged_are_not_written() {
    let file = HostFile::new(Arc::new(MemoryDevice::new(1 << 20)));
    let files = || [&file, &file];
    let mut sound = header(3);
    check_writable(&sound, files()).expect("sound");
    let read_only = HostFile::new(Arc::new(blockferry_block::PatternDevice::new(1 << 20)));
    let refused = check_writable(&sound, [&read_only, &file]).expect_err("read-only");
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
    sound.incompatible = Incompatible::DIRTY;
    let dirty = check_writable(&sound, files())
        .expect_err("dirty")
        .to_string();
    assert!(dirty.contains("was not closed"), "{dirty}");
    sound.incompatible = Incompatible::CORRUPT;
    let corrupt = check_writable(&sound, files())
        .expect_err("corrupt")
        .to_string();
    assert!(corrupt.contains("marked as corrupt"), "{corrupt}");
}

#[tokio::test]
async fn features_that_are_not_known_are_cleared_by_the_first_change() {
    let mut bytes = ImageBuilder::new(12, 1 << 20).build();
    bytes[88..96].copy_from_slice(&(1_u64 << 40).to_be_bytes());
    let below = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
    let image = open(below.clone()).await;
    image.read(0, Buffer::zeroed(512)).await.expect("read");
    image.flush().await.expect("flushed");
    assert_eq!(below.contents(), bytes, "only reading");
    let data = Buffer::zeroed(512);
    image
        .write(0, data, WriteFlags::empty())
        .await
        .expect("written");
    assert_eq!(below.contents()[88..96], [0; 8]);
}

/// An image that was not closed: it says so, and refcounts of its data are 0.
fn dirty() -> Vec<u8> {
    let mut bytes = everything(12, 40).build();
    bytes[79] |= 1;
    let block = be64(&bytes, be64(&bytes, 48) as usize) as usize;
    bytes[block + 2 * 8..block + 2 * 14].fill(0);
    bytes
}

#[tokio::test]
async fn an_image_that_was_not_closed_is_mended_before_it_is_written() {
    let below = Arc::new(MemoryDevice::from_bytes(dirty()).growable());
    let before = Image::open(below.clone(), &NoRelatives, &OpenOptions::default()).await;
    let expected = contents(&before.expect("it can be read")).await;
    assert!(below.contents() == dirty(), "reading changes nothing");
    let report = check(&*below).await.expect("checked");
    assert!(!report.is_consistent(), "{report:?}");
    let image = open(below.clone()).await;
    assert!(!details(&image).is_dirty);
    check_clean(&below, "mended").await;
    assert!(contents(&image).await == expected);
    check_device(&image, 3, 100).await;
    image.close().await.expect("closed");
    check_clean(&below, "written").await;
}

#[tokio::test]
async fn an_image_that_was_not_closed_and_cannot_be_mended_is_not_written() {
    let mut bytes = dirty();
    let l1 = be64(&bytes, 40) as usize;
    let wrong = 1_u64 << 63 | 1 << 40;
    let l2 = (be64(&bytes, l1) & !(1 << 63)) as usize;
    bytes[l2..l2 + 8].copy_from_slice(&wrong.to_be_bytes());
    let below = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
    let refused = Image::open(below.clone(), &NoRelatives, &writable()).await;
    let refused = refused.expect_err("its refcounts may be wrong");
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
    assert!(below.contents() == bytes, "nothing has changed");
}
