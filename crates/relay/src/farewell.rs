//! Closing a socket without losing what was said last.

use std::{os::fd::AsFd, time::Duration};

use blockferry_sys::socket::unacknowledged;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

/// The first pause between two looks; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Waits until the peer's system has acknowledged all that was written to `stream`, for `patience` at most, and says
/// whether it has.
///
/// A socket that is closed while bytes of its peer were not read is reset, and what was written to it last may be
/// thrown away on its way. A relay that ends early (its [`Cause`](crate::Cause) says so) closes such sockets: the answer
/// of a server that has hung up arrives only when it is waited for.
pub async fn delivered(stream: &TcpStream, patience: Duration) -> bool {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match unacknowledged(stream.as_fd()) {
            Ok(0) => return true,
            Err(_) => return false,
            // The connection has failed: nothing is acknowledged any more.
            Ok(_) if stream.peer_addr().is_err() => return false,
            Ok(_) if start.elapsed() >= patience => return false,
            Ok(_) => sleep(pause).await,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn what_the_peer_has_no_room_for_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut near, mut far) = (near.expect("connected"), far.expect("accepted").0);
        assert!(delivered(&near, Duration::ZERO).await);
        // Until nothing fits any more, on either side.
        let piece = vec![1; 1 << 20];
        let mut sent = 0;
        while let Ok(Ok(count)) =
            tokio::time::timeout(Duration::from_millis(300), near.write(&piece)).await
        {
            sent += count;
        }
        assert!(!delivered(&near, Duration::from_millis(50)).await);
        let reading = tokio::spawn(async move {
            let mut left = vec![0; sent];
            far.read_exact(&mut left).await.expect("all of it");
            far
        });
        assert!(delivered(&near, Duration::from_secs(60)).await);
        reading.await.expect("read");
    }
}
