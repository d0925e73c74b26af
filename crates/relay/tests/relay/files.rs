//! Files and devices at either end.

use std::{
    io::SeekFrom,
    path::Path,
    pin::pin,
    time::{Duration, Instant},
};

use blockferry_relay::{Cause, Mode, Moved, Rate, copy_with};
use tokio::{
    fs::{File, OpenOptions},
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use crate::{
    bytes::{bytes, check, in_time, receive, receive_exactly, send},
    line::{MODES, check_way, options, options_with, pool_of},
    sockets::Socket,
};

const TOTAL: u64 = 5_000_000;

const SOON: Duration = Duration::from_millis(150);

/// A file in `directory` with the first bytes of the stream.
async fn file_of(directory: &Path, length: u64) -> File {
    let path = directory.join("source");
    std::fs::write(&path, bytes(0, usize::try_from(length).unwrap())).unwrap();
    File::open(path).await.unwrap()
}

/// Copies `file` up to its end to a socket, whose peer must get the bytes of the stream from `from` to `to`.
async fn arrives<W: Socket>(mode: Mode, file: &mut File, from: u64, to: u64) -> Moved {
    let (mut writer, mut peer) = W::pair().await;
    let options = options(mode);
    let copying = async {
        let moved = copy_with(file, &mut writer, None, &options).await;
        writer.shutdown().await.unwrap();
        moved
    };
    let (moved, end) = in_time(async { tokio::join!(copying, receive(&mut peer, from)) }).await;
    assert_eq!(end, to);
    moved.unwrap()
}

/// Copies the bytes of the stream from `from` to `to` from a socket into `file`.
async fn fills<R: Socket>(mode: Mode, file: &mut File, from: u64, to: u64) -> Moved {
    let (mut peer, mut reader) = R::pair().await;
    let options = options(mode);
    let sending = async {
        send(&mut peer, from, to, 50_000).await;
        peer.shutdown().await.unwrap();
    };
    let (moved, ()) =
        in_time(async { tokio::join!(copy_with(&mut reader, file, None, &options), sending) })
            .await;
    moved.unwrap()
}

#[tokio::test]
async fn a_file_is_sent_to_a_socket() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let mut file = file_of(directory.path(), TOTAL).await;
        check_way(
            mode,
            arrives::<TcpStream>(mode, &mut file, 0, TOTAL).await,
            TOTAL,
        );
        file.rewind().await.unwrap();
        check_way(
            mode,
            arrives::<UnixStream>(mode, &mut file, 0, TOTAL).await,
            TOTAL,
        );
    }
}

#[tokio::test]
async fn a_socket_is_received_into_a_file() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("target");
        let mut file = File::create(&path).await.unwrap();
        check_way(
            mode,
            fills::<TcpStream>(mode, &mut file, 0, TOTAL).await,
            TOTAL,
        );
        check_way(
            mode,
            fills::<UnixStream>(mode, &mut file, TOTAL, 2 * TOTAL).await,
            TOTAL,
        );
        let written = std::fs::read(&path).unwrap();
        assert_eq!(written.len() as u64, 2 * TOTAL);
        check(0, &written);
    }
}

#[tokio::test]
async fn a_file_is_copied_to_a_file() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let mut source = file_of(directory.path(), TOTAL).await;
        let path = directory.path().join("target");
        let mut target = File::create(&path).await.unwrap();
        let moved = in_time(copy_with(&mut source, &mut target, None, &options(mode)))
            .await
            .unwrap();
        assert_eq!(moved.total(), TOTAL);
        let written = std::fs::read(&path).unwrap();
        assert_eq!(written.len() as u64, TOTAL);
        check(0, &written);
    }
}

#[tokio::test]
async fn a_file_that_was_read_partly_goes_on_where_it_was() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let mut file = file_of(directory.path(), 100_000).await;
        file.read_exact(&mut [0; 777]).await.unwrap();
        let moved = arrives::<TcpStream>(mode, &mut file, 777, 100_000).await;
        check_way(mode, moved, 100_000 - 777);
    }
}

