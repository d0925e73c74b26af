//! The pieces that were asked for ahead, the streams that they were asked for, and how far ahead that is.
//!
//! A *stream* is a client's reading in order: a read that begins where another ended (a few times, if guesses
//! were wrong lately). Each stream has a *window*, in bytes: so far ahead of it is asked, in pieces of a quarter
//! of the window and no more than the request size. The window doubles when the stream has to wait for a piece
//! that was asked for, and is halved when pieces were not used. A stream that wastes more than it uses is none any
//! more, and others have to prove themselves by more reads.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use blockferry_block::{Buffer, ByteRange, RangeSet};
use tokio::sync::{oneshot, watch};

/// How many streams of an export are followed at a time.
const MOST_STREAMS: usize = 16;

/// How many reads are remembered that may become streams.
const MOST_CANDIDATES: usize = 16;

/// The window that a stream begins with, at least, in bytes.
const FIRST_WINDOW: u64 = 256 << 10;

/// The shortest piece that is asked for, where there is as much, in bytes.
const SHORTEST_PIECE: u64 = 64 << 10;

/// How far from where the newest read of a stream ended others of it may begin, at least: several can be in
/// flight, and some are left out. In bytes.
const AROUND: u64 = 1 << 20;

/// How many reads in a row it takes at most to be a stream.
const MOST_PATIENCE: u32 = 16;

/// Ranges of changes with an unknown end; when there are more, nothing is read ahead any more.
const MOST_UNCERTAIN: usize = 1024;

/// What the handles of an export share, under one lock.
pub(super) struct State {
    /// The most that is held, in bytes, and the most requests in flight.
    size: u64,
    requests: usize,
    /// Counts reads.
    clock: u64,
    streams: Vec<Stream>,
    candidates: VecDeque<Candidate>,
    /// By their starts; they do not overlap.
    pub(super) pieces: BTreeMap<u64, Piece>,
    pub(super) in_flight: usize,
    /// Bytes of all pieces, and of those in flight that nobody waits for any more.
    pub(super) held: u64,
    last_number: u64,
    /// Changes that are under way, by number.
    pub(super) changing: Vec<(u64, ByteRange)>,
    pub(super) uncertain: RangeSet,
    /// The end of the device, when it was resized.
    pub(super) end: Option<u64>,
    pub(super) handles: usize,
    /// How many reads that follow another make a stream, less one.
    patience: u32,
    /// Bytes that were read ahead for nothing.
    pub(super) dropped: u64,
}

pub(super) struct Stream {
    pub(super) number: u64,
    /// Where the newest read ended.
    pub(super) next: u64,
    /// Up to where was asked.
    pub(super) asked: u64,
    pub(super) window: u64,
    /// Bytes that were asked for, and those that were read of them.
    pub(super) fetched: u64,
    pub(super) used: u64,
    /// When it was last read from.
    pub(super) touched: u64,
}

/// Reads that touch each other, in any order.
struct Candidate {
    range: ByteRange,
    reads: u32,
}

/// A range that is there, or on its way.
pub(super) struct Piece {
    pub(super) number: u64,
    pub(super) range: ByteRange,
    pub(super) stream: u64,
    pub(super) reader: u64,
    pub(super) arrival: Arrival,
    /// The request is given up when this is dropped.
    pub(super) _wanted: oneshot::Sender<()>,
    /// How many bytes were read of it.
    pub(super) used: u64,
    pub(super) was_waited_for: bool,
    /// Its request has ended.
    pub(super) has_landed: bool,
}

pub(super) type Arrival = watch::Receiver<Option<Arc<Buffer>>>;

impl Stream {
    /// Asks for less from now on.
    pub(super) fn narrow(&mut self) {
        self.window = (self.window / 2).max(SHORTEST_PIECE);
    }
}

