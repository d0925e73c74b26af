//! What is refused, with nothing changed; and what is kept that nobody here understands.

use super::*;
use crate::qcow2::header::{Incompatible, be32, be64};

async fn refused(bytes: &[u8], wanted: &str) -> Error {
    let mut first = None;
    for turn in 0..3 {
        let below = Arc::new(MemoryDevice::from_bytes(bytes).growable());
        let done = match turn {
            0 => create_snapshot(below.clone(), "new", &options()).await,
            1 => apply_snapshot(below.clone(), wanted, &options()).await,
            _ => delete_snapshot(below.clone(), wanted, &options()).await,
        };
        let error = done.expect_err("refused");
        assert!(below.contents() == bytes, "nothing has changed: {error}");
        first = first.or(Some(error));
    }
    first.expect("three")
}

async fn with_one() -> Vec<u8> {
    let below = memory(&everything(12, 40));
    create(&below, "one").await;
    let below = copy(&below);
    let opened = open_with(below.clone(), &Relatives::default()).await;
    let data = Buffer::from(&[3; 30_000][..]);
    let written = opened.write(5000, data, WriteFlags::empty()).await;
    written.expect("written");
    opened.close().await.expect("closed");
    below.contents()
}

fn put(bytes: &mut [u8], at: usize, word: u64) {
    bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
}

#[tokio::test]
async fn images_that_cannot_be_trusted_are_refused() {
    let sound = with_one().await;
    let mut damaged = sound.clone();
    put(&mut damaged, 72, Incompatible::CORRUPT.bits());
    let error = refused(&damaged, "one").await;
    assert_eq!(error.kind(), ErrorKind::ReadOnly);

    let l1 = be64(&sound, 40) as usize;
    let mut twice = sound.clone();
    let first = be64(&sound, l1);
    twice[36..40].copy_from_slice(&2_u32.to_be_bytes());
    put(&mut twice, l1 + 8, first);
    let error = refused(&twice, "one").await;
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("twice"), "{error}");

    let mut askew = sound.clone();
    put(&mut askew, l1, first + 512);
    let error = refused(&askew, "one").await;
    assert!(error.to_string().contains("boundary"), "{error}");

    let mut outside = sound.clone();
    put(&mut outside, l1, 1 << 50);
    assert_eq!(refused(&outside, "one").await.kind(), ErrorKind::Corrupt);

    // All is free, says the image.
    let block = be64(&sound, be64(&sound, 48) as usize) as usize;
    let mut free = sound.clone();
    free[block..block + 4096].fill(0);
    let error = refused(&free, "one").await;
    assert!(error.to_string().contains("called free"), "{error}");
    let table = be64(&sound, 48) as usize;
    let mut shared = sound.clone();
    put(&mut shared, table + 8, block as u64);
    let error = refused(&shared, "one").await;
    assert!(error.to_string().contains("block twice"), "{error}");

    let mut outside = everything(14, 20);
    outside.clusters.clear();
    outside.geometry.data_file = true;
    let error = refused(&outside.build(), "one").await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn snapshots_that_are_not_there_are_not_found() {
    let bytes = with_one().await;
    for wanted in ["two", "snapshot.name=1", "snapshot.id=one", ""] {
        let below = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
        let applied = apply_snapshot(below.clone(), wanted, &options()).await;
        assert_eq!(applied.expect_err("none").kind(), ErrorKind::NotFound);
        let deleted = delete_snapshot(below.clone(), wanted, &options()).await;
        assert_eq!(deleted.expect_err("none").kind(), ErrorKind::NotFound);
        assert!(below.contents() == bytes);
    }
    let long = "n".repeat(65_536);
    let below = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
    let created = create_snapshot(below, &long, &options()).await;
    assert_eq!(created.expect_err("long").kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn any_word_of_the_header_and_the_tables_can_be_wrong() {
    let sound = with_one().await;
    let tables = [40, 48, 64].map(|at| be64(&sound, at) as usize);
    let l2 = (be64(&sound, tables[0]) & 0xffff_ffff) as usize;
    let block = be64(&sound, tables[1]) as usize;
    let places = (24..112)
        .step_by(4)
        .chain(tables.into_iter().flat_map(|at| (at..at + 96).step_by(4)))
        .chain((l2..l2 + 512).step_by(8))
        .chain((block..block + 128).step_by(2));
    for at in places {
        for word in [0, 1, 0x7fff_ffff, u32::MAX, 0x1000, 0xffff_f000] {
            let mut bytes = sound.clone();
            bytes[at..at + 4].copy_from_slice(&u32::to_be_bytes(word));
            for turn in 0..3 {
                let below = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
                // It is refused, or done; and comes to an end in any case.
                let _ = match turn {
                    0 => create_snapshot(below.clone(), "new", &options()).await,
                    1 => apply_snapshot(below.clone(), "one", &options()).await,
                    _ => delete_snapshot(below.clone(), "one", &options()).await,
                };
                assert!(below.contents().len() < 1 << 24, "{at}, {word:#x}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_understood_is_kept_or_no_longer_promised() {
    let mut bytes = with_one().await;
    // A feature that may be ignored stays, one that has to be known by who writes goes.
    put(&mut bytes, 80, 1 << 40);
    put(&mut bytes, 88, 1 << 41);
    // The entry gets extra data that nobody knows.
    let table = be64(&bytes, 64) as usize;
    let entry = bytes[table..table + 68].to_vec();
    assert_eq!(be32(&entry, 36), 24);
    let mut longer = entry[..36].to_vec();
    longer.extend(40_u32.to_be_bytes());
    longer.extend(&entry[40..64]);
    longer.extend([0xab; 16]);
    longer.extend(&entry[64..]);
    bytes[table..table + longer.len()].copy_from_slice(&longer);
    let below = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
    create(&below, "two").await;
    let below = copy(&below);
    check_clean(&below, "created").await;
    let bytes = below.contents();
    assert_eq!((be64(&bytes, 80), be64(&bytes, 88)), (1 << 40, 0));
    let table = be64(&bytes, 64) as usize;
    assert_eq!(bytes[table..table + longer.len()], longer[..]);
}

#[tokio::test]
async fn an_image_that_was_not_closed_is_mended_first() {
    let mut bytes = with_one().await;
    put(&mut bytes, 72, Incompatible::DIRTY.bits());
    let block = be64(&bytes, be64(&bytes, 48) as usize) as usize;
    // A cluster that nothing uses is called used.
    let last = bytes.len() / 4096;
    bytes.resize((last + 1) * 4096, 0);
    bytes[block + last * 2 + 1] = 1;
    let below = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
    create(&below, "two").await;
    check_clean(&below, "mended").await;
    assert_eq!(be64(&below.contents(), 72), 0);
}

#[test]
fn the_next_id_is_the_one_behind_the_largest_number() {
    let with = |ids: &[&str]| {
        let snapshots = ids.iter().map(|id| Snapshot {
            id: (*id).to_owned(),
            name: String::new(),
            size: 0,
            date: Duration::ZERO,
            guest_clock: Duration::ZERO,
            state_size: 0,
            instructions: None,
            says_size: true,
            l1: ByteRange::between(0, 0),
        });
        table::unused_id(&snapshots.collect::<Vec<_>>())
    };
    assert_eq!(with(&[]), "1");
    assert_eq!(with(&["1", "7", "3"]), "8");
    assert_eq!(with(&["x", "2"]), "3");
    assert_eq!(with(&["18446744073709551615", "1"]), "2");
}
