//! Every plain device against a row of bytes.

#![allow(clippy::print_stdout, reason = "a test that is skipped says why")]

use std::{fs, path::Path, sync::Arc};

use blockferry_block::{
    Access, BlockDevice, Buffer, FileDevice, MemoryDevice, PatternDevice, SampleDevice, WriteFlags,
    testing::{FaultyDevice, check_device},
};

/// No multiple of any block size.
const SIZE: u64 = 500_001;

const STEPS: usize = 200;

async fn check_file(directory: &Path, seed: u64) {
    let path = directory.join(format!("blockferry-model-{}-{seed}", std::process::id()));
    let device = FileDevice::create(&path).expect("created");
    check_device(&device, seed, STEPS).await;
    device.resize(SIZE).await.expect("resized");
    drop(device);
    let device = FileDevice::open(&path, Access::ReadWrite).expect("opened");
    check_device(&device, seed, STEPS).await;
    check_device(&device.growable(), seed, STEPS).await;
    let device = FileDevice::open(&path, Access::ReadOnly).expect("opened");
    check_device(&device, seed, STEPS).await;
    fs::remove_file(path).expect("removed");
}

#[tokio::test]
async fn a_file_holds_what_was_written() {
    let directory = tempfile::tempdir().expect("a directory");
    for seed in 0..4 {
        check_file(directory.path(), seed).await;
    }
}

#[tokio::test]
async fn a_file_in_memory_holds_what_was_written() {
    let directory = Path::new("/dev/shm");
    if !directory.is_dir() {
        println!("skipped: there is no {}", directory.display());
        return;
    }
    for seed in 0..4 {
        check_file(directory, seed).await;
    }
}

#[test]
fn a_file_needs_no_async_runtime() {
    let directory = tempfile::tempdir().expect("a directory");
    futures_executor(check_file(directory.path(), 100));
}

/// Polls a future that never waits for anyone.
fn futures_executor(future: impl Future<Output = ()>) {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(future.as_mut().poll(&mut context).is_ready());
}

#[tokio::test]
async fn memory_holds_what_was_written() {
    for seed in 0..8 {
        check_device(&MemoryDevice::new(SIZE), seed, STEPS).await;
        check_device(&MemoryDevice::new(100_000).growable(), seed, STEPS).await;
        let bytes: Vec<u8> = (0..300_000_u32).map(|at| (at / 1000) as u8).collect();
        let device = MemoryDevice::from_bytes(&bytes);
        assert_eq!(device.contents(), bytes);
        check_device(&device, seed, STEPS).await;
    }
}

#[tokio::test]
async fn a_sample_agrees_with_itself() {
    for seed in 0..4 {
        let options = format!("500001,seed={seed}").parse().expect("a sample");
        check_device(&SampleDevice::new(options), seed, STEPS).await;
    }
}

#[tokio::test]
async fn a_pattern_agrees_with_itself() {
    for seed in 0..4 {
        check_device(&PatternDevice::new(SIZE), seed, STEPS).await;
    }
}

#[tokio::test]
async fn a_faulty_device_without_faults_holds_what_was_written() {
    let memory = Arc::new(MemoryDevice::new(SIZE));
    check_device(&FaultyDevice::new(memory), 1, STEPS).await;
}

/// The oracle itself must notice: a device that loses one byte does not pass.
#[tokio::test]
#[should_panic(expected = "byte")]
async fn a_lost_byte_is_noticed() {
    struct Loses(MemoryDevice);
    impl BlockDevice for Loses {
        fn info(&self) -> &blockferry_block::DeviceInfo {
            self.0.info()
        }
        fn read(
            &self,
            offset: u64,
            buffer: Buffer,
        ) -> blockferry_block::BoxFuture<'_, blockferry_block::Result<Buffer>> {
            self.0.read(offset, buffer)
        }
        fn write(
            &self,
            offset: u64,
            data: Buffer,
            flags: WriteFlags,
        ) -> blockferry_block::BoxFuture<'_, blockferry_block::Result<Buffer>> {
            Box::pin(async move {
                let short = Buffer::from(&data[..data.len().saturating_sub(1)]);
                self.0.write(offset, short, flags).await?;
                Ok(data)
            })
        }
    }
    check_device(&Loses(MemoryDevice::new(SIZE)), 1, STEPS).await;
}