impl State {
    /// With room for `size` bytes, and for `requests` in flight.
    pub(super) fn new(size: u64, requests: usize) -> Self {
        Self {
            size,
            requests,
            clock: 0,
            streams: Vec::new(),
            candidates: VecDeque::new(),
            pieces: BTreeMap::new(),
            in_flight: 0,
            held: 0,
            last_number: 0,
            changing: Vec::new(),
            uncertain: RangeSet::new(),
            end: None,
            handles: 0,
            patience: 1,
            dropped: 0,
        }
    }

    /// A number that nothing had before.
    pub(super) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// The stream of that number.
    pub(super) fn stream(&mut self, number: u64) -> Option<&mut Stream> {
        let mut streams = self.streams.iter_mut();
        streams.find(|stream| stream.number == number)
    }

    /// The starts of the pieces that overlap `range`, in order.
    pub(super) fn overlapping(&self, range: ByteRange) -> Vec<u64> {
        let before = self.pieces.range(..range.start()).next_back();
        let before = before.filter(|(_, piece)| piece.range.end() > range.start());
        let inside = self.pieces.range(range.start()..range.end());
        before.into_iter().chain(inside).map(|it| *it.0).collect()
    }

    /// Takes note that `length` bytes of a piece are read.
    pub(super) fn take_from(&mut self, start: u64, length: u64) {
        let Some(piece) = self.pieces.get_mut(&start) else {
            return;
        };
        piece.used += length;
        let has_arrived = piece.arrival.borrow().is_some();
        let is_first_wait = !has_arrived && !piece.was_waited_for;
        piece.was_waited_for |= !has_arrived;
        let number = piece.stream;
        if has_arrived && piece.used >= piece.range.len() {
            self.remove(start);
        }
        let size = self.size;
        if let Some(stream) = self.stream(number) {
            stream.used += length;
            if is_first_wait {
                stream.window = stream.window.saturating_mul(2).min(size);
                if stream.used > stream.fetched / 2 {
                    self.patience = 1;
                }
            }
        }
    }

    /// Takes note of a read, and says what is to be asked for ahead of it: the number of the stream, and ranges in
    /// multiples of `unit`, each of `longest` bytes at most and none behind `end`.
    pub(super) fn read(
        &mut self,
        range: ByteRange,
        unit: u64,
        longest: u64,
        end: u64,
    ) -> Option<(u64, Vec<ByteRange>)> {
        self.clock += 1;
        if !range.start().is_multiple_of(unit) {
            return None;
        }
        let index = self.stream_of(range)?;
        if self.retire_wasteful(index) {
            return None;
        }
        let share = self.size / self.streams.len().max(1) as u64;
        // What is being read is held, too.
        let share = share - share / 8;
        let stream = &self.streams[index];
        let (number, next, window) = (stream.number, stream.next, stream.window.min(share));
        let mut asked = stream.asked.max(next);
        let end = end.min(self.end.unwrap_or(u64::MAX));
        let length = (window / 4).clamp(SHORTEST_PIECE.min(longest), longest);
        let length = (length - length % unit).max(unit);
        let until = next.saturating_add(window.max(length));
        let (mut wanted, mut bytes) = (Vec::new(), 0);
        while asked < end && asked.saturating_add(length) <= until {
            let piece = ByteRange::between(asked, end.min(asked + length));
            let there = self.overlapping(piece).first().copied();
            let there = there.and_then(|start| self.pieces.get(&start));
            if let Some(there) = there.filter(|there| there.range.start() <= asked) {
                asked = there.range.end();
                continue;
            }
            let Some(free) = self.free_part(piece, unit) else {
                break;
            };
            let is_full = self.in_flight + wanted.len() >= self.requests;
            if is_full || !self.make_room(bytes + free.len()) {
                break;
            }
            asked = free.end();
            bytes += free.len();
            wanted.push(free);
        }
        self.streams[index].asked = asked;
        Some((number, wanted))
    }

    /// Forgets everything but what is in flight.
    pub(super) fn clear(&mut self) {
        self.remove_all(|_| true);
        self.streams.clear();
        self.candidates.clear();
        self.uncertain = RangeSet::new();
        self.end = None;
        self.patience = 1;
    }

