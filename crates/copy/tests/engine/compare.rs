//! Comparisons of images that are the same, or not quite, against comparing their bytes.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use blockferry_block::{Access, BlockDevice, ErrorKind, FileDevice, Operation};
use blockferry_copy::{
    CompareOptions, Comparison, Control, CopyError, Event, Side, Warning, compare,
};
use proptest::prelude::*;

use crate::{
    Recorder,
    disk::Disk,
    handle::{Handle, Opening, death},
    oracle::twist,
    pattern,
};

const MIB: usize = 1 << 20;

fn as_device(device: &Arc<impl BlockDevice + 'static>) -> Arc<dyn BlockDevice> {
    device.clone()
}

async fn compare_plainly(a: Disk, b: Disk) -> Result<Comparison, CopyError> {
    let options = CompareOptions::default();
    compare(a.into_arc(), b.into_arc(), &options, &Control::new(), &()).await
}

#[tokio::test]
async fn the_first_difference_is_found_wherever_it_is() {
    let size = 3 * MIB + 5;
    for places in [
        vec![0],
        vec![size - 1],
        vec![2 * MIB, 2 * MIB - 1],
        vec![size - 1, 300_000, MIB],
    ] {
        let a = pattern(size, 1);
        let mut b = a.clone();
        places.iter().for_each(|place| b[*place] ^= 1);
        let first = *places.iter().min().expect("one") as u64;
        let found = compare_plainly(Disk::new(a).slow(), Disk::new(b).slow()).await;
        assert_eq!(
            found.expect("readable"),
            Comparison::Differs { offset: first },
            "{places:?}"
        );
    }
}

#[tokio::test]
async fn files_are_compared_on_several_threads_and_the_first_difference_counts() {
    let directory = tempfile::tempdir().expect("a directory");
    let size = 9 * MIB + 5;
    let bytes = pattern(size, 1);
    let file = |name: &str, bytes: &[u8]| -> Arc<dyn BlockDevice> {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        Arc::new(FileDevice::open(&path, Access::ReadOnly).expect("it is there"))
    };
    let options = CompareOptions::default();
    for places in [
        vec![],
        vec![0],
        vec![size - 1],
        vec![8 * MIB, 5 * MIB - 1, 5 * MIB],
        vec![size - 1, 700_000, 300_000, MIB],
    ] {
        let mut other = bytes.clone();
        places.iter().for_each(|place| other[*place] ^= 1);
        let (a, b) = (file("a", &bytes), file("b", &other));
        let found = compare(a, b, &options, &Control::new(), &()).await;
        let expected = match places.iter().min() {
            Some(first) => Comparison::Differs {
                offset: *first as u64,
            },
            None => Comparison::Identical,
        };
        assert_eq!(found.expect("readable"), expected, "{places:?}");
    }
    // One that goes on, with zeroes and with something else.
    let mut longer = bytes.clone();
    longer.resize(size + 3 * MIB, 0);
    let (a, b) = (file("a", &bytes), file("b", &longer));
    let found = compare(a, b, &options, &Control::new(), &()).await;
    assert_eq!(found.expect("readable"), Comparison::Identical);
    longer[size + 2 * MIB] = 1;
    let (a, b) = (file("a", &bytes), file("b", &longer));
    let found = compare(a, b, &options, &Control::new(), &()).await;
    let offset = (size + 2 * MIB) as u64;
    assert_eq!(found.expect("readable"), Comparison::Differs { offset });
}

#[tokio::test]
async fn holes_of_both_are_not_read_and_those_of_one_only_on_the_other_side() {
    let bytes = vec![0; 8 * MIB];
    let holes = |ranges: &[(u64, u64)]| {
        let ranges = ranges.iter().map(|(start, end)| (start << 20, end << 20));
        Disk::new(bytes.clone()).zero_extents(ranges).into_arc()
    };
    let (a, b) = (holes(&[(0, 6)]), holes(&[(0, 2), (4, 8)]));
    let events = Recorder::default();
    let options = CompareOptions::default();
    let found = compare(
        as_device(&a),
        as_device(&b),
        &options,
        &Control::new(),
        &events,
    )
    .await;
    assert_eq!(found.expect("readable"), Comparison::Identical);
    // Requests of 256 KiB: a's last two MiB, and two in the middle of b.
    assert_eq!(a.traffic.reads.load(Relaxed), 8);
    assert_eq!(b.traffic.reads.load(Relaxed), 8);
    let progress = events.progress();
    assert_eq!(
        (progress.done, progress.zero),
        (8 * MIB as u64, 4 * MIB as u64)
    );
}

