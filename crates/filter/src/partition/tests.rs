use blockferry_block::{
    Buffer, Capabilities, MemoryDevice, WriteFlags,
    testing::{Fault, FaultyDevice, Rule, check_device},
};

use super::*;
use crate::{
    images::disk::{Disk, Gpt},
    testing::{refusal, through},
};

/// Where the partitions of these numbers lie, in sectors: first and how many.
async fn places(disk: &Disk, numbers: &[u32]) -> Vec<(u64, u64)> {
    let mut places = Vec::new();
    for number in numbers {
        let whole = Arc::new(MemoryDevice::from_bytes(&disk.bytes));
        let size = if disk.sector == 4096 {
            ",sector-size=4096"
        } else {
            ""
        };
        let filter = format!("partition:{number}{size}");
        let part = through(&[&filter], whole).await;
        let first = part.read(0, Buffer::zeroed(8)).await.expect("a sector");
        let first = u64::from_le_bytes(first[..].try_into().expect("8 bytes"));
        places.push((first, part.info().size / disk.sector as u64));
    }
    places
}

async fn why(disk: &Disk, filter: &str) -> (ErrorKind, String) {
    let error = refusal(&[filter], Arc::new(MemoryDevice::from_bytes(&disk.bytes))).await;
    (error.kind(), error.to_string())
}

/// Two primary partitions and an extended one with three logical ones in it.
fn usual(sector: usize) -> Disk {
    let mut disk = Disk::new(4000, sector);
    disk.table(0)
        .entry(0, 0, 0x83, 10, 90)
        .entry(0, 2, 0x0c, 100, 100)
        .entry(0, 3, 0x05, 1000, 2000)
        .table(1000)
        .entry(1000, 0, 0x83, 20, 80)
        .entry(1000, 1, 0x05, 500, 300)
        .table(1500)
        .entry(1500, 0, 0x82, 1, 100)
        .entry(1500, 1, 0x05, 100, 50)
        .table(1100)
        .entry(1100, 0, 0x83, 2, 40);
    disk
}

