//! Images from strangers: whatever is in them, there is an answer or an error in one line, after few reads and with
//! little memory.

#![forbid(unsafe_code)]

mod images;

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, Error, ErrorKind, MemoryDevice, Operation, Result,
    WriteFlags, testing::FaultyDevice,
};
use blockferry_format::{
    Image, NoRelatives, OpenOptions,
    fuzzing::check_qcow2_header,
    qcow2::{self, CreateOptions, Details, SnapshotOptions, check},
};
use images::{Builder, DISK, Found, cases};

/// How many bytes of a disk are read at a time.
const PIECE: u64 = 64 << 10;
/// Of a larger disk only the beginning and the end are read.
const MOST: u64 = 16 * PIECE;
/// How often a file of 32 KiB may be read from, for all that is done with it.
const MOST_READS: u64 = 5000;

fn options(snapshot: Option<&str>) -> OpenOptions {
    let mut options = OpenOptions::default();
    options.snapshot = snapshot.map(str::to_owned);
    options
}

async fn open(below: &Arc<dyn BlockDevice>, snapshot: Option<&str>) -> Result<Arc<dyn Image>> {
    qcow2::open(Arc::clone(below), &NoRelatives, &options(snapshot)).await
}

/// Asks for all extents of the disk in one context, as far as it goes.
async fn walk(image: &dyn Image, context: &Context) -> Result<()> {
    let size = image.info().size;
    let mut at = 0;
    for _ in 0..10_000 {
        if at == size {
            break;
        }
        let range = ByteRange::between(at, size);
        let extents = image.extents(range, context).await?;
        assert!(!extents.is_empty(), "{context} at {at}");
        for extent in extents {
            assert_eq!(extent.range.start(), at, "{context}");
            assert!(!extent.range.is_empty() && extent.range.end() <= size);
            at = extent.range.end();
        }
    }
    Ok(())
}

async fn read(image: &dyn Image) -> Result<()> {
    let size = image.info().size;
    let mut pieces: Vec<_> = match size {
        0..=MOST => ByteRange::between(0, size).pieces(PIECE).collect(),
        _ => vec![
            ByteRange::between(0, PIECE),
            ByteRange::between(size - PIECE, size),
        ],
    };
    pieces.push(ByteRange::between(size / 2, size / 2 + size.min(3) / 2));
    for piece in pieces {
        let buffer = Buffer::zeroed(piece.len() as usize);
        image.read(piece.start(), buffer).await?;
    }
    Ok(())
}

/// Does everything with an image that is not to be written, and says where that ended and how.
async fn look(below: &Arc<dyn BlockDevice>, found: Found) -> (Found, Result<()>) {
    let snapshot = match found {
        Found::Snapshot(name) => Some(name),
        _ => None,
    };
    let image = match open(below, snapshot).await {
        Ok(image) => image,
        Err(error) if snapshot.is_some() => return (found, Err(error)),
        Err(error) => return (Found::Open, Err(error)),
    };
    if let Found::Bitmap(name) = found {
        let context = Context::DirtyBitmap(name.to_owned());
        return (found, walk(&*image, &context).await);
    }
    let read = read(&*image).await;
    for context in image.info().contexts.clone() {
        // Contexts may know less of the damage than a read finds.
        let walked = walk(&*image, &context).await;
        if let (Err(error), Context::Allocation, true) = (&walked, &context, read.is_ok()) {
            panic!("{context} fails where reading does not: {error}");
        }
    }
    let _ = image.details();
    match read {
        Ok(()) => (Found::Nowhere, Ok(())),
        Err(error) => (Found::Read, Err(error)),
    }
}

fn is_one_line(error: &Error) -> bool {
    !error.to_string().chars().any(char::is_control)
}

fn device(bytes: Vec<u8>) -> Arc<FaultyDevice> {
    Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes))))
}

/// The most memory that this process has had, in KiB.
fn most_memory() -> u64 {
    most("VmHWM:")
}