#[tokio::test]
async fn without_extents_everything_is_read() {
    let disk = || {
        Disk::new(vec![0; MIB])
            .zero_extents([(0, MIB as u64)])
            .into_arc()
    };
    let (a, b) = (disk(), disk());
    let mut options = CompareOptions::default();
    options.extents = false;
    let found = compare(as_device(&a), as_device(&b), &options, &Control::new(), &()).await;
    assert_eq!(found.expect("readable"), Comparison::Identical);
    assert_eq!(a.traffic.questions.load(Relaxed), 0);
    assert_eq!(a.traffic.reads.load(Relaxed), 4);
}

#[tokio::test]
async fn a_strict_comparison_of_different_sizes_reads_nothing() {
    let (a, b) = (
        Disk::new(vec![0; 100]).into_arc(),
        Disk::new(vec![0; 99]).into_arc(),
    );
    let mut options = CompareOptions::default();
    options.strict = true;
    let found = compare(as_device(&a), as_device(&b), &options, &Control::new(), &()).await;
    assert_eq!(found.expect("no need to read"), Comparison::SizesDiffer);
    assert_eq!(a.traffic.reads.load(Relaxed), 0);
    let same = compare(as_device(&a), as_device(&a), &options, &Control::new(), &()).await;
    assert_eq!(same.expect("readable"), Comparison::Identical);
}

#[tokio::test]
async fn a_failure_names_its_side_unless_the_images_differ_before_it() {
    let bytes = pattern(4 * MIB, 3);
    let failing = || {
        Disk::new(bytes.clone())
            .named("broken")
            .failing(|operation, range, _| {
                let fails = operation == Operation::Read && range.end() > 2 * MIB as u64;
                fails.then_some(ErrorKind::Io)
            })
    };
    let sound = || Disk::new(bytes.clone());
    let error = compare_plainly(failing(), sound())
        .await
        .expect_err("broken");
    assert_eq!(
        (error.side, error.error.kind()),
        (Side::Source, ErrorKind::Io)
    );
    assert_eq!(error.error.offset(), Some(2 * MIB as u64));
    assert_eq!(error.error.endpoint(), Some("broken"));
    let error = compare_plainly(sound(), failing())
        .await
        .expect_err("broken");
    assert_eq!(error.side, Side::Destination);

    let mut other = bytes.clone();
    other[2 * MIB - 1] ^= 1;
    let found = compare_plainly(failing(), Disk::new(other)).await;
    let offset = 2 * MIB as u64 - 1;
    assert_eq!(found.expect("different"), Comparison::Differs { offset });
}

#[tokio::test]
async fn what_a_lost_connection_was_reading_is_read_through_another() {
    let bytes = pattern(16 * MIB, 5);
    let mut other = bytes.clone();
    other[15 * MIB] ^= 1;
    let dying = Handle::new(
        Disk::new(bytes.clone()).slow(),
        Opening::Granted,
        death(1, Operation::Read, 3),
    );
    let sound = Handle::sound(Disk::new(other).slow());
    let events = Recorder::default();
    let options = CompareOptions::default();
    let (a, b, control) = (as_device(&dying), as_device(&sound), Control::new());
    let found = compare(a, b, &options, &control, &events).await;
    let offset = 15 * MIB as u64;
    assert_eq!(
        found.expect("others are left"),
        Comparison::Differs { offset }
    );
    let lost = |event: &Event| matches!(event, Event::Warning(Warning::ConnectionLost { .. }));
    assert_eq!(
        events.events().iter().filter(|event| lost(event)).count(),
        1
    );
    assert!(dying.board.opened.load(Relaxed) > 1);
}

#[tokio::test]
async fn a_comparison_that_is_cancelled_ends_although_nothing_is_answered() {
    let device = Arc::new(
        blockferry_block::testing::FaultyDevice::new(Disk::new(vec![1; MIB]).into_arc()).with(
            blockferry_block::testing::Rule::on_all().fault(blockferry_block::testing::Fault::Hang),
        ),
    );
    let control = Control::new();
    let handle = control.clone();
    let comparing = tokio::spawn(async move {
        let options = CompareOptions::default();
        compare(
            as_device(&device),
            as_device(&device),
            &options,
            &control,
            &(),
        )
        .await
    });
    tokio::task::yield_now().await;
    handle.cancel();
    let error = comparing.await.expect("no panic").expect_err("cancelled");
    assert_eq!(error.side, Side::Cancelled);
}

