//! Random copies in which anything may fail at any time, against what a naive copy would leave.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use blockferry_block::{Capabilities, ErrorKind, Operation};
use blockferry_copy::{Control, CopyOptions, Order, Side, copy};
use proptest::{collection::vec, option, prelude::*};

use crate::{
    Recorder, device,
    digest::{digests, naive_digest},
    disk::Disk,
    handle::{Call, Fault, Handle, Opening},
    oracle::twist,
    pattern, to_device,
};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What goes wrong with one side.
#[derive(Clone, Debug)]
struct Trouble {
    handle: usize,
    /// `None` is any.
    operation: Option<Operation>,
    /// Not in its first so many calls.
    after: usize,
    /// In so many calls after those; `None` is all.
    times: Option<usize>,
    kind: ErrorKind,
}

/// One side of a copy.
#[derive(Clone, Debug)]
struct Endpoint {
    seed: u64,
    limits: (u32, u32),
    splices: bool,
    opening: bool,
    troubles: Vec<Trouble>,
}

/// The image and what the source says of it.
#[derive(Clone, Debug)]
struct Image {
    size: usize,
    /// Zero and known to be; zero and only found by reading.
    holes: Vec<(u64, u64)>,
    zeroes: Vec<(usize, usize)>,
    lie: u8,
}

