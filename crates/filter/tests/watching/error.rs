//! `error`.

use std::{fs, sync::Arc};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Capabilities, Context, ErrorKind, Mapping, Operation,
    WriteFlags, ZeroFlags, testing::FaultyDevice,
};
use blockferry_filter::{ErrorRule, InjectErrors, NamedFilter};

use crate::{assert_is_transparent, assert_passes_failures, chain, memory, open, through};

/// Which of so many reads fail, in order.
async fn failures(device: &dyn BlockDevice, count: usize) -> Vec<bool> {
    let mut failed = Vec::new();
    for _ in 0..count {
        failed.push(device.read(0, Buffer::zeroed(512)).await.is_err());
    }
    failed
}

fn count(failed: &[bool]) -> usize {
    failed.iter().filter(|failed| **failed).count()
}

#[tokio::test]
async fn without_its_turn_it_changes_nothing() {
    for filter in ["error:rate=0", "error:EIO,file=/nonexistent/file"] {
        assert_is_transparent(filter).await;
        assert_passes_failures(filter).await;
    }
}

#[tokio::test]
async fn a_request_fails_as_chosen_and_does_not_go_below() {
    let range = ByteRange::between(512, 1024);
    for (name, kind) in [
        ("EPERM", ErrorKind::NotPermitted),
        ("EIO", ErrorKind::Io),
        ("ENOMEM", ErrorKind::OutOfMemory),
        ("EINVAL", ErrorKind::InvalidInput),
        ("ENOSPC", ErrorKind::NoSpace),
        ("ESHUTDOWN", ErrorKind::ShuttingDown),
    ] {
        let faulty = Arc::new(FaultyDevice::new(memory()));
        let device = through(&format!("error:{name}"), Arc::clone(&faulty) as _).await;
        let none = WriteFlags::empty();
        let errors = [
            device.read(512, Buffer::zeroed(512)).await.map(drop),
            device.write(512, Buffer::zeroed(512), none).await.map(drop),
            device.zero(range, ZeroFlags::empty()).await,
            device.trim(range, none).await,
            device.cache(range).await,
            device.extents(range, &Context::Allocation).await.map(drop),
        ];
        for error in errors.map(|result| result.expect_err(name)) {
            assert_eq!(error.kind(), kind);
            assert_eq!((error.offset(), error.length()), (Some(512), Some(512)));
        }
        assert_eq!(device.flush().await.expect_err(name).kind(), kind);
        for operation in [Operation::Read, Operation::Write, Operation::Flush] {
            assert_eq!(faulty.calls(operation), 0);
        }
    }
}

#[tokio::test]
async fn only_the_commands_that_are_named_fail() {
    let device = through("error:ENOSPC,on=write+flush", memory()).await;
    device.read(0, Buffer::zeroed(512)).await.expect("a read");
    assert!(device.flush().await.is_err());
    assert!(!device.info().can(Capabilities::COPY_FROM));
    let exports = chain(&["error:EPERM,on=open,every=2"], memory()).exports();
    for fails in [false, true, false, true] {
        let opened = exports.open("", Default::default()).await;
        assert_eq!(opened.is_err(), fails);
    }
    for refused in [
        "on=reed",
        "every=0",
        "rate=2",
        "rate=101%",
        "EWHAT",
        "seed=x",
    ] {
        let text = format!("error:{refused}");
        assert!(NamedFilter::parse(text.as_ref()).is_err(), "{refused}");
    }
}

#[tokio::test]
async fn every_nth_fails_whatever_connection_it_comes_through() {
    let chain = chain(&["error:every=3"], memory());
    let (one, other) = (open(&chain, "").await, open(&chain, "").await);
    assert_eq!(failures(&*one, 2).await, [false, false]);
    assert_eq!(failures(&*other, 4).await, [true, false, false, true]);
    // Another export counts on its own.
    let elsewhere = open(&chain, "other").await;
    assert_eq!(failures(&*elsewhere, 3).await, [false, false, true]);
}

#[tokio::test]
async fn chance_has_its_rate_and_repeats_itself_where_it_is_told_to() {
    let pattern = async |filter: &str| failures(&*through(filter, memory()).await, 2000).await;
    let some = pattern("error:rate=10%,seed=7").await;
    assert!((120..280).contains(&count(&some)), "{}", count(&some));
    assert_eq!(some, pattern("error:rate=0.1,seed=7").await);
    assert_ne!(some, pattern("error:rate=10%,seed=8").await);
    assert_ne!(
        pattern("error:rate=10%").await,
        pattern("error:rate=10%").await
    );
    assert_eq!(count(&pattern("error:rate=100%").await), 2000);
}

#[tokio::test]
async fn requests_fail_while_a_file_exists() {
    let room = tempfile::tempdir().expect("a directory");
    let file = room.path().join("trigger");
    let device = through(&format!("error:file={}", file.display()), memory()).await;
    assert_eq!(count(&failures(&*device, 3).await), 0);
    fs::write(&file, "").expect("room");
    assert_eq!(count(&failures(&*device, 3).await), 3);
    fs::remove_file(&file).expect("a file");
    assert_eq!(count(&failures(&*device, 3).await), 0);
}

#[tokio::test]
async fn each_command_can_have_a_rule_of_its_own() {
    let mut filter = InjectErrors::default();
    let read = ErrorRule::all(ErrorKind::NoSpace);
    let write = ErrorRule {
        rate: 0.0,
        ..ErrorRule::all(ErrorKind::Io)
    };
    filter.rules.insert(Operation::Read, read);
    filter.rules.insert(Operation::Write, write);
    let exports = Arc::new(blockferry_block::SingleExport::new(memory()));
    let filters = [NamedFilter::new(filter)];
    let chain = blockferry_filter::Chain::new(&filters, exports).expect("a chain");
    let device = open(&chain, "").await;
    let error = device.read(0, Buffer::zeroed(1)).await.expect_err("a rule");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let written = device.write(0, Buffer::zeroed(1), WriteFlags::empty());
    written.await.expect("no chance");
    assert!(matches!(
        device.mapping(ByteRange::between(0, 1)),
        Mapping::Opaque
    ));
}
