//! The power is cut below images that are written, after every single thing that was done to the file: no corruption,
//! nothing lost that was flushed, and what was written since is there or not.

use std::fs;

use blockferry_block::{
    ZeroFlags,
    testing::{ForgetfulDevice, Survival},
};

use super::*;
use crate::qcow2::qemu::{is_installed, number, qemu_check, qemu_img};

/// How often `qemu-img check` looks at what is left, too.
const QEMU: usize = 97;

/// What was asked for, and when.
struct Step {
    /// How many events there were before.
    start: usize,
    /// And after.
    end: usize,
    action: Action,
}

enum Action {
    /// These bytes there; without them anything.
    Change(ByteRange, Option<Vec<u8>>),
    Flush,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (state ^ (state >> 31)) % bound
    }

    fn range(&mut self, size: u64, longest: u64) -> ByteRange {
        let start = self.below(size);
        let length = match self.below(3) {
            0 => 1 + self.below(900),
            _ => 1 + self.below(longest),
        };
        ByteRange::between(start, size.min(start + length))
    }
}

/// Makes random requests and writes down when.
async fn work(image: &Image, below: &ForgetfulDevice, seed: u64, count: usize) -> Vec<Step> {
    let mut random = Random(seed);
    let size = image.info().size;
    let longest = (details(image).cluster_size * 5).min(size / 3);
    let mut steps = Vec::new();
    for number in 0..count {
        let start = below.events();
        let range = random.range(size, longest);
        let action = match random.below(12) {
            0..=5 => {
                let bytes = vec![1 + (number % 255) as u8; range.len() as usize];
                let data = Buffer::from(&bytes[..]);
                let written = image.write(range.start(), data, WriteFlags::empty()).await;
                written.expect("written");
                Action::Change(range, Some(bytes))
            }
            6 | 7 => {
                let flags = match random.below(2) {
                    0 => ZeroFlags::NO_HOLE,
                    _ => ZeroFlags::empty(),
                };
                image.zero(range, flags).await.expect("zeroed");
                Action::Change(range, Some(vec![0; range.len() as usize]))
            }
            8 | 9 => {
                let trimmed = image.trim(range, WriteFlags::empty()).await;
                trimmed.expect("trimmed");
                Action::Change(range, None)
            }
            _ => {
                image.flush().await.expect("flushed");
                Action::Flush
            }
        };
        let end = below.events();
        steps.push(Step { start, end, action });
    }
    let start = below.events();
    image.close().await.expect("closed");
    let end = below.events();
    let action = Action::Flush;
    steps.push(Step { start, end, action });
    steps
}

/// What each byte may be when the power is cut after `events`: `first` is what was there before all steps.
struct Allowed<'a> {
    first: &'a [u8],
    steps: &'a [Step],
    /// The contents after so many steps, up to the last flush that was acknowledged.
    flushed: (usize, Vec<u8>, Vec<bool>),
}

impl<'a> Allowed<'a> {
    fn new(first: &'a [u8], steps: &'a [Step]) -> Self {
        let flushed = (0, first.to_vec(), vec![false; first.len()]);
        Self {
            first,
            steps,
            flushed,
        }
    }

    fn check(&mut self, events: usize, found: &[u8], what: &str) {
        assert_eq!(found.len(), self.first.len());
        let steps = self.steps;
        let acknowledged = steps
            .iter()
            .rposition(|step| step.end <= events && matches!(step.action, Action::Flush));
        let (done, bytes, is_any) = &mut self.flushed;
        let durable = acknowledged.map_or(0, |at| at + 1);
        for step in &steps[*done..durable.max(*done)] {
            if let Action::Change(range, data) = &step.action {
                let place = range.start() as usize..range.end() as usize;
                is_any[place.clone()].fill(data.is_none());
                if let Some(data) = data {
                    bytes[place].copy_from_slice(data);
                }
            }
        }
        *done = durable.max(*done);
        if found == bytes {
            return;
        }
        let mut is_right: Vec<bool> = found.iter().zip(&*bytes).map(|(a, b)| a == b).collect();
        for (right, any) in is_right.iter_mut().zip(&*is_any) {
            *right |= any;
        }
        for step in steps[*done..].iter().take_while(|step| step.start < events) {
            if let Action::Change(range, data) = &step.action {
                let place = range.start() as usize..range.end() as usize;
                match data {
                    None => is_right[place].fill(true),
                    Some(data) => {
                        for (at, byte) in place.zip(data) {
                            is_right[at] |= found[at] == *byte;
                        }
                    }
                }
            }
        }
        if let Some(at) = is_right.iter().position(|right| !right) {
            panic!(
                "{what}: byte {at} is {}, was {} when it was flushed, and nobody wrote that",
                found[at], bytes[at]
            );
        }
    }
}

