//! The asynchronous client against a server that does as its script says.

mod support;

use std::{future::pending, pin::pin, time::Duration};

use blockferry_block::{
    BlockDevice, Buffer, BufferPool, ByteRange, Context, ErrorKind, Status, WriteFlags, ZeroFlags,
};
use blockferry_client::{Client, ConnectOptions};
use blockferry_proto::{Command, Errno};
use futures_util::future::{Either, select};
use proptest::prelude::*;
use support::{Script, Server, byte_at};
use tokio::task::JoinSet;

async fn connect(server: &Server) -> Client {
    Client::connect(&server.uri(), &ConnectOptions::default())
        .await
        .expect("a connection")
}

/// Reads everything in pieces of `length` bytes, all at once, and checks every byte.
async fn read_all(client: &Client, length: usize) {
    let mut tasks = JoinSet::new();
    for start in (0..client.info().size as usize).step_by(length) {
        let client = client.clone();
        tasks.spawn(async move {
            let length = length.min(client.info().size as usize - start);
            let buffer = client
                .read(start as u64, Buffer::zeroed(length))
                .await
                .expect("a read");
            assert_eq!(buffer.len(), length);
            let right = buffer
                .iter()
                .enumerate()
                .all(|(index, it)| *it == byte_at(start + index));
            assert!(right, "at {start}");
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no panic");
    }
}

#[tokio::test]
async fn pipelined_reads_arrive_whole_whatever_the_order_of_the_answers() {
    for (structured, extended) in [(false, false), (true, false), (true, true)] {
        for (backwards, chunks) in [(1, 1), (5, 1), (7, 4)] {
            let server = Server::start(Script {
                structured,
                extended,
                backwards,
                chunks,
                ..Script::default()
            });
            read_all(&connect(&server).await, 100_000).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn clones_work_from_many_threads() {
    let server = Server::start(Script {
        backwards: 6,
        ..Script::default()
    });
    let client = connect(&server).await;
    for _ in 0..5 {
        read_all(&client, 12_345).await;
    }
}

#[tokio::test]
async fn more_requests_than_fit_wait_for_their_turn() {
    let server = Server::start(Script {
        size: 300_000,
        ..Script::default()
    });
    read_all(&connect(&server).await, 100).await;
    assert_eq!(server.requests(Command::Read).len(), 3000);
}

#[tokio::test]
async fn a_dropped_future_takes_no_turn_of_those_that_wait() {
    let server = Server::start(Script {
        size: 300_000,
        backwards: 64,
        ..Script::default()
    });
    let client = connect(&server).await;
    // More than fit, most of which are given up while they wait for their turn.
    let mut given_up: Vec<_> = (0..4000)
        .map(|_| client.read(0, Buffer::zeroed(100)))
        .collect();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for read in &mut given_up {
        assert!(read.as_mut().poll(&mut context).is_pending());
    }
    let last = client.clone();
    let last = tokio::spawn(async move { last.read(100, Buffer::zeroed(100)).await });
    tokio::task::yield_now().await;
    drop(given_up);
    let buffer = last.await.expect("no panic").expect("a read");
    assert_eq!(buffer[0], byte_at(100));
}

#[tokio::test]
async fn every_command_reaches_the_server() {
    let server = Server::start(Script::default());
    let client = connect(&server).await;
    let range = ByteRange::new(4096, 8192).expect("a range");
    let data = Buffer::from(&[7; 5000][..]);
    let data = client
        .write(0, data, WriteFlags::FUA)
        .await
        .expect("a write");
    assert_eq!(data.len(), 5000, "the buffer comes back");
    client
        .zero(range, ZeroFlags::empty())
        .await
        .expect("zeroes");
    client
        .trim(range, WriteFlags::empty())
        .await
        .expect("a trim");
    client.cache(range).await.expect("a cache");
    client.flush().await.expect("a flush");
    let extents = client
        .extents(range, &Context::Allocation)
        .await
        .expect("extents");
    let found: Vec<_> = extents
        .iter()
        .map(|it| (it.range.end(), it.status))
        .collect();
    assert_eq!(found, [(8192, Status::DATA), (12288, Status::HOLE_ZERO)]);
    assert_eq!(server.memory()[..4096], [7; 4096]);
    assert_eq!(server.memory()[4096..12288], [0; 8192]);
    for command in [
        Command::Write,
        Command::Trim,
        Command::Cache,
        Command::Flush,
    ] {
        assert_eq!(server.requests(command).len(), 1, "{command:?}");
    }
}

#[tokio::test]
async fn a_block_status_precedes_the_first_long_read_once() {
    let server = Server::start(Script::default());
    let client = connect(&server).await;
    read_all(&client, 100_000).await;
    assert!(server.requests(Command::BlockStatus).is_empty());
    read_all(&client, 200_000).await;
    read_all(&client, 200_000).await;
    assert_eq!(server.requests(Command::BlockStatus).len(), 1);
}

#[tokio::test]
async fn a_dropped_future_leaves_the_others_in_peace() {
    let server = Server::start(Script {
        backwards: 4,
        ..Script::default()
    });
    let client = connect(&server).await;
    let pool = BufferPool::new(100_000, 8);
    for round in 0..50_u64 {
        let mut dropped = Box::pin(client.read(round * 1000, pool.take(100_000)));
        // It is entered, and given up before its answer came.
        let waited = tokio::time::timeout(Duration::ZERO, &mut dropped).await;
        drop(dropped);
        let start = round * 2000;
        let buffer = client.read(start, pool.take(50_000)).await.expect("a read");
        let mut bytes = buffer.iter().enumerate();
        assert!(
            bytes.all(|(index, it)| *it == byte_at(start as usize + index)),
            "{waited:?}"
        );
    }
}

#[tokio::test]
async fn a_refused_request_leaves_the_connection_usable() {
    let server = Server::start(Script {
        fails: |request| (request.offset == 4096).then_some(Errno::ENOSPC),
        ..Script::default()
    });
    let client = connect(&server).await;
    let refused = client
        .write(4096, Buffer::zeroed(512), WriteFlags::empty())
        .await;
    let error = refused.expect_err("as the script says");
    assert_eq!(
        (error.kind(), error.offset()),
        (ErrorKind::NoSpace, Some(4096))
    );
    assert!(error.to_string().contains("server.sock"), "{error}");
    client
        .write(0, Buffer::zeroed(512), WriteFlags::empty())
        .await
        .expect("well");
}

#[tokio::test]
async fn death_fails_every_request_in_flight_with_a_transient_error() {
    let server = Server::start(Script {
        dies_at: Some(2),
        backwards: 6,
        ..Script::default()
    });
    let client = connect(&server).await;
    let mut tasks = JoinSet::new();
    for index in 0..6_u64 {
        let client = client.clone();
        tasks.spawn(async move { client.read(index * 4096, Buffer::zeroed(4096)).await });
    }
    let (mut good, mut bad) = (0, 0);
    while let Some(task) = tasks.join_next().await {
        match task.expect("no panic") {
            Ok(_) => good += 1,
            Err(error) => {
                assert!(error.is_transient(), "{error:?}");
                bad += 1;
            }
        }
    }
    assert_eq!((good, bad), (2, 4));
    assert!(client.flush().await.expect_err("still dead").is_transient());
}

#[tokio::test]
async fn disconnect_waits_for_what_is_in_flight() {
    let server = Server::start(Script {
        backwards: 2,
        ..Script::default()
    });
    let client = connect(&server).await;
    let mut write = pin!(client.write(0, Buffer::from(&[5; 4096][..]), WriteFlags::empty()));
    assert!(
        tokio::time::timeout(Duration::ZERO, &mut write)
            .await
            .is_err(),
        "not yet answered"
    );
    client.disconnect().await;
    write.await.expect("answered before the goodbye");
    assert_eq!(server.memory()[0], 5);
    let late = client
        .read(0, Buffer::zeroed(1))
        .await
        .expect_err("too late");
    assert_eq!(late.kind(), ErrorKind::ConnectionLost);
}

#[test]
fn a_runtime_that_is_gone_fails_requests_instead_of_hanging() {
    let server = Server::start(Script {
        backwards: 100,
        ..Script::default()
    });
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    let first = runtime().expect("a runtime");
    let client = first.block_on(connect(&server));
    drop(first);
    let answer = runtime()
        .expect("another")
        .block_on(client.read(0, Buffer::zeroed(512)));
    assert!(answer.expect_err("nobody drives it").is_transient());
}

/// One request: where, how long, whether it is a write, and after how many turns it is given up.
type Step = (usize, usize, bool, Option<usize>);

/// Makes the requests of `steps` side by side, gives some up, and checks what the others bring. What is
/// written is what is there already.
async fn run_and_give_up(server: &Server, steps: Vec<Step>) {
    let client = connect(server).await;
    let buffers = BufferPool::new(SHORT, 4);
    let mut tasks = JoinSet::new();
    for (start, length, writes, turns) in steps {
        let client = client.clone();
        let mut buffer = buffers.take(length);
        buffer.fill(0);
        tasks.spawn(async move {
            let request = match writes {
                true => {
                    (0..length).for_each(|index| buffer[index] = byte_at(start + index));
                    client.write(start as u64, buffer, WriteFlags::empty())
                }
                false => client.read(start as u64, buffer),
            };
            let given_up = pin!(async {
                let Some(turns) = turns else {
                    return pending().await;
                };
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            });
            // The end of patience comes first, also when the answer is already there.
            if let Either::Right((buffer, _)) = select(given_up, request).await {
                let buffer = buffer.expect("an answer");
                assert_eq!(buffer.len(), length);
                let mut bytes = buffer.iter().enumerate();
                assert!(bytes.all(|(index, it)| *it == byte_at(start + index)));
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no panic");
    }
    client.disconnect().await;
}

/// The longest request of the property test, in bytes.
const SHORT: usize = 50_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn futures_may_be_dropped_at_any_moment(
        steps in prop::collection::vec(
            (0..200_000_usize, 1..=SHORT, any::<bool>(), prop::option::of(0..30_usize)),
            1..60,
        ),
        backwards in 1..9_usize,
        chunks in 1..4_usize,
    ) {
        let server = Server::start(Script {
            size: 200_000 + SHORT,
            backwards,
            chunks,
            ..Script::default()
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(run_and_give_up(&server, steps));
        let memory = server.memory();
        prop_assert!((0..memory.len()).all(|position| memory[position] == byte_at(position)));
    }
}