#[tokio::test]
async fn primary_and_logical_partitions_have_linux_numbers() {
    for sector in [512, 4096] {
        let found = places(&usual(sector), &[1, 3, 5, 6, 7]).await;
        let expected = [(10, 90), (100, 100), (1020, 80), (1501, 100), (1102, 40)];
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn a_partition_is_a_disk_and_touches_nothing_else() {
    for seed in 0..4 {
        let disk = usual(512);
        let whole = Arc::new(MemoryDevice::from_bytes(&disk.bytes));
        let part = through(&["partition:6"], whole.clone()).await;
        assert!(!part.info().can(Capabilities::RESIZE));
        check_device(&*part, seed, 300).await;
        let contents = whole.contents();
        assert!(contents[..1501 * 512] == disk.bytes[..1501 * 512]);
        assert!(contents[1601 * 512..] == disk.bytes[1601 * 512..]);
    }
}

#[tokio::test]
async fn a_partition_that_is_not_there_is_answered_with_those_that_are() {
    let (kind, text) = why(&usual(512), "partition:2").await;
    assert_eq!(kind, ErrorKind::NotFound);
    assert_eq!(
        text,
        "partition: open: there is no partition 2: there are 1 (45.0 KiB), 3 (50.0 KiB), \
         4 (1000.0 KiB, extended), 5 (40.0 KiB), 6 (50.0 KiB), 7 (20.0 KiB)"
    );
    let (_, text) = why(&usual(512), "partition:8").await;
    assert!(text.contains("no partition 8: there are 1"), "{text}");
    let (kind, text) = why(&usual(512), "partition:4").await;
    assert_eq!(kind, ErrorKind::InvalidInput);
    assert!(
        text.contains("which only holds others: there are 1"),
        "{text}"
    );
    let mut empty = Disk::new(100, 512);
    let (_, text) = why(empty.table(0), "partition:1").await;
    assert!(text.ends_with("no partition 1: there are none"), "{text}");
}

#[tokio::test]
async fn what_is_no_table_is_none() {
    let mut boot_sector = Disk::new(100, 512);
    boot_sector.table(0).bytes[446] = 0x42;
    let mut unsigned = Disk::new(100, 512);
    unsigned.table(0).bytes[510] = 0;
    let tiny = Disk::new(1, 256);
    let nothing = Disk::new(0, 512);
    for disk in [boot_sector, unsigned, tiny, nothing] {
        let (kind, text) = why(&disk, "partition:1").await;
        assert_eq!(kind, ErrorKind::InvalidInput);
        assert!(text.contains("no partition table"), "{text}");
    }
    for text in [
        "partition",
        "partition:0",
        "partition:4294967297",
        "partition:1,sector-size=520",
    ] {
        assert!(crate::NamedFilter::parse(text.as_ref()).is_err(), "{text}");
    }
    let device = MemoryDevice::new(1 << 20);
    let table = PartitionTable::read(&device, Some(u32::MAX)).await;
    assert!(table.is_err());
}

#[tokio::test]
async fn partitions_that_lie_wrongly_are_refused_and_the_others_are_not() {
    let mut disk = usual(512);
    disk.entry(0, 0, 0x83, 3990, 11)
        .entry(0, 1, 0x83, u32::MAX, u32::MAX)
        .entry(0, 2, 0x83, 150, 100)
        .entry(1000, 0, 0x83, 20, 1981)
        .entry(1500, 0, 0x83, 1, 1);
    for (number, words) in [
        (
            1,
            "partition 1 leaves the disk: offset 2042880, length 5632; the disk has 2048000 bytes",
        ),
        (2, "partition 2 leaves the disk"),
        (5, "partition 5 leaves the extended one"),
    ] {
        let (kind, text) = why(&disk, &format!("partition:{number}")).await;
        assert_eq!(kind, ErrorKind::InvalidInput);
        assert!(text.contains(words), "{text}");
    }
    // Each of these two has bytes of the other.
    disk.entry(0, 0, 0x83, 100, 51)
        .entry(1000, 0, 0x83, 400, 102);
    for (number, other) in [(1, 3), (3, 1), (5, 6), (6, 5)] {
        let (_, text) = why(&disk, &format!("partition:{number}")).await;
        let words = format!("partition {number} overlaps partition {other}: offset ");
        assert!(text.contains(&words), "{text}");
    }
    assert_eq!(places(&disk, &[7]).await, [(1102, 40)]);
    disk.entry(0, 0, 0x83, 900, 101);
    let (_, text) = why(&disk, "partition:1").await;
    assert!(text.contains("overlaps partition 4"), "{text}");
}

#[tokio::test]
async fn a_chain_that_never_ends_is_followed_for_a_while() {
    // In a circle, of one and of two; out of the disk; into what is no table.
    for (next, words) in [
        (0, "runs in a circle"),
        (500, "runs in a circle"),
        (u32::MAX, "leaves the disk"),
        (3000, "leaves the disk"),
        (600, "is broken"),
    ] {
        let mut disk = usual(512);
        disk.entry(1500, 1, 0x05, next, 50);
        let (_, text) = why(&disk, "partition:9").await;
        assert!(
            text.contains(&format!("; the chain of logical partitions {words}")),
            "{text}"
        );
        assert_eq!(places(&disk, &[5, 6]).await, [(1020, 80), (1501, 100)]);
    }
    let mut disk = Disk::new(30_000, 512);
    disk.table(0).entry(0, 0, 0x0f, 1, 29_999);
    for link in 0..10_000_u32 {
        let at = 1 + 3 * link as usize;
        disk.table(at)
            .entry(at, 0, 0x83, 1, 1)
            .entry(at, 1, 0x05, 3 * (link + 1), 3);
    }
    assert_eq!(places(&disk, &[5, 260]).await, [(2, 1), (2 + 3 * 255, 1)]);
    let device = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&disk.bytes)));
    let device = Arc::new(device);
    let error = refusal(&["partition:261"], device.clone()).await;
    let text = error.to_string();
    assert!(text.contains("too long") && text.len() < 1000, "{text}");
    assert!(device.calls(Operation::Read) < 300);
}

#[tokio::test]
async fn links_without_a_partition_have_no_number() {
    let mut disk = usual(512);
    disk.entry(1000, 0, 0, 0, 0);
    assert_eq!(places(&disk, &[5, 6]).await, [(1501, 100), (1102, 40)]);
}

const PARTS: &[(u64, u64, &str)] = &[
    (100, 199, "EFI system"),
    (0, 0, ""),
    (500, 500, "tiny\u{1b}[31m"),
    (200, 299, ""),
];

