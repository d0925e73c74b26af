//! What was asked for ahead of the clients of one export, and the handles that take from it.
//!
//! All handles share one stock. A change drops what overlaps it, before it begins; while it is under way nothing
//! of its range is asked for ahead, so nothing that was read before it ended is ever used after it. A change of
//! which nobody knows whether it is over (its future was dropped, its connection was lost) keeps its range out of
//! the stock until the last handle goes.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use blockferry_block::{
    BlockDevice, Buffer, BufferPool, ByteRange, Capabilities, ErrorKind, Result,
};
use futures_util::future::{Either, select};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};

use super::{
    ReadAhead,
    state::{Arrival, Piece, State},
};

/// What the handles of an export share.
pub(super) struct Stock {
    options: ReadAhead,
    runtime: Handle,
    /// For pieces of the full request size.
    buffers: BufferPool,
    state: Mutex<State>,
    pub(super) counts: Counts,
}

/// What is counted, all for one export.
#[derive(Default)]
pub(super) struct Counts {
    /// Reads that were wholly answered from what was asked for ahead.
    pub(super) hits: AtomicU64,
    /// The other reads.
    pub(super) misses: AtomicU64,
    /// Reads of the source, ahead or not.
    pub(super) source_calls: AtomicU64,
}

/// Where a part of a read comes from.
pub(super) enum Part {
    Stock(Place),
    Source,
}

/// A piece that has a part.
pub(super) struct Place {
    start: u64,
    arrival: Arrival,
}

impl Place {
    /// The bytes of the piece, when they are there; `None` when they could not be read.
    pub(super) async fn wait(&self) -> Option<Arc<Buffer>> {
        if let Some(bytes) = &*self.arrival.borrow() {
            return Some(Arc::clone(bytes));
        }
        let mut arrival = self.arrival.clone();
        arrival.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Where in the piece's bytes `range` begins.
    pub(super) fn index_of(&self, range: ByteRange) -> usize {
        (range.start() - self.start) as usize
    }
}

/// A handle of the export.
pub(super) struct Reader {
    number: u64,
    device: Arc<dyn BlockDevice>,
    stock: Arc<Stock>,
    /// Whether what other handles read is what this one would.
    shares: bool,
    /// What a piece may be, in bytes: multiples of `unit`.
    unit: u64,
    longest: u64,
}

impl Stock {
    pub(super) fn new(options: ReadAhead, runtime: Handle) -> Self {
        let longest = u64::from(options.request_size);
        let keep = options.size / longest.max(1);
        let state = State::new(options.size, options.requests);
        Self {
            buffers: BufferPool::new(longest as usize, keep as usize),
            options,
            runtime,
            state: Mutex::new(state),
            counts: Counts::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes are held.
    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.lock().held
    }

    /// How many bytes were read ahead for nothing.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }
}

impl Reader {
    pub(super) fn new(device: Arc<dyn BlockDevice>, stock: Arc<Stock>) -> Self {
        let info = device.info();
        let unit = u64::from(info.limits.minimum.max(1));
        let longest = stock.options.request_size.min(info.limits.maximum);
        let shares = info.can(Capabilities::MULTI_CONN);
        let number = {
            let mut state = stock.lock();
            state.handles += 1;
            state.number()
        };
        Self {
            longest: (u64::from(longest) - u64::from(longest) % unit).max(unit),
            number,
            device,
            stock,
            shares,
            unit,
        }
    }

    pub(super) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    pub(super) fn stock(&self) -> Arc<Stock> {
        Arc::clone(&self.stock)
    }

