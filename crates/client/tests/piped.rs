//! Reads into pipes and writes out of them, with servers that send it all at once, in pieces, in chunks, or
//! not to the end.

mod support;

use std::time::Duration;

use blockferry_block::{
    BlockDevice, Buffer, BufferPool, ByteRange, Capabilities, Context, ErrorKind, NullDevice,
    Payload, PipePool, WriteFlags, ZeroFlags,
};
use blockferry_client::{Client, ConnectOptions, Pool};
use blockferry_proto::{Command, CommandFlags, Errno};
use support::{Script, Server, byte_at};
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;

async fn connect(server: &Server) -> Client {
    Client::connect(&server.uri(), &ConnectOptions::default())
        .await
        .expect("a connection")
}

fn pipes(limit: usize) -> PipePool {
    PipePool::new(MIB, limit)
}

/// Whether `buffer` has the bytes from `start` on.
fn is_right(buffer: &[u8], start: usize) -> bool {
    let mut bytes = buffer.iter().enumerate();
    bytes.all(|(index, it)| *it == byte_at(start + index))
}

/// Reads everything into pipes, in pieces of `length` bytes, all at once, along with some plain reads and
/// questions about extents. Checks every byte and returns how many pieces stayed in their pipes.
async fn read_all(client: &Client, length: usize) -> usize {
    let size = client.info().size as usize;
    let (pool, buffers) = (pipes(32), BufferPool::new(length, 4));
    let mut tasks = JoinSet::new();
    for (number, start) in (0..size).step_by(length).enumerate() {
        let (client, pool, buffers) = (client.clone(), pool.clone(), buffers.clone());
        tasks.spawn(async move {
            let length = length.min(size - start);
            if number % 5 == 4 {
                let range = ByteRange::new(start as u64, length as u64).expect("a range");
                if client.info().knows_allocation() {
                    let extents = client.extents(range, &Context::Allocation).await;
                    assert_eq!(extents.expect("extents").len(), 2);
                }
                let buffer = client.read(start as u64, buffers.take(length)).await;
                assert!(is_right(&buffer.expect("a read"), start), "at {start}");
                return 0;
            }
            let pipe = pool.take().expect("a pipe");
            let payload = client.read_piped(start as u64, length, pipe).await;
            let payload = payload.expect("a read");
            assert_eq!(payload.len(), length);
            let piped = usize::from(matches!(payload, Payload::Piped(_)));
            let buffer = payload.into_memory(&buffers).expect("all of it");
            assert!(is_right(&buffer, start), "at {start}");
            piped
        });
    }
    let mut piped = 0;
    while let Some(task) = tasks.join_next().await {
        piped += task.expect("no panic");
    }
    piped
}

#[tokio::test]
async fn payload_stays_in_its_pipe_whatever_the_order_of_the_answers() {
    for (structured, extended) in [(false, false), (true, false), (true, true)] {
        for backwards in [1, 5] {
            let server = Server::start(Script {
                size: MIB,
                structured,
                extended,
                backwards,
                ..Script::default()
            });
            // 16 pieces, 3 of which are plain reads.
            let piped = read_all(&connect(&server).await, 64 << 10).await;
            assert_eq!(piped, 13, "{structured} {extended} {backwards}");
            let reads = server.requests(Command::Read);
            let in_one = reads.iter().filter(|it| it.flags == CommandFlags::DF);
            assert_eq!(in_one.count(), if structured { 16 } else { 0 });
        }
    }
}

#[tokio::test]
async fn chunks_in_order_stay_in_the_pipe_and_others_do_not() {
    for (extended, in_order) in [(false, true), (true, true), (false, false)] {
        let server = Server::start(Script {
            size: MIB,
            extended,
            in_order,
            chunks: 4,
            backwards: 3,
            knows_df: false,
            ..Script::default()
        });
        let piped = read_all(&connect(&server).await, 64 << 10).await;
        assert_eq!(piped, if in_order { 13 } else { 0 });
    }
}

