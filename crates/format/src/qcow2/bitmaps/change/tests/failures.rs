//! Files without room, and files that fail.

use blockferry_block::testing::{Fault, FaultyDevice, Rule};

use super::*;

/// An image with bitmaps in a file that cannot grow, with `room` bytes behind it.
async fn cramped(room: usize) -> Arc<MemoryDevice> {
    let image = memory(&ImageBuilder::new(9, 3 << 20));
    let image = changed(&image, "a", &add(512)).await;
    let image = changed(&image, "b", &add(512)).await;
    let other = rich_source(9, 3 << 20, 512).await;
    let image = changed(&image, "a", &merge("s", Some(&other))).await;
    let mut bytes = image.contents();
    bytes.resize(bytes.len() + room, 0);
    Arc::new(MemoryDevice::from_bytes(bytes))
}

#[tokio::test]
async fn without_room_everything_is_as_it_was() {
    let other = rich_source(9, 3 << 20, 512).await;
    for room in (0..12).map(|clusters| clusters * 512) {
        let image = cramped(room).await;
        let old = seen(&*image).await;
        let mut failed = 0;
        for (name, change) in [
            ("a name that is so long that its entry needs a cluster more than there is for others, or perhaps two of them".repeat(5), add(512)),
            ("b".to_owned(), merge("s", Some(&other))),
            ("b".to_owned(), merge("a", None)),
        ] {
            let below = Arc::new(MemoryDevice::from_bytes(image.contents()));
            match change_bitmap(below.clone(), &name, &change).await {
                Ok(()) => assert_ne!(seen(&*below).await, old),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                    assert_eq!(seen(&*below).await, old);
                    failed += 1;
                }
            }
            let report = check(&*below).await.expect("checked");
            assert!(report.is_clean(), "{room}: {report:?}");
        }
        assert!(room > 0 || failed > 0);
    }
}

#[tokio::test]
async fn a_file_that_fails_has_the_old_bitmaps_or_the_new_ones() {
    let other = rich_source(9, 3 << 20, 512).await;
    let image = memory(&ImageBuilder::new(9, 3 << 20));
    let image = changed(&image, "a", &add(512)).await;
    for (name, change) in [
        ("b", add(512)),
        ("a", merge("s", Some(&other))),
        ("a", BitmapChange::Disable),
        ("a", BitmapChange::Remove),
    ] {
        let old = seen(&*image).await;
        let new = changed(&image, name, &change).await;
        let new = seen(&*new).await;
        for operation in [Operation::Write, Operation::Flush, Operation::Read] {
            for after in 0.. {
                let below = copy(&image);
                let faulty = FaultyDevice::new(below.clone());
                let rule = Rule::on(operation).after(after).times(1);
                faulty.add(rule.fault(Fault::Error(ErrorKind::Io)));
                let failed = change_bitmap(Arc::new(faulty), name, &change).await;
                let left = copy(&below);
                let found = seen(&*left).await;
                let report = check(&*left).await.expect("checked");
                assert!(report.is_consistent(), "{report:?}");
                // A last one goes in two steps; the bit that says that it is gone is first.
                assert!(found == old || found == new, "{found:?}");
                if failed.is_ok() {
                    assert_eq!(found, new);
                    if report.is_clean() {
                        break;
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn tables_that_point_anywhere_are_told_and_end_in_order() {
    let image = memory(&ImageBuilder::new(9, 3 << 20));
    let image = changed(&image, "a", &add(512)).await;
    let image = changed(&image, "b", &add(512)).await;
    let header = Header::read(&*image).await.expect("sound");
    let bitmaps = read_directory(&*image, &header).await.expect("sound");
    let other = rich_source(9, 3 << 20, 512).await;
    for word in [
        2_u64,
        3,
        511,
        1 << 63,
        !0,
        512,
        1 << 40,
        (1 << 56) - 512,
        513,
    ] {
        let mut bytes = image.contents();
        let at = bitmaps[0].table.start() as usize;
        bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
        for (name, change) in [
            ("a", BitmapChange::Clear),
            ("a", BitmapChange::Remove),
            ("a", merge("s", Some(&other))),
            ("b", merge("a", None)),
        ] {
            let below = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
            // No panic, and no memory beyond the image's worth.
            if let Err(error) = change_bitmap(below, name, &change).await {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{word:#x}: {error}");
            }
        }
    }
    // A table that is said to be larger than the file.
    let mut bytes = image.contents();
    let entry = bitmaps[0].entry as usize;
    bytes[entry + 8..entry + 12].copy_from_slice(&0x7ff_ffff_u32.to_be_bytes());
    for change in [BitmapChange::Clear, BitmapChange::Remove, merge("b", None)] {
        let below = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
        if let Err(error) = change_bitmap(below, "a", &change).await {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
    }
}

#[tokio::test]
async fn a_damaged_image_changes_or_not_and_a_clean_one_stays_clean() {
    let image = memory(&ImageBuilder::new(9, 300 << 10));
    let image = changed(&image, "a", &add(512)).await;
    let other = rich_source(9, 300 << 10, 512).await;
    let image = changed(&image, "a", &merge("s", Some(&other))).await;
    let image = changed(&image, "b", &add(4096)).await;
    let header = Header::read(&*image).await.expect("sound");
    let directory = header.bitmaps.expect("two bitmaps").directory;
    let mut sound = image.contents();
    // There is some room, and not without an end.
    sound.resize(sound.len() + (64 << 10), 0);
    let mut state = 1_u64;
    let mut next = |most: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % most
    };
    for turn in 0..1500 {
        let mut bytes = sound.clone();
        for _ in 0..=next(3) {
            let place = match next(4) {
                0 => next(112),
                1 => 112 + next(48),
                2 => directory.start() + next(directory.len()),
                _ => next(bytes.len() as u64),
            };
            bytes[place as usize] = next(256) as u8;
        }
        let below = Arc::new(MemoryDevice::from_bytes(&bytes));
        let was_clean = check(&*below).await.is_ok_and(|report| report.is_clean());
        let (name, change) = match turn % 6 {
            0 => ("c", add(512)),
            1 => ("a", BitmapChange::Remove),
            2 => ("b", merge("a", None)),
            3 => ("a", BitmapChange::Clear),
            4 => ("b", BitmapChange::Remove),
            _ => ("a", BitmapChange::Disable),
        };
        match change_bitmap(below.clone(), name, &change).await {
            Ok(()) if was_clean => {
                let report = check(&*below).await.expect("checked");
                assert!(report.is_clean(), "{turn}: {report:?}");
            }
            Ok(()) => {}
            Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
        }
    }
}