    /// The device is that large now. What is held is dropped by the change that did it.
    pub(super) fn set_size(&mut self, size: u64) {
        self.end = Some(size);
        self.streams.clear();
    }

    /// Drops what overlaps `range`, and keeps it out until [`end_change`](Self::end_change).
    pub(super) fn begin_change(&mut self, range: ByteRange) -> u64 {
        for start in self.overlapping(range) {
            let number = self.pieces.get(&start).map(|piece| piece.stream);
            let dropped = self.remove(start);
            // Nobody guessed wrong.
            if let Some(stream) = number.and_then(|number| self.stream(number)) {
                stream.fetched = stream.fetched.saturating_sub(dropped);
            }
        }
        let number = self.number();
        self.changing.push((number, range));
        number
    }

    /// The change of that number has ended, or nobody knows whether it has.
    pub(super) fn end_change(&mut self, number: u64, range: ByteRange, is_over: bool) {
        self.changing.retain(|(own, _)| *own != number);
        for stream in &mut self.streams {
            if stream.next < range.end() && range.start() < stream.asked {
                // What was dropped can be asked for again.
                stream.asked = stream.next.max(range.start());
            }
        }
        if !is_over {
            self.uncertain.insert(range);
            if self.uncertain.count() > MOST_UNCERTAIN {
                self.uncertain.insert(ByteRange::between(0, u64::MAX));
            }
        }
    }

    /// Forgets a piece, and says how many bytes of it were not used. What is in flight counts as held until it
    /// has landed.
    pub(super) fn remove(&mut self, start: u64) -> u64 {
        let Some(piece) = self.pieces.remove(&start) else {
            return 0;
        };
        if piece.has_landed {
            self.held -= piece.range.len();
        }
        let unused = piece.range.len().saturating_sub(piece.used);
        self.dropped += unused;
        unused
    }

    /// Removes the pieces for which `filter` holds, and says how many bytes of them were not used.
    pub(super) fn remove_all(&mut self, filter: impl Fn(&Piece) -> bool) -> u64 {
        let pieces = self.pieces.iter();
        let starts: Vec<_> = pieces
            .filter(|(_, piece)| filter(piece))
            .map(|(start, _)| *start)
            .collect();
        starts.into_iter().map(|start| self.remove(start)).sum()
    }

    /// Forgets what a stream has left behind, and asks less far ahead of it for that.
    fn drop_passed(&mut self, index: usize) {
        let stream = &self.streams[index];
        let (number, end) = (stream.number, stream.next.saturating_sub(AROUND));
        let dropped = self.remove_all(|piece| piece.stream == number && piece.range.end() <= end);
        if dropped > 0 {
            let stream = &mut self.streams[index];
            stream.narrow();
        }
    }

    /// Makes sure that `length` more bytes can be held, and says whether they can.
    fn make_room(&mut self, length: u64) -> bool {
        let size = self.size;
        if self.held + length <= size {
            return true;
        }
        for index in 0..self.streams.len() {
            self.drop_passed(index);
        }
        // Streams that hold more than their share began when there were fewer of them.
        let share = size / self.streams.len().max(1) as u64;
        for index in 0..self.streams.len() {
            let number = self.streams[index].number;
            let own: Vec<_> = self
                .pieces
                .values()
                .filter(|it| it.stream == number)
                .collect();
            let mut held: u64 = own.iter().map(|piece| piece.range.len()).sum();
            let mut starts: Vec<_> = own.iter().map(|piece| piece.range.start()).collect();
            while self.held + length > size
                && held > share
                && let Some(start) = starts.pop()
            {
                held -= self.pieces.get(&start).map_or(0, |piece| piece.range.len());
                self.remove(start);
                // It may be read yet, and then has to be asked for again.
                let stream = &mut self.streams[index];
                stream.asked = stream.asked.min(start);
            }
        }
        self.held + length <= size
    }