#[tokio::test]
async fn a_pipe_without_free_slots_sends_the_rest_to_memory() {
    for (write_size, structured) in [(100, true), (333, true), (1000, false)] {
        let server = Server::start(Script {
            size: 2_000_000,
            write_size,
            structured,
            extended: false,
            backwards: 3,
            ..Script::default()
        });
        let piped = read_all(&connect(&server).await, 400_000).await;
        assert_eq!(piped, 0, "a slot for each {write_size} bytes");
    }
}

#[tokio::test]
async fn holes_are_zeroes_in_the_pipe() {
    for (in_order, knows_df) in [(true, false), (false, false), (true, true)] {
        let server = Server::start(Script {
            in_order,
            knows_df,
            chunks: 8,
            holes: true,
            ..Script::default()
        });
        let client = connect(&server).await;
        let zeroes = ByteRange::new(100_000, 700_000).expect("a range");
        let zeroed = client.zero(zeroes, ZeroFlags::empty());
        zeroed.await.expect("zeroes");
        let (pool, buffers) = (pipes(2), BufferPool::new(MIB, 2));
        for (start, length) in [(0, 800_000), (150_000, 600_000), (50_000, 400_000)] {
            let pipe = pool.take().expect("a pipe");
            let payload = client.read_piped(start, length, pipe).await;
            let payload = payload.expect("a read");
            if in_order {
                assert!(matches!(payload, Payload::Piped(_)), "{start} {knows_df}");
            }
            let buffer = payload.into_memory(&buffers).expect("all of it");
            let memory = server.memory();
            assert!(buffer[..] == memory[start as usize..start as usize + length]);
        }
    }
}

#[tokio::test]
async fn death_within_a_payload_fails_the_read_and_leaves_no_used_pipe_behind() {
    for last_words in [0, 1, 27, 28, 29, 5000, 200_000, usize::MAX] {
        for structured in [false, true] {
            let server = Server::start(Script {
                structured,
                extended: false,
                size: MIB,
                // Where there are extents, it is asked for them first.
                dies_at: Some(if structured { 2 } else { 1 }),
                last_words,
                ..Script::default()
            });
            let client = connect(&server).await;
            let pool = pipes(1);
            let pipe = || pool.take().expect("it comes back, or another may be made");
            let good = client.read_piped(0, 300_000, pipe()).await.expect("alive");
            NullDevice::new(0)
                .write_piped(0, piped(good), WriteFlags::empty())
                .await
                .expect("swallowed");
            let error = client
                .read_piped(5, 300_000, pipe())
                .await
                .expect_err("dead");
            assert!(error.is_transient(), "{error:?}");
            assert_eq!((error.offset(), error.length()), (Some(5), Some(300_000)));
            assert!(pipe().is_empty());
        }
    }
}

/// The pipe that a payload is in.
fn piped(payload: Payload) -> blockferry_block::PipeBuffer {
    match payload {
        Payload::Piped(pipe) => pipe,
        Payload::Memory(_) => panic!("it is in memory"),
    }
}

#[tokio::test]
async fn a_refused_read_gives_the_pipe_back_and_leaves_the_connection_usable() {
    for structured in [false, true] {
        let server = Server::start(Script {
            structured,
            fails: |request| (request.offset == 4096).then_some(Errno::ESHUTDOWN),
            ..Script::default()
        });
        let client = connect(&server).await;
        let pool = pipes(1);
        let refused = client.read_piped(4096, 300_000, pool.take().expect("a pipe"));
        let error = refused.await.expect_err("as the script says");
        assert_eq!(error.kind(), ErrorKind::ShuttingDown);
        let read = client.read_piped(0, 300_000, pool.take().expect("it is back"));
        assert_eq!(piped(read.await.expect("well")).len(), 300_000);
    }
}

