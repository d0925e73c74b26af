//! Files through `FileDevice`: what is refused, what grows, what is a hole.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use blockferry_block::{
    Access, BlockDevice, Buffer, ByteRange, Capabilities, Context, ErrorKind, Extent, FileDevice,
    Mapping, Operation, Status, WriteFlags, ZeroFlags,
};

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::between(start, end)
}

async fn extents(device: &FileDevice, asked: ByteRange) -> Vec<Extent> {
    device
        .extents(asked, &Context::Allocation)
        .await
        .expect("extents")
}

#[tokio::test]
async fn a_created_file_grows_as_it_is_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.img");
    let device = FileDevice::create(&path).expect("created");
    assert!(
        device
            .info()
            .can(Capabilities::RESIZE | Capabilities::BORN_ZERO)
    );
    let data = Buffer::from(&[7; 5000][..]);
    device
        .write(10_000, data, WriteFlags::FUA)
        .await
        .expect("written");
    device.flush().await.expect("flushed");
    let read = device.read(9_999, Buffer::zeroed(5001)).await;
    let read = read.expect("what was written can be read");
    assert_eq!((read[0], read[1], read[5000]), (0, 7, 7));
    assert_eq!(fs::metadata(&path).expect("facts").len(), 15_000);
    assert_eq!(device.info().size, 0, "the description does not change");
}

#[tokio::test]
async fn creating_empties_an_existing_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.img");
    fs::write(&path, [1; 100]).expect("written");
    let device = FileDevice::create(&path).expect("created");
    assert_eq!(device.info().size, 0);
    assert_eq!(fs::metadata(&path).expect("facts").len(), 0);
}

/// The device of a file of 100 bytes that is to be replaced.
fn replacing(path: &Path) -> FileDevice {
    fs::write(path, [1; 100]).expect("written");
    let file = fs::File::options().read(true).write(true).open(path);
    FileDevice::replacing(file.expect("opened"), "old").expect("a device")
}

#[tokio::test]
async fn a_file_to_be_replaced_loses_its_contents_with_the_first_change() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.img");
    let device = replacing(&path);
    assert_eq!(device.info().size, 0);
    let growing = Capabilities::RESIZE | Capabilities::BORN_ZERO;
    assert!(device.info().can(growing));
    device.flush().await.expect("flushed");
    assert_eq!(fs::read(&path).expect("read"), [1; 100]);
    let data = Buffer::from(&[7; 5][..]);
    let write = device.write(10, data, WriteFlags::empty());
    write.await.expect("written");
    let expected = [[0; 10].as_slice(), &[7; 5]].concat();
    assert_eq!(fs::read(&path).expect("read"), expected);

    for size in [0, 50, 150] {
        replacing(&path).resize(size).await.expect("resized");
        let expected = vec![0; size as usize];
        assert_eq!(fs::read(&path).expect("read"), expected);
    }
    let zero = replacing(&path);
    let zero = zero.zero(range(20, 40), ZeroFlags::empty());
    zero.await.expect("zeroed");
    assert_eq!(fs::read(&path).expect("read"), [0; 40]);
}

#[tokio::test]
async fn a_size_that_no_file_can_have_leaves_the_old_contents() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.img");
    let device = replacing(&path);
    // ext4 stops at 16 TiB; others take it, and all of it is a hole.
    if let Err(error) = device.resize(i64::MAX as u64 - 4095).await {
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(fs::read(&path).expect("read"), [1; 100]);
    }
}

#[tokio::test]
async fn a_file_that_shrank_ends_unexpectedly() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(10_000).expect("sized");
    let device = FileDevice::open(file.path(), Access::ReadOnly).expect("opened");
    file.as_file().set_len(4_100).expect("cut");
    let error = device.read(4_000, Buffer::zeroed(1_000)).await;
    let error = error.expect_err("it is gone");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEnd);
    assert_eq!(
        error.to_string(),
        "read of 1000 bytes at offset 4000: the file shrank: it ends at offset 4100"
    );
    // And what is gone is not called a hole.
    let known = extents(&device, range(0, 10_000)).await;
    let last = known.last().expect("an answer");
    assert_eq!((last.range.end(), last.status), (10_000, Status::DATA));
}

