//! Disks of every kind that grow and shrink, compared with a row of bytes; cut anywhere; and as qemu-img does it.

mod bitmaps;

use std::{fs, path::Path, time::Duration};

use blockferry_block::{
    Access, Buffer, FileDevice, MemoryDevice, WriteFlags,
    testing::{Fault, FaultyDevice, ForgetfulDevice, Rule, Survival},
};

use super::*;
use crate::{
    Image as _, NoRelatives,
    qcow2::{
        check as check_image,
        qemu::{is_installed, number, qemu_check, qemu_img, qemu_io},
        testing::{ImageBuilder, details},
        write::tests::{
            Relatives, backed, check_clean, contents, copy, everything, kinds, memory, open_with,
            text, with_order,
        },
    },
};

fn shrinking() -> ResizeOptions {
    ResizeOptions {
        shrink: true,
        ..ResizeOptions::default()
    }
}

fn with(preallocation: Preallocation) -> ResizeOptions {
    ResizeOptions {
        preallocation,
        ..ResizeOptions::default()
    }
}

#[tokio::test]
async fn any_disk_takes_any_size_and_what_is_new_reads_as_zeroes() {
    for (what, image, relatives) in kinds() {
        if image.geometry.data_file {
            continue;
        }
        let mut below = memory(&image);
        let first = open_with(below.clone(), &relatives).await;
        let mut expected = contents(&first).await;
        drop(first);
        let was = expected.len() as u64;
        let sizes = [
            was + 512,
            was * 2,
            was / 2 + 77,
            was / 2 + 90_000,
            was * 3 + 1,
            1000,
            was * 9,
            0,
            was,
        ];
        for (turn, size) in (1..).zip(sizes) {
            let what = format!("{what}, to {size}");
            let resized = resize(below.clone(), &relatives, size, &shrinking()).await;
            resized.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let size = stored_size(size);
            expected.resize(size as usize, 0);
            check_clean(&below, &what).await;
            below = copy(&below);
            let again = open_with(below.clone(), &relatives).await;
            let found = contents(&again).await;
            assert_eq!(found.len(), expected.len(), "{what}");
            let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{what}");
            // Up to its end, so that something lies in its last cluster.
            for start in [size / 3, size.saturating_sub(5000)] {
                let bytes = vec![turn; (size - start).min(9000) as usize];
                let data = Buffer::from(&bytes[..]);
                let written = again.write(start, data, WriteFlags::empty()).await;
                written.expect("written");
                expected[start as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            again.close().await.expect("closed");
            check_clean(&below, &what).await;
            below = copy(&below);
        }
    }
}

#[tokio::test]
async fn a_disk_that_shrinks_gives_its_space_back() {
    let below = memory(&ImageBuilder::new(12, 8 << 20));
    let image = open_with(below.clone(), &Relatives::default()).await;
    let data = Buffer::from(&vec![7; 8 << 20][..]);
    image
        .write(0, data, WriteFlags::empty())
        .await
        .expect("written");
    image.close().await.expect("closed");
    let below = copy(&below);
    let before = below.contents().len();
    let resized = resize(below.clone(), &NoRelatives, 1 << 20, &shrinking()).await;
    resized.expect("resized");
    assert!(below.contents().len() < before / 4);
}

#[tokio::test]
async fn what_is_allocated_in_advance_has_its_place_and_reads_as_zeroes() {
    let modes = [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ];
    for (what, image, relatives) in kinds() {
        for mode in modes {
            if image.geometry.data_file {
                continue;
            }
            let what = format!("{what}, {mode:?}");
            let below = memory(&image);
            let first = open_with(below.clone(), &relatives).await;
            // Space that is free and has something in it.
            let cluster = details(&first).cluster_size;
            let some = ByteRange::between(cluster, cluster * 9);
            let data = Buffer::from(&vec![0xee; some.len() as usize][..]);
            let written = first.write(some.start(), data, WriteFlags::empty()).await;
            written.expect("written");
            first.flush().await.expect("flushed");
            first
                .trim(some, WriteFlags::empty())
                .await
                .expect("trimmed");
            let mut expected = contents(&first).await;
            first.close().await.expect("closed");
            let below = copy(&below);
            let size = stored_size(expected.len() as u64 * 2);
            let resized = resize(below.clone(), &relatives, size, &with(mode)).await;
            resized.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            expected.resize(size as usize, 0);
            check_clean(&below, &what).await;
            let below = copy(&below);
            let again = open_with(below.clone(), &relatives).await;
            assert!(contents(&again).await == expected, "{what}");
            let report = check_image(&*below).await.expect("checked");
            assert!(
                report.allocated_clusters * cluster + 2 * cluster >= size / 2,
                "{what}: {report:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_a_data_file_had_before_does_not_show_in_what_is_allocated_in_advance() {
    for mode in [Preallocation::Off, Preallocation::Metadata] {
        for size in [150_016, 700_416] {
            let mut image = ImageBuilder::new(14, 100_352);
            image.geometry.data_file = true;
            let below = memory(&image);
            // It is longer than the disk, as a block device can be.
            let relatives = Relatives {
                data: Some(Arc::new(MemoryDevice::from_bytes(vec![0xee; 1 << 20]))),
                backing: None,
            };
            let first = open_with(below.clone(), &relatives).await;
            let data = Buffer::from(&vec![7; 20_000][..]);
            let written = first.write(5000, data, WriteFlags::empty()).await;
            written.expect("written");
            let mut expected = contents(&first).await;
            first.close().await.expect("closed");
            let below = copy(&below);
            let resized = resize(below.clone(), &relatives, size, &with(mode)).await;
            resized.expect("resized");
            expected.resize(size as usize, 0);
            check_clean(&below, "a data file").await;
            let again = open_with(copy(&below), &relatives).await;
            assert!(contents(&again).await == expected, "{mode:?}, {size}");
        }
    }
}

#[tokio::test]
async fn a_cut_while_a_disk_gets_another_size_leaves_the_old_one_or_the_new_one() {
    let long = Relatives {
        backing: Some(Arc::new(MemoryDevice::from_bytes(text(5, 500_000)))),
        data: None,
    };
    let images = [
        ("512", everything(9, 200), Relatives::default()),
        (
            "order 6",
            with_order(everything(9, 130), 6),
            Relatives::default(),
        ),
        ("backed", backed(everything(10, 100)), long),
    ];
    let modes = [Preallocation::Off, Preallocation::Metadata];
    for (what, image, relatives) in images {
        for mode in modes {
            for size in [40_000, 300_000, 700_000] {
                let options = match size {
                    40_000 if mode != Preallocation::Off => continue,
                    40_000 => shrinking(),
                    _ => with(mode),
                };
                let below = Arc::new(ForgetfulDevice::new(image.build()));
                let first = Arc::new(MemoryDevice::from_bytes(image.build()).growable());
                let old = contents(&open_with(first, &relatives).await).await;
                let resized = resize(below.clone(), &relatives, size, &options).await;
                resized.expect("resized");
                let mut new = old.clone();
                new.resize(stored_size(size) as usize, 0);
                // Every one of a few, and some of many.
                let step = 1 + below.events() / 100;
                for events in (0..=below.events()).step_by(step) {
                    let number = events as u64;
                    let survival = match events / step % 4 {
                        0 => Survival::Everything,
                        1 => Survival::Events(number),
                        2 => Survival::Nothing,
                        _ => Survival::Sectors(number),
                    };
                    let what = format!("{what}, {mode:?}, {size}, cut after {events}");
                    let left = below.cut(events, survival);
                    let left = Arc::new(MemoryDevice::from_bytes(left).growable());
                    let report = check_image(&*left).await.expect("checked");
                    assert!(report.is_consistent(), "{what}: {report:?}");
                    let again = open_with(left.clone(), &relatives).await;
                    let found = contents(&again).await;
                    assert!(found == old || found == new, "{what}: {}", found.len());
                    drop(again);
                    if (events / step).is_multiple_of(7) {
                        // It can grow over what was left there.
                        let larger = 800_000;
                        let options = ResizeOptions::default();
                        let grown = resize(left.clone(), &relatives, larger, &options).await;
                        grown.expect("resized");
                        let again = open_with(copy(&left), &relatives).await;
                        let mut expected = found;
                        expected.resize(stored_size(larger) as usize, 0);
                        assert!(contents(&again).await == expected, "{what}, again");
                    }
                }
                let whole = below.cut(usize::MAX, Survival::Nothing);
                let whole = MemoryDevice::from_bytes(whole);
                let report = check_image(&whole).await.expect("checked");
                assert!(report.is_clean(), "{what}, {mode:?}, {size}: {report:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_failure_below_leaves_the_old_size_or_the_new_one() {
    let image = everything(9, 200);
    for size in [40_000, 2_000_000] {
        for turn in 0..60 {
            let below = memory(&image);
            let old = contents(&open_with(below.clone(), &Relatives::default()).await).await;
            let faulty = FaultyDevice::new(below.clone());
            let rule = Rule::on(Operation::Write).after(turn);
            faulty.add(rule.fault(Fault::Error(ErrorKind::Io)));
            let resized = resize(Arc::new(faulty), &NoRelatives, size, &shrinking()).await;
            let below = copy(&below);
            let report = check_image(&*below).await.expect("checked");
            assert!(report.is_consistent(), "{size}, {turn}: {report:?}");
            let found = contents(&open_with(below, &Relatives::default()).await).await;
            let mut new = old.clone();
            new.resize(stored_size(size) as usize, 0);
            let is_new = found == new;
            assert!(is_new || found == old, "{size}, {turn}");
            assert!(is_new || resized.is_err(), "{size}, {turn}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_stopped_while_it_grows_is_what_it_was() {
    let image = everything(9, 200);
    let mut stopped = 0;
    for number in 0..200 {
        let below = memory(&image);
        let old = contents(&open_with(below.clone(), &Relatives::default()).await).await;
        let slow = Arc::new(FaultyDevice::new(below.clone()));
        slow.add(Rule::on(Operation::Write).fault(Fault::Delay(Duration::from_millis(2))));
        let options = with(Preallocation::Full);
        // In the time of the test each write takes as long.
        let asking = async {
            tokio::time::sleep(Duration::from_millis(2 * number + 1)).await;
            options.stop.ask();
        };
        let resizing = resize(slow.clone(), &NoRelatives, 2_000_000, &options);
        let (resized, ()) = tokio::join!(resizing, asking);
        match resized {
            Ok(()) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled, "{number}: {error}"),
        }
        stopped += 1;
        let below = copy(&below);
        check_clean(&below, &format!("stopped after {number}")).await;
        let found = contents(&open_with(below.clone(), &Relatives::default()).await).await;
        assert!(found == old, "{number}");
        let length = below.contents().len();
        assert!(length < image.build().len() + 100_000, "{number}: {length}");
    }
    assert!(stopped > 3, "{stopped}");
}

#[tokio::test]
async fn a_disk_that_is_to_shrink_is_stopped_before_it_does() {
    let below = memory(&everything(9, 200));
    let old = contents(&open_with(below.clone(), &Relatives::default()).await).await;
    let options = shrinking();
    options.stop.ask();
    let resized = resize(below.clone(), &NoRelatives, 40_000, &options).await;
    assert_eq!(resized.expect_err("stopped").kind(), ErrorKind::Cancelled);
    let below = copy(&below);
    check_clean(&below, "stopped").await;
    let found = contents(&open_with(below, &Relatives::default()).await).await;
    assert!(found == old);
}

#[tokio::test]
async fn a_disk_grows_in_a_device_that_cannot_while_there_is_room() {
    for (what, image, relatives) in kinds() {
        if image.geometry.data_file {
            continue;
        }
        let mut bytes = image.build();
        let old = {
            let below = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
            contents(&open_with(below, &relatives).await).await
        };
        // What lies behind the image is nothing.
        bytes.resize(bytes.len() + (9 << 20), 0xee);
        let below = Arc::new(MemoryDevice::from_bytes(&bytes));
        let size = stored_size(old.len() as u64 * 9);
        let options = ResizeOptions::default();
        let resized = resize(below.clone(), &relatives, size, &options).await;
        resized.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let mut expected = old;
        expected.resize(size as usize, 0);
        check_clean(&below, &what).await;
        let again = open_with(copy(&below), &relatives).await;
        assert!(contents(&again).await == expected, "{what}");
    }
    // There is none.
    let below = MemoryDevice::from_bytes(everything(9, 200).build());
    let options = ResizeOptions::default();
    let resized = resize(Arc::new(below), &NoRelatives, 1 << 30, &options).await;
    assert_eq!(resized.expect_err("no room").kind(), ErrorKind::NoSpace);
}

async fn refused(below: Arc<MemoryDevice>, size: u64, options: &ResizeOptions) -> Error {
    let before = below.contents();
    let resized = resize(below.clone(), &NoRelatives, size, options).await;
    assert!(below.contents() == before, "nothing has changed");
    resized.expect_err("refused")
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_nothing_is_changed() {
    let image = memory(&everything(9, 200));
    let error = refused(image.clone(), 1024, &ResizeOptions::default()).await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("smaller"), "{error}");
    let mut both = shrinking();
    both.preallocation = Preallocation::Full;
    let error = refused(image.clone(), 1024, &both).await;
    assert!(error.to_string().contains("in advance"), "{error}");
    for size in [1 << 40, i64::MAX as u64, u64::MAX - 511] {
        let error = refused(image.clone(), size, &ResizeOptions::default()).await;
        assert!(error.to_string().contains("too large"), "{error}");
    }
    let mut short = backed(everything(9, 20));
    short.backing = Some((b"base".to_vec(), "raw".to_owned()));
    let error = refused(memory(&short), 1 << 20, &ResizeOptions::default()).await;
    assert!(error.to_string().contains("base"), "{error}");
}

fn open(directory: &Path, name: &str) -> Arc<dyn BlockDevice> {
    let file = FileDevice::open(&directory.join(name), Access::ReadWrite);
    Arc::new(file.expect("opened").growable())
}

#[tokio::test]
async fn the_disk_is_what_qemu_makes_of_it() {
    if !is_installed() {
        return;
    }
    let kinds = [
        "cluster_size=2k,refcount_bits=64",
        "cluster_size=64k,compat=0.10",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=2M",
    ];
    let modes = [
        (Preallocation::Off, "off"),
        (Preallocation::Metadata, "metadata"),
        (Preallocation::Falloc, "falloc"),
        (Preallocation::Full, "full"),
    ];
    for (turn, options) in kinds.into_iter().enumerate() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        qemu_img(directory, &format!("create -q -f qcow2 -o {options} a 9M"));
        let writes = ["write -P 1 0 300k", "write -P 2 8M 1M", "write -P 3 5M 7k"];
        qemu_io(directory, "a", &writes);
        let can_share = !options.contains("bits=1") && !options.contains("0.10");
        if can_share {
            qemu_img(directory, "snapshot -c one a");
            qemu_io(directory, "a", &["write -P 4 4M 2M"]);
        }
        fs::copy(directory.join("a"), directory.join("b")).expect("copied");
        for (round, (mode, name)) in modes.into_iter().enumerate() {
            for size in [23, 6] {
                let size = size + (round + turn) as u64;
                let prepared = match size {
                    ..20 => "--shrink".to_owned(),
                    _ => format!("--preallocation={name}"),
                };
                qemu_img(
                    directory,
                    &format!("resize -q -f qcow2 {prepared} a {size}M"),
                );
                let own = match size {
                    ..20 => shrinking(),
                    _ => with(mode),
                };
                let resized = resize(open(directory, "b"), &NoRelatives, size << 20, &own).await;
                resized.expect("resized");
                let what = format!("{options}, {name}, {size}");
                let report = qemu_check(directory, "b");
                for wrong in ["corruptions", "leaks", "check-errors"] {
                    assert_eq!(number(&report, wrong), 0, "{what}: {report}");
                }
                let compared = qemu_img(directory, "compare -f qcow2 -F qcow2 a b");
                assert!(compared.contains("identical"), "{what}: {compared}");
            }
        }
        if can_share {
            qemu_img(directory, "snapshot -a one a");
            qemu_img(directory, "snapshot -a one b");
            let compared = qemu_img(directory, "compare -f qcow2 -F qcow2 a b");
            assert!(compared.contains("identical"), "{options}: {compared}");
        }
    }
}

#[tokio::test]
async fn what_qemu_refuses_is_refused_by_name() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    qemu_img(directory, "create -q -f qcow2 -o compat=0.10 old 9M");
    qemu_img(directory, "snapshot -c one old");
    let options = ResizeOptions::default();
    let resized = resize(open(directory, "old"), &NoRelatives, 20 << 20, &options).await;
    let error = resized.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("snapshots"), "{error}");
}

#[tokio::test]
async fn a_raw_data_file_has_all_of_the_disk() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let options = "data_file=data,data_file_raw=on";
    qemu_img(directory, &format!("create -q -f qcow2 -o {options} a 9M"));
    qemu_io(directory, "a", &["write -P 1 0 9M"]);
    for (size, options) in [
        (20, ResizeOptions::default()),
        (5, shrinking()),
        (12, with(Preallocation::Full)),
    ] {
        let relatives = Relatives {
            backing: None,
            data: Some(open(directory, "data")),
        };
        let resized = resize(open(directory, "a"), &relatives, size << 20, &options).await;
        resized.expect("resized");
        let compared = qemu_img(directory, "compare -f qcow2 -F raw a data");
        assert!(compared.contains("identical"), "{size}: {compared}");
        let length = fs::metadata(directory.join("data")).expect("there").len();
        assert_eq!(length, size << 20);
        let report = qemu_check(directory, "a");
        for wrong in ["corruptions", "leaks", "check-errors"] {
            assert_eq!(number(&report, wrong), 0, "{size}: {report}");
        }
    }
}
