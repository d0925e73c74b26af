//! Bytes that come over from another file: which they are, and when they do not.

#![allow(clippy::print_stdout, reason = "a test that is skipped says why")]

use std::{
    env, fs,
    fs::File,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use blockferry_block::{
    Access, BlockDevice, Buffer, ByteRange, Capabilities, Context, CopyFlags, ErrorKind,
    FileDevice, FileRange, MemoryDevice, Operation, Result, Status, WriteFlags, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule},
};

/// Where the full disk of a child process is.
const FULL: &str = "BLOCKFERRY_TEST_FULL_DISK";

const MEMORY: &str = "/dev/shm";

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::between(start, end)
}

fn sample(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at % 251) as u8 ^ (at >> 12) as u8)
        .collect()
}

/// A file with these bytes, and all of it as a source.
fn source_in(directory: &Path, bytes: &[u8]) -> (tempfile::NamedTempFile, FileRange) {
    let file = tempfile::NamedTempFile::new_in(directory).expect("a file");
    fs::write(file.path(), bytes).expect("written");
    let open = File::open(file.path()).expect("opened");
    let whole = range(0, bytes.len() as u64);
    (file, FileRange::new(OwnedFd::from(open), whole))
}

/// Takes `source` over, as one does who may be refused: reading and writing then.
async fn take(device: &FileDevice, offset: u64, source: &FileRange, flags: CopyFlags) -> bool {
    match device.copy_from(offset, source.clone(), flags).await {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!(error.operation(), Some(Operation::Copy));
            let bytes = read_source(source);
            let write = device.write(offset, Buffer::from(&bytes[..]), WriteFlags::empty());
            write.await.expect("written");
            false
        }
    }
}

fn read_source(source: &FileRange) -> Vec<u8> {
    use std::os::{fd::AsFd, unix::fs::FileExt};
    let file = File::from(source.as_fd().try_clone_to_owned().expect("duplicated"));
    let mut bytes = vec![0; source.range().len() as usize];
    file.read_exact_at(&mut bytes, source.range().start())
        .expect("read");
    bytes
}

/// Directories of the file systems that tests can write to: one that is most likely on a disk, one in
/// memory.
fn directories() -> Vec<tempfile::TempDir> {
    let mut list = vec![tempfile::tempdir().expect("a directory")];
    if Path::new(MEMORY).is_dir() {
        list.push(tempfile::tempdir_in(MEMORY).expect("a directory"));
    }
    list
}

#[tokio::test]
async fn ragged_ranges_arrive_to_the_byte_and_nothing_beside_them_changes() {
    let bytes = sample(3_000_001);
    for directory in directories() {
        let (_file, whole) = source_in(directory.path(), &bytes);
        for (part, offset) in [
            (range(0, 3_000_001), 0),
            (range(1, 3_000_000), 1),
            (range(4095, 4097), 8191),
            (range(4096, 12_288), 8192),
            (range(5000, 2_000_000), 5000 + 8192),
            (range(100, 2_500_000), 4097),
            (range(2_999_990, 3_000_001), 40),
            (range(77, 77), 123),
        ] {
            let path = directory.path().join("copy");
            fs::write(&path, vec![0xee; 3_100_000]).expect("written");
            let device = FileDevice::open(&path, Access::ReadWrite).expect("opened");
            let source = whole.with_range(part);
            let copied = device.copy_from(offset, source, CopyFlags::FUA).await;
            copied.expect("one file system");
            let mut expected = vec![0xee; 3_100_000];
            let at = offset as usize;
            expected[at..][..part.len() as usize]
                .copy_from_slice(&bytes[part.start() as usize..part.end() as usize]);
            assert!(fs::read(&path).expect("read") == expected, "{part} to {at}");
        }
    }
}

