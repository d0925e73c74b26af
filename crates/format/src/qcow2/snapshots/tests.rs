//! Snapshots of disks of every kind: made, gone back to and deleted, with writes in between, compared with rows of bytes; cut
//! anywhere; and as qemu has them.

mod crash;
mod differential;
mod reading;
mod refusals;

use std::sync::Arc;

use blockferry_block::{BlockDevice, Buffer, MemoryDevice, WriteFlags, ZeroFlags};

use super::*;
use crate::{
    Image as _, NoRelatives, OpenOptions,
    qcow2::{
        Image, ResizeOptions, resize,
        testing::{ImageBuilder, details},
        write::tests::{
            OnBlocks, Relatives, check_clean, contents, copy, everything, kinds, memory, open_with,
            subclusters, with_order,
        },
    },
};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (state ^ (state >> 31)) % bound
    }
}

/// What an image is to have: the disk as it is now, and its snapshots by their IDs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
}

impl Model {
    /// What the image in `below` has.
    async fn of(below: &Arc<MemoryDevice>, relatives: &Relatives) -> Self {
        let opened = Image::open(below.clone(), relatives, &OpenOptions::default()).await;
        let opened = opened.expect("it opens");
        let mut snapshots = Vec::new();
        for snapshot in details(&opened).snapshots {
            let options = OpenOptions {
                snapshot: Some(format!("snapshot.id={}", snapshot.id)),
                ..OpenOptions::default()
            };
            let old = Image::open(below.clone(), relatives, &options).await;
            let old = contents(&old.expect("it opens")).await;
            snapshots.push((snapshot.id, old));
        }
        let disk = contents(&opened).await;
        Self { disk, snapshots }
    }
}

/// With nobody who asks for the end.
fn options() -> SnapshotOptions {
    SnapshotOptions::default()
}

async fn create(below: &Arc<MemoryDevice>, name: &str) -> Snapshot {
    let created = create_snapshot(below.clone(), name, &options()).await;
    created.expect("created")
}

async fn write(image: &dyn BlockDevice, model: &mut Model, random: &mut Random, value: u8) {
    let size = model.disk.len() as u64;
    let start = random.below(size);
    let length = (1 + random.below(size / 3)).min(size - start);
    let place = start as usize..(start + length) as usize;
    match random.below(4) {
        0 => {
            let range = ByteRange::between(start, start + length);
            let flags = match random.below(2) {
                0 => ZeroFlags::NO_HOLE,
                _ => ZeroFlags::empty(),
            };
            image.zero(range, flags).await.expect("zeroed");
            model.disk[place].fill(0);
        }
        _ => {
            let data = Buffer::from(&vec![value; length as usize][..]);
            let written = image.write(start, data, WriteFlags::empty()).await;
            written.expect("written");
            model.disk[place].fill(value);
        }
    }
}

/// How many snapshots refcounts of that width can count.
fn most_snapshots(order: u32) -> usize {
    match order {
        0 => 0,
        1 => 2,
        _ => 4,
    }
}

async fn any_way(what: &str, image: &ImageBuilder, relatives: &Relatives, seed: u64) {
    let mut random = Random(seed);
    let mut below = memory(image);
    let mut model = Model::of(&below, relatives).await;
    let most = most_snapshots(image.geometry.refcount_order);
    for step in 0..30_u8 {
        below = copy(&below);
        let count = model.snapshots.len() as u64;
        let done = match random.below(8) {
            0..=2 if count < most as u64 => {
                let made = create(&below, &format!("s{step}")).await;
                let ids = model.snapshots.iter().map(|(id, _)| id.parse::<u64>());
                let largest = ids.map(|id| id.expect("a number")).max().unwrap_or(0);
                assert_eq!(made.id, (largest + 1).to_string());
                model.snapshots.push((made.id, model.disk.clone()));
                "created"
            }
            3 if count > 0 => {
                let (id, disk) = &model.snapshots[random.below(count) as usize];
                let applied = apply_snapshot(below.clone(), id, &options()).await;
                applied.unwrap_or_else(|error| panic!("{what}, {step}: {error}"));
                model.disk = disk.clone();
                "applied"
            }
            4 if count > 0 => {
                let (id, _) = model.snapshots.remove(random.below(count) as usize);
                let deleted = delete_snapshot(below.clone(), &id, &options()).await;
                deleted.unwrap_or_else(|error| panic!("{what}, {step}: {error}"));
                "deleted"
            }
            _ => {
                let opened = open_with(below.clone(), relatives).await;
                for turn in 0..3 {
                    write(&opened, &mut model, &mut random, step * 3 + turn + 1).await;
                }
                opened.close().await.expect("closed");
                "written"
            }
        };
        let what = format!("{what}, step {step}, {done}");
        check_clean(&below, &what).await;
        let found = Model::of(&copy(&below), relatives).await;
        assert_eq!(found.snapshots.len(), model.snapshots.len(), "{what}");
        assert!(found == model, "{what}");
    }
    // All gone: nothing is left of them.
    for (id, _) in std::mem::take(&mut model.snapshots) {
        below = copy(&below);
        let deleted = delete_snapshot(below.clone(), &id, &options()).await;
        deleted.expect("deleted");
    }
    check_clean(&below, what).await;
    assert!(Model::of(&copy(&below), relatives).await == model, "{what}");
}

