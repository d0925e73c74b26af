//! Random images onto random disks, against what a naive copy would leave.

use blockferry_block::{ByteRange, Capabilities, ErrorKind, Extent, Operation, Status};
use blockferry_copy::{Control, CopyOptions, Destination, Source, copy};
use proptest::prelude::*;

use crate::{
    Recorder, device,
    disk::Disk,
    pattern,
    pipe::{End, Input, Output},
    to_device,
};

/// A source image: its bytes, and what it says of them.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) size: usize,
    seed: u64,
    /// Ranges that are zero and known to be.
    holes: Vec<(u64, u64)>,
    /// Ranges that are zero and only found by reading.
    zeroes: Vec<(u64, u64)>,
    minimum: u32,
    maximum: u32,
    lie: u8,
}

#[derive(Clone, Debug)]
pub(crate) struct Target {
    extra: usize,
    minimum: u32,
    maximum: u32,
    resize: bool,
    zero: Zero,
    allocated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Zero {
    Offered,
    Refused,
    NotOffered,
    Inborn,
}

fn ranges(most: usize) -> impl Strategy<Value = Vec<(u64, u64)>> {
    let range = (0..100_000_u64, 1..20_000_u64).prop_map(|(start, length)| (start, start + length));
    prop::collection::vec(range, 0..most)
}

/// A block size and a longest request.
fn limits() -> impl Strategy<Value = (u32, u32)> {
    (0..=13_u32, 0..5_u32, 0..3_u32).prop_map(|(minimum, more, ragged)| {
        let minimum = 1 << minimum;
        // A maximum is usually a multiple of the minimum, but nothing says so.
        let maximum: u32 = (minimum << more) + ragged;
        (minimum, maximum.max(64))
    })
}

pub(crate) fn images() -> impl Strategy<Value = Image> {
    let sizes = prop_oneof![
        0..3_usize,
        0..100_000_usize,
        (0..12_usize).prop_map(|n| n * 8192)
    ];
    let parts = (
        sizes,
        any::<u64>(),
        ranges(6),
        ranges(6),
        limits(),
        0..12_u8,
    );
    parts.prop_map(|(size, seed, holes, zeroes, limits, lie)| Image {
        // A few hundred requests are enough.
        size: size.min(300 * limits.1 as usize),
        seed,
        holes,
        zeroes,
        minimum: limits.0,
        maximum: limits.1,
        lie,
    })
}

pub(crate) fn targets() -> impl Strategy<Value = Target> {
    let zero = prop_oneof![
        3 => Just(Zero::Offered),
        1 => Just(Zero::Refused),
        1 => Just(Zero::NotOffered),
        1 => Just(Zero::Inborn),
    ];
    let extra = prop_oneof![Just(0), 0..20_000_usize];
    let parts = (extra, limits(), any::<bool>(), zero, any::<bool>());
    parts.prop_map(|(extra, limits, resize, zero, allocated)| Target {
        extra,
        minimum: limits.0,
        maximum: limits.1,
        resize,
        zero,
        allocated,
    })
}

pub(crate) fn options() -> impl Strategy<Value = CopyOptions> {
    let sparse = prop_oneof![Just(None), (0..20_000_u32).prop_map(Some)];
    // Mostly large enough to be done soon.
    let request_size = prop_oneof![1 => 0..100_u32, 9 => 512..40_000_u32];
    let queue_size = prop_oneof![1 => 0..100_u64, 9 => 512..100_000_u64];
    let parts = (0..9_usize, request_size, queue_size, sparse, any::<bool>());
    parts.prop_map(|(requests, request_size, queue_size, sparse, extents)| {
        let mut options = CopyOptions::default();
        options.requests = Some(requests);
        options.request_size = Some(request_size);
        options.queue_size = Some(queue_size);
        options.sparse = sparse;
        options.extents = extents;
        options
    })
}

impl Image {
    pub(crate) fn disk(&self) -> Disk {
        let mut bytes = pattern(self.size, self.seed);
        for (start, end) in &self.zeroes {
            let clamp = |offset: u64| (offset as usize).min(self.size);
            bytes[clamp(*start)..clamp(*end)].fill(0);
        }
        let disk = Disk::new(bytes)
            .limits(self.minimum, self.maximum)
            .zero_extents(self.holes.clone())
            .slow();
        let fail = self.lie == 10;
        let disk = disk.failing(move |operation, range, _| {
            let fails = operation == Operation::Extents && fail && range.start() % 3 == 0;
            fails.then_some(ErrorKind::TimedOut)
        });
        match self.lie {
            0..4 => disk,
            lie => disk.lying(move |range, answer| twist(lie, range, answer)),
        }
    }
}

/// Answers that are short, and answers that break the rules without calling data zero.
pub(crate) fn twist(lie: u8, range: ByteRange, mut answer: Vec<Extent>) -> Vec<Extent> {
    let cut = |answer: &mut Vec<Extent>, length: u64| {
        let (kept, _) = range.split_at(length);
        for extent in answer.iter_mut() {
            extent.range = extent.range.intersection(kept);
        }
        answer.retain(|extent| !extent.range.is_empty());
    };
    match lie {
        4 => answer.truncate(1),
        5 => cut(&mut answer, 1 + range.start() % 5_000),
        6 => answer.clear(),
        7 => {
            answer.remove(0);
        }
        8 => {
            let end = range.end();
            answer.push(Extent {
                range: ByteRange::between(end, end + 1 + end % 7),
                status: Status::DATA,
            });
        }
        9 => answer.push(answer[0]),
        11 => answer.insert(
            0,
            Extent {
                range: ByteRange::between(range.start(), range.start()),
                status: Status::HOLE_ZERO,
            },
        ),
        _ => {}
    }
    answer
}

impl Target {
    pub(crate) fn disk(&self, source: usize) -> Disk {
        // A disk that is born zero is zero; any other holds what was there.
        let size = source + self.extra;
        let before = match self.zero {
            Zero::Inborn => vec![0; size],
            _ => pattern(size, 0xd1),
        };
        let disk = Disk::new(before).limits(self.minimum, self.maximum);
        let disk = match self.zero {
            Zero::Offered => disk,
            Zero::Refused => disk.failing(|operation, _, _| {
                (operation == Operation::Zero).then_some(ErrorKind::Unsupported)
            }),
            Zero::NotOffered => disk.without(Capabilities::ZERO),
            Zero::Inborn => disk.with(Capabilities::BORN_ZERO),
        };
        let disk = if self.resize {
            disk.with(Capabilities::RESIZE)
        } else {
            disk
        };
        disk.slow()
    }