#[tokio::test]
async fn a_fixed_file_neither_grows_nor_reads_past_its_end() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(100).expect("sized");
    let device = FileDevice::open(file.path(), Access::ReadWrite).expect("opened");
    let write = device.write(99, Buffer::zeroed(2), WriteFlags::empty());
    let error = write.await.expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::OutOfBounds);
    let error = device.read(99, Buffer::zeroed(2)).await.expect_err("same");
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::OutOfBounds, Some(Operation::Read))
    );
    let error = device.resize(200).await.expect_err("fixed");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let device = device.growable();
    device.resize(200).await.expect("growable");
    let write = device.write(250, Buffer::zeroed(2), WriteFlags::empty());
    write.await.expect("grows");
    assert_eq!(file.as_file().metadata().expect("facts").len(), 252);
}

#[tokio::test]
async fn a_read_only_device_takes_no_change() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(8192).expect("sized");
    let device = FileDevice::open(file.path(), Access::ReadOnly).expect("opened");
    let write = device.write(0, Buffer::zeroed(2), WriteFlags::empty());
    assert_eq!(
        write.await.expect_err("read-only").kind(),
        ErrorKind::ReadOnly
    );
    let zero = device.zero(range(0, 10), ZeroFlags::empty());
    assert_eq!(
        zero.await.expect_err("read-only").kind(),
        ErrorKind::ReadOnly
    );
    let trim = device.trim(range(0, 10), WriteFlags::empty());
    assert_eq!(
        trim.await.expect_err("read-only").kind(),
        ErrorKind::ReadOnly
    );
    device.flush().await.expect("nothing to flush");
}

#[tokio::test]
async fn zeroing_frees_space_unless_told_not_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.img");
    let device = FileDevice::create(&path).expect("created");
    let data = Buffer::from(&[7; 1 << 20][..]);
    device
        .write(0, data, WriteFlags::empty())
        .await
        .expect("written");
    device.flush().await.expect("flushed");
    let occupied = |path: &Path| fs::metadata(path).expect("facts").blocks() * 512;
    let full = occupied(&path);
    let half = range(100, 512 << 10);
    match device.zero(half, ZeroFlags::NO_HOLE).await {
        Ok(()) => assert!(occupied(&path) >= 1 << 20),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
    }
    device
        .zero(half, ZeroFlags::FUA)
        .await
        .expect("the file system can punch holes");
    assert!(occupied(&path) <= full - (256 << 10));
    let read = device.read(0, Buffer::zeroed(1 << 20)).await.expect("read");
    assert!(read[..100].iter().all(|byte| *byte == 7));
    assert!(read[100..512 << 10].iter().all(|byte| *byte == 0));
    assert!(read[512 << 10..].iter().all(|byte| *byte == 7));
    let trimmed = range(768 << 10, 1 << 20);
    let before = occupied(&path);
    let trim = device.trim(trimmed, WriteFlags::empty());
    trim.await.expect("trimmed");
    assert!(occupied(&path) <= before - (128 << 10));
    assert_eq!(fs::metadata(&path).expect("facts").len(), 1 << 20);
}

#[tokio::test]
async fn zeroing_past_the_end_only_makes_the_file_longer() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.img");
    let device = FileDevice::create(&path).expect("created");
    let data = Buffer::from(&[7; 8192][..]);
    device
        .write(0, data, WriteFlags::empty())
        .await
        .expect("written");
    device
        .zero(range(4096, 1 << 30), ZeroFlags::FAST)
        .await
        .expect("zeroed");
    let facts = fs::metadata(&path).expect("facts");
    assert_eq!(facts.len(), 1 << 30);
    assert!(facts.blocks() * 512 <= 64 << 10);
    let read = device.read(0, Buffer::zeroed(8192)).await.expect("read");
    assert_eq!((read[4095], read[4096]), (7, 0));
}

