//! The table as it is read, from sound images and others.

use blockferry_block::MemoryDevice;

use super::super::*;
use crate::qcow2::header::tests::header;

const START: usize = 5 << 16;

/// An entry with extra data as long as `extra`: the state's size, the disk's, the instructions.
fn entry(id: &str, name: &str, extra: &[u64]) -> Vec<u8> {
    let mut bytes = (9_u64 << 16).to_be_bytes().to_vec();
    bytes.extend(40_u32.to_be_bytes());
    bytes.extend((id.len() as u16).to_be_bytes());
    bytes.extend((name.len() as u16).to_be_bytes());
    bytes.extend(1_700_000_000_u32.to_be_bytes());
    bytes.extend(5_u32.to_be_bytes());
    bytes.extend(7_000_000_000_u64.to_be_bytes());
    bytes.extend(77_u32.to_be_bytes());
    bytes.extend((extra.len() as u32 * 8).to_be_bytes());
    bytes.extend(extra.iter().flat_map(|word| word.to_be_bytes()));
    bytes.extend(id.as_bytes());
    bytes.extend(name.as_bytes());
    bytes
}

async fn table(entries: Vec<Vec<u8>>) -> Result<SnapshotTable> {
    let mut bytes = vec![0; START];
    for entry in &entries {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(entry);
    }
    let mut header = header(3);
    header.snapshots = entries.len() as u32;
    header.snapshots_offset = START as u64;
    SnapshotTable::read(&MemoryDevice::from_bytes(bytes), &header).await
}

#[tokio::test]
async fn entries_are_read_with_all_that_they_say() {
    let first = entry("1", "before the update", &[99, 3 << 30, 1234]);
    let second = entry("2", "", &[]);
    let third = entry("3", "1", &[0, 1 << 20, u64::MAX]);
    let table = table(vec![first.clone(), second.clone(), third.clone()]);
    let table = table.await.expect("valid");
    let [one, two, three] = &table.snapshots[..] else {
        panic!("three");
    };
    assert_eq!((&*one.id, &*one.name), ("1", "before the update"));
    assert_eq!((one.size, one.state_size), (3 << 30, 99));
    assert_eq!(one.instructions, Some(1234));
    assert_eq!(one.date, Duration::new(1_700_000_000, 5));
    assert_eq!(one.guest_clock, Duration::from_secs(7));
    assert_eq!(one.l1, ByteRange::between(9 << 16, (9 << 16) + 320));
    assert_eq!((two.size, two.state_size), (5 << 30, 77));
    assert_eq!((three.size, three.instructions), (1 << 20, None));
    let length = first.len().next_multiple_of(8) + second.len().next_multiple_of(8);
    assert_eq!(table.range.len() as usize, length + third.len());
}

#[tokio::test]
async fn the_id_is_looked_for_before_the_name() {
    let table = table(vec![
        entry("2", "1", &[0, 0]),
        entry("1", "x", &[0, 0]),
        entry("3", "x", &[0, 0]),
    ]);
    let table = table.await.expect("valid");
    assert_eq!(table.find("1").expect("found").name, "x");
    assert_eq!(table.find("x").expect("found").id, "1");
    assert_eq!(table.find("snapshot.name=1").expect("found").id, "2");
    assert_eq!(table.find("snapshot.id=1").expect("found").name, "x");
    assert!(table.find("snapshot.id=x").is_err());
    let error = table.find("\u{1b}y").expect_err("none").to_string();
    assert!(error.contains("\"\\u{1b}y\""), "{error}");
}

#[tokio::test]
async fn absurd_entries_are_corrupt() {
    let sound = entry("1", "x", &[0, 0]);
    let changed = |at: usize, bytes: &[u8]| {
        let mut entry = sound.clone();
        entry[at..at + bytes.len()].copy_from_slice(bytes);
        vec![entry]
    };
    for (entries, part) in [
        (changed(36, &1025_u32.to_be_bytes()), "1025 bytes of extra"),
        (changed(8, &u32::MAX.to_be_bytes()), "4294967295 entries"),
        (changed(0, &513_u64.to_be_bytes()), "boundary"),
        (
            changed(0, &(u64::MAX << 16).to_be_bytes()),
            "outside of any file",
        ),
        (changed(48, &u64::MAX.to_be_bytes()), "virtual size"),
        (changed(12, &u16::MAX.to_be_bytes()), "ends within"),
    ] {
        let error = table(entries).await.expect_err("absurd");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(part), "{error}");
    }
    let short = table(changed(8, &1_u32.to_be_bytes())).await.expect("read");
    let mut short = short.snapshots[0].clone();
    short.size = 1 << 40;
    let error = short.geometry(header(3).geometry).expect_err("too short");
    assert!(error.to_string().contains("needs 2048"), "{error}");
}

#[tokio::test]
async fn many_snapshots_of_a_small_file_cost_nothing() {
    let mut header = header(3);
    header.snapshots = 65536;
    header.snapshots_offset = 0;
    let below = MemoryDevice::new(1 << 16);
    let error = SnapshotTable::read(&below, &header)
        .await
        .expect_err("none");
    assert!(
        error.to_string().contains("past the end of the file"),
        "{error}"
    );
}

#[tokio::test]
async fn names_are_bounded_by_the_table() {
    let name = "n".repeat(65535);
    let entries: Vec<_> = (0..300).map(|_| entry("1", &name, &[])).collect();
    let error = table(entries).await.expect_err("too long");
    assert!(error.to_string().contains("ends within"), "{error}");
}
