//! Streams that the kernel knows nothing of go through memory, whatever was asked for.

use std::{
    io::{self, Cursor, ErrorKind},
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use blockferry_relay::{
    Cause, Moved, Sockets, copy_bidirectional, copy_bidirectional_above, copy_with,
};
use tokio::{
    io::{
        AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter, ReadBuf, duplex,
    },
    net::{TcpStream, UnixStream},
};

use crate::{
    bytes::{bytes, check, in_time, receive, receive_exactly, send},
    line::{Line, MODES, options},
    sockets::Socket,
};

fn copied(copied: u64) -> Moved {
    Moved { spliced: 0, copied }
}

#[tokio::test]
async fn memory_is_copied_to_a_socket() {
    for mode in MODES {
        let (mut writer, mut peer) = <TcpStream as Socket>::pair().await;
        let mut reader = Cursor::new(bytes(0, 3_000_000));
        let options = options(mode);
        let (moved, ()) = in_time(async {
            tokio::join!(
                copy_with(&mut reader, &mut writer, None, &options),
                receive_exactly(&mut peer, 0, 3_000_000)
            )
        })
        .await;
        assert_eq!(moved.unwrap(), copied(3_000_000));
    }
}

#[tokio::test]
async fn a_socket_is_copied_to_memory() {
    for mode in MODES {
        let (mut peer, mut reader) = <UnixStream as Socket>::pair().await;
        let sending = async {
            send(&mut peer, 0, 3_000_000, 4_096).await;
            peer.shutdown().await.unwrap();
        };
        let mut writer = Cursor::new(Vec::new());
        let options = options(mode);
        let (moved, ()) = in_time(async {
            tokio::join!(copy_with(&mut reader, &mut writer, None, &options), sending)
        })
        .await;
        assert_eq!(moved.unwrap(), copied(3_000_000));
        assert_eq!(writer.get_ref().len(), 3_000_000);
        check(0, writer.get_ref());
    }
}

#[tokio::test]
async fn a_socket_and_a_stream_in_memory_are_relayed_both_ways() {
    for mode in MODES {
        let (mut left, mut a) = <TcpStream as Socket>::pair().await;
        let (mut b, mut right) = duplex(1_000);
        let relay =
            tokio::spawn(async move { copy_bidirectional(&mut a, &mut b, &options(mode)).await });
        in_time(async {
            tokio::join!(
                send(&mut left, 0, 100_000, 3_000),
                receive_exactly(&mut right, 0, 100_000)
            );
            left.shutdown().await.unwrap();
            assert_eq!(right.read(&mut [0]).await.unwrap(), 0);
            tokio::join!(
                send(&mut right, 0, 70_000, 300),
                receive_exactly(&mut left, 0, 70_000)
            );
            right.shutdown().await.unwrap();
            assert_eq!(receive(&mut left, 0).await, 0);
        })
        .await;
        let totals = relay.await.unwrap().unwrap();
        assert_eq!(totals.forward, copied(100_000));
        assert_eq!(totals.backward, copied(70_000));
    }
}

/// What a buffer around a socket has read ahead would be lost if the socket were spliced behind its back.
#[tokio::test]
async fn what_a_buffered_reader_has_read_ahead_is_not_lost() {
    for mode in MODES {
        let mut line = Line::<TcpStream, TcpStream>::new().await;
        line.left.write_all(&bytes(0, 20_000)).await.unwrap();
        line.left.shutdown().await.unwrap();
        let mut reader = BufReader::new(line.a);
        let mut first = [0; 10];
        reader.read_exact(&mut first).await.unwrap();
        assert!(!reader.buffer().is_empty());

        let moved = in_time(copy_with(&mut reader, &mut line.b, None, &options(mode)))
            .await
            .unwrap();

        assert_eq!(moved, copied(19_990));
        receive_exactly(&mut line.right, 10, 20_000).await;
    }
}

/// A question that waits in a buffered writer would never be answered.
#[tokio::test]
async fn a_buffered_writer_is_flushed_while_the_reader_is_silent() {
    for mode in MODES {
        let Line {
            mut left,
            mut a,
            b,
            mut right,
        } = Line::<UnixStream, UnixStream>::new().await;
        let mut b = BufWriter::new(b);
        let relay =
            tokio::spawn(async move { copy_bidirectional(&mut a, &mut b, &options(mode)).await });
        in_time(async {
            for round in 0..10 {
                left.write_all(&bytes(round, 9)).await.unwrap();
                receive_exactly(&mut right, round, round + 9).await;
                right.write_all(&bytes(round, 5)).await.unwrap();
                receive_exactly(&mut left, round, round + 5).await;
            }
        })
        .await;
        left.shutdown().await.unwrap();
        right.shutdown().await.unwrap();
        let totals = relay.await.unwrap().unwrap();
        assert_eq!((totals.forward, totals.backward), (copied(90), copied(50)));
    }
}

/// Gives the bytes of the stream up to a place, and then an error.
struct FailingReader {
    at: u64,
    fails_at: u64,
}

impl AsyncRead for FailingReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at == self.fails_at {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        let most = buffer
            .remaining()
            .min(usize::try_from(self.fails_at - self.at).unwrap())
            .min(1_000);
        buffer.put_slice(&bytes(self.at, most));
        self.at += most as u64;
        Poll::Ready(Ok(()))
    }
}

