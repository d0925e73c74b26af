//! Digests of what is copied, and copies that are read back.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, ErrorKind,
    Extent, NullDevice, Operation, Result, WriteFlags, ZeroFlags,
};
use blockferry_copy::{
    Algorithm, Checkpoint, Control, CopyOptions, Destination, DigestOptions, Done, Event, Order,
    SaveDone, Side, Source, copy,
};
use proptest::prelude::*;
use sha2::Digest as _;

use crate::{
    Recorder, copy_device, device,
    disk::{Disk, Mark},
    evenly,
    handle::{Handle, Opening, death},
    oracle::{images, options, run, targets},
    pattern,
    pipe::{End, Input, Output},
    to_device,
};

const MIB: usize = 1 << 20;

/// The digest by its definition: of all blocks' digests and the size.
pub(crate) fn naive_digest(bytes: &[u8], options: DigestOptions) -> String {
    let hash = |bytes: &[u8]| -> Vec<u8> {
        match options.algorithm() {
            Algorithm::Md5 => md5::Md5::digest(bytes).to_vec(),
            Algorithm::Sha1 => sha1::Sha1::digest(bytes).to_vec(),
            Algorithm::Sha256 => sha2::Sha256::digest(bytes).to_vec(),
            Algorithm::Sha512 => sha2::Sha512::digest(bytes).to_vec(),
        }
    };
    let blocks = bytes.chunks(options.block_size() as usize);
    let mut all: Vec<u8> = blocks.flat_map(hash).collect();
    all.extend((bytes.len() as u64).to_le_bytes());
    let digest = hash(&all);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Any digest that there is; blocks of some are longer than any request.
pub(crate) fn digests() -> impl Strategy<Value = DigestOptions> {
    let algorithm = prop::sample::select(vec![
        Algorithm::Md5,
        Algorithm::Sha1,
        Algorithm::Sha256,
        Algorithm::Sha512,
    ]);
    let size = prop::sample::select(vec![512, 4096, 16 << 10, 64 << 10, 1 << 20, 32 << 20]);
    (algorithm, size)
        .prop_map(|(algorithm, size)| DigestOptions::new(algorithm, size).expect("valid"))
}

proptest! {
    #[test]
    fn a_copy_knows_the_digest_of_what_it_copied(
        image in images(),
        target in targets(),
        options in options(),
        digest in digests(),
        from_stream in any::<bool>(),
        to_stream in any::<bool>(),
    ) {
        let mut options = options;
        options.digest = Some(digest);
        let from = image.disk().into_arc();
        let bytes = from.bytes();
        let source = match from_stream {
            true => Source::Stream(Box::new(Input::new(bytes.clone(), End::Ends))),
            false => device(&from),
        };
        let to = target.disk(image.size).into_arc();
        let destination = match to_stream {
            true => Destination::Stream(Box::new(Output::new(usize::MAX))),
            false => to_device(&to),
        };
        let copied = run(copy(source, destination, &options, &Control::new(), &()));
        match copied {
            Ok(report) => {
                let computed = report.digest.expect("wanted").to_string();
                prop_assert_eq!(computed, naive_digest(&bytes, digest));
            }
            Err(error) => prop_assert_eq!(error.error.kind(), ErrorKind::Incompatible),
        }
    }

    #[test]
    fn a_good_copy_is_found_good_whatever_the_block_sizes(
        image in images(),
        target in targets(),
        options in options(),
    ) {
        let mut options = options;
        options.verify = true;
        let from = image.disk().into_arc();
        let to = target.disk(image.size).into_arc();
        match run(copy(device(&from), to_device(&to), &options, &Control::new(), &())) {
            Ok(report) => prop_assert!(report.verified),
            Err(error) => prop_assert_eq!(error.error.kind(), ErrorKind::Incompatible),
        }
    }
}

/// A disk that acknowledges one change and forgets it.
struct Forgetful {
    disk: Arc<Disk>,
    changes: AtomicUsize,
    forgotten: usize,
}

impl Forgetful {
    fn new(disk: Disk, forgotten: usize) -> Arc<Self> {
        Arc::new(Self {
            disk: disk.into_arc(),
            changes: AtomicUsize::new(0),
            forgotten,
        })
    }

    fn forgets(&self) -> bool {
        self.changes.fetch_add(1, Relaxed) == self.forgotten
    }
}

impl BlockDevice for Forgetful {
    fn info(&self) -> &DeviceInfo {
        self.disk.info()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.disk.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        match self.forgets() {
            true => Box::pin(async move { Ok(data) }),
            false => self.disk.write(offset, data, flags),
        }
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        match self.forgets() {
            true => Box::pin(async { Ok(()) }),
            false => self.disk.zero(range, flags),
        }
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.disk.flush()
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.disk.extents(range, context)
    }
}

#[tokio::test]
async fn a_write_that_was_acknowledged_and_forgotten_is_found() {
    // Blocks of 1 MiB in order, the 21st of them data or zero, and an odd rest.
    for zero in [false, true] {
        let mut bytes = pattern(40 * MIB + 77, 1);
        if zero {
            bytes[20 * MIB..21 * MIB].fill(0);
        }
        let mut options = CopyOptions::default();
        options.verify = true;
        options.order = Order::Ascending;
        options.request_size = Some(MIB as u32);
        let from = Disk::new(bytes).into_arc();
        let to = Forgetful::new(Disk::dirty(50 * MIB).named("forgetful"), 20);
        let error = copy_device(&from, &to, &options)
            .await
            .expect_err("differs");
        assert_eq!(error.side, Side::Destination);
        assert_eq!(error.error.kind(), ErrorKind::Mismatch);
        assert!(!error.error.is_transient());
        assert_eq!(error.error.operation(), Some(Operation::Read));
        assert_eq!(error.error.offset(), Some(16 << 20));
        assert_eq!(error.error.endpoint(), Some("forgetful"));
        let said = "in the 16777216 bytes at offset 16777216";
        assert!(error.to_string().contains(said), "{error}");

        let to = Forgetful::new(Disk::dirty(50 * MIB), usize::MAX);
        let report = copy_device(&from, &to, &options).await.expect("sound");
        assert!(report.verified);
        // Behind the image is what was there.
        assert!(
            to.disk.bytes()[40 * MIB + 77..]
                .iter()
                .all(|byte| *byte == 0xd1)
        );
    }
}

#[tokio::test]
async fn trust_in_a_destination_that_is_not_zero_is_found_misplaced() {
    let from = Disk::new(vec![0; 3 * MIB]).into_arc();
    let to = Disk::dirty(3 * MIB).into_arc();
    let mut options = CopyOptions::default();
    options.destination_is_zero = true;
    options.verify = true;
    let error = copy_device(&from, &to, &options)
        .await
        .expect_err("differs");
    assert_eq!(error.error.kind(), ErrorKind::Mismatch);
}

/// Keeps nothing.
struct Forgotten;

impl SaveDone for Forgotten {
    fn save(&self, _: &Done) -> BoxFuture<'static, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test]
async fn what_was_done_before_is_looked_at_and_not_written_again() {
    let size = 20 * MIB + 4321;
    let mut bytes = pattern(size, 1);
    bytes[7 * MIB..9 * MIB].fill(0);
    for order in [Order::Any, Order::Ascending] {
        let from = Disk::new(bytes.clone())
            .zero_extents([(7 << 20, 9 << 20)])
            .slow()
            .into_arc();
        let mut there = vec![0xd1; size];
        let done = [(1 << 20, 3 << 20), (6 << 20, 12 << 20)];
        for (start, end) in done {
            there[start..end].copy_from_slice(&bytes[start..end]);
        }
        let to = Disk::new(there).slow().into_arc();
        let mut options = CopyOptions::default();
        options.digest = Some(DigestOptions::default());
        options.verify = true;
        options.order = order;
        options.checkpoint = Some(Checkpoint {
            done: Done {
                ranges: done
                    .map(|(start, end)| ByteRange::between(start as u64, end as u64))
                    .into_iter()
                    .collect(),
                data: 6 << 20,
                zero: 2 << 20,
            },
            save: Arc::new(Forgotten),
        });
        let events = Recorder::default();
        let control = Control::new();
        let copied = copy(device(&from), to_device(&to), &options, &control, &events);
        let report = copied.await.expect("copied");
        assert!(report.verified && to.bytes() == bytes);
        let digest = report.digest.expect("wanted").to_string();
        assert_eq!(digest, naive_digest(&bytes, DigestOptions::default()));
        assert_eq!(report.resumed, 8 << 20);
        assert_eq!(events.progress().done, size as u64);
        let marks = to.marks();
        for (start, end) in done {
            let untouched = |mark: &Mark| *mark == Mark::Untouched;
            assert!(marks[start..end].iter().all(untouched), "{start} to {end}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_read_back_is_refused_before_anything_moves() {
    let from = Disk::new(pattern(MIB, 1)).into_arc();
    let mut options = CopyOptions::default();
    options.verify = true;
    let null: Arc<dyn BlockDevice> = Arc::new(NullDevice::new(0));
    let output = Output::new(usize::MAX);
    for to in [
        Destination::Device(null),
        Destination::Stream(Box::new(output.clone())),
    ] {
        let copied = copy(device(&from), to, &options, &Control::new(), &()).await;
        let error = copied.expect_err("not readable");
        assert_eq!(
            (error.side, error.error.kind()),
            (Side::Plan, ErrorKind::InvalidInput)
        );
    }
    assert_eq!(from.traffic.reads.load(Relaxed), 0);
}

#[tokio::test]
async fn it_is_read_back_through_several_connections_and_told_of() {
    let from = Disk::new(pattern(20 * MIB, 1)).into_arc();
    let to = Handle::sound(Disk::dirty(20 * MIB).slow());
    let mut options = evenly();
    options.verify = true;
    let events = Recorder::default();
    let control = Control::new();
    let copied = copy(device(&from), to_device(&to), &options, &control, &events);
    assert!(copied.await.expect("sound").verified);
    assert_eq!(to.users(Operation::Read).len(), 4);
    let size = 20 * MIB as u64;
    assert_eq!(events.progress().done, size);
    let told: Vec<_> = events
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Verifying { done, size } => Some((done, size)),
            _ => None,
        })
        .collect();
    assert_eq!(
        (told.first(), told.last()),
        (Some(&(0, size)), Some(&(size, size)))
    );
    assert!(told.is_sorted());
}

#[tokio::test]
async fn a_connection_that_is_lost_while_reading_back_is_done_without() {
    let from = Disk::new(pattern(20 * MIB, 1)).into_arc();
    let to = Handle::new(
        Disk::dirty(20 * MIB).slow(),
        Opening::Granted,
        death(4, Operation::Read, 0),
    );
    let mut options = evenly();
    options.verify = true;
    let events = Recorder::default();
    let control = Control::new();
    let copied = copy(device(&from), to_device(&to), &options, &control, &events);
    assert!(copied.await.expect("others are left").verified);
    assert_eq!(events.warnings(), 1);
}

#[tokio::test]
async fn a_destination_that_cannot_be_read_back_is_at_fault() {
    let from = Disk::new(pattern(MIB, 1)).into_arc();
    let to = Disk::dirty(MIB)
        .failing(|operation, _, _| (operation == Operation::Read).then_some(ErrorKind::Io));
    let mut options = CopyOptions::default();
    options.verify = true;
    let error = copy_device(&from, &to.into_arc(), &options)
        .await
        .expect_err("unreadable");
    assert_eq!(
        (error.side, error.error.kind()),
        (Side::Destination, ErrorKind::Io)
    );
    assert_eq!(error.progress.done, MIB as u64);
}

#[tokio::test]
async fn reading_back_can_be_cancelled() {
    let from = Disk::new(pattern(MIB, 1)).into_arc();
    let to = Disk::dirty(MIB).with(Capabilities::FLUSH).into_arc();
    let mut options = CopyOptions::default();
    options.verify = true;
    let control = Control::new();
    let at_once = control.clone();
    let observer = move |event: Event| {
        if let Event::Verifying { .. } = event {
            at_once.cancel();
        }
    };
    let copied = copy(device(&from), to_device(&to), &options, &control, &observer).await;
    assert_eq!(copied.expect_err("cancelled").side, Side::Cancelled);
}
