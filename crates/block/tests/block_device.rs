//! A real block device: a loop device over a temporary file, where one can be made.

#![allow(clippy::print_stdout, reason = "a test that is skipped says why")]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use blockferry_block::{
    Access, BlockDevice, Buffer, ByteRange, Capabilities, Context, ErrorKind, Extent, FileDevice,
    Status, WriteFlags, ZeroFlags, testing::check_device,
};

const SIZE: u64 = 2 << 20;

/// A loop device that is taken away with the value.
struct Loop {
    node: PathBuf,
    file: tempfile::NamedTempFile,
}

impl Loop {
    fn new() -> Option<Self> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(SIZE).expect("sized");
        let losetup = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file.path())
            .output();
        match losetup {
            Ok(output) if output.status.success() => {
                let node = String::from_utf8(output.stdout).expect("a path");
                let node = PathBuf::from(node.trim());
                Some(Self { node, file })
            }
            Ok(output) => {
                let reason = String::from_utf8_lossy(&output.stderr).into_owned();
                println!("skipped: {}", reason.trim());
                None
            }
            Err(error) => {
                println!("skipped: losetup: {error}");
                None
            }
        }
    }

    fn occupied(&self) -> u64 {
        let facts = fs::metadata(self.file.path()).expect("facts");
        facts.blocks() * 512
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("-d").arg(&self.node).status();
        assert!(detached.expect("losetup").success());
    }
}

fn open(path: &Path) -> FileDevice {
    FileDevice::open(path, Access::ReadWrite).expect("opened")
}

#[tokio::test]
async fn a_block_device_holds_what_was_written() {
    let Some(device) = Loop::new() else { return };
    for seed in 0..3 {
        check_device(&open(&device.node), seed, 200).await;
    }
}

#[tokio::test]
async fn a_block_device_has_sectors_and_keeps_its_size() {
    let Some(node) = Loop::new() else { return };
    let device = FileDevice::create(&node.node).expect("opened, not replaced");
    let info = device.info();
    assert_eq!((info.size, info.limits.minimum), (SIZE, 512));
    assert!(info.limits.preferred >= 4096);
    assert!(!info.can(Capabilities::RESIZE) && !info.can(Capabilities::BORN_ZERO));
    let range = ByteRange::between(0, SIZE);
    let extents = device.extents(range, &Context::Allocation).await;
    let status = Status::DATA;
    assert_eq!(extents.expect("an answer"), [Extent { range, status }]);
    let write = device.write(SIZE - 1, Buffer::zeroed(2), WriteFlags::empty());
    let error = write.await.expect_err("behind the end");
    assert_eq!(error.kind(), ErrorKind::OutOfBounds);
    let device = device.growable();
    let error = device.resize(1).await.expect_err("fixed");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn zeroing_a_block_device_frees_what_lies_below() {
    let Some(node) = Loop::new() else { return };
    let device = open(&node.node);
    let write = device.write(0, Buffer::from(&[7; SIZE as usize][..]), WriteFlags::FUA);
    write.await.expect("written");
    let full = node.occupied();
    let half = ByteRange::between(0, SIZE / 2);
    match device.zero(half, ZeroFlags::FAST | ZeroFlags::FUA).await {
        Ok(()) => assert!(node.occupied() <= full - SIZE / 4),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
    }
    // Where nothing faster is there the kernel writes the zeroes.
    device.zero(half, ZeroFlags::FUA).await.expect("zeroed");
    let read = device.read(0, Buffer::zeroed(SIZE as usize)).await;
    let read = read.expect("read");
    let middle = SIZE as usize / 2;
    assert!(read[..middle].iter().all(|byte| *byte == 0));
    assert!(read[middle..].iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn zeroing_may_keep_a_block_device_allocated() {
    let Some(node) = Loop::new() else { return };
    let device = open(&node.node);
    let write = device.write(0, Buffer::from(&[7; SIZE as usize][..]), WriteFlags::FUA);
    write.await.expect("written");
    let full = node.occupied();
    let whole = ByteRange::between(0, SIZE);
    let fast = device.zero(whole, ZeroFlags::NO_HOLE | ZeroFlags::FAST);
    let error = fast.await.expect_err("no faster than writing");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let zero = device.zero(whole, ZeroFlags::NO_HOLE | ZeroFlags::FUA);
    zero.await.expect("zeroed");
    assert!(node.occupied() >= full);
    let read = device.read(0, Buffer::zeroed(SIZE as usize)).await;
    assert!(read.expect("read").iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn what_is_off_the_sectors_is_no_request_for_zeroes() {
    let Some(node) = Loop::new() else { return };
    let device = open(&node.node);
    let zero = device.zero(ByteRange::between(100, 300), ZeroFlags::empty());
    let error = zero.await.expect_err("within a sector");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    // A trim is a wish: what cannot be discarded stays.
    let trim = device.trim(ByteRange::between(100, 300), WriteFlags::empty());
    trim.await.expect("nothing to discard");
}