#[tokio::test]
async fn a_gpt_is_found_whatever_its_sectors_and_entries_are() {
    for sector in [512, 4096] {
        for (entry_size, entry_count) in [(128, 128), (128, 4), (256, 128), (4096, 20), (128, 8192)]
        {
            let mut disk = Disk::new(6000, sector);
            let entries = &[(3000, 3999, "a"), (0, 0, ""), (2100, 2100, "b")];
            disk.gpt(Gpt {
                entries,
                entry_size,
                entry_count,
            });
            let whole = Arc::new(MemoryDevice::from_bytes(&disk.bytes));
            let part = through(&["partition:1"], whole).await;
            assert_eq!(part.info().size, 1000 * sector as u64);
            assert_eq!(places(&disk, &[1, 3]).await, [(3000, 1000), (2100, 1)]);
        }
    }
}

#[tokio::test]
async fn names_of_a_gpt_are_shown_harmlessly() {
    let mut disk = Disk::new(1000, 512);
    disk.gpt(Gpt {
        entries: PARTS,
        ..Gpt::USUAL
    });
    assert_eq!(
        places(&disk, &[1, 3, 4]).await,
        [(100, 100), (500, 1), (200, 100)]
    );
    let (kind, text) = why(&disk, "partition:2").await;
    assert_eq!(kind, ErrorKind::NotFound);
    assert_eq!(
        text,
        "partition: open: there is no partition 2: there are 1 (50.0 KiB, 'EFI system'), \
         3 (512 bytes, 'tiny\\u{1b}[31m'), 4 (50.0 KiB)"
    );
    let many: Vec<_> = (0..128).map(|at| (100 + at, 100 + at, "x")).collect();
    disk.gpt(Gpt {
        entries: &many,
        ..Gpt::USUAL
    });
    let (_, text) = why(&disk, "partition:129").await;
    assert!(text.ends_with("16 (512 bytes, 'x'), 112 more"), "{text}");
}

#[tokio::test]
async fn a_damaged_gpt_is_read_from_its_copy() {
    let whole = || {
        let mut disk = Disk::new(1000, 512);
        disk.gpt(Gpt {
            entries: PARTS,
            ..Gpt::USUAL
        });
        disk
    };
    for damaged in [512, 512 + 24, 512 + 88, 1024, 1024 + 40, 33 * 512 + 511] {
        let mut disk = whole();
        disk.bytes[damaged] ^= 1;
        assert_eq!(places(&disk, &[1, 4]).await, [(100, 100), (200, 100)]);
        // And so is the copy.
        for copy in [999 * 512 + 3, 999 * 512 + 60, 990 * 512] {
            let mut disk = whole();
            disk.bytes[damaged] ^= 1;
            disk.bytes[copy] ^= 1;
            let (kind, text) = why(&disk, "partition:1").await;
            assert_eq!(kind, ErrorKind::InvalidInput);
            assert!(text.contains("its GPT is damaged: "), "{text}");
        }
    }
    // The disk has grown, so the copy is where the header says.
    let mut disk = whole();
    disk.bytes[1024] ^= 1;
    disk.bytes.resize(2000 * 512, 0);
    assert_eq!(places(&disk, &[1]).await, [(100, 100)]);
}