#[tokio::test]
async fn extents_are_the_holes_of_the_file() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(4 << 20).expect("sized");
    let device = FileDevice::open(file.path(), Access::ReadWrite).expect("opened");
    let data = Buffer::from(&[1; 1 << 20][..]);
    device
        .write(1 << 20, data, WriteFlags::empty())
        .await
        .expect("written");
    let expected = [
        (range(0, 1 << 20), Status::HOLE_ZERO),
        (range(1 << 20, 2 << 20), Status::DATA),
        (range(2 << 20, 4 << 20), Status::HOLE_ZERO),
    ]
    .map(|(range, status)| Extent { range, status });
    assert_eq!(extents(&device, range(0, 4 << 20)).await, expected);
    let inside = extents(&device, range((1 << 20) + 5, (1 << 20) + 6)).await;
    assert_eq!(inside[0].range, range((1 << 20) + 5, (1 << 20) + 6));
    assert!(extents(&device, range(5, 5)).await.is_empty());
}

#[tokio::test]
async fn holes_that_come_after_the_data_was_looked_up_are_seen() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), vec![1; 1 << 20]).expect("written");
    let device = FileDevice::open(file.path(), Access::ReadWrite).expect("opened");
    let extent = |start, end, status| Extent {
        range: range(start, end),
        status,
    };
    let data = extent(0, 1 << 20, Status::DATA);
    assert_eq!(extents(&device, range(0, 1 << 20)).await, [data]);
    let part = extent(5000, 6000, Status::DATA);
    assert_eq!(extents(&device, range(5000, 6000)).await, [part]);
    let middle = range(1 << 18, 1 << 19);
    device
        .zero(middle, ZeroFlags::empty())
        .await
        .expect("zeroed");
    let hole = extent(1 << 18, 1 << 19, Status::HOLE_ZERO);
    assert_eq!(extents(&device, middle).await, [hole]);
    let all = [
        extent(0, 1 << 18, Status::DATA),
        hole,
        extent(1 << 19, 1 << 20, Status::DATA),
    ];
    assert_eq!(extents(&device, range(0, 1 << 20)).await, all);
}

#[tokio::test]
async fn an_answer_about_extents_is_bounded() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(12_000 * 4096).expect("sized");
    let device = FileDevice::open(file.path(), Access::ReadWrite).expect("opened");
    for page in (0..12_000).step_by(2) {
        let data = Buffer::from(&[1; 4096][..]);
        let write = device.write(page * 4096, data, WriteFlags::empty());
        write.await.expect("written");
    }
    let mut at = 0;
    while at < 12_000 * 4096 {
        let list = extents(&device, range(at, 12_000 * 4096)).await;
        assert!(!list.is_empty() && list.len() <= 4096);
        for extent in &list {
            assert_eq!(extent.range.start(), at);
            at = extent.range.end();
        }
    }
}

#[test]
fn what_is_no_disk_is_refused_with_its_name() {
    for path in ["/", "/dev/null"] {
        for opened in [
            FileDevice::open(Path::new(path), Access::ReadOnly),
            FileDevice::create(Path::new(path)),
        ] {
            let error = opened.expect_err("no disk");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("{path}: open: it is a "))
            );
        }
    }
    let path = Path::new("/no/such/file");
    let error = FileDevice::open(path, Access::ReadOnly).expect_err("nothing is there");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.to_string(), "/no/such/file: open: not found");
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_other_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo runs").success());
    let error = FileDevice::open(&path, Access::ReadOnly).expect_err("a pipe");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_file_opened_for_appending_is_refused() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let appending = fs::OpenOptions::new().append(true).open(file.path());
    let error = FileDevice::from_file(appending.expect("opened"), "log").expect_err("refused");
    assert_eq!(error.to_string(), "log: open: it was opened for appending");
}

#[tokio::test]
async fn the_mapping_names_the_file_and_ends_where_it_ends() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1000).expect("sized");
    let device = FileDevice::open(file.path(), Access::ReadOnly).expect("opened");
    let Mapping::File { offset, length, .. } = device.mapping(range(900, 5000)) else {
        panic!("a file is mapped to itself");
    };
    assert_eq!((offset, length), (900, 100));
    assert!(matches!(device.mapping(range(1000, 1001)), Mapping::Opaque));
}
