//! The device that fails on demand does so when it should, and only then.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Capabilities, Context, ErrorKind, MemoryDevice, Operation,
    Payload, PipePool, Status, WriteFlags, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule, answers},
};

fn faulty() -> FaultyDevice {
    FaultyDevice::new(Arc::new(MemoryDevice::new(1 << 20)))
}

async fn read(device: &FaultyDevice, offset: u64, length: usize) -> Result<(), ErrorKind> {
    let read = device.read(offset, Buffer::zeroed(length)).await;
    read.map(drop).map_err(|error| error.kind())
}

#[tokio::test]
async fn a_rule_is_for_its_operation_range_and_count() {
    let device = faulty()
        .with(
            Rule::on(Operation::Read)
                .within(ByteRange::between(4096, 8192))
                .after(1)
                .times(2)
                .fault(Fault::Error(ErrorKind::Io)),
        )
        .with(Rule::on(Operation::Zero).fault(Fault::Error(ErrorKind::Unsupported)));
    assert_eq!(read(&device, 0, 4096).await, Ok(()));
    assert_eq!(read(&device, 4095, 2).await, Ok(()), "the first inside");
    assert_eq!(read(&device, 0, 4096).await, Ok(()), "outside");
    assert_eq!(read(&device, 8191, 2).await, Err(ErrorKind::Io));
    assert_eq!(read(&device, 5000, 1).await, Err(ErrorKind::Io));
    assert_eq!(read(&device, 5000, 1).await, Ok(()), "twice is over");
    let zero = device.zero(ByteRange::between(0, 1), ZeroFlags::empty());
    let error = zero.await.expect_err("unsupported");
    assert_eq!(
        (error.kind(), error.operation(), error.offset()),
        (ErrorKind::Unsupported, Some(Operation::Zero), Some(0))
    );
    assert_eq!(device.calls(Operation::Read), 6);
    assert_eq!(device.calls(Operation::Zero), 1);
    assert_eq!(device.calls(Operation::Flush), 0);
}

#[tokio::test]
async fn the_first_rule_that_applies_decides() {
    let device = faulty()
        .with(Rule::on_all().times(1))
        .with(Rule::on_all().fault(Fault::Error(ErrorKind::TimedOut)));
    assert_eq!(read(&device, 0, 1).await, Ok(()));
    assert_eq!(read(&device, 0, 1).await, Err(ErrorKind::TimedOut));
}

#[tokio::test]
async fn a_device_dies_for_good_when_its_bytes_are_spent() {
    let device = faulty().dying_after(1000);
    assert_eq!(read(&device, 0, 600).await, Ok(()));
    let write = device.write(0, Buffer::zeroed(400), WriteFlags::empty());
    write.await.expect("the last bytes");
    assert_eq!(read(&device, 0, 1).await, Err(ErrorKind::ConnectionLost));
    let error = device.flush().await.expect_err("dead");
    assert!(error.is_transient());
    device.heal();
    assert_eq!(read(&device, 0, 1).await, Ok(()));
}

#[tokio::test]
async fn a_death_by_rule_lasts_too() {
    let device = faulty().with(Rule::on(Operation::Flush).times(1).fault(Fault::Die));
    assert_eq!(read(&device, 0, 1).await, Ok(()));
    device.flush().await.expect_err("dies");
    assert_eq!(read(&device, 0, 1).await, Err(ErrorKind::ConnectionLost));
}

#[tokio::test(start_paused = true)]
async fn a_delay_passes_in_the_time_of_the_runtime() {
    let delay = Duration::from_secs(3600);
    let device = faulty().with(Rule::on(Operation::Read).fault(Fault::Delay(delay)));
    let start = tokio::time::Instant::now();
    let (first, second) = tokio::join!(read(&device, 0, 1), read(&device, 1, 1));
    assert_eq!((first, second), (Ok(()), Ok(())));
    assert!(start.elapsed() >= delay);
    assert_eq!(device.most_in_flight(), 2);
}

#[tokio::test]
async fn a_call_that_hangs_can_be_given_up() {
    let device = faulty().with(Rule::on(Operation::Read).times(1).fault(Fault::Hang));
    let mut call = device.read(0, Buffer::zeroed(1));
    poll_fn(|context| {
        assert!(call.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    drop(call);
    assert_eq!(read(&device, 0, 1).await, Ok(()));
    assert_eq!(device.most_in_flight(), 1, "the first was given up");
}

#[tokio::test]
async fn wrong_answers_about_extents_are_given_as_asked() {
    let range = ByteRange::between(600, 1800);
    let answer = async |answer: fn(ByteRange) -> Vec<_>| {
        let rule = Rule::on_all().times(1).fault(Fault::Extents(answer));
        let device = faulty().with(rule);
        // A rule about extents lets other calls pass and does not count them.
        assert_eq!(read(&device, 0, 1).await, Ok(()));
        let answer = device.extents(range, &Context::Allocation).await;
        let right = device.extents(range, &Context::Allocation).await;
        let right = right.expect("the rule is spent");
        assert_eq!((right.len(), right[0].range), (1, range));
        answer.expect("an answer")
    };
    assert_eq!(answer(answers::short).await[0].range.len(), 512);
    assert!(answer(answers::empty).await.is_empty());
    assert!(answer(answers::of_no_length).await[0].range.is_empty());
    assert_eq!(answer(answers::endless).await.len(), 1200);
    let list = answer(answers::overlapping).await;
    assert!(list[1].range.start() < list[0].range.end());
    let list = answer(answers::with_gap).await;
    assert!(list[1].range.start() > list[0].range.end());
    let list = answer(answers::backwards).await;
    assert!(list[1].range.start() < list[0].range.start());
    assert!(!range.contains(answer(answers::outside).await[0].range));
    assert_eq!(
        answer(answers::all_holes).await[0].status,
        Status::HOLE_ZERO
    );
}

#[test]
fn what_the_device_says_of_itself_can_be_changed() {
    let device = faulty().with_info(|info| {
        info.limits.maximum = 4096;
        info.capabilities -= Capabilities::ZERO;
    });
    assert_eq!(device.info().limits.maximum, 4096);
    assert!(!device.info().can(Capabilities::ZERO));
}

#[tokio::test]
async fn pipes_are_read_into_and_written_from_under_the_same_rules() {
    let rule = Rule::on(Operation::Write)
        .after(1)
        .fault(Fault::Error(ErrorKind::NoSpace));
    let device = faulty().piping().with(rule);
    let pool = PipePool::new(1 << 18, 1);
    let pipe = || pool.take().expect("it comes back");
    let mut data = pipe();
    data.put(&[7; 100_000]).expect("room");
    let none = WriteFlags::empty();
    device.write_piped(50, data, none).await.expect("written");
    let payload = device.read_piped(0, 100_050, pipe()).await.expect("read");
    let Payload::Piped(data) = payload else {
        panic!("there is room for it in the pipe");
    };
    let error = device.write_piped(0, data, none).await.expect_err("full");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let payload = device.read_piped(0, 1 << 19, pipe()).await.expect("read");
    let Payload::Memory(buffer) = payload else {
        panic!("there is no room for it in the pipe");
    };
    assert_eq!((buffer[49], buffer[50], buffer[100_050]), (0, 7, 0));
}
