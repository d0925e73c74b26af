//! Bytes that show where in the stream they belong, and senders and receivers of them.

use std::{sync::LazyLock, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// After so many bytes they begin anew: no power of two, so that a lost or doubled buffer shows.
const PERIOD: usize = 999_983;

/// How long a test waits for what must come. Nothing is asserted about how soon it comes.
const PATIENCE: Duration = Duration::from_secs(300);

static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..PERIOD)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
});

/// At most `most` bytes of the stream from `at` on.
pub(crate) fn stretch(at: u64, most: usize) -> &'static [u8] {
    let start = usize::try_from(at % PERIOD as u64).unwrap();
    &PATTERN[start..PERIOD.min(start + most)]
}

/// The bytes of the stream from `at` on.
pub(crate) fn bytes(at: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        bytes.extend(stretch(at + bytes.len() as u64, length - bytes.len()));
    }
    bytes
}

/// Fails unless `received` is what the stream has from `at` on.
pub(crate) fn check(at: u64, received: &[u8]) {
    let mut seen = 0;
    while seen < received.len() {
        let expected = stretch(at + seen as u64, received.len() - seen);
        let got = &received[seen..seen + expected.len()];
        if got != expected {
            let wrong = got.iter().zip(expected).position(|(a, b)| a != b).unwrap();
            panic!("byte {} is another one", at + (seen + wrong) as u64);
        }
        seen += expected.len();
    }
}

/// Writes the bytes of the stream from `from` to `to`, at most `chunk` at once.
pub(crate) async fn send(writer: &mut (impl AsyncWrite + Unpin), from: u64, to: u64, chunk: usize) {
    let mut at = from;
    while at < to {
        let most = usize::try_from(to - at).unwrap_or(chunk).min(chunk);
        let piece = stretch(at, most);
        writer.write_all(piece).await.unwrap();
        at += piece.len() as u64;
    }
    writer.flush().await.unwrap();
}

/// Writes the bytes of the stream for as long as somebody takes them, and says how many were taken.
pub(crate) async fn flood(writer: &mut (impl AsyncWrite + Unpin)) -> u64 {
    let mut at = 0;
    while let Ok(count) = writer.write(stretch(at, 1 << 18)).await {
        at += count as u64;
    }
    at
}

/// Reads to the end, checks that these are the bytes of the stream from `from` on, and says where it ended.
/// That the other side was reset ends it, too.
pub(crate) async fn receive(reader: &mut (impl AsyncRead + Unpin), from: u64) -> u64 {
    let mut buffer = vec![0; 1 << 18];
    let mut at = from;
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        check(at, &buffer[..count]);
        at += count as u64;
    }
    at
}

/// Reads and checks exactly the bytes from `from` to `to`.
pub(crate) async fn receive_exactly(reader: &mut (impl AsyncRead + Unpin), from: u64, to: u64) {
    let end = receive(&mut reader.take(to - from), from).await;
    assert_eq!(end, to, "the stream ended early");
}

/// Waits for what must come in the end.
pub(crate) async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it never came to an end")
}
