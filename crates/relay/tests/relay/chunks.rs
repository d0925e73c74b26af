//! Random chunks through random small pipes and socket buffers, both ways at once, with pauses: the same bytes come
//! out.

use std::time::Duration;

use blockferry_relay::{Mode, PipePool};
use proptest::prelude::*;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use crate::{
    bytes::{check, in_time, stretch},
    line::{Line, options_with},
    sockets::Socket,
};

/// What one of the four ends does each time that it has a turn.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// It writes, or reads, up to so many bytes.
    Move(usize),
    /// It lets others go on.
    Yield,
    /// It does nothing for so long.
    Pause(Duration),
}

/// A whole connection.
#[derive(Clone, Debug)]
struct Case {
    mode: Mode,
    kinds: (bool, bool),
    pool: (usize, usize),
    /// What each of the four sockets has room for on its way out; `None` leaves it as it is. A TCP socket that has
    /// no room for what comes in makes its peer wait for timers: those stay as they are.
    buffers: [Option<usize>; 4],
    sent: [Vec<Step>; 2],
    /// Repeated until everything has come.
    taken: [Vec<Step>; 2],
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1_usize..600).prop_map(Step::Move),
        6 => (1_usize..9_000).prop_map(Step::Move),
        3 => (1_usize..200_000).prop_map(Step::Move),
        2 => Just(Step::Yield),
        1 => (0_u64..1_500).prop_map(|micros| Step::Pause(Duration::from_micros(micros))),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let mode = prop_oneof![3 => Just(Mode::Splice), 2 => Just(Mode::Auto), 1 => Just(Mode::Copy)];
    let sent = || prop::collection::vec(step(), 0..60);
    let taken = || {
        prop::collection::vec(step(), 1..20).prop_map(|mut steps| {
            // Something must be taken in each round.
            steps.push(Step::Move(1_000));
            steps
        })
    };
    let buffer = || prop::option::of(1_usize..100_000);
    (
        mode,
        any::<(bool, bool)>(),
        (0_usize..4, 1_usize..100_000),
        [buffer(), buffer(), buffer(), buffer()],
        [sent(), sent()],
        [taken(), taken()],
    )
        .prop_map(|(mode, kinds, pool, buffers, sent, taken)| Case {
            mode,
            kinds,
            pool,
            buffers,
            sent,
            taken,
        })
}

impl Step {
    /// Does nothing but waiting; the bytes are the caller's.
    async fn wait(self) -> usize {
        match self {
            Self::Move(bytes) => return bytes,
            Self::Yield => tokio::task::yield_now().await,
            Self::Pause(time) => tokio::time::sleep(time).await,
        }
        0
    }
}

/// Writes as the steps say, then ends, and says how many bytes that were.
async fn write(mut writer: impl AsyncWrite + Unpin, steps: &[Step], from: u64) -> u64 {
    let mut at = from;
    for step in steps {
        let until = at + step.wait().await as u64;
        while at < until {
            let piece = stretch(at, usize::try_from(until - at).unwrap());
            writer.write_all(piece).await.unwrap();
            at += piece.len() as u64;
        }
    }
    writer.shutdown().await.unwrap();
    at - from
}

/// Reads as the steps say up to the end, and says how many bytes that were.
async fn read(mut reader: impl AsyncRead + Unpin, steps: &[Step], from: u64) -> u64 {
    let mut buffer = vec![0; 200_000];
    let mut at = from;
    for step in steps.iter().cycle() {
        let most = step.wait().await;
        if most > 0 {
            let count = reader.read(&mut buffer[..most]).await.unwrap();
            if count == 0 {
                break;
            }
            check(at, &buffer[..count]);
            at += count as u64;
        }
    }
    at - from
}

async fn run<A: Socket, B: Socket>(case: &Case) {
    /// Where the stream of the way back begins: at other bytes.
    const BACK: u64 = 500_000;
    let pool = PipePool::with_pipe_size(case.pool.0, case.pool.1);
    let line = Line::<A, B>::new().await;
    let sockets = [
        line.left.as_fd(),
        line.a.as_fd(),
        line.b.as_fd(),
        line.right.as_fd(),
    ];
    for (socket, size) in sockets.into_iter().zip(case.buffers) {
        if let Some(size) = size {
            rustix::net::sockopt::set_socket_send_buffer_size(socket, size).unwrap();
        }
    }
    let ends = line.relay(options_with(case.mode, &pool));
    let (left_in, left_out) = tokio::io::split(ends.left);
    let (right_in, right_out) = tokio::io::split(ends.right);
    let (sent, returned, got, got_back) = in_time(async {
        tokio::join!(
            write(left_out, &case.sent[0], 0),
            write(right_out, &case.sent[1], BACK),
            read(right_in, &case.taken[0], 0),
            read(left_in, &case.taken[1], BACK),
        )
    })
    .await;
    assert_eq!((got, got_back), (sent, returned));
    let totals = in_time(ends.relay).await.unwrap().unwrap();
    assert_eq!(
        (totals.forward.total(), totals.backward.total()),
        (sent, returned)
    );
    assert_eq!(pool.lent(), 0);
    assert!(pool.pipes() <= case.pool.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn every_byte_comes_once_and_in_order(case in case()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            match case.kinds {
                (false, false) => run::<TcpStream, TcpStream>(&case).await,
                (false, true) => run::<TcpStream, UnixStream>(&case).await,
                (true, false) => run::<UnixStream, TcpStream>(&case).await,
                (true, true) => run::<UnixStream, UnixStream>(&case).await,
            }
        });
    }
}