    /// What a naive copy of `source` leaves.
    fn expected(&self, source: &[u8], before: &[u8]) -> Vec<u8> {
        let mut after = source.to_vec();
        if !self.resize {
            after.extend_from_slice(&before[source.len()..]);
        }
        after
    }
}

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(future)
}

proptest! {
    #[test]
    fn a_copy_leaves_what_a_naive_copy_would(
        image in images(),
        target in targets(),
        options in options(),
    ) {
        let mut options = options;
        options.allocated = target.allocated;
        let from = image.disk().into_arc();
        let to = target.disk(image.size).into_arc();
        let expected = target.expected(&from.bytes(), &to.bytes());
        let events = Recorder::default();
        let alignment = image.minimum.max(target.minimum);
        let result = run(copy(
            device(&from), to_device(&to), &options, &Control::new(), &events,
        ));
        if alignment > image.maximum.min(target.maximum) {
            let error = result.expect_err("no request suits both");
            prop_assert_eq!(error.error.kind(), ErrorKind::Incompatible);
            return Ok(());
        }
        let report = result.expect("the copy succeeds");
        prop_assert!(to.bytes() == expected, "the contents differ");
        prop_assert_eq!(report.size, image.size as u64);
        prop_assert_eq!(report.data + report.zero, report.size);
        prop_assert_eq!(events.progress().done, report.size);
        prop_assert!(events.warnings() <= 1);
    }

    #[test]
    fn a_stream_onto_a_disk_leaves_its_bytes(
        image in images(),
        target in targets(),
        options in options(),
    ) {
        let bytes = image.disk().bytes();
        let to = target.disk(image.size).into_arc();
        let expected = target.expected(&bytes, &to.bytes());
        let from = Source::Stream(Box::new(Input::new(bytes, End::Ends)));
        let report = run(copy(from, to_device(&to), &options, &Control::new(), &()));
        let report = report.expect("the copy succeeds");
        prop_assert!(to.bytes() == expected, "the contents differ");
        prop_assert_eq!(report.data + report.zero, image.size as u64);
    }

    #[test]
    fn a_disk_into_a_stream_comes_in_order(image in images(), options in options()) {
        let from = image.disk().into_arc();
        let output = Output::new(usize::MAX);
        let to = Destination::Stream(Box::new(output.clone()));
        let report = run(copy(device(&from), to, &options, &Control::new(), &()));
        let report = report.expect("the copy succeeds");
        prop_assert!(output.bytes() == from.bytes(), "the contents differ");
        prop_assert_eq!(report.data + report.zero, image.size as u64);
    }
}
