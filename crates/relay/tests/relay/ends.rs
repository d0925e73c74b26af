//! How a connection ends: by halves, at once, or because somebody is gone.

use std::time::Duration;

use blockferry_relay::{Cause, copy_bidirectional};
use rustix::net::{
    Shutdown,
    sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use crate::{
    bytes::{bytes, flood, in_time, receive, receive_exactly, send, stretch},
    line::{Line, MODES, Relayed, on_all_pairings, options},
    sockets::Socket,
};

on_all_pairings!(
    the_end_of_one_direction_is_passed_on_while_the_other_goes_on,
    a_peer_that_vanishes_ends_both_directions,
    a_peer_that_closes_with_data_unread_ends_both_directions,
    a_peer_that_ended_its_half_and_then_vanishes_ends_the_connection,
    a_peer_that_vanishes_while_the_other_takes_nothing_ends_the_connection,
    what_was_sent_before_a_close_is_delivered,
    what_was_sent_before_a_close_is_delivered_to_a_slow_reader,
    an_answer_arrives_whole_though_the_request_is_still_being_sent,
    both_may_end_at_once,
);

async fn the_end_of_one_direction_is_passed_on_while_the_other_goes_on<A: Socket, B: Socket>() {
    const BACK: u64 = 3 << 20;
    for mode in MODES {
        let mut ends = Line::<A, B>::new().await.relay(options(mode));
        ends.left.write_all(&bytes(0, 1_000)).await.unwrap();
        ends.left.shutdown().await.unwrap();
        assert_eq!(receive(&mut ends.right, 0).await, 1_000);
        tokio::join!(
            send(&mut ends.right, 0, BACK, 1 << 16),
            receive_exactly(&mut ends.left, 0, BACK)
        );
        ends.right.shutdown().await.unwrap();
        assert_eq!(receive(&mut ends.left, 0).await, 0);
        let totals = ends.relay.await.unwrap().unwrap();
        assert_eq!(
            (totals.forward.total(), totals.backward.total()),
            (1_000, BACK)
        );

        let mut ends = Line::<A, B>::new().await.relay(options(mode));
        ends.right.shutdown().await.unwrap();
        assert_eq!(receive(&mut ends.left, 0).await, 0);
        tokio::join!(
            send(&mut ends.left, 0, BACK, 1 << 16),
            receive_exactly(&mut ends.right, 0, BACK)
        );
        ends.left.shutdown().await.unwrap();
        assert_eq!(receive(&mut ends.right, 0).await, 0);
        let totals = ends.relay.await.unwrap().unwrap();
        assert_eq!((totals.forward.total(), totals.backward.total()), (BACK, 0));
    }
}

async fn both_may_end_at_once<A: Socket, B: Socket>() {
    for mode in MODES {
        let mut line = Line::<A, B>::new().await;
        line.left.write_all(&bytes(0, 10)).await.unwrap();
        line.right.write_all(&bytes(0, 20)).await.unwrap();
        line.left.shutdown().await.unwrap();
        line.right.shutdown().await.unwrap();
        let mut ends = line.relay(options(mode));
        assert_eq!(receive(&mut ends.right, 0).await, 10);
        assert_eq!(receive(&mut ends.left, 0).await, 20);
        let totals = ends.relay.await.unwrap().unwrap();
        assert_eq!((totals.forward.total(), totals.backward.total()), (10, 20));
    }
}

/// Passes one byte each way, so that the relay is known to run.
async fn greet<A: Socket, B: Socket>(ends: &mut Relayed<A, B>) {
    ends.left.write_all(&bytes(0, 1)).await.unwrap();
    receive_exactly(&mut ends.right, 0, 1).await;
    ends.right.write_all(&bytes(0, 1)).await.unwrap();
    receive_exactly(&mut ends.left, 0, 1).await;
}

/// What a connection of which both peers are silent comes to when the left one goes.
async fn lost<A: Socket, B: Socket>(ends: Relayed<A, B>, vanish: impl FnOnce(A)) -> Cause {
    let Relayed {
        left,
        mut right,
        relay,
    } = ends;
    vanish(left);
    let error = relay.await.unwrap().unwrap_err();
    // The other side learns of it, too: it is at its end once the relay has closed it.
    receive(&mut right, 1).await;
    error.cause
}

async fn a_peer_that_vanishes_ends_both_directions<A: Socket, B: Socket>() {
    for mode in MODES {
        let mut ends = Line::<A, B>::new().await.relay(options(mode));
        greet(&mut ends).await;
        let cause = lost(ends, A::vanish).await;
        // A unix socket's peer ends properly, as far as can be seen, and is not there any more.
        assert!(cause.is_reset() || matches!(cause, Cause::Gone), "{cause}");
    }
}

async fn a_peer_that_closes_with_data_unread_ends_both_directions<A: Socket, B: Socket>() {
    for mode in MODES {
        let mut ends = Line::<A, B>::new().await.relay(options(mode));
        greet(&mut ends).await;
        ends.right.write_all(&bytes(0, 1_000)).await.unwrap();
        // It has arrived, and stays where it is.
        while ends.left.as_fd_has() < 1_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let cause = lost(ends, drop).await;
        assert!(cause.is_reset(), "{cause}");
    }
}

/// How many bytes wait to be read.
trait Waiting {
    fn as_fd_has(&self) -> u64;
}

impl<S: Socket> Waiting for S {
    fn as_fd_has(&self) -> u64 {
        rustix::io::ioctl_fionread(self).unwrap()
    }
}

async fn a_peer_that_ended_its_half_and_then_vanishes_ends_the_connection<A: Socket, B: Socket>() {
    for mode in MODES {
        let mut ends = Line::<A, B>::new().await.relay(options(mode));
        greet(&mut ends).await;
        ends.left.shutdown().await.unwrap();
        assert_eq!(receive(&mut ends.right, 1).await, 1);
        let cause = lost(ends, A::vanish).await;
        assert!(matches!(cause, Cause::Gone), "by {mode:?}: {cause}");
    }
}

async fn a_peer_that_vanishes_while_the_other_takes_nothing_ends_the_connection<
    A: Socket,
    B: Socket,
>() {
    for mode in MODES {
        let mut ends = Line::<A, B>::new().await.relay(options(mode));
        greet(&mut ends).await;
        // Until everything between is full: nothing moves any more.
        let mut at = 1;
        while let Ok(count) = tokio::time::timeout(
            Duration::from_millis(200),
            ends.left.write(stretch(at, 1 << 18)),
        )
        .await
        {
            at += count.unwrap() as u64;
        }
        // The one that takes nothing is the one that vanishes, too.
        let Relayed {
            mut left,
            right,
            relay,
        } = ends;
        right.vanish();
        let error = relay.await.unwrap().unwrap_err();
        assert!(error.cause.is_reset(), "{error}");
        receive(&mut left, 1).await;
    }
}

/// It takes no bytes any more and says nothing: only that its peer goes can be noticed.
async fn who_is_not_read_any_more_may_vanish<A: Socket>() {
    for mode in MODES {
        let mut ends = Line::<A, UnixStream>::new().await.relay(options(mode));
        greet(&mut ends).await;
        rustix::net::shutdown(&ends.right, Shutdown::Read).unwrap();
        ends.left.write_all(&bytes(1, 100)).await.unwrap();
        // It still says something when it likes to.
        ends.right.write_all(&bytes(1, 100)).await.unwrap();
        receive_exactly(&mut ends.left, 1, 101).await;
        assert!(!ends.relay.is_finished());
        let cause = lost(ends, A::vanish).await;
        assert!(cause.is_reset(), "{cause}");
    }
}

#[tokio::test]
async fn a_tcp_peer_that_is_not_read_any_more_may_vanish() {
    in_time(who_is_not_read_any_more_may_vanish::<TcpStream>()).await;
}

#[tokio::test]
async fn a_unix_peer_that_is_not_read_any_more_may_vanish() {
    in_time(who_is_not_read_any_more_may_vanish::<UnixStream>()).await;
}

/// Sends as much as the kernel takes at once, and says how much that was.
async fn fill(socket: &mut impl Socket) -> u64 {
    let mut sent = 0;
    while let Ok(count) = tokio::time::timeout(
        Duration::from_millis(50),
        socket.write(stretch(sent, 1 << 16)),
    )
    .await
    {
        sent += count.unwrap() as u64;
    }
    sent
}

async fn what_was_sent_before_a_close_is_delivered<A: Socket, B: Socket>() {
    for mode in MODES {
        let mut line = Line::<A, B>::new().await;
        let sent = fill(&mut line.left).await;
        let Relayed {
            left,
            mut right,
            relay,
        } = line.relay(options(mode));
        drop(left);
        receive_exactly(&mut right, 0, sent).await;
        drop(right);
        let totals = match relay.await.unwrap() {
            Ok(totals) => totals,
            Err(error) => error.totals,
        };
        assert_eq!(totals.forward.total(), sent);
    }
}

async fn what_was_sent_before_a_close_is_delivered_to_a_slow_reader<A: Socket, B: Socket>() {
    for mode in MODES {
        let mut line = Line::<A, B>::new().await;
        set_socket_send_buffer_size(&line.b, 4_096).unwrap();
        set_socket_recv_buffer_size(&line.right, 16_384).unwrap();
        line.left.write_all(&bytes(0, 150_000)).await.unwrap();
        let Relayed {
            left,
            mut right,
            relay,
        } = line.relay(options(mode));
        // By then the relay has both, bytes that it cannot pass on and a peer that is gone.
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(left);
        tokio::time::sleep(Duration::from_millis(50)).await;
        receive_exactly(&mut right, 0, 150_000).await;
        drop(right);
        let totals = match relay.await.unwrap() {
            Ok(totals) => totals,
            Err(error) => error.totals,
        };
        assert_eq!(totals.forward.total(), 150_000);
    }
}

/// As a server does that refuses an upload: it answers and closes, while the client is still sending.
async fn an_answer_arrives_whole_though_the_request_is_still_being_sent<A: Socket, B: Socket>() {
    const ANSWER: u64 = 20_000;
    for mode in MODES {
        let ends = Line::<A, B>::new().await.relay(options(mode));
        let (mut left_in, mut left_out) = tokio::io::split(ends.left);
        let mut right = ends.right;
        let uploading = tokio::spawn(async move { flood(&mut left_out).await });
        receive_exactly(&mut right, 0, 100_000).await;
        right
            .write_all(&bytes(0, usize::try_from(ANSWER).unwrap()))
            .await
            .unwrap();
        drop(right);
        receive_exactly(&mut left_in, 0, ANSWER).await;
        drop(left_in);
        let result = ends.relay.await.unwrap();
        let totals = result.unwrap_err().totals;
        assert_eq!(totals.backward.total(), ANSWER);
        assert!(uploading.await.unwrap() >= totals.forward.total());
    }
}

/// The client is known to read only when the whole answer has come.
#[tokio::test]
async fn an_answer_that_the_client_reads_late_arrives_whole() {
    const ANSWER: u64 = 100_000;
    for mode in MODES {
        let mut ends = Line::<TcpStream, TcpStream>::new()
            .await
            .relay(options(mode));
        in_time(async {
            ends.left.write_all(&bytes(0, 100)).await.unwrap();
            receive_exactly(&mut ends.right, 0, 100).await;
            ends.right.write_all(&bytes(0, 100_000)).await.unwrap();
            ends.right.shutdown().await.unwrap();
            drop(ends.right);
            tokio::time::sleep(Duration::from_millis(50)).await;
            receive_exactly(&mut ends.left, 0, ANSWER).await;
            assert_eq!(ends.left.read(&mut [0]).await.unwrap(), 0);
            drop(ends.left);
            let totals = match ends.relay.await.unwrap() {
                Ok(totals) => totals,
                Err(error) => error.totals,
            };
            assert_eq!(totals.backward.total(), ANSWER);
        })
        .await;
    }
}

/// A reset is told once, to whoever asks first. Here that is the writer of the answer, and the reader of the request
/// finds what looks like an end.
#[tokio::test]
async fn what_a_reset_cut_short_never_looks_whole() {
    for mode in MODES {
        let Line {
            mut left,
            mut a,
            mut b,
            mut right,
        } = Line::<TcpStream, TcpStream>::new().await;
        let options = options(mode);
        let relay = copy_bidirectional(&mut a, &mut b, &options);
        let peers = async {
            // The request is stuck, for nobody reads it.
            fill(&mut left).await;
            right.write_all(&bytes(0, 1_000)).await.unwrap();
            while left.as_fd_has() < 1_000 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // The answer is not read either: this is a reset.
            drop(left);
            tokio::time::sleep(Duration::from_millis(20)).await;
            right.write_all(&bytes(1_000, 1_000)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            receive(&mut right, 0).await;
        };
        let error = tokio::select! {
            result = relay => result.unwrap_err(),
            () = peers => panic!("the request ended before the connection did"),
        };
        // The relay's socket is still there: an end would be one that the relay has told.
        let mut rest = vec![0; 1 << 16];
        while let Ok(read) =
            tokio::time::timeout(Duration::from_millis(100), right.read(&mut rest)).await
        {
            assert_ne!(read.unwrap(), 0, "by {mode:?} the request looks whole");
        }
        assert!(error.cause.is_reset(), "{error}");
    }
}

/// Nobody reads what it sends, nobody writes to it: it is looked after now and then.
#[tokio::test(start_paused = true)]
async fn a_peer_that_breaks_off_while_its_bytes_are_stuck_ends_the_connection() {
    for mode in MODES {
        let mut ends = Line::<TcpStream, TcpStream>::new()
            .await
            .relay(options(mode));
        greet(&mut ends).await;
        fill(&mut ends.left).await;
        let Relayed {
            left,
            mut right,
            relay,
        } = ends;
        left.vanish();
        let error = relay.await.unwrap().unwrap_err();
        assert!(error.cause.is_reset(), "{error}");
        // What was on its way is lost with it, the rest was delivered.
        let arrived = receive_any(&mut right).await;
        assert_eq!(arrived + 1, error.totals.forward.total());
    }
}

/// How many bytes there are until the end, whatever they are.
async fn receive_any(socket: &mut TcpStream) -> u64 {
    let mut bytes = vec![0; 1 << 16];
    let mut count = 0;
    while let Ok(read @ 1..) = socket.read(&mut bytes).await {
        count += read as u64;
    }
    count
}

/// The kernel stops at urgent data, and calls that an end when the real one has arrived behind it.
#[tokio::test]
async fn urgent_data_is_not_taken_for_the_end() {
    use rustix::net::{SendFlags, send};
    for mode in MODES {
        let Line {
            left,
            mut a,
            mut b,
            mut right,
        } = Line::<TcpStream, TcpStream>::new().await;
        for (piece, flags) in [
            (&bytes(0, 1_000)[..], SendFlags::empty()),
            (b"!", SendFlags::OOB),
            (&bytes(1_000, 500)[..], SendFlags::empty()),
        ] {
            assert_eq!(send(&left, piece, flags).unwrap(), piece.len());
        }
        rustix::net::shutdown(&left, Shutdown::Write).unwrap();
        // All of it is there before anybody looks.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let options = options(mode);
        let answer = async {
            let end = receive(&mut right, 0).await;
            right.shutdown().await.unwrap();
            end
        };
        let (totals, end) = tokio::join!(copy_bidirectional(&mut a, &mut b, &options), answer);
        assert_eq!((end, totals.unwrap().forward.total()), (1_500, 1_500));
    }
}