/// The largest of one of the numbers that the system has of this process, in KiB.
fn most(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find(|line| line.starts_with(key));
    let word = line.and_then(|line| line.split_whitespace().nth(1));
    word.and_then(|word| word.parse().ok()).expect("a number")
}

#[tokio::test]
async fn a_request_of_very_many_pieces_takes_little_memory() {
    const SIZE: u64 = 16 << 20;
    let below = Arc::new(MemoryDevice::new(0).growable());
    let mut options = CreateOptions::default();
    (options.size, options.cluster_size) = (Some(SIZE), 512);
    let new = qcow2::create(below.clone(), options).await;
    let new = new.expect("begun");
    for at in (0..SIZE).step_by(1024) {
        let data = Buffer::from(&[0x55; 512][..]);
        let written = new.write(at, data, WriteFlags::empty()).await;
        written.expect("written");
    }
    new.finish().await.expect("finished");
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes(below.contents()));
    let image = open(&below, None).await.expect("sound");
    let read = image.read(0, Buffer::zeroed(SIZE as usize)).await;
    let read = read.expect("read");
    assert_eq!((read[511], read[512], read[1024]), (0x55, 0, 0x55));
    // Also what is asked for and not used: not every system gives it.
    let memory = most("VmPeak:");
    assert!(memory < 3 << 20, "{memory} KiB");
}

