//! Where a relay stands: between two connections, whose far ends are the test's.

use blockferry_relay::{
    CopyError, Mode, Moved, Options, PipePool, RelayError, Totals, copy_bidirectional, copy_with,
};
use tokio::{
    io::{AsyncWriteExt, ReadHalf, split},
    task::JoinHandle,
};

use crate::{
    bytes::{flood, receive, receive_exactly, send},
    sockets::Socket,
};

/// Every way that bytes can be told to take.
pub(crate) const MODES: [Mode; 3] = [Mode::Auto, Mode::Splice, Mode::Copy];

/// At most so many pipes, each of 128 KiB: of those that an unprivileged user gets there are enough for many tests at
/// the same time.
pub(crate) fn pool_of(pipes: usize) -> PipePool {
    PipePool::with_pipe_size(pipes, 128 << 10)
}

/// Options of that mode, and a pool that nobody else has.
pub(crate) fn options(mode: Mode) -> Options {
    options_with(mode, &pool_of(2))
}

/// Options of that mode, with pipes from `pool`.
pub(crate) fn options_with(mode: Mode, pool: &PipePool) -> Options {
    let mut options = Options::new();
    options.mode = mode;
    options.pool = Some(pool.clone());
    options
}

/// Fails unless `total` bytes went the way of that mode, and no other.
pub(crate) fn check_way(mode: Mode, moved: Moved, total: u64) {
    assert_eq!(moved.total(), total, "by {mode:?}: {moved:?}");
    match mode {
        Mode::Auto => (),
        Mode::Splice => assert_eq!(moved.copied, 0, "copied"),
        Mode::Copy => assert_eq!(moved.spliced, 0, "spliced"),
    }
}

/// Two connections with room for a relay between `a` and `b`.
pub(crate) struct Line<A, B> {
    /// The peer of `a`.
    pub(crate) left: A,
    pub(crate) a: A,
    pub(crate) b: B,
    /// The peer of `b`.
    pub(crate) right: B,
}

/// The far ends of a line, and what comes of the relay between them. The relay's sockets are closed when it ends.
pub(crate) struct Relayed<A, B> {
    pub(crate) left: A,
    pub(crate) right: B,
    pub(crate) relay: JoinHandle<Result<Totals, RelayError>>,
}

/// A copy from left to right to which more is sent than it ever delivers.
pub(crate) struct Flooded<A, B> {
    pub(crate) right: B,
    /// How much was sent in the end.
    pub(crate) flooding: JoinHandle<u64>,
    /// What it read from, its error, and how many bytes it had taken.
    pub(crate) copying: JoinHandle<(A, CopyError, u64)>,
}

/// A relay to which both sides send more than it ever delivers.
pub(crate) struct FloodedBothWays<A, B> {
    pub(crate) left: ReadHalf<A>,
    pub(crate) right: ReadHalf<B>,
    /// How much was sent in the end, from left to right and back.
    pub(crate) forward: JoinHandle<u64>,
    pub(crate) backward: JoinHandle<u64>,
    pub(crate) relay: JoinHandle<Result<Totals, RelayError>>,
}

impl<A: Socket, B: Socket> Relayed<A, B> {
    /// Lets both sides send without end, and reads so many bytes of it on either side.
    pub(crate) async fn flood(self, read: u64) -> FloodedBothWays<A, B> {
        let (mut left, mut left_out) = split(self.left);
        let (mut right, mut right_out) = split(self.right);
        let forward = tokio::spawn(async move { flood(&mut left_out).await });
        let backward = tokio::spawn(async move { flood(&mut right_out).await });
        tokio::join!(
            receive_exactly(&mut right, 0, read),
            receive_exactly(&mut left, 0, read)
        );
        FloodedBothWays {
            left,
            right,
            forward,
            backward,
            relay: self.relay,
        }
    }
}

impl<A: Socket, B: Socket> Line<A, B> {
    /// Copies from left to right what the left sends without end, until that fails.
    pub(crate) fn flood_copy(self, options: Options) -> Flooded<A, B> {
        let Self {
            mut left,
            mut a,
            mut b,
            right,
        } = self;
        let flooding = tokio::spawn(async move { flood(&mut left).await });
        let copying = tokio::spawn(async move {
            let mut limit = u64::MAX;
            let error = copy_with(&mut a, &mut b, Some(&mut limit), &options)
                .await
                .unwrap_err();
            (a, error, u64::MAX - limit)
        });
        Flooded {
            right,
            flooding,
            copying,
        }
    }

    pub(crate) async fn new() -> Self {
        let (left, a) = A::pair().await;
        let (b, right) = B::pair().await;
        Self { left, a, b, right }
    }

    /// Relays both ways.
    pub(crate) fn relay(self, options: Options) -> Relayed<A, B> {
        let Self {
            left,
            mut a,
            mut b,
            right,
        } = self;
        let relay = tokio::spawn(async move { copy_bidirectional(&mut a, &mut b, &options).await });
        Relayed { left, right, relay }
    }

    /// Copies from left to right what `feed` sends, up to the end, and says where it ended and what the copy said.
    pub(crate) async fn carry(
        self,
        total: u64,
        chunk: usize,
        options: Options,
    ) -> Result<Moved, CopyError> {
        let Self {
            mut left,
            mut a,
            mut b,
            mut right,
        } = self;
        let sending = tokio::spawn(async move {
            send(&mut left, 0, total, chunk).await;
            left.shutdown().await.unwrap();
            left
        });
        let copying = tokio::spawn(async move { copy_with(&mut a, &mut b, None, &options).await });
        assert_eq!(receive(&mut right, 0).await, total);
        sending.await.unwrap();
        copying.await.unwrap()
    }
}

/// Makes a test of each function, for each kind of socket on either side.
macro_rules! on_all_pairings {
    ($($test:ident),+ $(,)?) => {
        on_all_pairings!(@ tcp_to_tcp, TcpStream, TcpStream, $($test),+);
        on_all_pairings!(@ unix_to_unix, UnixStream, UnixStream, $($test),+);
        on_all_pairings!(@ tcp_to_unix, TcpStream, UnixStream, $($test),+);
        on_all_pairings!(@ unix_to_tcp, UnixStream, TcpStream, $($test),+);
    };
    (@ $pairing:ident, $a:ty, $b:ty, $($test:ident),+) => {
        mod $pairing {
            use tokio::net::*;
            $(
                #[tokio::test]
                async fn $test() {
                    $crate::bytes::in_time(super::$test::<$a, $b>()).await;
                }
            )+
        }
    };
}
pub(crate) use on_all_pairings;