/// What the destination is besides an endpoint.
#[derive(Clone, Debug)]
struct Place {
    extra: usize,
    zero: Zero,
    resize: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Zero {
    Offered,
    NotOffered,
    /// The so-manieth request and all later ones are refused.
    Refused(usize),
    Inborn,
}

fn troubles() -> impl Strategy<Value = Vec<Trouble>> {
    use Operation::{Extents, Flush, Read, Resize, Write, Zero};
    let operation = prop::sample::select(vec![
        None,
        None,
        Some(Read),
        Some(Write),
        Some(Zero),
        Some(Flush),
        Some(Extents),
        Some(Resize),
    ]);
    let kind = prop::sample::select(vec![
        ErrorKind::ConnectionLost,
        ErrorKind::ConnectionLost,
        ErrorKind::ConnectionLost,
        ErrorKind::TimedOut,
        ErrorKind::ShuttingDown,
        ErrorKind::Io,
        ErrorKind::NoSpace,
    ]);
    // Most are the death of a connection.
    let times = prop_oneof![2 => Just(None), 1 => (1..3_usize).prop_map(Some)];
    let trouble = (0..4_usize, operation, 0..40_usize, times, kind);
    let trouble = trouble.prop_map(|(handle, operation, after, times, kind)| Trouble {
        handle,
        operation,
        after,
        times,
        kind,
    });
    prop_oneof![1 => Just(Vec::new()), 2 => vec(trouble, 0..4)]
}

fn endpoints() -> impl Strategy<Value = Endpoint> {
    let limits = prop::sample::select(vec![
        (1, 32 << 20),
        (1, 32 << 20),
        (512, 1 << 20),
        (4096, 65_536),
        (4096, 300_001),
        (1 << 16, 8 << 20),
    ]);
    let parts = (
        any::<u64>(),
        limits,
        any::<bool>(),
        prop::bool::weighted(0.9),
        troubles(),
    );
    parts.prop_map(|(seed, limits, splices, opening, troubles)| Endpoint {
        seed,
        limits,
        splices,
        opening,
        troubles,
    })
}

fn images() -> impl Strategy<Value = Image> {
    // Two connections are worth it from 4 MiB on, three from 8.
    let size =
        prop_oneof![1 => 0..MIB, 4 => 4 * MIB..7 * MIB, 1 => (64..160_usize).prop_map(|n| n << 16)];
    let holes = vec((0..10 * MIB as u64, 1..3 * MIB as u64), 0..4);
    let zeroes = vec((0..10 * MIB, 1..500 * KIB), 0..4);
    let lie = prop_oneof![2 => Just(0), 1 => 4..12_u8];
    (size, holes, zeroes, lie).prop_map(|(size, holes, zeroes, lie)| Image {
        size,
        holes,
        zeroes,
        lie,
    })
}

fn places() -> impl Strategy<Value = Place> {
    let zero = prop_oneof![
        3 => Just(Zero::Offered),
        1 => (0..4_usize).prop_map(Zero::Refused),
        1 => Just(Zero::NotOffered),
        1 => Just(Zero::Inborn),
    ];
    let extra = prop_oneof![2 => Just(0), 1 => 0..20_000_usize];
    (extra, zero, prop::bool::weighted(0.2)).prop_map(|(extra, zero, resize)| Place {
        extra,
        zero,
        resize,
    })
}

fn options() -> impl Strategy<Value = CopyOptions> {
    let sparse =
        prop_oneof![1 => Just(None), 1 => Just(Some(4096)), 1 => option::of(0..20_000_u32)];
    let order = prop_oneof![3 => Just(Order::Any), 1 => Just(Order::Ascending)];
    let parts = (
        (0..6_usize, option::of(0..9_usize)),
        option::of(20_000..2_000_000_u32),
        option::of(50_000..8_000_000_u64),
        (order, sparse),
        (prop::bool::weighted(0.2), prop::bool::weighted(0.8)),
        prop::bool::weighted(0.2),
        (option::of(digests()), prop::bool::weighted(0.3)),
    );
    parts.prop_map(
        |(
            (connections, requests),
            request_size,
            queue_size,
            (order, sparse),
            (allocated, extents),
            destination_is_zero,
            (digest, verify),
        )| {
            let mut options = CopyOptions::default();
            options.connections = connections;
            options.requests = requests;
            options.request_size = request_size;
            options.queue_size = queue_size;
            options.order = order;
            options.sparse = sparse;
            options.allocated = allocated;
            options.destination_is_zero = destination_is_zero;
            options.extents = extents;
            options.digest = digest;
            options.verify = verify;
            options
        },
    )
}

impl Endpoint {
    fn handle(&self, disk: Disk) -> Arc<Handle> {
        let disk = disk.limits(self.limits.0, self.limits.1).slow();
        let troubles = self.troubles.iter().cloned();
        let troubles: Vec<_> = troubles.map(|it| (it, AtomicUsize::new(0))).collect();
        let fault: Box<Fault> = Box::new(move |handle, operation, _| {
            troubles.iter().find_map(|(trouble, calls)| {
                if trouble.handle != handle || trouble.operation.is_some_and(|it| it != operation) {
                    return None;
                }
                let nth = calls.fetch_add(1, Relaxed).checked_sub(trouble.after)?;
                let strikes = trouble.times.is_none_or(|times| nth < times);
                strikes.then_some(trouble.kind)
            })
        });
        let splices = Capabilities::SPLICE_READ | Capabilities::SPLICE_WRITE;
        let disk = if self.splices {
            disk.with(splices)
        } else {
            disk
        };
        let opening = match self.opening {
            true => Opening::Granted,
            false => Opening::Refused,
        };
        Handle::new(disk, opening, fault)
    }

