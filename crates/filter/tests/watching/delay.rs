//! `delay`.

use std::{io::Write, sync::Arc, time::Duration};

use blockferry_block::{
    Access, BlockDevice, Buffer, ByteRange, Capabilities, Context, ErrorKind, FileDevice, Mapping,
    Operation, WriteFlags, ZeroFlags, testing::FaultyDevice,
};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::{assert_is_transparent, assert_passes_failures, chain, memory, open, through};

#[tokio::test(start_paused = true)]
async fn nothing_but_time_is_changed() {
    for filter in ["delay", "delay:1ms", "delay:1ms,fast-zero=off,open=1s"] {
        assert_is_transparent(filter).await;
    }
    assert_passes_failures("delay:read=0,write=2ms").await;
}

#[tokio::test(start_paused = true)]
async fn each_command_waits_as_long_as_it_is_told() {
    let range = ByteRange::between(0, 4096);
    let filter = "delay:7s,read=1s,write=2s,zero=3s,trim=4s,flush=5s,extents=6s,open=8s";
    let begun = Instant::now();
    let device = &*through(filter, memory()).await;
    assert_eq!(begun.elapsed().as_secs(), 8);
    let past = async |seconds, request: blockferry_block::BoxFuture<'_, bool>| {
        let begun = Instant::now();
        assert!(request.await);
        assert_eq!(begun.elapsed().as_secs(), seconds);
    };
    let buffer = || Buffer::zeroed(512);
    let none = WriteFlags::empty();
    past(
        1,
        Box::pin(async { device.read(0, buffer()).await.is_ok() }),
    )
    .await;
    past(
        2,
        Box::pin(async { device.write(0, buffer(), none).await.is_ok() }),
    )
    .await;
    let zero = async { device.zero(range, ZeroFlags::empty()).await.is_ok() };
    past(3, Box::pin(zero)).await;
    past(
        4,
        Box::pin(async { device.trim(range, none).await.is_ok() }),
    )
    .await;
    past(5, Box::pin(async { device.flush().await.is_ok() })).await;
    let extents = async { device.extents(range, &Context::Allocation).await.is_ok() };
    past(6, Box::pin(extents)).await;
    past(7, Box::pin(async { device.cache(range).await.is_ok() })).await;
}

#[tokio::test(start_paused = true)]
async fn requests_side_by_side_wait_side_by_side() {
    let faulty = Arc::new(FaultyDevice::new(memory()));
    let chain = chain(&["delay:10ms"], Arc::clone(&faulty) as _);
    let devices = [open(&chain, "").await, open(&chain, "").await];
    let begun = Instant::now();
    let requests = (0..200).map(|at| devices[at % 2].read(at as u64 * 512, Buffer::zeroed(512)));
    for read in join_all(requests).await {
        read.expect("a read");
    }
    assert!(begun.elapsed() < Duration::from_millis(20));
    assert_eq!(faulty.calls(Operation::Read), 200);
}

#[tokio::test(start_paused = true)]
async fn zeroing_that_is_to_be_fast_can_fail_at_once() {
    let faulty = Arc::new(FaultyDevice::new(memory()));
    let device = through("delay:zero=1s,fast-zero=off", Arc::clone(&faulty) as _).await;
    let begun = Instant::now();
    let range = ByteRange::between(0, 512);
    let error = device.zero(range, ZeroFlags::FAST).await.expect_err("fast");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!((error.offset(), error.length()), (Some(0), Some(512)));
    assert_eq!(
        (begun.elapsed(), faulty.calls(Operation::Zero)),
        (Duration::ZERO, 0)
    );
}

#[tokio::test]
async fn bytes_are_only_found_in_their_file_where_reads_are_not_delayed() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&[1; 8192]).expect("room");
    for (filter, is_mapped, takes_files) in [
        ("delay", true, true),
        ("delay:flush=1ms", true, true),
        ("delay:write=1ms", true, false),
        ("delay:read=1ms", false, true),
    ] {
        let device = FileDevice::open(file.path(), Access::ReadWrite).expect("a device");
        let copies = device.info().can(Capabilities::COPY_FROM);
        let device = through(filter, Arc::new(device)).await;
        let mapping = device.mapping(ByteRange::between(0, 8192));
        assert_eq!(
            matches!(mapping, Mapping::File { .. }),
            is_mapped,
            "{filter}"
        );
        let takes = device.info().can(Capabilities::COPY_FROM);
        assert_eq!(takes, copies && takes_files, "{filter}");
    }
}