/// tokio's file has read what was asked for then, though nobody waited for it.
#[tokio::test]
async fn what_a_given_up_read_took_from_a_file_is_not_lost() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let mut file = file_of(directory.path(), 100_000).await;
        // Until an answer is not there at once.
        let mut at = 0;
        while let Some(count) = asked_once(file.read(&mut [0; 50])).await {
            at += count.unwrap() as u64;
            assert!(at < 100_000);
        }
        let moved = arrives::<UnixStream>(mode, &mut file, at, 100_000).await;
        assert_eq!(moved.total(), 100_000 - at);
    }
}

/// What a future has to say when it is asked once.
async fn asked_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn a_limit_leaves_a_file_where_the_copy_ended() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let mut file = file_of(directory.path(), 100_000).await;
        let (mut writer, mut peer) = <UnixStream as Socket>::pair().await;
        let mut limit = 60_001;
        let options = options(mode);
        let (moved, ()) = in_time(async {
            tokio::join!(
                copy_with(&mut file, &mut writer, Some(&mut limit), &options),
                receive_exactly(&mut peer, 0, 60_001)
            )
        })
        .await;
        check_way(mode, moved.unwrap(), 60_001);
        assert_eq!(limit, 0);
        assert_eq!(file.stream_position().await.unwrap(), 60_001);
        assert_eq!(receive(&mut file, 60_001).await, 100_000);
    }
}

#[tokio::test]
async fn a_file_is_written_to_before_and_after_a_copy_in_order() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("target");
        let mut file = File::create(&path).await.unwrap();
        // Not flushed: it may still be on its way.
        file.write_all(&bytes(0, 10_000)).await.unwrap();
        fills::<UnixStream>(mode, &mut file, 10_000, 90_000).await;
        file.write_all(&bytes(90_000, 5_000)).await.unwrap();
        file.flush().await.unwrap();
        let written = std::fs::read(&path).unwrap();
        assert_eq!(written.len(), 95_000);
        check(0, &written);
    }
}

#[tokio::test]
async fn bytes_in_the_middle_of_a_file_are_overwritten() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("target");
        std::fs::write(&path, [7; 3_000]).unwrap();
        let mut file = OpenOptions::new().write(true).open(&path).await.unwrap();
        file.seek(SeekFrom::Start(1_000)).await.unwrap();
        check_way(
            mode,
            fills::<TcpStream>(mode, &mut file, 0, 1_000).await,
            1_000,
        );
        let written = std::fs::read(&path).unwrap();
        assert_eq!(written.len(), 3_000);
        check(0, &written[1_000..2_000]);
        assert!(
            [&written[..1_000], &written[2_000..]]
                .concat()
                .iter()
                .all(|byte| *byte == 7)
        );
    }
}

/// The kernel refuses to splice to such files (EINVAL), and says so when the first bytes are in a pipe already.
#[tokio::test]
async fn a_file_that_is_only_appended_to_gets_each_byte_once() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, bytes(0, 1_000)).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).await.unwrap();
        let moved = fills::<TcpStream>(mode, &mut file, 1_000, TOTAL).await;
        check_way(Mode::Copy, moved, TOTAL - 1_000);
        let moved = fills::<UnixStream>(mode, &mut file, TOTAL, 2 * TOTAL).await;
        check_way(Mode::Copy, moved, TOTAL);
        let written = std::fs::read(&path).unwrap();
        assert_eq!(written.len() as u64, 2 * TOTAL);
        check(0, &written);
    }
}

