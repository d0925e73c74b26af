//! What was opened is closed again, whatever became of it. Alone in its process: it counts.

mod support;

use std::{fs, time::Duration};

use blockferry_block::{BlockDevice, NullDevice, Payload, PipePool, WriteFlags};
use blockferry_client::{Client, ConnectOptions};
use blockferry_proto::Command;
use support::{Script, Server, byte_at};

/// How many pipes this process has open, both ends counted.
fn open_pipes() -> usize {
    let entries = fs::read_dir("/proc/self/fd").expect("a directory");
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links
        .filter(|link| link.to_string_lossy().starts_with("pipe:"))
        .count()
}

#[tokio::test]
async fn no_pipe_is_left_over_after_successes_failures_and_dropped_futures() {
    let before = open_pipes();
    for last_words in [0, 20, 100_000] {
        let server = Server::start(Script {
            size: 1 << 20,
            // Once it has said what it was asked of its extents, five reads and a write.
            dies_at: Some(7),
            last_words,
            ..Script::default()
        });
        let client = Client::connect(&server.uri(), &ConnectOptions::default())
            .await
            .expect("a connection");
        let pool = PipePool::new(1 << 20, 8);
        let pipe = || pool.take().expect("a pipe");
        for number in 0..4_u64 {
            let read = client.read_piped(number, 300_000, pipe());
            match read.await.expect("a read") {
                // Dropped with everything in it.
                Payload::Piped(pipe) if number == 0 => assert_eq!(pipe.len(), 300_000),
                Payload::Piped(pipe) if number == 1 => {
                    let buffer = pipe.into_memory().expect("all of it");
                    assert_eq!(buffer[0], byte_at(1));
                }
                Payload::Piped(pipe) => {
                    let nowhere = NullDevice::new(0);
                    let written = nowhere.write_piped(0, pipe, WriteFlags::empty());
                    written.await.expect("swallowed");
                }
                Payload::Memory(_) => panic!("there is room in the pipe"),
            }
        }
        let mut dropped = Box::pin(client.read_piped(0, 300_000, pipe()));
        let waited = tokio::time::timeout(Duration::ZERO, &mut dropped).await;
        drop((waited, dropped));
        let mut data = pipe();
        data.put(&[7; 300_000]).expect("room");
        let written = client.write_piped(0, data, WriteFlags::empty()).await;
        written.expect("alive");
        let read = client.read_piped(0, 300_000, pipe());
        read.await.expect_err("dead");
        client.disconnect().await;
        assert_eq!(server.memory()[..300_000], [7; 300_000]);
        assert_eq!(server.requests(Command::Read).len(), 6);
    }
    // The connection's task may still be on its way out.
    for _ in 0..1000 {
        if open_pipes() == before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} pipes are left over", open_pipes() - before);
}