    pub(super) fn count_source_call(&self) {
        let calls = &self.stock.counts.source_calls;
        calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Where the bytes of `range`, which is not empty, are to come from, in order. Asks for what comes next.
    pub(super) fn look_up(&self, range: ByteRange) -> Vec<(ByteRange, Part)> {
        let (parts, requests) = {
            let mut state = self.stock.lock();
            let parts = self.parts(&mut state, range);
            let end = self.device.info().size;
            let ahead = state.read(range, self.unit, self.longest, end);
            let requests: Vec<_> = ahead.map_or_else(Vec::new, |(stream, wanted)| {
                let wanted = wanted.into_iter();
                wanted
                    .map(|range| self.request(&mut state, stream, range))
                    .collect()
            });
            (parts, requests)
        };
        // The runtime may drop a task at once, which then locks the state.
        for request in requests {
            self.count_source_call();
            self.stock.runtime.spawn(request.carry_out());
        }
        let is_hit = parts.iter().all(|(_, part)| matches!(part, Part::Stock(_)));
        let counts = &self.stock.counts;
        let counter = if is_hit { &counts.hits } else { &counts.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        parts
    }

    fn parts(&self, state: &mut State, range: ByteRange) -> Vec<(ByteRange, Part)> {
        let mut parts = Vec::new();
        let mut at = range.start();
        for start in state.overlapping(range) {
            let piece = state.pieces.get(&start);
            let Some(piece) = piece.filter(|it| self.shares || it.reader == self.number) else {
                continue;
            };
            let part = piece.range.intersection(range);
            let place = Place {
                start,
                arrival: piece.arrival.clone(),
            };
            if at < part.start() {
                parts.push((ByteRange::between(at, part.start()), Part::Source));
            }
            at = part.end();
            parts.push((part, Part::Stock(place)));
            state.take_from(start, part.len());
        }
        if at < range.end() {
            parts.push((ByteRange::between(at, range.end()), Part::Source));
        }
        parts
    }

    fn request(&self, state: &mut State, stream: u64, range: ByteRange) -> Request {
        let number = state.number();
        let (arrived, arrival) = watch::channel(None);
        let (wanted, given_up) = oneshot::channel();
        let piece = Piece {
            number,
            range,
            stream,
            reader: self.number,
            arrival,
            _wanted: wanted,
            used: 0,
            was_waited_for: false,
            has_landed: false,
        };
        state.pieces.insert(range.start(), piece);
        state.in_flight += 1;
        state.held += range.len();
        if let Some(stream) = state.stream(stream) {
            stream.fetched += range.len();
        }
        Request {
            device: Arc::clone(&self.device),
            given_up,
            arrived,
            landing: Landing {
                stock: Arc::clone(&self.stock),
                number,
                range,
            },
        }
    }

    /// Drops what overlaps `range` and keeps it out until the change has ended.
    pub(super) fn begin_change(&self, range: ByteRange) -> Change<'_> {
        let number = self.stock.lock().begin_change(range);
        Change {
            stock: &self.stock,
            number,
            range,
            is_over: false,
        }
    }

    /// The device is that large now. What is held is about to be dropped by the change that did it.
    pub(super) fn set_size(&self, size: u64) {
        self.stock.lock().set_size(size);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.stock.lock();
        state.handles -= 1;
        if state.handles == 0 {
            // Who comes next may find another image.
            state.clear();
            return;
        }
        state.remove_all(|piece| piece.reader == self.number && piece.arrival.borrow().is_none());
    }
}

/// A change that is under way.
pub(super) struct Change<'a> {
    stock: &'a Stock,
    number: u64,
    range: ByteRange,
    is_over: bool,
}

impl Change<'_> {
    /// The change has ended so.
    pub(super) fn end<T>(mut self, result: Result<T>) -> Result<T> {
        // Whoever was answered knows that it is over; after a lost connection it may still come.
        self.is_over = match &result {
            Ok(_) => true,
            Err(error) => !error.is_transient() && error.kind() != ErrorKind::Cancelled,
        };
        result
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut state = self.stock.lock();
        state.end_change(self.number, self.range, self.is_over);
    }
}

/// A read that asks ahead.
struct Request {
    device: Arc<dyn BlockDevice>,
    given_up: oneshot::Receiver<()>,
    arrived: watch::Sender<Option<Arc<Buffer>>>,
    landing: Landing,
}

impl Request {
    async fn carry_out(self) {
        let Landing { stock, range, .. } = &self.landing;
        let length = range.len() as usize;
        let buffer = match length == stock.buffers.capacity() {
            true => stock.buffers.take(length),
            false => Buffer::zeroed(length),
        };
        let read = self.device.read(range.start(), buffer);
        if let Either::Left((Ok(buffer), _)) = select(read, self.given_up).await
            && buffer.len() == length
        {
            self.arrived.send_replace(Some(Arc::new(buffer)));
        }
    }
}

/// Takes note of a request's end, whatever it is.
struct Landing {
    stock: Arc<Stock>,
    number: u64,
    range: ByteRange,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut state = self.stock.lock();
        state.in_flight -= 1;
        let start = self.range.start();
        let Some(piece) = state
            .pieces
            .get_mut(&start)
            .filter(|piece| piece.number == self.number)
        else {
            // It was removed before, and is not held any longer.
            state.held -= self.range.len();
            return;
        };
        piece.has_landed = true;
        let has_failed = piece.arrival.borrow().is_none();
        let stream = piece.stream;
        if !has_failed && piece.used < piece.range.len() {
            return;
        }
        // What failed was not read for nothing.
        piece.used = piece.range.len();
        state.remove(start);
        if has_failed && let Some(stream) = state.stream(stream) {
            stream.narrow();
        }
    }
}