#[tokio::test]
async fn a_sparse_file_arrives_with_its_zeroes() {
    const HOLE: u64 = 40 << 20;
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let mut file = file_of(directory.path(), 10_000).await;
        OpenOptions::new()
            .write(true)
            .open(directory.path().join("source"))
            .await
            .unwrap()
            .set_len(HOLE)
            .await
            .unwrap();
        let (mut writer, mut peer) = <UnixStream as Socket>::pair().await;
        let copying =
            tokio::spawn(
                async move { copy_with(&mut file, &mut writer, None, &options(mode)).await },
            );
        in_time(receive_exactly(&mut peer, 0, 10_000)).await;
        let mut zeroes = Vec::new();
        in_time(peer.read_to_end(&mut zeroes)).await.unwrap();
        assert_eq!(zeroes.len() as u64, HOLE - 10_000);
        assert!(zeroes.iter().all(|byte| *byte == 0));
        check_way(mode, copying.await.unwrap().unwrap(), HOLE);
    }
}

#[tokio::test]
async fn the_null_device_takes_everything_and_gives_nothing() {
    for mode in MODES {
        let mut null = File::create("/dev/null").await.unwrap();
        assert_eq!(
            fills::<TcpStream>(mode, &mut null, 0, TOTAL).await.total(),
            TOTAL
        );
        let mut null = File::open("/dev/null").await.unwrap();
        let moved = arrives::<TcpStream>(mode, &mut null, 0, 0).await;
        assert_eq!(moved, Moved::default());
    }
}

#[tokio::test]
async fn a_device_without_end_is_cut_at_the_limit() {
    for mode in MODES {
        let mut zero = File::open("/dev/zero").await.unwrap();
        let (mut writer, mut peer) = <TcpStream as Socket>::pair().await;
        let mut limit = TOTAL;
        let copying = tokio::spawn(async move {
            copy_with(&mut zero, &mut writer, Some(&mut limit), &options(mode)).await
        });
        let mut zeroes = Vec::new();
        in_time(peer.read_to_end(&mut zeroes)).await.unwrap();
        assert_eq!(zeroes.len() as u64, TOTAL);
        assert_eq!(copying.await.unwrap().unwrap().total(), TOTAL);
    }
}

#[tokio::test]
async fn a_device_that_is_full_is_an_error_that_counts_what_was_taken() {
    for mode in MODES {
        let mut full = OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .await
            .unwrap();
        let (mut peer, mut reader) = <UnixStream as Socket>::pair().await;
        peer.write_all(&bytes(0, 30_000)).await.unwrap();
        peer.shutdown().await.unwrap();
        let mut limit = 1 << 20;
        let error = in_time(copy_with(
            &mut reader,
            &mut full,
            Some(&mut limit),
            &options(mode),
        ))
        .await
        .unwrap_err();
        assert!(
            matches!(&error.cause, Cause::Write(error) if error.kind() == std::io::ErrorKind::StorageFull),
            "{error}"
        );
        assert_eq!(error.moved, Moved::default());
        assert_eq!((1 << 20) - limit, error.unwritten);
        assert_eq!(receive(&mut reader, error.unwritten).await, 30_000);
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_a_reader_that_failed() {
    let directory = tempfile::tempdir().unwrap();
    for mode in MODES {
        let mut file = File::open(directory.path()).await.unwrap();
        let (mut writer, _peer) = <UnixStream as Socket>::pair().await;
        let error = in_time(copy_with(&mut file, &mut writer, None, &options(mode)))
            .await
            .unwrap_err();
        assert!(matches!(error.cause, Cause::Read(_)), "{error}");
        assert_eq!((error.moved, error.unwritten), (Moved::default(), 0));
    }
}

#[tokio::test]
async fn a_file_that_is_not_open_for_writing_is_a_writer_that_failed() {
    let directory = tempfile::tempdir().unwrap();
    let mut source = file_of(directory.path(), 10).await;
    for mode in MODES {
        let (mut peer, mut reader) = <UnixStream as Socket>::pair().await;
        peer.write_all(b"data").await.unwrap();
        let error = in_time(copy_with(&mut reader, &mut source, None, &options(mode)))
            .await
            .unwrap_err();
        assert!(matches!(error.cause, Cause::Write(_)), "{error}");
        assert_eq!((error.moved, error.unwritten), (Moved::default(), 4));
    }
}

#[tokio::test]
async fn a_file_whose_receiver_takes_nothing_is_given_up_after_the_idle_timeout() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let mut file = file_of(directory.path(), 4 * TOTAL).await;
        let (mut writer, mut peer) = <UnixStream as Socket>::pair().await;
        let mut options = options(mode);
        options.idle_timeout = Some(SOON);
        let mut limit = u64::MAX;
        let error = in_time(copy_with(
            &mut file,
            &mut writer,
            Some(&mut limit),
            &options,
        ))
        .await
        .unwrap_err();
        assert!(matches!(error.cause, Cause::Idle(SOON)), "{error}");
        let taken = u64::MAX - limit;
        assert_eq!(taken, error.moved.total() + error.unwritten);
        assert_eq!(file.stream_position().await.unwrap(), taken);
        drop(writer);
        assert_eq!(receive(&mut peer, 0).await, error.moved.total());
    }
}