async fn cut_everywhere(
    what: &str,
    image: Vec<u8>,
    relatives: &Relatives,
    seed: u64,
    count: usize,
) {
    let below = Arc::new(ForgetfulDevice::new(&image));
    let opened = open_with(below.clone(), relatives).await;
    let first = contents(&opened).await;
    let steps = work(&opened, &below, seed, count).await;
    let mut allowed = Allowed::new(&first, &steps);
    let directory = tempfile::tempdir().expect("a directory");
    let has_qemu = is_installed();
    for events in 0..=below.events() {
        let number_of = seed.wrapping_mul(1_000_003) + events as u64;
        let survival = match events % 5 {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            2 => Survival::Events(number_of),
            _ => Survival::Sectors(number_of),
        };
        let what = format!("{what}, seed {seed}, cut after {events}, {survival:?}");
        let left = below.cut(events, survival);
        if has_qemu && events % QEMU == QEMU - 1 && relatives.backing.is_none() {
            fs::write(directory.path().join("left"), &left).expect("written");
            let report = qemu_check(directory.path(), "left");
            assert_eq!(number(&report, "corruptions"), 0, "{what}: {report}");
            assert_eq!(number(&report, "check-errors"), 0, "{what}: {report}");
        }
        let left = Arc::new(MemoryDevice::from_bytes(left).growable());
        let report = check(&*left).await.expect("checked");
        assert!(report.is_consistent(), "{what}: {report:?}");
        let again = Image::open(left.clone(), relatives, &OpenOptions::default()).await;
        let again = again.unwrap_or_else(|error| panic!("{what}: {error}"));
        allowed.check(events, &contents(&again).await, &what);
        if events % 11 == 0 {
            // It can be used as before.
            let again = open_with(left.clone(), relatives).await;
            check_device(&again, number_of, 10).await;
            again.close().await.expect("closed");
            let report = check(&*copy(&left)).await.expect("checked");
            assert!(report.is_consistent(), "{what}, written again: {report:?}");
        }
    }
    let whole = below.cut(usize::MAX, Survival::Nothing);
    let report = check(&MemoryDevice::from_bytes(whole))
        .await
        .expect("checked");
    assert!(report.is_clean(), "{what}, closed: {report:?}");
}

#[tokio::test]
async fn a_cut_at_any_point_loses_space_at_worst() {
    for (seed, (what, image, relatives)) in (1..).zip(kinds()) {
        // Two files do not lose their power one without the other in this test.
        let is_like_another = matches!(image.geometry.refcount_order, 1..=3 | 5);
        if !image.geometry.data_file && !is_like_another {
            cut_everywhere(&what, image.build(), &relatives, seed, 25).await;
        }
    }
}

#[tokio::test]
async fn a_cut_while_tables_grow_loses_space_at_worst() {
    // A block of refcounts covers 64 clusters, and the table that there is at first 4096.
    let image = with_order(ImageBuilder::new(9, 6 << 20), 6);
    let below = Arc::new(ForgetfulDevice::new(image.build()));
    let opened = open(below.clone()).await;
    let first = contents(&opened).await;
    let mut steps = Vec::new();
    for at in 0..24_u64 {
        let start = below.events();
        let range = ByteRange::between(at << 17, (at + 1) << 17);
        let bytes = vec![at as u8 + 1; 1 << 17];
        let data = Buffer::from(&bytes[..]);
        let written = opened.write(range.start(), data, WriteFlags::empty()).await;
        written.expect("written");
        let end = below.events();
        let action = Action::Change(range, Some(bytes));
        steps.push(Step { start, end, action });
        if at % 5 == 4 {
            let start = below.events();
            opened.flush().await.expect("flushed");
            let end = below.events();
            let action = Action::Flush;
            steps.push(Step { start, end, action });
        }
    }
    let mut allowed = Allowed::new(&first, &steps);
    for events in (0..=below.events()).step_by(3) {
        let survival = match events % 3 {
            0 => Survival::Sectors(events as u64),
            1 => Survival::Events(events as u64),
            _ => Survival::Nothing,
        };
        let left = Arc::new(MemoryDevice::from_bytes(below.cut(events, survival)));
        let report = check(&*left).await.expect("checked");
        assert!(
            report.is_consistent(),
            "cut after {events}, {survival:?}: {report:?}"
        );
        let again = Image::open(left, &NoRelatives, &OpenOptions::default()).await;
        let again = again.expect("it opens");
        allowed.check(
            events,
            &contents(&again).await,
            &format!("cut after {events}"),
        );
    }
    opened.close().await.expect("closed");
    let whole = below.cut(usize::MAX, Survival::Nothing);
    let report = check(&MemoryDevice::from_bytes(whole))
        .await
        .expect("checked");
    assert!(report.is_clean(), "{report:?}");
}

#[tokio::test]
async fn a_cut_leaves_snapshots_as_they_are() {
    if !is_installed() {
        return;
    }
    for (seed, cluster_bits) in [(1, 9), (2, 12), (3, 16)] {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let image = everything(cluster_bits, 40);
        fs::write(directory.join("image"), image.build()).expect("written");
        qemu_img(directory, "snapshot -c one image");
        let image = fs::read(directory.join("image")).expect("an image");
        cut_everywhere("snapshots", image.clone(), &Relatives::default(), seed, 25).await;

        let options = OpenOptions {
            snapshot: Some("one".to_owned()),
            ..OpenOptions::default()
        };
        let below = Arc::new(MemoryDevice::from_bytes(&image).growable());
        let old = Image::open(below.clone(), &NoRelatives, &options).await;
        let old = contents(&old.expect("it opens")).await;
        let written = open(below.clone()).await;
        check_device(&written, seed, 200).await;
        written.close().await.expect("closed");
        check_clean(&below, "snapshots").await;
        let snapshot = Image::open(copy(&below), &NoRelatives, &options).await;
        let kept = contents(&snapshot.expect("it opens")).await;
        let differs = kept.iter().zip(&old).position(|(kept, old)| kept != old);
        assert_eq!(
            differs, None,
            "the snapshot is as it was, of clusters of 2^{cluster_bits}"
        );
    }
}