    /// Forgets the stream that was not read from for longest, if there must be room for another.
    fn retire_oldest(&mut self) {
        let oldest = self.streams.iter().enumerate();
        let oldest = oldest.min_by_key(|(_, stream)| stream.touched);
        if let Some((index, stream)) = oldest
            && self.streams.len() >= MOST_STREAMS
        {
            self.patience = match stream.used < stream.fetched / 2 {
                true => (self.patience * 2).min(MOST_PATIENCE),
                false => (self.patience / 2).max(1),
            };
            self.retire(index);
        }
    }

    /// Forgets a stream of which too much was asked for in vain, and says whether it was one.
    fn retire_wasteful(&mut self, index: usize) -> bool {
        let stream = &self.streams[index];
        let waiting = stream.asked.saturating_sub(stream.next);
        let wasted = stream.fetched.saturating_sub(stream.used + waiting);
        if wasted <= stream.used + 2 * stream.window {
            return false;
        }
        self.patience = (self.patience * 2).min(MOST_PATIENCE);
        self.retire(index);
        true
    }

    fn retire(&mut self, index: usize) {
        let stream = self.streams.swap_remove(index);
        self.remove_all(|piece| piece.stream == stream.number);
    }

    /// The stream that a read of `range` belongs to, by its index; takes note of the read.
    fn stream_of(&mut self, range: ByteRange) -> Option<usize> {
        let around = AROUND.max(range.len().saturating_mul(4));
        let belongs = |stream: &Stream| {
            let last = stream.asked.max(stream.next.saturating_add(around));
            (stream.next.saturating_sub(around)..=last).contains(&range.start())
        };
        if let Some(index) = self.streams.iter().position(belongs) {
            let stream = &mut self.streams[index];
            stream.touched = self.clock;
            let has_skipped = range.start() > stream.next;
            stream.next = stream.next.max(range.end());
            if has_skipped {
                self.drop_passed(index);
            }
            return Some(index);
        }
        let touches = |candidate: &Candidate| {
            let own = candidate.range;
            own.end() == range.start() || range.end() == own.start()
        };
        let Some(index) = self.candidates.iter().position(touches) else {
            if self.candidates.len() >= MOST_CANDIDATES {
                self.candidates.pop_front();
            }
            self.candidates.push_back(Candidate { range, reads: 0 });
            return None;
        };
        let candidate = &mut self.candidates[index];
        candidate.reads += 1;
        let (start, end) = (candidate.range.start(), candidate.range.end());
        candidate.range = ByteRange::between(start.min(range.start()), end.max(range.end()));
        let next = candidate.range.end();
        if candidate.reads < self.patience {
            return None;
        }
        self.candidates.remove(index);
        self.retire_oldest();
        let number = self.number();
        self.streams.push(Stream {
            number,
            next,
            asked: next,
            window: FIRST_WINDOW.max(range.len().saturating_mul(4)),
            fetched: 0,
            used: 0,
            touched: self.clock,
        });
        Some(self.streams.len() - 1)
    }

    /// The first part of `wanted`, from its start on, that is neither there nor being changed.
    fn free_part(&self, wanted: ByteRange, unit: u64) -> Option<ByteRange> {
        let there = self.overlapping(wanted).into_iter();
        let changing = self.changing.iter().map(|(_, range)| *range);
        let changing = changing.filter(|range| !range.intersection(wanted).is_empty());
        let free_of_doubt = self.uncertain.missing_in(wanted).into_iter().next()?;
        let mut end = match free_of_doubt.start() == wanted.start() {
            true => free_of_doubt.end(),
            false => return None,
        };
        for start in there.chain(changing.map(ByteRange::start)) {
            end = end.min(start);
        }
        if end < wanted.end() {
            end -= end % unit;
        }
        let free = ByteRange::between(wanted.start(), end);
        (!free.is_empty()).then_some(free)
    }
}
