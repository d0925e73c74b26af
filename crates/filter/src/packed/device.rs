//! The disk that packed blocks make: read-only.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use blockferry_block::{
    BlockDevice, BlockLimits, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo,
    Error, ErrorKind, Operation, Result, request_range,
};
use futures_util::{StreamExt, stream};
use tokio::{runtime::Handle, task::JoinSet};

use super::blocks::Blocks;

/// How many blocks of one request are unpacked side by side.
const SIDE_BY_SIDE: usize = 8;

/// No block: nothing was read yet.
const NONE: usize = usize::MAX;

/// One handle: the packed file below, and what all handles share.
pub(super) struct Unpacked {
    below: Arc<dyn BlockDevice>,
    blocks: Arc<Blocks>,
    info: DeviceInfo,
    /// The block that the last request ended in.
    last: AtomicUsize,
    /// The blocks that are unpacked before anybody asked for them.
    ahead: Mutex<JoinSet<()>>,
}

impl Unpacked {
    pub(super) fn new(below: Arc<dyn BlockDevice>, blocks: Arc<Blocks>) -> Self {
        let mut info = below.info().clone();
        info.size = blocks.index().size();
        info.limits = BlockLimits {
            preferred: 64 << 10,
            ..BlockLimits::default()
        };
        info.capabilities &= Capabilities::REOPEN;
        info.capabilities |= Capabilities::MULTI_CONN;
        // What is zero shows only when it is unpacked: all of it is data.
        info.contexts = vec![Context::Allocation];
        Self {
            below,
            blocks,
            info,
            last: AtomicUsize::new(NONE),
            ahead: Mutex::default(),
        }
    }

    /// Copies what is unpacked already; says whether that was all of it.
    fn read_ready(&self, range: ByteRange, bytes: &mut [u8]) -> bool {
        let touched = self.blocks.index().touched(range);
        let is_all = touched.clone().all(|number| {
            let ready = self.blocks.ready(number);
            ready.is_some_and(|block| {
                block.copy_to(range, bytes);
                true
            })
        });
        if is_all {
            self.blocks.tally().hit(touched.len());
        }
        is_all
    }

    /// Reads, as a task of its own where there is a runtime: blocks that are held there are let go although the
    /// client of this connection does not take the answers that it has, and nothing else goes on.
    async fn read_packed(&self, range: ByteRange, buffer: Buffer) -> Result<Buffer> {
        let (blocks, below) = (Arc::clone(&self.blocks), Arc::clone(&self.below));
        let reading = read_blocks(blocks, below, range, buffer);
        if Handle::try_current().is_err() {
            return reading.await;
        }
        // Aborted when this future is dropped.
        let mut task = JoinSet::new();
        task.spawn(reading);
        match task.join_next().await {
            Some(Ok(read)) => read,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => Err(Error::new(ErrorKind::Cancelled)),
        }
    }

    /// A reader that goes from block to block finds the next ones unpacked, and every processor has one to unpack.
    fn look_ahead(&self, range: ByteRange) {
        let touched = self.blocks.index().touched(range);
        let Some(end) = touched.clone().last() else {
            return;
        };
        let last = self.last.swap(end, Ordering::Relaxed);
        let goes_on = last != NONE && end > last && (last..=last + 1).contains(&touched.start);
        if !goes_on || end + 1 >= self.blocks.index().len() || Handle::try_current().is_err() {
            return;
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        while ahead.try_join_next().is_some() {}
        let most = self.blocks.most_ahead(end + 1);
        let next = end + 1..self.blocks.index().len();
        for number in next.take(most) {
            if ahead.len() >= most {
                break;
            }
            if !self.blocks.has(number) {
                let (blocks, below) = (Arc::clone(&self.blocks), Arc::clone(&self.below));
                ahead.spawn(async move { blocks.unpack_ahead(&below, number).await });
            }
        }
    }
}

/// Reads `range` into `buffer`, several blocks at a time, of which none is held while another is waited for.
async fn read_blocks(
    blocks: Arc<Blocks>,
    below: Arc<dyn BlockDevice>,
    range: ByteRange,
    mut buffer: Buffer,
) -> Result<Buffer> {
    let touched = blocks.index().touched(range);
    let mut unpacked = stream::iter(touched)
        .map(|number| blocks.unpacked(&below, number))
        .buffer_unordered(SIDE_BY_SIDE);
    while let Some(block) = unpacked.next().await {
        block?.copy_to(range, &mut buffer);
    }
    drop(unpacked);
    Ok(buffer)
}

impl BlockDevice for Unpacked {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.info.check(Operation::Read, range)?;
            self.look_ahead(range);
            if self.read_ready(range, &mut buffer) {
                return Ok(buffer);
            }
            let read = self.read_packed(range, buffer).await;
            // What failed below was at another place.
            read.map_err(|error| {
                let error = error.during(Operation::Read);
                error.moved_to(range.start(), range.len())
            })
        })
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let below = self.below.reopen().await?;
            let blocks = Arc::clone(&self.blocks);
            Ok(Arc::new(Self::new(below, blocks)) as Arc<dyn BlockDevice>)
        })
    }
}