#[tokio::test]
async fn a_copy_past_the_end_makes_the_file_longer() {
    let bytes = sample(100_000);
    for directory in directories() {
        let (_file, source) = source_in(directory.path(), &bytes);
        let path = directory.path().join("copy");
        let device = FileDevice::create(&path).expect("created");
        let copied = device.copy_from(10_000, source.clone(), CopyFlags::empty());
        copied.await.expect("copied");
        let read = device.read(9_999, Buffer::zeroed(100_001)).await;
        let read = read.expect("the device knows that it has grown");
        assert!(read[0] == 0 && read[1..] == bytes[..]);
        assert_eq!(fs::metadata(&path).expect("facts").len(), 110_000);
        device.flush().await.expect("flushed");

        let fixed = FileDevice::open(&path, Access::ReadWrite).expect("opened");
        let copied = fixed.copy_from(10_001, source, CopyFlags::empty()).await;
        let error = copied.expect_err("one byte too long");
        assert_eq!(error.kind(), ErrorKind::OutOfBounds);
        assert_eq!(
            (error.offset(), error.length()),
            (Some(10_001), Some(100_000))
        );
        assert_eq!(fs::metadata(&path).expect("facts").len(), 110_000);
    }
}

#[tokio::test]
async fn holes_of_the_source_arrive_as_zeroes_over_what_was_there() {
    for directory in directories() {
        let (file, source) = source_in(directory.path(), &sample(1 << 20));
        let punching = FileDevice::open(file.path(), Access::ReadWrite).expect("opened");
        let hole = range(100_000, 900_000);
        punching
            .zero(hole, ZeroFlags::empty())
            .await
            .expect("zeroed");
        let path = directory.path().join("copy");
        fs::write(&path, vec![1; 1 << 20]).expect("written");
        let device = FileDevice::open(&path, Access::ReadWrite).expect("opened");
        let all = range(0, 1 << 20);
        let before = device.extents(all, &Context::Allocation).await;
        assert_eq!(before.expect("extents")[0].status, Status::DATA);
        let copied = device.copy_from(0, source, CopyFlags::empty()).await;
        copied.expect("copied");
        let bytes = fs::read(&path).expect("read");
        assert!(bytes == fs::read(file.path()).expect("read"));
        // What is called a hole is one: what was known of the data before is forgotten.
        let extents = device.extents(all, &Context::Allocation).await;
        for extent in extents.expect("extents") {
            let at = extent.range.start() as usize..extent.range.end() as usize;
            assert!(extent.status == Status::DATA || bytes[at].iter().all(|byte| *byte == 0));
        }
    }
}

#[tokio::test]
async fn allocating_leaves_no_hole_or_is_not_supported() {
    for directory in directories() {
        let (file, source) = source_in(directory.path(), &[]);
        file.as_file().set_len(1 << 20).expect("one hole");
        let path = directory.path().join("copy");
        let device = FileDevice::create(&path).expect("created");
        let source = source.with_range(range(0, 1 << 20));
        match device.copy_from(0, source, CopyFlags::ALLOCATE).await {
            Ok(()) => {
                device.flush().await.expect("flushed");
                let facts = fs::metadata(&path).expect("facts");
                assert!(facts.len() == 1 << 20 && facts.blocks() * 512 >= 1 << 20);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert_eq!(fs::metadata(&path).expect("facts").len(), 0);
            }
        }
    }
}

