//! The packed bytes, read ahead where they are, and taken in order by the thread that unpacks them.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Buffer, BufferPool, ByteRange, ByteSource, Result, is_zero, read_exact_at,
};
use futures_util::{StreamExt, stream};
use tokio::{sync::mpsc, task::JoinSet};

use super::Packed;

/// How much of a device is read at a time, in bytes.
const PIECE: u64 = 512 << 10;

/// How much of a stream is read at a time, in bytes: what is slow is not held back for long.
const STREAM_PIECE: usize = 128 << 10;

/// How many pieces of a device are being read at a time.
const SIDE_BY_SIDE: usize = 4;

/// How many pieces wait to be unpacked.
const AHEAD: usize = 4;

type Sender = mpsc::Sender<Result<Buffer>>;

/// Reads all of it, for as long as somebody wants it. The task must be kept.
pub(super) fn read_ahead(packed: Packed) -> (JoinSet<()>, Pieces) {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let mut task = JoinSet::new();
    match packed {
        Packed::Device(device) => task.spawn(read_device(device, sender)),
        Packed::Stream(stream) => task.spawn(read_stream(stream, sender)),
    };
    (task, Pieces::new(receiver))
}

async fn read_device(device: Arc<dyn BlockDevice>, sender: Sender) {
    let info = device.info();
    let limits = info.limits;
    let whole = ByteRange::between(0, info.size);
    let fits = PIECE <= u64::from(limits.maximum)
        && PIECE.is_multiple_of(u64::from(limits.minimum.max(1)));
    let pool = BufferPool::new(PIECE as usize, SIDE_BY_SIDE + AHEAD + 2);
    let device = &*device;
    let pool = &pool;
    let reads = whole.pieces(PIECE).map(|piece| async move {
        match fits {
            true => {
                let buffer = pool.take(piece.len() as usize);
                device.read(piece.start(), buffer).await
            }
            false => read_exact_at(device, piece).await,
        }
    });
    let mut pieces = stream::iter(reads).buffered(SIDE_BY_SIDE);
    while let Some(piece) = pieces.next().await {
        let is_last = piece.is_err();
        if sender.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

async fn read_stream(mut stream: Box<dyn ByteSource>, sender: Sender) {
    let pool = BufferPool::new(STREAM_PIECE, AHEAD + 2);
    loop {
        let piece = stream.read(pool.take(STREAM_PIECE)).await;
        let is_last = piece
            .as_ref()
            .map_or(true, |piece| piece.len() < STREAM_PIECE);
        if sender.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

/// The packed bytes, one after the other, for a thread that may wait.
pub(super) struct Pieces {
    receiver: mpsc::Receiver<Result<Buffer>>,
    piece: Buffer,
    at: usize,
    /// How many bytes were taken.
    position: u64,
}

impl Pieces {
    pub(super) fn new(receiver: mpsc::Receiver<Result<Buffer>>) -> Self {
        Self {
            receiver,
            piece: Buffer::zeroed(0),
            at: 0,
            position: 0,
        }
    }

    /// How many bytes were taken.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes that were not taken; none where the input ends.
    ///
    /// # Errors
    /// What reading them failed with.
    pub(super) fn bytes(&mut self) -> Result<&[u8]> {
        while self.at == self.piece.len() {
            match self.receiver.blocking_recv() {
                Some(piece) => (self.piece, self.at) = (piece?, 0),
                None => return Ok(&[]),
            }
        }
        Ok(&self.piece[self.at..])
    }

    /// At least `count` bytes that were not taken, fewer only where the input ends.
    ///
    /// # Errors
    /// What reading them failed with.
    pub(super) fn at_least(&mut self, count: usize) -> Result<&[u8]> {
        while self.bytes()?.len() < count {
            let Some(next) = self.receiver.blocking_recv() else {
                break;
            };
            let rest = &self.piece[self.at..];
            self.piece = Buffer::from(&*[rest, &*next?].concat());
            self.at = 0;
        }
        Ok(&self.piece[self.at..])
    }

    /// Takes `count` of the bytes that are there.
    pub(super) fn take(&mut self, count: usize) {
        self.at += count;
        self.position += count as u64;
    }

    /// Takes zeroes, up to something else or to the end; says how many they were.
    ///
    /// # Errors
    /// What reading them failed with.
    pub(super) fn take_zeroes(&mut self) -> Result<u64> {
        let start = self.position;
        loop {
            let bytes = self.bytes()?;
            let count = match is_zero(bytes) {
                true => bytes.len(),
                false => bytes.iter().take_while(|byte| **byte == 0).count(),
            };
            let is_end = count < bytes.len() || bytes.is_empty();
            self.take(count);
            if is_end {
                return Ok(self.position - start);
            }
        }
    }
}
