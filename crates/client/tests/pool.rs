//! Several connections as one device, some of which are lost, refused or silent.

mod support;

use std::{collections::BTreeSet, time::Duration};

use blockferry_block::{
    BlockDevice, Buffer, BufferPool, ByteRange, Context, ErrorKind, WriteFlags, ZeroFlags,
};
use blockferry_client::{ConnectOptions, Pool};
use blockferry_proto::{Command, Errno};
use support::{Others, Script, Server, byte_at};
use tokio::task::JoinSet;

/// A server of so small an image that all of it is soon read.
fn small() -> Script {
    Script {
        size: 1 << 20,
        ..Script::default()
    }
}

/// A pool that may have `wanted` connections, once it has `awaited`.
async fn connect(server: &Server, wanted: usize, awaited: usize) -> Pool {
    let mut options = ConnectOptions::default();
    // Whoever waits for it waits for ever.
    options.connect_timeout = Duration::from_secs(1 << 20);
    let pool = Pool::connect(&server.uri(), &options, wanted)
        .await
        .expect("a pool");
    while pool.connections() < awaited {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    pool
}

/// Reads everything in pieces, all at once, into buffers that hold nothing of it, and checks every byte.
async fn read_all(pool: &Pool) {
    const PIECE: usize = 7000;
    let blank = BufferPool::new(PIECE, 16);
    let mut tasks = JoinSet::new();
    for start in (0..pool.info().size as usize).step_by(PIECE) {
        let (pool, blank) = (pool.clone(), blank.clone());
        tasks.spawn(async move {
            let length = PIECE.min(pool.info().size as usize - start);
            let mut buffer = blank.take(length);
            buffer.fill(0);
            let buffer = pool.read(start as u64, buffer).await.expect("a read");
            assert_eq!(buffer.len(), length);
            let mut bytes = buffer.iter().enumerate();
            let right = bytes.all(|(index, it)| *it == byte_at(start + index));
            assert!(right, "at {start}");
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no panic");
    }
}

/// Writes 100 pieces of 4 KiB at once; each is full of its number.
async fn write_some(pool: &Pool) {
    let mut tasks = JoinSet::new();
    for number in 1..=100_u8 {
        let pool = pool.clone();
        tasks.spawn(async move {
            let data = Buffer::from(&[number; 4096][..]);
            let offset = u64::from(number) * 4096;
            let data = pool.write(offset, data, WriteFlags::empty()).await;
            assert_eq!(data.expect("a write")[..], [number; 4096]);
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no panic");
    }
}

fn check_written(server: &Server) {
    let memory = server.memory();
    for number in 1..=100_u8 {
        let start = usize::from(number) * 4096;
        assert_eq!(memory[start..start + 4096], [number; 4096], "{number}");
    }
}

#[tokio::test]
async fn all_connections_take_part() {
    let server = Server::start(small());
    let pool = connect(&server, 4, 4).await;
    read_all(&pool).await;
    let used: BTreeSet<_> = server.connections(Command::Read).into_iter().collect();
    assert_eq!(used, BTreeSet::from([0, 1, 2, 3]));
}

#[tokio::test]
async fn reads_outlive_a_connection_that_dies_among_four() {
    for mortal in 0..4 {
        for (dies_at, backwards) in [(0, 1), (3, 5), (7, 3)] {
            let server = Server::start(Script {
                mortal: Some(mortal),
                dies_at: Some(dies_at),
                backwards,
                ..small()
            });
            let pool = connect(&server, 4, 4).await;
            read_all(&pool).await;
            assert_eq!(pool.connections(), 3, "{mortal} {dies_at}");
        }
    }
}

#[tokio::test]
async fn writes_outlive_a_connection_that_dies_with_them_in_flight() {
    for dies_at in [0, 5] {
        let server = Server::start(Script {
            mortal: Some(1),
            dies_at: Some(dies_at),
            backwards: 8,
            ..small()
        });
        let pool = connect(&server, 3, 3).await;
        write_some(&pool).await;
        check_written(&server);
        assert_eq!(pool.connections(), 2);
    }
}

#[tokio::test]
async fn every_other_request_is_repeated_too() {
    let range = ByteRange::new(4096, 8192).expect("a range");
    for request in 0..5 {
        let server = Server::start(Script {
            mortal: Some(0),
            dies_at: Some(0),
            ..small()
        });
        let pool = connect(&server, 2, 2).await;
        match request {
            0 => pool.zero(range, ZeroFlags::empty()).await.expect("zeroes"),
            1 => pool.trim(range, WriteFlags::empty()).await.expect("a trim"),
            2 => pool.cache(range).await.expect("a cache"),
            3 => pool.flush().await.expect("a flush"),
            _ => drop(
                pool.extents(range, &Context::Allocation)
                    .await
                    .expect("extents"),
            ),
        }
    }
}

#[tokio::test]
async fn the_pool_fails_with_its_last_connection_and_for_good() {
    let server = Server::start(Script {
        dies_at: Some(10),
        ..small()
    });
    let pool = connect(&server, 3, 3).await;
    let mut good = 0;
    let error = loop {
        match pool.read(0, Buffer::zeroed(512)).await {
            Ok(buffer) => assert_eq!(buffer[0], byte_at(0)),
            Err(error) => break error,
        }
        good += 1;
    };
    assert_eq!((good, error.kind()), (30, ErrorKind::ConnectionLost));
    assert_eq!(pool.connections(), 0);
    let again = pool
        .write(0, Buffer::zeroed(512), WriteFlags::empty())
        .await;
    assert!(again.expect_err("still lost").is_transient());
}

#[tokio::test]
async fn what_the_server_refuses_is_not_tried_elsewhere() {
    let server = Server::start(Script {
        fails: |request| (request.command == Command::Write).then_some(Errno::ESHUTDOWN),
        ..small()
    });
    let pool = connect(&server, 2, 2).await;
    let refused = pool
        .write(0, Buffer::zeroed(512), WriteFlags::empty())
        .await;
    assert_eq!(
        refused.expect_err("refused").kind(),
        ErrorKind::ShuttingDown
    );
    assert_eq!(server.requests(Command::Write).len(), 1);
}

#[tokio::test]
async fn a_server_that_wants_no_more_connections_is_used_through_those_it_took() {
    for others in [Others::Refused, Others::Silent] {
        let server = Server::start(Script {
            welcome: 2,
            others,
            ..small()
        });
        let pool = connect(&server, 4, 2).await;
        read_all(&pool).await;
        assert_eq!(pool.connections(), 2);
        pool.disconnect().await;
    }
}

#[tokio::test]
async fn a_server_without_multi_conn_is_asked_for_one_connection() {
    let server = Server::start(Script {
        multi_conn: false,
        ..small()
    });
    let pool = connect(&server, 4, 1).await;
    read_all(&pool).await;
    assert_eq!(pool.connections(), 1);
    let used: BTreeSet<_> = server.connections(Command::Read).into_iter().collect();
    assert_eq!(used, BTreeSet::from([0]));
}

#[tokio::test]
async fn a_flush_reaches_each_connection_that_wrote_since_the_last() {
    let server = Server::start(small());
    let pool = connect(&server, 4, 4).await;
    write_some(&pool).await;
    pool.flush().await.expect("a flush");
    let mut flushed = server.connections(Command::Flush);
    flushed.sort_unstable();
    assert_eq!(flushed, [0, 1, 2, 3]);

    pool.write(0, Buffer::zeroed(512), WriteFlags::empty())
        .await
        .expect("a write");
    pool.flush().await.expect("another");
    let writer = server.connections(Command::Write).pop();
    let flushed = server.connections(Command::Flush);
    assert_eq!((flushed.len(), flushed.last().copied()), (5, writer));
}

#[tokio::test]
async fn what_a_lost_connection_wrote_is_flushed_through_another() {
    let server = Server::start(Script {
        mortal: Some(0),
        // The write is the first answer, the read that kills the connection the second.
        dies_at: Some(1),
        ..small()
    });
    let pool = connect(&server, 2, 2).await;
    while server.connections(Command::Write).last() != Some(&0) {
        pool.write(0, Buffer::zeroed(512), WriteFlags::empty())
            .await
            .expect("a write");
    }
    while pool.connections() == 2 {
        pool.read(0, Buffer::zeroed(512)).await.expect("a read");
    }
    pool.flush().await.expect("a flush");
    assert!(server.connections(Command::Flush).contains(&1));
}

#[tokio::test]
async fn disconnect_says_goodbye_on_every_connection() {
    let server = Server::start(small());
    let pool = connect(&server, 3, 3).await;
    read_all(&pool).await;
    pool.disconnect().await;
    assert_eq!(pool.connections(), 0);
    let late = pool.read(0, Buffer::zeroed(1)).await.expect_err("too late");
    assert_eq!(late.kind(), ErrorKind::ConnectionLost);
}