#[tokio::test]
async fn snapshots_and_the_disk_are_what_they_were_whatever_happens_between() {
    for (turn, (what, image, relatives)) in (1..).zip(kinds()) {
        // Refcounts of one bit count no snapshot of anything.
        if image.geometry.data_file || image.geometry.refcount_order == 0 {
            continue;
        }
        for seed in 0..2 {
            any_way(&what, &image, &relatives, turn * 100 + seed).await;
        }
    }
    for (order, bits) in [(6, 9), (5, 12), (3, 9)] {
        let image = with_order(everything(bits, 60), order);
        let what = format!("everything, order {order}");
        any_way(&what, &image, &Relatives::default(), u64::from(order)).await;
    }
}

#[tokio::test]
async fn a_snapshot_of_another_size_gives_the_disk_its_size_back() {
    for image in [everything(12, 40), subclusters(20)] {
        let below = memory(&image);
        let mut model = Model::of(&below, &Relatives::default()).await;
        let first = create(&below, "small").await;
        assert_eq!(first.size, model.disk.len() as u64);
        model.snapshots.push((first.id, model.disk.clone()));
        let below = copy(&below);
        let size = 40 << 20;
        let resized = resize(below.clone(), &NoRelatives, size, &ResizeOptions::default()).await;
        resized.expect("resized");
        let below = copy(&below);
        let opened = open_with(below.clone(), &Relatives::default()).await;
        model.disk.resize(size as usize, 0);
        let end = Buffer::from(&[7; 5000][..]);
        let written = opened.write(size - 5000, end, WriteFlags::empty()).await;
        written.expect("written");
        model.disk[size as usize - 5000..].fill(7);
        opened.close().await.expect("closed");
        let below = copy(&below);
        let second = create(&below, "large").await;
        model.snapshots.push((second.id, model.disk.clone()));
        for (wanted, at) in [("small", 0), ("large", 1), ("small", 0)] {
            let below = copy(&below);
            let applied = apply_snapshot(below.clone(), wanted, &options()).await;
            applied.expect("applied");
            model.disk = model.snapshots[at].1.clone();
            check_clean(&below, wanted).await;
            assert!(Model::of(&copy(&below), &Relatives::default()).await == model);
        }
    }
}

#[tokio::test]
async fn space_that_only_a_snapshot_had_is_used_again() {
    let below = memory(&ImageBuilder::new(12, 2 << 20));
    let image = open_with(below.clone(), &Relatives::default()).await;
    let fill = async |image: &Image, value: u8| {
        let data = Buffer::from(&vec![value; 2 << 20][..]);
        let written = image.write(0, data, WriteFlags::empty()).await;
        written.expect("written");
        image.close().await.expect("closed");
    };
    fill(&image, 1).await;
    let mut below = copy(&below);
    let mut lengths = Vec::new();
    for value in 2..10 {
        create(&below, "one").await;
        below = copy(&below);
        fill(
            &open_with(below.clone(), &Relatives::default()).await,
            value,
        )
        .await;
        below = copy(&below);
        let deleted = delete_snapshot(below.clone(), "one", &options()).await;
        deleted.expect("deleted");
        check_clean(&below, "deleted").await;
        below = copy(&below);
        lengths.push(below.contents().len());
    }
    assert_eq!(lengths[2..], [lengths[2]; 6], "{lengths:?}");
}

#[tokio::test]
async fn a_device_that_cannot_grow_is_enough_while_there_is_room() {
    let image = everything(12, 40);
    let mut bytes = image.build();
    let used = bytes.len();
    // What lies behind the image is nothing.
    bytes.resize(used + (12 << 12), 0xee);
    let below = Arc::new(MemoryDevice::from_bytes(&bytes));
    let created = create_snapshot(below.clone(), "one", &options()).await;
    created.expect("created");
    check_clean(&below, "created").await;
    let tight = Arc::new(MemoryDevice::from_bytes(&bytes[..used + (2 << 12)]));
    let before = tight.contents();
    let created = create_snapshot(tight.clone(), "one", &options()).await;
    assert_eq!(created.expect_err("no room").kind(), ErrorKind::NoSpace);
    assert!(tight.contents()[..used] == before[..used]);
}

#[tokio::test]
async fn a_device_of_blocks_gets_whole_blocks() {
    for image in [everything(12, 40), everything(16, 12)] {
        let below = memory(&image);
        let before = Model::of(&below, &Relatives::default()).await.disk;
        let blocks = || Arc::new(OnBlocks::new(&below, 4096));
        let created = create_snapshot(blocks(), "one", &options()).await;
        created.expect("created");
        check_clean(&below, "created").await;
        let again = copy(&below);
        let blocks = || Arc::new(OnBlocks::new(&again, 4096));
        let applied = apply_snapshot(blocks(), "one", &options()).await;
        applied.expect("applied");
        check_clean(&again, "applied").await;
        let again = copy(&again);
        let blocks = Arc::new(OnBlocks::new(&again, 4096));
        let deleted = delete_snapshot(blocks, "one", &options()).await;
        deleted.expect("deleted");
        check_clean(&again, "deleted").await;
        let after = Model::of(&copy(&again), &Relatives::default()).await;
        assert!(after.disk == before && after.snapshots.is_empty());
    }
}
