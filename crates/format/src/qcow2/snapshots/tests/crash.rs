//! The power is cut below images whose snapshots change, after every single thing that was done to the file, and requests
//! fail at every one: the image is the old one or the new one, and no space is lost.

use blockferry_block::testing::{Fault, FaultyDevice, ForgetfulDevice, Rule, Survival};

use super::*;
use crate::qcow2::check;

/// What is done to an image that has the snapshots 1, 2 and 3.
const REQUESTS: [(&str, &str); 7] = [
    ("create", "four"),
    ("apply", "1"),
    ("apply", "2"),
    ("apply", "3"),
    ("delete", "1"),
    ("delete", "2"),
    ("delete", "3"),
];

async fn request(
    below: Arc<dyn BlockDevice>,
    (what, wanted): (&str, &str),
    options: &SnapshotOptions,
) -> Result<Snapshot> {
    match what {
        "create" => create_snapshot(below, wanted, options).await,
        "apply" => apply_snapshot(below, wanted, options).await,
        _ => delete_snapshot(below, wanted, options).await,
    }
}

/// An image with three snapshots that differ.
async fn with_snapshots(image: &ImageBuilder, relatives: &Relatives) -> Vec<u8> {
    let mut below = memory(image);
    let mut model = Model::of(&below, relatives).await;
    let mut random = Random(7);
    for turn in 0..3 {
        create(&below, &format!("s{turn}")).await;
        below = copy(&below);
        let opened = open_with(below.clone(), relatives).await;
        for value in 0..3 {
            write(&opened, &mut model, &mut random, turn * 10 + value).await;
        }
        opened.close().await.expect("closed");
        below = copy(&below);
    }
    check_clean(&below, "prepared").await;
    below.contents()
}

fn images() -> Vec<(&'static str, ImageBuilder, Relatives)> {
    let mut old = ImageBuilder::new(12, 300_000);
    old.geometry.version = 2;
    vec![
        ("512", everything(9, 200), Relatives::default()),
        // A block of refcounts covers 64 clusters.
        (
            "order 6",
            with_order(everything(9, 200), 6),
            Relatives::default(),
        ),
        ("subclusters", subclusters(20), Relatives::default()),
        ("version 2", old, Relatives::default()),
    ]
}

fn memory_of(bytes: Vec<u8>) -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::from_bytes(bytes).growable())
}

#[tokio::test]
async fn a_cut_at_any_point_leaves_the_old_image_or_the_new_one_and_loses_nothing() {
    for (what, image, relatives) in images() {
        let first = with_snapshots(&image, &relatives).await;
        let old = Model::of(&memory_of(first.clone()), &relatives).await;
        for asked in REQUESTS {
            let below = Arc::new(ForgetfulDevice::new(&first));
            let done = request(below.clone(), asked, &options()).await;
            done.unwrap_or_else(|error| panic!("{what}, {asked:?}: {error}"));
            let whole = memory_of(below.cut(usize::MAX, Survival::Nothing));
            let new = Model::of(&whole, &relatives).await;
            assert!(old != new, "{what}, {asked:?}");
            let mut seen = [false; 2];
            for events in 0..=below.events() {
                let number = events as u64;
                let whole = match events % 3 {
                    0 => Survival::Nothing,
                    1 => Survival::Everything,
                    _ => Survival::Events(number),
                };
                for survival in [whole, Survival::Sectors(number)] {
                    let what = format!("{what}, {asked:?}, cut after {events}, {survival:?}");
                    let left = memory_of(below.cut(events, survival));
                    let report = check(&*left).await.expect("checked");
                    assert!(report.is_clean(), "{what}: {report:?}");
                    let found = Model::of(&left, &relatives).await;
                    assert!(found == old || found == new, "{what}");
                    seen[usize::from(found == new)] = true;
                }
            }
            assert_eq!(seen, [true; 2], "{what}, {asked:?}");
            // It is durable when it is said to be done.
            let last = below.events();
            let left = memory_of(below.cut(last, Survival::Nothing));
            assert!(Model::of(&left, &relatives).await == new, "{what}");
        }
    }
}

#[tokio::test]
async fn a_failure_at_any_point_leaves_the_old_image_or_the_new_one_and_loses_nothing() {
    let operations = [
        Operation::Read,
        Operation::Write,
        Operation::Flush,
        Operation::Trim,
    ];
    for (what, image, relatives) in images().into_iter().take(2) {
        let first = with_snapshots(&image, &relatives).await;
        let old = Model::of(&memory_of(first.clone()), &relatives).await;
        for asked in REQUESTS {
            for operation in operations {
                let mut longer = 0;
                for turn in 0..1000 {
                    let what = format!("{what}, {asked:?}, {operation:?} {turn}");
                    let below = memory_of(first.clone());
                    let faulty = FaultyDevice::new(below.clone());
                    let rule = Rule::on(operation).after(turn).times(1);
                    faulty.add(rule.fault(Fault::Error(ErrorKind::Io)));
                    let faulty = Arc::new(faulty);
                    let done = request(faulty.clone(), asked, &options()).await;
                    let below = copy(&below);
                    check_clean(&below, &what).await;
                    let found = Model::of(&below, &relatives).await;
                    let is_new = found != old;
                    assert!(is_new || done.is_err(), "{what}");
                    longer += usize::from(!is_new && below.contents().len() > first.len());
                    // Where the header cannot be written nobody knows what it says, and all stays there.
                    assert!(longer <= 1, "{what}");
                    if faulty.calls(operation) <= turn {
                        break;
                    }
                    assert!(turn < 999, "{what}: it comes to an end");
                }
            }
        }
    }
}

#[tokio::test]
async fn whoever_asks_for_the_end_finds_the_image_as_it_was() {
    let first = with_snapshots(&everything(9, 200), &Relatives::default()).await;
    let old = Model::of(&memory_of(first.clone()), &Relatives::default()).await;
    for asked in REQUESTS {
        let below = memory_of(first.clone());
        let options = options();
        options.stop.ask();
        let done = request(below.clone(), asked, &options).await;
        assert_eq!(done.expect_err("stopped").kind(), ErrorKind::Cancelled);
        assert_eq!(below.contents().len(), first.len(), "{asked:?}");
        let below = copy(&below);
        check_clean(&below, asked.0).await;
        assert!(Model::of(&below, &Relatives::default()).await == old);
    }
}