#[tokio::test]
async fn images_that_no_request_suits_are_refused() {
    let small = Disk::new(vec![0; 1 << 16]).limits(1, 4096);
    let large = Disk::new(vec![0; 1 << 16]).limits(8192, 65_536);
    let error = compare_plainly(small, large).await.expect_err("no request");
    assert_eq!(error.side, Side::Plan);
    assert_eq!(error.error.kind(), ErrorKind::Incompatible);
}

/// One of two images: block sizes, what it says of its zeroes, and how well it answers.
#[derive(Clone, Debug)]
struct Manner {
    minimum: u32,
    maximum: u32,
    known: bool,
    lie: u8,
}

fn manners() -> impl Strategy<Value = Manner> {
    let limits = prop::sample::select(vec![
        (1, 32 << 20),
        (1, 5000),
        (512, 1 << 20),
        (512, 3000),
        (4096, 65_536),
    ]);
    let lie = prop_oneof![2 => Just(0), 1 => 4..12_u8];
    (limits, any::<bool>(), lie).prop_map(|((minimum, maximum), known, lie)| Manner {
        minimum,
        maximum,
        known,
        lie,
    })
}

impl Manner {
    fn disk(&self, bytes: &[u8], zeroes: &[(usize, usize)]) -> Disk {
        let is_zero = |(start, end): &&(usize, usize)| {
            let range = (*start).min(bytes.len())..(*end).min(bytes.len());
            bytes[range].iter().all(|byte| *byte == 0)
        };
        let known = zeroes.iter().filter(|_| self.known).filter(is_zero);
        let disk = Disk::new(bytes.to_vec())
            .limits(self.minimum, self.maximum)
            .zero_extents(known.map(|(start, end)| (*start as u64, *end as u64)))
            .slow();
        match self.lie {
            0..4 => disk,
            lie => disk.lying(move |range, answer| twist(lie, range, answer)),
        }
    }
}

proptest! {
    #[test]
    fn a_comparison_finds_what_comparing_the_bytes_finds(
        sizes in prop_oneof![
            (0..200_000_usize).prop_map(|size| [size, size]),
            [0..200_000_usize, 0..200_000],
        ],
        zeroes in prop::collection::vec((0..200_000_usize, 1..60_000_usize), 0..4),
        changes in prop::collection::vec((0..200_000_usize, any::<u8>()), 0..4),
        tail_is_zero in any::<bool>(),
        manners in [manners(), manners()],
    ) {
        let shared = sizes[0].min(sizes[1]);
        let longer = usize::from(sizes[1] > sizes[0]);
        let mut images = sizes.map(|size| {
            let mut bytes = pattern(size, 9);
            for (start, length) in &zeroes {
                bytes[(*start).min(size)..(start + length).min(size)].fill(0);
            }
            bytes
        });
        if tail_is_zero {
            images[longer][shared..].fill(0);
        }
        for (place, value) in changes {
            if let Some(byte) = images[1].get_mut(place) {
                *byte = value;
            }
        }
        let byte = |image: usize, at: usize| images[image].get(at).copied().unwrap_or(0);
        let first = (0..sizes[0].max(sizes[1])).find(|at| byte(0, *at) != byte(1, *at));
        let expected = match first {
            Some(offset) => Comparison::Differs { offset: offset as u64 },
            None => Comparison::Identical,
        };

        let ranges: Vec<_> = zeroes.iter().map(|(start, length)| (*start, start + length)).collect();
        let a = manners[0].disk(&images[0], &ranges).into_arc();
        let b = manners[1].disk(&images[1], &ranges).into_arc();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let options = CompareOptions::default();
        let found = runtime.expect("a runtime").block_on(
            compare(as_device(&a), as_device(&b), &options, &Control::new(), &()),
        );
        let most = manners[0].maximum.min(manners[1].maximum);
        if most < manners[0].minimum.max(manners[1].minimum) {
            prop_assert_eq!(found.expect_err("no request").side, Side::Plan);
        } else {
            prop_assert_eq!(found.expect("readable"), expected);
        }
    }
}