#[tokio::test]
async fn sharing_takes_all_over_or_changes_nothing() {
    for directory in directories() {
        let bytes = sample((1 << 20) + 9);
        let (_file, whole) = source_in(directory.path(), &bytes);
        let path = directory.path().join("copy");
        fs::write(&path, vec![1; 1 << 20]).expect("written");
        let device = FileDevice::open(&path, Access::ReadWrite).expect("opened");
        let device = device.growable();
        for (source, offset, aligned) in [
            (whole.clone(), 0, true),
            (whole.clone(), 0, true),
            (whole.with_range(range(1, 1 << 20)), 0, false),
            (whole.with_range(range(0, 10)), 0, false),
        ] {
            fs::write(&path, vec![1; 1 << 20]).expect("written");
            let length = source.range().len() as usize;
            match device.copy_from(offset, source, CopyFlags::SHARE).await {
                Ok(()) => {
                    assert!(aligned);
                    assert!(fs::read(&path).expect("read")[..length] == bytes[..length]);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                    assert!(fs::read(&path).expect("read") == vec![1; 1 << 20]);
                }
            }
        }
        // Who cannot share copies all the same.
        let copied = device.copy_from(0, whole, CopyFlags::empty()).await;
        copied.expect("copied");
        assert!(fs::read(&path).expect("read") == bytes);
        let refused = device.copy_from(
            0,
            source_in(directory.path(), &bytes).1,
            CopyFlags::SHARE | CopyFlags::ALLOCATE,
        );
        let error = refused.await.expect_err("one or the other");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}

#[tokio::test]
async fn a_source_that_shrank_ends_unexpectedly() {
    for directory in directories() {
        let (file, source) = source_in(directory.path(), &sample(100_000));
        file.as_file().set_len(60_000).expect("cut");
        let device = FileDevice::create(&directory.path().join("copy")).expect("created");
        for (part, end) in [
            (range(50_000, 100_000), 60_000),
            (range(60_000, 60_001), 60_000),
        ] {
            let copied = device.copy_from(0, source.with_range(part), CopyFlags::empty());
            let error = copied.await.expect_err("it is gone");
            assert_eq!(error.kind(), ErrorKind::UnexpectedEnd);
            let message = error.to_string();
            let said = format!("the source shrank: it ends at offset {end}");
            assert!(message.ends_with(&said), "{message}");
        }
        // That was the source's fault: the next one is welcome.
        let rest = source.with_range(range(0, 60_000));
        let copied = device.copy_from(0, rest, CopyFlags::empty()).await;
        copied.expect("copied");
    }
}

#[tokio::test]
async fn between_file_systems_the_contents_arrive_all_the_same() {
    let directories = directories();
    let [disk, memory] = &directories[..] else {
        println!("skipped: there is no {MEMORY}");
        return;
    };
    let bytes = sample(200_000);
    for (from, to) in [(disk, memory), (memory, disk)] {
        let (_file, source) = source_in(from.path(), &bytes);
        let path = to.path().join("copy");
        let device = FileDevice::create(&path).expect("created");
        let mut ways = Vec::new();
        for _ in 0..3 {
            ways.push(take(&device, 5, &source, CopyFlags::empty()).await);
            let written = fs::read(&path).expect("read");
            assert!(written[..5] == [0; 5] && written[5..] == bytes[..]);
        }
        assert!(ways.iter().all(|way| *way == ways[0]), "it is remembered");
        // Nobody else is refused for that.
        let (_file, neighbour) = source_in(to.path(), &bytes);
        let copied = device.copy_from(0, neighbour, CopyFlags::empty()).await;
        copied.expect("one file system");
        assert!(fs::read(&path).expect("read")[..200_000] == bytes[..]);
    }
}

#[tokio::test]
async fn the_mapping_of_a_file_is_a_source() {
    let directory = tempfile::tempdir().expect("a directory");
    let bytes = sample(50_000);
    let (file, _) = source_in(directory.path(), &bytes);
    let device = FileDevice::open(file.path(), Access::ReadOnly).expect("opened");
    let asked = device.mapping(range(40_000, 90_000));
    let source = asked.to_file().expect("duplicated").expect("a file");
    assert_eq!(source.range(), range(40_000, 50_000));
    drop(device);
    let path = directory.path().join("copy");
    let copy = FileDevice::create(&path).expect("created");
    let copied = copy.copy_from(0, source, CopyFlags::empty()).await;
    copied.expect("the source is still open");
    assert!(fs::read(&path).expect("read") == bytes[40_000..]);

    let memory = MemoryDevice::new(100);
    assert!(
        memory
            .mapping(range(0, 10))
            .to_file()
            .expect("none")
            .is_none()
    );
}

#[tokio::test]
async fn who_cannot_take_bytes_over_says_so_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (file, source) = source_in(directory.path(), &[7; 5000]);
    let part = source.with_range(range(0, 100));
    let kind = |result: Result<()>| result.expect_err("refused").kind();

    let memory = MemoryDevice::new(100);
    assert!(!memory.info().can(Capabilities::COPY_FROM));
    let copied = memory.copy_from(0, part.clone(), CopyFlags::empty()).await;
    assert_eq!(kind(copied), ErrorKind::Unsupported);

    let read_only = FileDevice::open(file.path(), Access::ReadOnly).expect("opened");
    assert!(!read_only.info().can(Capabilities::COPY_FROM));
    let copied = read_only.copy_from(0, part.clone(), CopyFlags::empty());
    assert_eq!(kind(copied.await), ErrorKind::ReadOnly);

    let path = directory.path().join("copy");
    let device = FileDevice::create(&path).expect("created");
    assert!(device.info().can(Capabilities::COPY_FROM));
    let copied = device.copy_from(u64::MAX, part, CopyFlags::empty()).await;
    assert_eq!(kind(copied), ErrorKind::OutOfBounds);
    let null = OwnedFd::from(File::open("/dev/null").expect("opened"));
    let null = FileRange::new(null, range(0, 100));
    let copied = device.copy_from(0, null, CopyFlags::empty()).await;
    assert_eq!(kind(copied), ErrorKind::Unsupported);
    assert_eq!(fs::metadata(&path).expect("facts").len(), 0);
}