#[tokio::test]
async fn a_server_that_refuses_long_reads_in_one_chunk_is_read_in_several() {
    let server = Server::start(Script {
        chunks: 3,
        in_order: true,
        fails: |request| {
            let in_one = request.flags.contains(CommandFlags::DF);
            in_one.then_some(Errno::EOVERFLOW)
        },
        ..Script::default()
    });
    let client = connect(&server).await;
    let (pool, buffers) = (pipes(1), BufferPool::new(MIB, 2));
    for first in [true, false] {
        let read = client.read_piped(0, 300_000, pool.take().expect("a pipe"));
        let payload = read.await.expect("a read");
        assert_eq!(matches!(payload, Payload::Memory(_)), first);
        assert!(is_right(
            &payload.into_memory(&buffers).expect("all of it"),
            0
        ));
    }
    assert_eq!(server.requests(Command::Read).len(), 3);
}

#[tokio::test]
async fn a_read_into_memory_that_is_refused_in_one_chunk_comes_in_several_from_then_on() {
    let server = Server::start(Script {
        chunks: 3,
        in_order: true,
        fails: |request| {
            let in_one = request.flags.contains(CommandFlags::DF);
            in_one.then_some(Errno::EOVERFLOW)
        },
        ..Script::default()
    });
    let client = connect(&server).await;
    for _ in 0..2 {
        let read = client.read(0, blockferry_block::Buffer::zeroed(300_000));
        assert!(is_right(&read.await.expect("a read"), 0));
    }
    let reads = server.requests(Command::Read);
    let flags: Vec<_> = reads.iter().map(|read| read.flags).collect();
    let none = CommandFlags::empty();
    assert_eq!(flags, [CommandFlags::DF, none, none]);
}

#[tokio::test]
async fn an_abandoned_read_disturbs_no_other() {
    let server = Server::start(Script {
        backwards: 4,
        ..Script::default()
    });
    let client = connect(&server).await;
    let (pool, buffers) = (pipes(8), BufferPool::new(MIB, 2));
    for round in 0..50_u64 {
        let pipe = pool.take().expect("those that were abandoned are gone");
        let mut abandoned = Box::pin(client.read_piped(round * 1000, 200_000, pipe));
        let waited = tokio::time::timeout(Duration::ZERO, &mut abandoned).await;
        drop(abandoned);
        let start = round * 2000;
        let pipe = pool.take().expect("a pipe");
        let payload = client.read_piped(start, 100_000, pipe).await;
        let buffer = payload.expect("a read").into_memory(&buffers);
        let buffer = buffer.expect("all of it");
        assert!(is_right(&buffer, start as usize), "{waited:?}");
    }
}

