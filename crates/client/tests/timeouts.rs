//! Servers that fall silent and stay connected.

mod support;

use std::time::Duration;

use blockferry_block::{BlockDevice, Buffer, ErrorKind, WriteFlags};
use blockferry_client::{Client, ConnectOptions, blocking};
use support::{Script, Server, byte_at};

const LIMIT: Duration = Duration::from_millis(200);

/// A server that answers `answers` requests and no more.
fn silent_after(answers: usize) -> Server {
    Server::start(Script {
        silent_from: Some(answers),
        ..Script::default()
    })
}

fn within(request: Option<Duration>, flush: Option<Duration>) -> ConnectOptions {
    let mut options = ConnectOptions::default();
    options.request_timeout = request;
    options.flush_timeout = flush;
    options
}

#[tokio::test]
async fn everything_in_flight_fails_when_the_server_falls_silent() {
    let server = silent_after(1);
    let client = Client::connect(&server.uri(), &within(Some(LIMIT), None)).await;
    let client = client.expect("a connection");
    let first = client.read(5, Buffer::zeroed(512)).await.expect("a read");
    assert_eq!(first[0], byte_at(5));
    let reads = (0..3).map(|offset| client.read(offset, Buffer::zeroed(512)));
    for read in futures_util::future::join_all(reads).await {
        let error = read.expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let text = error.to_string();
        assert!(text.contains("has not answered for 0.2 s"), "{text}");
    }
    // The connection has ended: nobody waits again.
    let late = client.read(0, Buffer::zeroed(512)).await;
    assert_eq!(late.expect_err("too late").kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_flush_alone_is_measured_by_its_own_limit() {
    let server = silent_after(0);
    let client = Client::connect(&server.uri(), &within(None, Some(LIMIT))).await;
    let error = client.expect("a connection").flush().await;
    assert_eq!(error.expect_err("silence").kind(), ErrorKind::TimedOut);

    let server = silent_after(0);
    let client = Client::connect(&server.uri(), &within(Some(LIMIT), None)).await;
    let client = client.expect("a connection");
    let flush = tokio::time::timeout(LIMIT * 5, client.flush()).await;
    assert!(flush.is_err(), "a flush may take as long as it takes");
    // A read beside it may not.
    let read = client.read(0, Buffer::zeroed(512)).await;
    assert_eq!(read.expect_err("silence").kind(), ErrorKind::TimedOut);
}

#[test]
fn the_blocking_client_gives_up_as_well() {
    let server = silent_after(1);
    let options = within(Some(LIMIT), None);
    let mut client = blocking::Client::connect_with(&server.uri(), &options).expect("connected");
    let mut buffer = [0; 512];
    client.read(0, &mut buffer).expect("a read");
    let error = client.read(512, &mut buffer).expect_err("silence");
    assert_eq!(
        (error.kind(), error.offset()),
        (ErrorKind::TimedOut, Some(512))
    );
    let text = error.to_string();
    assert!(text.contains("has not answered for 0.2 s"), "{text}");

    let server = silent_after(1);
    let options = within(None, Some(LIMIT));
    let mut client = blocking::Client::connect_with(&server.uri(), &options).expect("connected");
    client
        .write(0, &buffer, WriteFlags::empty())
        .expect("a write");
    let error = client.flush().expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}