#[tokio::test]
async fn faults_meet_copies_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_file, source) = source_in(directory.path(), &[7; 5000]);
    let path = directory.path().join("copy");
    let device = FaultyDevice::new(Arc::new(FileDevice::create(&path).expect("created"))).with(
        Rule::on(Operation::Copy)
            .times(1)
            .fault(Fault::Error(ErrorKind::Io)),
    );
    let copied = device
        .copy_from(0, source.clone(), CopyFlags::empty())
        .await;
    assert_eq!(copied.expect_err("a fault").kind(), ErrorKind::Io);
    let copied = device.copy_from(0, source, CopyFlags::empty()).await;
    copied.expect("no fault");
    assert_eq!(device.calls(Operation::Copy), 2);
    assert_eq!(fs::read(path).expect("read"), [7; 5000]);
}

#[test]
fn a_copy_needs_no_async_runtime_and_many_run_side_by_side() {
    let directory = tempfile::tempdir().expect("a directory");
    let bytes = sample(8 << 20);
    let (_file, whole) = source_in(directory.path(), &bytes);
    let path = directory.path().join("copy");
    let device = Arc::new(FileDevice::create(&path).expect("created"));
    let pieces: Vec<_> = whole.range().pieces(300_000).collect();
    let (alone, together) = pieces.split_at(3);
    for piece in alone {
        let copied = device.copy_from(piece.start(), whole.with_range(*piece), CopyFlags::empty());
        let mut copied = std::pin::pin!(copied);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let copied = copied.as_mut().poll(&mut context);
        assert!(matches!(copied, std::task::Poll::Ready(Ok(()))));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for piece in together.iter().copied() {
            let (device, source) = (Arc::clone(&device), whole.with_range(piece));
            tasks.spawn(async move {
                let copied = device.copy_from(piece.start(), source, CopyFlags::empty());
                copied.await
            });
        }
        while let Some(copied) = tasks.join_next().await {
            copied.expect("no panic").expect("copied");
        }
    });
    assert!(fs::read(path).expect("read") == bytes);
}

/// The disk is full where a limit on the size of files says so; that limit is a whole process's, so the
/// test runs itself in a child that has one.
#[test]
fn a_full_disk_is_no_space_and_what_fits_has_arrived() {
    if let Some(directory) = env::var_os(FULL) {
        fill(&PathBuf::from(directory));
        return;
    }
    // In memory where there is such a place: not every file system copies on demand.
    let directory = directories().pop().expect("a directory");
    fs::write(directory.path().join("source"), sample(2 << 20)).expect("written");
    // 1 MiB in blocks of 512 bytes; without `trap` the limit is a signal that kills.
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ && ulimit -f 2048 && exec \"$@\"", "sh"])
        .arg(env::current_exe().expect("this test"))
        .args([
            "--exact",
            "a_full_disk_is_no_space_and_what_fits_has_arrived",
        ])
        .env(FULL, directory.path())
        .output()
        .expect("a child");
    assert!(child.status.success(), "{child:?}");
    let copy = fs::read(directory.path().join("copy")).expect("read");
    assert!(copy[..] == sample(2 << 20)[..1 << 20]);
}

fn fill(directory: &Path) {
    let open = File::open(directory.join("source")).expect("opened");
    let source = FileRange::new(OwnedFd::from(open), range(0, 2 << 20));
    let device = FileDevice::create(&directory.join("copy")).expect("created");
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let copied = device.copy_from(0, source, CopyFlags::empty());
    let error = runtime.expect("a runtime").block_on(copied);
    let error = error.expect_err("too much");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!((error.offset(), error.length()), (Some(0), Some(2 << 20)));
}
