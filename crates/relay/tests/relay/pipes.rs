//! Pipes of the user at either end: they are spliced from and to without another pipe between.

use blockferry_relay::{Cause, Mode, copy_with};
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpStream, UnixStream,
        unix::pipe::{self, Receiver, Sender},
    },
};

use crate::{
    bytes::{bytes, in_time, receive, receive_exactly, send},
    line::{MODES, check_way, options},
    sockets::Socket,
};

const TOTAL: u64 = 8 << 20;

async fn from_a_pipe_to_a_socket<W: Socket>() {
    for mode in MODES {
        let (mut sender, mut reader) = pipe::pipe().unwrap();
        let (mut writer, mut peer) = W::pair().await;
        let sending = async move { send(&mut sender, 0, TOTAL, 10_000).await };
        let copying =
            async move { copy_with(&mut reader, &mut writer, None, &options(mode)).await };
        let (moved, (), end) =
            in_time(async { tokio::join!(copying, sending, receive(&mut peer, 0)) }).await;
        check_way(mode, moved.unwrap(), TOTAL);
        assert_eq!(end, TOTAL);
    }
}

#[tokio::test]
async fn a_pipe_is_copied_to_a_tcp_socket() {
    from_a_pipe_to_a_socket::<TcpStream>().await;
}

#[tokio::test]
async fn a_pipe_is_copied_to_a_unix_socket() {
    from_a_pipe_to_a_socket::<UnixStream>().await;
}

async fn from_a_socket_to_a_pipe<R: Socket>() {
    for mode in MODES {
        let (mut peer, mut reader) = R::pair().await;
        let (mut writer, mut receiver) = pipe::pipe().unwrap();
        let sending = async move {
            send(&mut peer, 0, TOTAL, 10_000).await;
            peer.shutdown().await.unwrap();
            peer
        };
        let copying =
            async move { copy_with(&mut reader, &mut writer, None, &options(mode)).await };
        let (moved, _peer, end) =
            in_time(async { tokio::join!(copying, sending, receive(&mut receiver, 0)) }).await;
        check_way(mode, moved.unwrap(), TOTAL);
        assert_eq!(end, TOTAL);
    }
}

#[tokio::test]
async fn a_tcp_socket_is_copied_to_a_pipe() {
    from_a_socket_to_a_pipe::<TcpStream>().await;
}

#[tokio::test]
async fn a_unix_socket_is_copied_to_a_pipe() {
    from_a_socket_to_a_pipe::<UnixStream>().await;
}

#[tokio::test]
async fn a_pipe_is_copied_to_a_pipe() {
    for mode in MODES {
        let (mut sender, mut reader) = pipe::pipe().unwrap();
        let (mut writer, mut receiver) = pipe::pipe().unwrap();
        let sending = async move { send(&mut sender, 0, TOTAL, 10_000).await };
        let copying =
            async move { copy_with(&mut reader, &mut writer, None, &options(mode)).await };
        let (moved, (), end) =
            in_time(async { tokio::join!(copying, sending, receive(&mut receiver, 0)) }).await;
        assert_eq!(moved.unwrap().total(), TOTAL);
        assert_eq!(end, TOTAL);
    }
}

/// A pipe that is full of tiny pieces holds few bytes, and is not the end of the data.
#[tokio::test]
async fn tiny_pieces_that_fill_a_pipe_do_not_stop_what_comes_after_them() {
    for mode in MODES {
        let (peer, mut reader) = <UnixStream as Socket>::pair().await;
        let (mut writer, mut receiver) = pipe::pipe().unwrap();
        // More pieces than a pipe of the default size has slots.
        let mut sent = 0;
        while peer.try_write(&bytes(sent, 100)).is_ok() && sent < 100_000 {
            sent += 100;
        }
        let copying =
            tokio::spawn(
                async move { copy_with(&mut reader, &mut writer, None, &options(mode)).await },
            );
        tokio::task::yield_now().await;
        in_time(receive_exactly(&mut receiver, 0, sent)).await;
        drop(peer);
        check_way(mode, in_time(copying).await.unwrap().unwrap(), sent);
    }
}

#[tokio::test]
async fn a_limit_leaves_the_rest_in_a_pipe() {
    for mode in MODES {
        let (mut sender, mut reader) = pipe::pipe().unwrap();
        let (mut writer, mut peer) = <UnixStream as Socket>::pair().await;
        sender.write_all(&bytes(0, 9_000)).await.unwrap();
        let mut limit = 5_001;
        let moved = in_time(copy_with(
            &mut reader,
            &mut writer,
            Some(&mut limit),
            &options(mode),
        ))
        .await
        .unwrap();
        check_way(mode, moved, 5_001);
        assert_eq!(limit, 0);
        receive_exactly(&mut peer, 0, 5_001).await;
        receive_exactly(&mut reader, 5_001, 9_000).await;
    }
}

/// What comes of a copy into a pipe whose reader goes away with nothing read.
async fn into_a_pipe_without_reader(mode: Mode, mut writer: Sender, receiver: Receiver) {
    let (mut peer, mut reader) = <TcpStream as Socket>::pair().await;
    peer.write_all(&bytes(0, 5_000)).await.unwrap();
    drop(receiver);
    let mut limit = 1 << 30;
    let error = in_time(copy_with(
        &mut reader,
        &mut writer,
        Some(&mut limit),
        &options(mode),
    ))
    .await
    .unwrap_err();
    assert!(matches!(error.cause, Cause::Write(_)), "{error}");
    assert!(error.cause.is_reset());
    assert_eq!(error.moved.total(), 0);
    assert_eq!((1 << 30) - limit, error.unwritten);
    peer.shutdown().await.unwrap();
    assert_eq!(receive(&mut reader, error.unwritten).await, 5_000);
}

#[tokio::test]
async fn a_pipe_without_reader_is_an_error_and_no_signal() {
    for mode in MODES {
        let (writer, receiver) = pipe::pipe().unwrap();
        into_a_pipe_without_reader(mode, writer, receiver).await;
    }
}