#[tokio::test]
async fn hostile_headers_cost_nothing() {
    for (offset, bytes, words) in [
        (12, &91_u32.to_le_bytes()[..], "a header of 91 bytes"),
        (12, &513_u32.to_le_bytes(), "a header of 513 bytes"),
        (12, &u32::MAX.to_le_bytes(), "a header of 4294967295 bytes"),
        (24, &7_u64.to_le_bytes(), "it is that of block 7"),
        (72, &u64::MAX.to_le_bytes(), "entries lie outside"),
        (72, &(1_u64 << 54).to_le_bytes(), "entries lie outside"),
        (72, &990_u64.to_le_bytes(), "entries lie outside"),
        (
            80,
            &u32::MAX.to_le_bytes(),
            "4294967295 entries of 128 bytes",
        ),
        (80, &8193_u32.to_le_bytes(), "8193 entries of 128 bytes"),
        (80, &129_u32.to_le_bytes(), "checksum of its entries"),
        (80, &0_u32.to_le_bytes(), "checksum of its entries"),
        (84, &0_u32.to_le_bytes(), "entries of 0 bytes"),
        (84, &64_u32.to_le_bytes(), "entries of 64 bytes"),
        (84, &129_u32.to_le_bytes(), "entries of 129 bytes"),
        (
            84,
            &(1_u32 << 31).to_le_bytes(),
            "entries of 2147483648 bytes",
        ),
        (88, &0_u32.to_le_bytes(), "checksum of its entries"),
    ] {
        let mut disk = Disk::new(1000, 512);
        disk.gpt(Gpt {
            entries: PARTS,
            ..Gpt::USUAL
        });
        disk.bytes[999 * 512..].fill(0);
        disk.patch(1, offset, bytes);
        let whole = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&disk.bytes)));
        let error = refusal(&["partition:1"], Arc::new(whole)).await;
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[tokio::test]
async fn gpt_entries_that_lie_wrongly_are_refused() {
    let mut disk = Disk::new(1000, 512);
    let entries = &[
        (100, 99, "backwards"),
        (200, 1000, "too long"),
        (u64::MAX, u64::MAX, "nowhere"),
        (1 << 54, 1 << 55, "far"),
        (0, u64::MAX, "everything"),
        (40, 60, "one"),
        (60, 80, "two"),
        (300, 400, "in the long one"),
        (90, 99, "fine"),
    ];
    disk.gpt(Gpt {
        entries,
        ..Gpt::USUAL
    });
    for (number, words) in [
        (1, "has an impossible place"),
        (2, "leaves the disk"),
        (3, "has an impossible place"),
        (4, "has an impossible place"),
        (5, "has an impossible place"),
        (6, "overlaps partition 7"),
        (7, "overlaps partition 6"),
        (8, "overlaps partition 2"),
    ] {
        let (kind, text) = why(&disk, &format!("partition:{number}")).await;
        assert_eq!(kind, ErrorKind::InvalidInput);
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(places(&disk, &[9]).await, [(90, 10)]);
}

#[tokio::test]
async fn a_gpt_that_was_left_behind_by_an_mbr_does_not_count() {
    let mut disk = Disk::new(1000, 512);
    disk.gpt(Gpt {
        entries: PARTS,
        ..Gpt::USUAL
    });
    disk.table(0).entry(0, 0, 0x83, 700, 10);
    assert_eq!(places(&disk, &[1]).await, [(700, 10)]);
    // Unless the MBR has nothing to say.
    disk.table(0);
    assert_eq!(places(&disk, &[1]).await, [(100, 100)]);
    disk.bytes[..512].fill(0);
    assert_eq!(places(&disk, &[1]).await, [(100, 100)]);
    // Or announces it beside others.
    disk.table(0)
        .entry(0, 0, 0x83, 700, 10)
        .entry(0, 1, 0xee, 1, 600);
    assert_eq!(places(&disk, &[1]).await, [(100, 100)]);
    disk.bytes[512..1024].fill(0);
    disk.bytes[999 * 512..].fill(0);
    let (_, text) = why(&disk, "partition:1").await;
    assert!(
        text.contains("its GPT is damaged: it is not there"),
        "{text}"
    );
}

#[tokio::test]
async fn a_source_that_fails_while_it_is_opened_is_no_disk_without_a_table() {
    let disk = usual(512);
    for skip in 0..3 {
        let whole = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&disk.bytes)));
        let fault = Fault::Error(ErrorKind::ConnectionLost);
        let whole = whole.with(Rule::on(Operation::Read).after(skip).fault(fault));
        let error = refusal(&["partition:6"], Arc::new(whole)).await;
        assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    }
}

#[tokio::test]
async fn disks_with_large_blocks_are_read_in_those() {
    let mut disk = Disk::new(1000, 4096);
    disk.gpt(Gpt {
        entries: PARTS,
        ..Gpt::USUAL
    });
    let whole = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&disk.bytes)));
    let whole = whole.with_info(|info| info.limits.minimum = 4096);
    let part = through(&["partition:4"], Arc::new(whole)).await;
    let first = part.read(0, Buffer::zeroed(4096)).await.expect("a sector");
    assert_eq!(first[..8], 200_u64.to_le_bytes());
    let write = part.write(4096 * 100, Buffer::zeroed(4096), WriteFlags::empty());
    assert!(write.await.is_err(), "behind its end");
}