#[tokio::test]
async fn every_lie_ends_in_one_line() {
    let mut wrong = Vec::new();
    for case in cases() {
        let counted = device(case.image);
        let below: Arc<dyn BlockDevice> = Arc::clone(&counted) as _;
        let (found, result) = look(&below, case.found).await;
        let said = match &result {
            Ok(()) => String::new(),
            Err(error) => {
                assert!(is_one_line(error), "{}: {error}", case.name);
                error.to_string()
            }
        };
        if (found, &*said) != (case.found, case.error) {
            wrong.push(format!("{}: {found:?} {said:?}", case.name));
        }
        let reads = counted.calls(Operation::Read);
        assert!(reads < MOST_READS, "{}: {reads} reads", case.name);
        // A check says what is wrong, or why it cannot.
        if let Err(error) = check(&*below).await {
            assert!(is_one_line(&error), "{}: {error}", case.name);
        }
        if let Err(error) = Details::read(&below).await {
            assert!(is_one_line(&error), "{}: {error}", case.name);
        }
        let reads = counted.calls(Operation::Read);
        assert!(
            reads < 2 * MOST_READS,
            "{}: {reads} reads in all",
            case.name
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let memory = most_memory();
    assert!(memory < 256 << 10, "{memory} KiB");
}

#[tokio::test]
async fn a_file_cut_short_anywhere_is_an_error_or_what_is_left() {
    let whole = Builder::sound().rich().build();
    let size = whole.len();
    let lengths = (0..600).chain((600..size).step_by(251));
    for length in lengths.chain((0..=size).step_by(512)) {
        let below: Arc<dyn BlockDevice> = device(whole[..length].to_vec());
        for found in [Found::Nowhere, Found::Snapshot("s"), Found::Bitmap("b")] {
            let (_, result) = look(&below, found).await;
            if let Err(error) = &result {
                assert!(is_one_line(error), "{length}: {error}");
                let expected = [ErrorKind::Corrupt, ErrorKind::UnexpectedEnd];
                assert!(expected.contains(&error.kind()), "{length}: {error:?}");
            }
            assert!(
                length < size || result.is_ok(),
                "the whole of it is sound: {result:?}"
            );
        }
        let _ = check(&*below).await;
    }
}

/// Whether nothing is wrong with the image in `bytes`.
async fn is_clean(bytes: &[u8]) -> bool {
    let report = check(&MemoryDevice::from_bytes(bytes)).await;
    report.is_ok_and(|report| report.is_clean())
}

/// Makes, goes back to and deletes a snapshot of the image in `bytes`, each of its own copy.
async fn change_snapshots(what: &str, bytes: &[u8]) {
    let was_clean = is_clean(bytes).await;
    for turn in 0..4 {
        let file = Arc::new(MemoryDevice::from_bytes(bytes).growable());
        let counted = Arc::new(FaultyDevice::new(file.clone()));
        let below: Arc<dyn BlockDevice> = Arc::clone(&counted) as _;
        let options = SnapshotOptions::default();
        let changed = match turn {
            0 => qcow2::create_snapshot(below, "new", &options).await,
            1 => qcow2::apply_snapshot(below, "s", &options).await,
            2 => qcow2::delete_snapshot(below, "s", &options).await,
            _ => qcow2::delete_snapshot(below, "1", &options).await,
        };
        if let Err(error) = changed {
            assert!(is_one_line(&error), "{what}: {error}");
        }
        let reads = counted.calls(Operation::Read);
        assert!(reads < 2 * MOST_READS, "{what}, {turn}: {reads} reads");
        if was_clean {
            assert!(is_clean(&file.contents()).await, "{what}, {turn}");
        }
    }
}

#[tokio::test]
async fn snapshots_of_an_image_that_lies_are_refused_or_made_in_few_reads() {
    for case in cases() {
        change_snapshots(case.name, &case.image).await;
    }
    let whole = Builder::sound().rich().build();
    let tables = (4096..whole.len()).step_by(4096).flat_map(|at| at..at + 72);
    for place in (0..112).chain(tables) {
        for value in [0, 0x81] {
            let mut bytes = whole.clone();
            bytes[place] = value;
            change_snapshots(&format!("{place} {value}"), &bytes).await;
        }
    }
    let memory = most_memory();
    assert!(memory < 256 << 10, "{memory} KiB");
}

#[tokio::test]
async fn a_small_file_with_a_huge_disk_is_refused_where_that_is_wished() {
    let below: Arc<dyn BlockDevice> = device(Builder::huge().build());
    let size = open(&below, None).await.expect("sparse").info().size;
    assert_eq!(size, 1 << 43);
    let mut limited = OpenOptions::default();
    limited.max_size = Some(1 << 40);
    let refused = qcow2::open(Arc::clone(&below), &NoRelatives, &limited).await;
    let Err(error) = refused else {
        panic!("it is too large");
    };
    let error = error.to_string();
    assert!(
        error.contains("8.0 TiB is above the bound of 1.0 TiB"),
        "{error}"
    );
    limited.max_size = Some(1 << 43);
    let image = qcow2::open(below, &NoRelatives, &limited).await;
    image.expect("just so large");
}

#[tokio::test]
async fn every_byte_of_the_tables_may_be_anything() {
    let whole = Builder::sound().rich().build();
    // The header and its extensions, and the beginnings of all tables.
    let places = (0..256).chain(
        (4096..whole.len())
            .step_by(4096)
            .flat_map(|start| start..start + 72),
    );
    for place in places {
        for value in [0, 0x81, 0xff] {
            let mut bytes = whole.clone();
            bytes[place] = value;
            let counted = device(bytes);
            let below: Arc<dyn BlockDevice> = Arc::clone(&counted) as _;
            for found in [Found::Nowhere, Found::Snapshot("s"), Found::Bitmap("b")] {
                if let (_, Err(error)) = look(&below, found).await {
                    assert!(is_one_line(&error), "{place} {value}: {error}");
                }
            }
            let _ = check(&*below).await;
            let reads = counted.calls(Operation::Read);
            assert!(reads < 4 * MOST_READS, "{place} {value}: {reads} reads");
        }
    }
    assert!(whole.len() as u64 <= DISK);
}

#[test]
fn a_header_that_is_read_is_written_again_as_it_was() {
    let rich = Builder::sound().rich();
    let wholes = [
        rich.clone().build(),
        rich.backing(b"base", Some("raw")).build(),
        Builder::sound().data_file(b"data").build(),
        Builder::huge().build(),
    ];
    for whole in wholes {
        for place in (0..256).chain(2040..2060) {
            for value in 0..=255 {
                let mut bytes = whole[..4096].to_vec();
                bytes[place] = value;
                check_qcow2_header(&bytes);
            }
        }
    }
}