    /// Whether the first handle, which is there from the beginning, never fails, and the others only so
    /// that it can go on alone.
    fn survives(&self) -> bool {
        self.troubles.iter().all(|trouble| {
            let transient = matches!(
                trouble.kind,
                ErrorKind::ConnectionLost | ErrorKind::TimedOut | ErrorKind::ShuttingDown
            );
            trouble.handle > 0 && transient
        })
    }
}

impl Image {
    fn disk(&self, seed: u64) -> Disk {
        let mut bytes = pattern(self.size, seed);
        for (start, length) in &self.zeroes {
            let clamp = |offset: usize| offset.min(self.size);
            bytes[clamp(*start)..clamp(start + length)].fill(0);
        }
        let holes = self
            .holes
            .iter()
            .map(|(start, length)| (*start, start + length));
        let (disk, lie) = (Disk::new(bytes).zero_extents(holes), self.lie);
        disk.lying(move |range, answer| twist(lie, range, answer))
    }
}

impl Place {
    fn disk(&self, source: usize, is_zero: bool) -> Disk {
        let size = source + self.extra;
        let is_zero = is_zero || self.zero == Zero::Inborn;
        let disk = Disk::new(if is_zero {
            vec![0; size]
        } else {
            pattern(size, 0xd1)
        });
        let disk = match self.zero {
            Zero::Offered => disk,
            Zero::NotOffered => disk.without(Capabilities::ZERO),
            Zero::Refused(after) => disk.failing(move |operation, _, nth| {
                (operation == Operation::Zero && nth >= after).then_some(ErrorKind::Unsupported)
            }),
            Zero::Inborn => disk.with(Capabilities::BORN_ZERO),
        };
        if self.resize {
            disk.with(Capabilities::RESIZE)
        } else {
            disk
        }
    }

    fn expected(&self, source: &[u8], before: &[u8]) -> Vec<u8> {
        let mut after = source.to_vec();
        if !self.resize {
            after.extend_from_slice(&before[source.len()..]);
        }
        after
    }
}

/// Whether a flush came through after all changes.
fn is_durable(calls: &[Call]) -> bool {
    let sound = |operation: Operation| {
        move |call: &Call| call.operation == operation && call.fault.is_none()
    };
    let flush = calls.iter().rposition(sound(Operation::Flush));
    let write = calls.iter().rposition(sound(Operation::Write));
    let zero = calls.iter().rposition(sound(Operation::Zero));
    flush.is_some() && flush > write.max(zero)
}

/// Whether one of the calls failed with `kind`.
fn failed_with(calls: &[Call], kind: ErrorKind) -> bool {
    calls.iter().any(|call| call.fault == Some(kind))
}

/// A failure that says what the log says.
struct Log<'a>(&'a str, &'a [Call]);

impl fmt::Display for Log<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<_> = self.1.iter().filter(|call| call.fault.is_some()).collect();
        write!(f, "{}; {} calls, faults: {faults:?}", self.0, self.1.len())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn whatever_fails_a_copy_is_right_or_fails_for_that(
        source in endpoints(),
        target in endpoints(),
        image in images(),
        place in places(),
        options in options(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let from = source.handle(image.disk(source.seed));
        let to = target.handle(place.disk(image.size, options.destination_is_zero));
        let before = from.disk.bytes();
        let expected = place.expected(&before, &to.disk.bytes());
        let events = Recorder::default();
        let copied = runtime.block_on(copy(
            device(&from), to_device(&to), &options, &Control::new(), &events,
        ));
        prop_assert!(from.disk.bytes() == before);
        match copied {
            Ok(report) => {
                prop_assert!(to.disk.bytes() == expected, "{}", Log("it differs", &to.calls()));
                prop_assert_eq!(report.data + report.zero, image.size as u64);
                prop_assert_eq!(events.progress().done, image.size as u64);
                prop_assert!(is_durable(&to.calls()), "not durable");
                prop_assert_eq!(report.verified, options.verify);
                let digest = options.digest.map(|options| naive_digest(&before, options));
                prop_assert_eq!(report.digest.map(|it| it.to_string()), digest);
            }
            Err(error) => {
                let calls = match error.side {
                    Side::Source => from.calls(),
                    Side::Destination => to.calls(),
                    _ => {
                        let alignment = source.limits.0.max(target.limits.0);
                        let longest = source.limits.1.min(target.limits.1);
                        prop_assert!(alignment > longest, "{}", error);
                        return Ok(());
                    }
                };
                let kind = error.error.kind();
                prop_assert!(failed_with(&calls, kind), "{}", Log(&error.to_string(), &calls));
                prop_assert!(!source.survives() || !target.survives(), "{}", error);
            }
        }
    }
}
