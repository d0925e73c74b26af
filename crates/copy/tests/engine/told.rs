//! What an observer hears that wants to hear of each request.

use std::sync::{Arc, Mutex};

use blockferry_block::{BlockDevice, ByteRange, Extent, MemoryDevice, RangeSet};
use blockferry_copy::{
    Checkpoint, Control, CopyOptions, Done, Event, How, Interest, Observer, Order, Part,
    RequestKind, SaveDone, copy,
};

use crate::{Recorder, device, pattern, to_device};

const SIZE: usize = (8 << 20) + 777;

/// Keeps everything there is to hear.
#[derive(Default)]
struct Listener(Mutex<Vec<Event>>);

impl Observer for Listener {
    fn event(&self, event: Event) {
        self.0.lock().expect("not poisoned").push(event);
    }

    fn interest(&self) -> Interest {
        Interest::Requests
    }
}

impl Listener {
    fn each<T>(&self, wanted: impl Fn(&Event) -> Option<T>) -> Vec<T> {
        let events = self.0.lock().expect("not poisoned");
        events.iter().filter_map(wanted).collect()
    }

    fn parts(&self) -> Vec<Part> {
        self.each(|event| match event {
            Event::Part(part) => Some(*part),
            _ => None,
        })
    }

    fn requests(&self, kind: RequestKind) -> Vec<u64> {
        self.each(|event| match event {
            Event::Request(request) if request.kind == kind => {
                assert!(request.window > 0 && request.request_size > 0);
                Some(request.bytes)
            }
            _ => None,
        })
    }
}

/// Eight MiB and some bytes, of which two MiB are a hole and 16 KiB zeroes among data.
fn image() -> Vec<u8> {
    let mut bytes = pattern(SIZE, 1);
    bytes[2 << 20..4 << 20].fill(0);
    bytes[(5 << 20) + 8192..(5 << 20) + 24_576].fill(0);
    bytes
}

/// The device itself: its hole is one that it knows of.
fn source() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::from_bytes(image()))
}

/// The bytes of all parts that came to be done like this, after checking that no byte is in two parts.
fn sums(parts: &[Part], size: u64) -> (u64, u64, u64, u64) {
    let mut seen = RangeSet::new();
    let (mut data, mut zero, mut known, mut before) = (0, 0, 0, 0);
    for part in parts {
        assert!(seen.first_in(part.range).is_none(), "twice: {part:?}");
        seen.insert(part.range);
        match part.how {
            How::Moved { zero: of_it } => {
                data += part.range.len() - of_it;
                zero += of_it;
            }
            How::KnownZero => known += part.range.len(),
            How::Before => before += part.range.len(),
            _ => panic!("unknown: {part:?}"),
        }
    }
    assert_eq!(seen.missing_in(ByteRange::between(0, size)), []);
    (data, zero, known, before)
}

#[tokio::test]
async fn the_parts_of_every_copy_are_the_whole_image_once() {
    for (order, verify) in [(Order::Any, true), (Order::Ascending, false)] {
        let mut options = CopyOptions::default();
        (options.order, options.verify) = (order, verify);
        let listener = Listener::default();
        let target = Arc::new(MemoryDevice::new(0).growable());
        let (from, to) = (device(&source()), to_device(&target));
        let report = copy(from, to, &options, &Control::new(), &listener).await;
        let report = report.expect("copied");
        let (data, zero, known, before) = sums(&listener.parts(), SIZE as u64);
        assert_eq!((data, zero + known), (report.data, report.zero));
        assert_eq!((known, zero, before), (2 << 20, 16_384, 0));
        let read: u64 = listener.requests(RequestKind::Read).iter().sum();
        // The last bytes are no whole block here, so they may come in a request of their own, which is not told.
        let once = SIZE as u64 - known;
        let times = if verify { 2 } else { 1 };
        assert!(
            (times * (once - 4096)..=times * once).contains(&read),
            "{read}"
        );
        let written: u64 = listener.requests(RequestKind::Write).iter().sum();
        assert!(written >= data - 4096 && written <= once, "{written}");
    }
}

#[tokio::test]
async fn what_the_source_says_of_itself_is_told_once_and_in_order() {
    let listener = Listener::default();
    let target = Arc::new(MemoryDevice::new(0).growable());
    let (from, to) = (device(&source()), to_device(&target));
    let (options, control) = (CopyOptions::default(), Control::new());
    let copied = copy(from, to, &options, &control, &listener).await;
    copied.expect("copied");
    let extents: Vec<Extent> = listener
        .each(|event| match event {
            Event::Extents(extents) => Some(extents.to_vec()),
            _ => None,
        })
        .concat();
    assert!(
        extents
            .windows(2)
            .all(|pair| pair[0].range.end() == pair[1].range.start())
    );
    let holes = extents.iter().filter(|extent| extent.status.is_hole());
    assert_eq!(holes.map(|it| it.range.len()).sum::<u64>(), 2 << 20);
}

#[tokio::test]
async fn what_was_done_before_is_a_part_of_its_own() {
    struct Nowhere;
    impl SaveDone for Nowhere {
        fn save(
            &self,
            _: &Done,
        ) -> blockferry_block::BoxFuture<'static, blockferry_block::Result<()>> {
            Box::pin(async { Ok(()) })
        }
    }
    let bytes = image();
    let target = Arc::new(MemoryDevice::from_bytes(&bytes[..]));
    let mut options = CopyOptions::default();
    options.checkpoint = Some(Checkpoint {
        done: Done {
            ranges: [ByteRange::between(1 << 20, 2 << 20)].into_iter().collect(),
            data: 1 << 20,
            zero: 0,
        },
        save: Arc::new(Nowhere),
    });
    let listener = Listener::default();
    let (from, to) = (device(&source()), to_device(&target));
    let copied = copy(from, to, &options, &Control::new(), &listener).await;
    assert_eq!(copied.expect("copied").resumed, 1 << 20);
    let (.., before) = sums(&listener.parts(), SIZE as u64);
    assert_eq!(before, 1 << 20);
}

#[tokio::test]
async fn who_does_not_ask_hears_nothing_of_requests() {
    let outline = Recorder::default();
    let target: Arc<MemoryDevice> = Arc::new(MemoryDevice::new(0).growable());
    assert!(target.info().size == 0);
    let (from, to) = (device(&source()), to_device(&target));
    let (options, control) = (CopyOptions::default(), Control::new());
    let copied = copy(from, to, &options, &control, &outline).await;
    copied.expect("copied");
    for event in outline.events() {
        let detail = matches!(
            event,
            Event::Request(_) | Event::Part(_) | Event::Extents(_)
        );
        assert!(!detail, "{event:?}");
    }
}