/// Takes so many bytes, and then says what it was told to say.
struct FailingWriter {
    taken: Vec<u8>,
    room: usize,
    then: fn() -> io::Result<usize>,
}

impl AsyncWrite for FailingWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let most = data.len().min(self.room - self.taken.len()).min(700);
        if most == 0 {
            return Poll::Ready((self.then)());
        }
        self.taken.extend(&data[..most]);
        Poll::Ready(Ok(most))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_reader_that_fails_is_told_with_all_that_it_gave() {
    for mode in MODES {
        let (mut writer, mut peer) = <UnixStream as Socket>::pair().await;
        let mut reader = FailingReader {
            at: 0,
            fails_at: 33_333,
        };
        let error = in_time(copy_with(&mut reader, &mut writer, None, &options(mode)))
            .await
            .unwrap_err();
        assert!(
            matches!(&error.cause, Cause::Read(error) if error.kind() == ErrorKind::ConnectionReset)
        );
        assert!(error.cause.is_reset());
        assert_eq!((error.moved, error.unwritten), (copied(33_333), 0));
        drop(writer);
        assert_eq!(receive(&mut peer, 0).await, 33_333);
    }
}

/// Copies into a writer that fails after 12,345 bytes, and says of which kind the error was.
async fn kind_of_failure(then: fn() -> io::Result<usize>) -> ErrorKind {
    let mut kinds = Vec::new();
    for mode in MODES {
        let (mut peer, mut reader) = <UnixStream as Socket>::pair().await;
        peer.write_all(&bytes(0, 40_000)).await.unwrap();
        let mut writer = FailingWriter {
            taken: Vec::new(),
            room: 12_345,
            then,
        };
        let mut limit = 1 << 40;

        let error = in_time(copy_with(
            &mut reader,
            &mut writer,
            Some(&mut limit),
            &options(mode),
        ))
        .await
        .unwrap_err();

        assert_eq!(writer.taken.len(), 12_345);
        check(0, &writer.taken);
        assert_eq!(error.moved, copied(12_345));
        let taken = error.moved.total() + error.unwritten;
        assert_eq!((1 << 40) - limit, taken);
        drop(peer);
        assert_eq!(receive(&mut reader, taken).await, 40_000);
        let Cause::Write(error) = error.cause else {
            panic!("{error}");
        };
        kinds.push(error.kind());
    }
    kinds.dedup();
    assert_eq!(kinds.len(), 1, "{kinds:?}");
    kinds[0]
}

#[tokio::test]
async fn a_writer_that_fails_is_told_with_all_that_it_took() {
    let kind = kind_of_failure(|| Err(ErrorKind::StorageFull.into())).await;
    assert_eq!(kind, ErrorKind::StorageFull);
}

/// A writer that takes nothing and says that all is well would be asked for ever.
#[tokio::test]
async fn a_writer_that_takes_nothing_more_has_failed() {
    assert_eq!(kind_of_failure(|| Ok(0)).await, ErrorKind::WriteZero);
}