#[tokio::test]
async fn what_is_written_out_of_pipes_arrives_among_plain_writes() {
    for (structured, extended) in [(false, false), (true, true)] {
        let server = Server::start(Script {
            structured,
            extended,
            backwards: 3,
            ..Script::default()
        });
        let client = connect(&server).await;
        let expected: Vec<u8> = (0..4 * MIB).map(|at| (at % 239) as u8).collect();
        let pool = pipes(16);
        let mut tasks = JoinSet::new();
        for (number, part) in expected.chunks(300_000).enumerate() {
            let data = if number % 3 == 2 {
                Payload::Memory(Buffer::from(part))
            } else {
                let mut pipe = pool.take().expect("a pipe");
                assert_eq!(pipe.put(part).expect("room"), part.len());
                Payload::Piped(pipe)
            };
            let (client, offset) = (client.clone(), number as u64 * 300_000);
            tasks.spawn(async move {
                let none = WriteFlags::empty();
                match data {
                    Payload::Memory(data) => client.write(offset, data, none).await.map(drop),
                    Payload::Piped(data) => client.write_piped(offset, data, none).await,
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("no panic").expect("a write");
        }
        assert!(server.memory() == expected);
        let writes = server.requests(Command::Write);
        assert!(
            writes
                .iter()
                .all(|it| !it.flags.contains(CommandFlags::FUA))
        );
    }
}

#[tokio::test]
async fn what_was_read_into_a_pipe_is_written_to_another_server_uncopied() {
    let source = Server::start(Script::default());
    let target = Server::start(Script::default());
    let (reader, writer) = (connect(&source).await, connect(&target).await);
    assert!(reader.info().can(Capabilities::SPLICE_READ));
    assert!(writer.info().can(Capabilities::SPLICE_WRITE));
    let whole = ByteRange::new(0, writer.info().size).expect("a range");
    writer
        .zero(whole, ZeroFlags::empty())
        .await
        .expect("zeroes");
    let pool = pipes(4);
    let mut tasks = JoinSet::new();
    for start in (0..4 * MIB as u64).step_by(MIB / 4) {
        let (reader, writer) = (reader.clone(), writer.clone());
        let pool = pool.clone();
        tasks.spawn(async move {
            let pipe = loop {
                match pool.take() {
                    Some(pipe) => break pipe,
                    None => tokio::task::yield_now().await,
                }
            };
            let payload = reader.read_piped(start, MIB / 4, pipe).await;
            let data = piped(payload.expect("a read"));
            let written = writer.write_piped(start, data, WriteFlags::FUA).await;
            written.expect("a write");
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no panic");
    }
    assert!(target.memory() == source.memory());
    let writes = target.requests(Command::Write);
    assert!(writes.iter().all(|it| it.flags.contains(CommandFlags::FUA)));
}

#[tokio::test]
async fn refused_and_lost_writes_say_so() {
    let server = Server::start(Script {
        fails: |request| (request.offset == 0).then_some(Errno::ENOSPC),
        dies_at: Some(1),
        last_words: 3,
        ..Script::default()
    });
    let client = connect(&server).await;
    let pool = pipes(1);
    for (offset, kind) in [
        (0, ErrorKind::NoSpace),
        (4096, ErrorKind::ConnectionLost),
        (4096, ErrorKind::ConnectionLost),
        (1 << 40, ErrorKind::OutOfBounds),
    ] {
        let mut data = pool.take().expect("a pipe");
        data.put(&[7; 100_000]).expect("room");
        let written = client.write_piped(offset, data, WriteFlags::empty());
        let error = written.await.expect_err("as the script says");
        assert_eq!((error.kind(), error.offset()), (kind, Some(offset)));
    }
}

#[tokio::test]
async fn a_pool_reads_on_after_a_connection_died_with_a_pipe_half_full() {
    let server = Server::start(Script {
        mortal: Some(1),
        dies_at: Some(1),
        last_words: 100_000,
        ..Script::default()
    });
    let pool = Pool::connect(&server.uri(), &ConnectOptions::default(), 3)
        .await
        .expect("a pool");
    while pool.connections() < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (pipes, buffers) = (pipes(1), BufferPool::new(MIB, 2));
    let mut in_memory = 0;
    for start in (0..3_000_000).step_by(200_000) {
        let pipe = pipes.take().expect("a pipe");
        let payload = pool.read_piped(start, 200_000, pipe).await;
        let payload = payload.expect("a read");
        in_memory += usize::from(matches!(payload, Payload::Memory(_)));
        let buffer = payload.into_memory(&buffers).expect("all of it");
        assert!(is_right(&buffer, start as usize), "at {start}");
    }
    assert_eq!((in_memory, pool.connections()), (1, 2), "one was lost");
}

#[tokio::test]
async fn a_pool_tells_of_a_write_that_was_lost_with_its_connection() {
    let server = Server::start(Script {
        mortal: Some(0),
        dies_at: Some(0),
        ..Script::default()
    });
    let pool = Pool::connect(&server.uri(), &ConnectOptions::default(), 2)
        .await
        .expect("a pool");
    while pool.connections() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let pipes = pipes(1);
    let mut lost = 0;
    for number in 0..4_u8 {
        let mut data = pipes.take().expect("a pipe");
        data.put(&[number; 100_000]).expect("room");
        let offset = u64::from(number) * 100_000;
        let written = pool.write_piped(offset, data, WriteFlags::empty());
        if let Err(error) = written.await {
            assert_eq!(error.kind(), ErrorKind::ConnectionLost);
            lost += 1;
        }
    }
    assert_eq!((lost, pool.connections()), (1, 1));
    pool.flush().await.expect("the other lives");
}