#[tokio::test]
async fn a_file_whose_sender_is_silent_has_all_that_came_before() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("target");
        let mut file = File::create(&path).await.unwrap();
        let (mut peer, mut reader) = <TcpStream as Socket>::pair().await;
        peer.write_all(&bytes(0, 5_000)).await.unwrap();
        let mut options = options(mode);
        options.idle_timeout = Some(SOON);
        let error = in_time(copy_with(&mut reader, &mut file, None, &options))
            .await
            .unwrap_err();
        assert!(matches!(error.cause, Cause::Idle(SOON)), "{error}");
        assert_eq!((error.moved.total(), error.unwritten), (5_000, 0));
        let written = std::fs::read(&path).unwrap();
        assert_eq!(written.len(), 5_000);
        check(0, &written);
    }
}

#[tokio::test]
async fn a_rate_holds_for_files_and_loses_nothing() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let mut source = file_of(directory.path(), 400_000).await;
        let path = directory.path().join("target");
        let mut target = File::create(&path).await.unwrap();
        let (mut writer, mut reader) = <UnixStream as Socket>::pair().await;
        // One pipe for each of the two copies.
        let mut options = options_with(mode, &pool_of(2));
        options.rate = Some(Rate::new(4_000_000));
        let begin = Instant::now();
        let sending = async {
            let moved = copy_with(&mut source, &mut writer, None, &options).await;
            writer.shutdown().await.unwrap();
            moved.unwrap()
        };
        let (sent, received) = in_time(async {
            tokio::join!(sending, copy_with(&mut reader, &mut target, None, &options))
        })
        .await;
        // The rate is shared by both copies, and a tenth of a second of it is there at once.
        assert!(begin.elapsed() >= Duration::from_millis(80));
        check_way(mode, sent, 400_000);
        check_way(mode, received.unwrap(), 400_000);
        check(0, &std::fs::read(&path).unwrap());
    }
}

#[tokio::test]
async fn one_pipe_is_enough_for_a_copy_of_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut source = file_of(directory.path(), TOTAL).await;
    let mut target = File::create(directory.path().join("target")).await.unwrap();
    let pool = pool_of(1);
    let options = options_with(Mode::Splice, &pool);
    let (mut writer, mut peer) = <UnixStream as Socket>::pair().await;
    let (moved, ()) = in_time(async {
        tokio::join!(
            copy_with(&mut source, &mut writer, None, &options),
            receive_exactly(&mut peer, 0, TOTAL)
        )
    })
    .await;
    check_way(Mode::Splice, moved.unwrap(), TOTAL);
    let sending = async {
        send(&mut peer, 0, TOTAL, 50_000).await;
        peer.shutdown().await.unwrap();
    };
    let (moved, ()) = in_time(async {
        tokio::join!(copy_with(&mut writer, &mut target, None, &options), sending)
    })
    .await;
    check_way(Mode::Splice, moved.unwrap(), TOTAL);
    assert_eq!((pool.lent(), pool.pipes()), (0, 1));
}