#[tokio::test]
async fn a_stream_in_memory_whose_reader_is_gone_has_failed() {
    for mode in MODES {
        let (mut peer, mut reader) = <UnixStream as Socket>::pair().await;
        let (mut writer, gone) = duplex(100);
        drop(gone);
        peer.write_all(&bytes(0, 500)).await.unwrap();
        let error = in_time(copy_with(&mut reader, &mut writer, None, &options(mode)))
            .await
            .unwrap_err();
        assert!(
            matches!(&error.cause, Cause::Write(error) if error.kind() == ErrorKind::BrokenPipe)
        );
        assert_eq!(error.moved, Moved::default());
        assert_eq!(error.unwritten, 500);
    }
}

/// A stream that stands above a socket, as one of TLS does. It may keep what is written to itself.
struct Above<S> {
    socket: S,
    hoard: Option<Vec<u8>>,
}

impl<S> Above<S> {
    fn passing_on(socket: S) -> Self {
        Self {
            socket,
            hoard: None,
        }
    }
}

impl<S: Socket> AsyncRead for Above<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, room)
    }
}

impl<S: Socket> AsyncWrite for Above<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.hoard {
            Some(hoard) => {
                hoard.extend(bytes);
                Poll::Ready(Ok(bytes.len()))
            }
            None => Pin::new(&mut self.socket).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.hoard {
            Some(_) => Poll::Pending,
            None => Pin::new(&mut self.socket).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[tokio::test]
async fn what_a_stream_above_a_socket_keeps_to_itself_is_not_delivered() {
    for mode in MODES {
        let Line {
            mut left,
            a,
            b,
            right: _right,
        } = Line::<UnixStream, UnixStream>::new().await;
        let (mut a, mut b) = (Above::passing_on(a), Above::passing_on(b));
        b.hoard = Some(Vec::new());
        let mut options = options(mode);
        options.idle_timeout = Some(Duration::from_millis(100));
        let sockets = Sockets {
            first: |end: &Above<UnixStream>| Some(end.socket.as_fd()),
            second: |end: &Above<UnixStream>| Some(end.socket.as_fd()),
        };
        let relaying = copy_bidirectional_above(&mut a, &mut b, &sockets, &options);
        let (error, ()) =
            in_time(async { tokio::join!(relaying, send(&mut left, 0, 100_000, 1_000)) }).await;
        let error = error.unwrap_err();
        assert!(matches!(error.cause, Cause::Idle(_)), "{error}");
        assert_eq!(error.totals.forward, Moved::default());
        assert_eq!(b.hoard.map(|hoard| hoard.len()), Some(100_000));
    }
}

async fn a_peer_that_ended_and_vanished_below_ends_the_connection<S: Socket>() {
    for mode in MODES {
        let Line {
            mut left,
            a,
            b,
            mut right,
        } = Line::<S, S>::new().await;
        let (mut a, mut b) = (Above::passing_on(a), Above::passing_on(b));
        let relay = tokio::spawn(async move {
            let sockets = Sockets {
                first: |end: &Above<S>| Some(end.socket.as_fd()),
                second: |end: &Above<S>| Some(end.socket.as_fd()),
            };
            copy_bidirectional_above(&mut a, &mut b, &sockets, &options(mode)).await
        });
        send(&mut left, 0, 1_000, 1_000).await;
        left.shutdown().await.unwrap();
        assert_eq!(receive(&mut right, 0).await, 1_000);
        left.vanish();
        let error = relay.await.unwrap().unwrap_err();
        assert!(matches!(error.cause, Cause::Gone), "{error}");
        assert_eq!(error.totals.forward, copied(1_000));
    }
}

#[tokio::test]
async fn a_peer_that_ended_and_vanished_is_missed_below_any_stream() {
    in_time(a_peer_that_ended_and_vanished_below_ends_the_connection::<
        UnixStream,
    >())
    .await;
    in_time(a_peer_that_ended_and_vanished_below_ends_the_connection::<
        TcpStream,
    >())
    .await;
}
