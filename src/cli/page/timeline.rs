//! What a copy did at which time, in as many intervals as there is room for: when it lasts longer they do, too.

use std::time::Duration;

use crate::copy::{Request, RequestKind};

use super::histogram::Histogram;

/// The most intervals that are kept, and the length of the first ones: half a second of them.
const MOST: usize = 512;
const FIRST: Duration = Duration::from_millis(1);

/// The intervals of a copy, of equal length.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    width: Duration,
    slots: Vec<Slot>,
}

/// What happened in an interval.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    /// The bytes that were done as data, that turned out to be zero, and that were known to be.
    pub(crate) data: u64,
    pub(crate) zero: u64,
    pub(crate) known: u64,
    /// The bytes that were read back to be verified.
    pub(crate) verified: u64,
    /// How long requests took: see [`Slot::latency`].
    latency: [Histogram; 3],
    /// How many requests made zeroes.
    pub(crate) zeroing: u64,
    /// What was in flight at most, in bytes.
    pub(crate) in_flight: u64,
    /// What could be in the end, in bytes.
    pub(crate) window: u64,
    /// The longest request in the end, in bytes.
    pub(crate) request_size: u32,
    /// How many handles the source and the destination had in the end, where that changed.
    pub(crate) handles: [Option<usize>; 2],
}

/// Several intervals as one, with its beginning and end in seconds.
pub(crate) struct Stretch {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) slot: Slot,
}

impl Timeline {
    pub(crate) fn new() -> Self {
        Self {
            width: FIRST,
            slots: Vec::new(),
        }
    }

    /// The interval that a time since the beginning is in.
    pub(crate) fn at(&mut self, time: Duration) -> &mut Slot {
        let mut index = self.index_of(time);
        while index >= MOST as u128 {
            self.halve();
            index = self.index_of(time);
        }
        let index = index as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, Slot::default);
        }
        &mut self.slots[index]
    }

    /// All of it until `end` in `most` stretches of equal length, or a few less.
    pub(crate) fn stretches(&self, most: usize, end: Duration) -> Vec<Stretch> {
        let count = usize::try_from(self.index_of(end) + 1).unwrap_or(MOST);
        let each = count.min(MOST).div_ceil(most.max(1)).max(1);
        let width = self.width.as_secs_f64();
        let parts = (0..count.min(MOST)).step_by(each);
        let stretches = parts.map(|first| {
            let mut slot = Slot::default();
            let beyond = (first + each).min(count);
            for part in self.slots.iter().take(beyond).skip(first) {
                slot.absorb(part);
            }
            Stretch {
                from: first as f64 * width,
                to: (beyond as f64 * width).min(end.as_secs_f64().max(width)),
                slot,
            }
        });
        stretches
            .filter(|stretch| stretch.to > stretch.from)
            .collect()
    }

    /// All of it as one.
    pub(crate) fn total(&self) -> Slot {
        let mut total = Slot::default();
        for slot in &self.slots {
            total.absorb(slot);
        }
        total
    }

    fn index_of(&self, time: Duration) -> u128 {
        time.as_nanos() / self.width.as_nanos()
    }

    fn halve(&mut self) {
        self.width *= 2;
        for index in 0..self.slots.len().div_ceil(2) {
            let mut slot = std::mem::take(&mut self.slots[2 * index]);
            if let Some(second) = self.slots.get(2 * index + 1) {
                slot.absorb(second);
            }
            self.slots[index] = slot;
        }
        self.slots.truncate(self.slots.len().div_ceil(2));
    }
}

impl Slot {
    /// Adds a request.
    pub(crate) fn add(&mut self, request: Request) {
        match place(request.kind) {
            Some(place) => self.latency[place].add(request.latency),
            None => self.zeroing += 1,
        }
        self.in_flight = self.in_flight.max(request.in_flight);
        self.window = request.window;
        self.request_size = request.request_size;
    }

    /// How long requests took that did this; those that make zeroes are only counted.
    pub(crate) fn latency(&self, kind: RequestKind) -> Option<&Histogram> {
        let histogram = &self.latency[place(kind)?];
        (histogram.total() > 0).then_some(histogram)
    }

    /// How many requests there were.
    pub(crate) fn requests(&self) -> u64 {
        self.latency.iter().map(Histogram::total).sum::<u64>() + self.zeroing
    }

    /// Adds a later one.
    fn absorb(&mut self, later: &Self) {
        self.data += later.data;
        self.zero += later.zero;
        self.known += later.known;
        self.verified += later.verified;
        self.zeroing += later.zeroing;
        for (histogram, later) in self.latency.iter_mut().zip(&later.latency) {
            histogram.absorb(later);
        }
        self.in_flight = self.in_flight.max(later.in_flight);
        if later.window > 0 {
            self.window = later.window;
            self.request_size = later.request_size;
        }
        for (handles, later) in self.handles.iter_mut().zip(later.handles) {
            *handles = later.or(*handles);
        }
    }
}

fn place(kind: RequestKind) -> Option<usize> {
    match kind {
        RequestKind::Read => Some(0),
        RequestKind::Write => Some(1),
        RequestKind::TakeOver => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_days_takes_no_more_memory_and_loses_nothing() {
        let mut timeline = Timeline::new();
        let (mut time, mut sum) = (Duration::ZERO, 0);
        while time < Duration::from_secs(3 * 86_400) {
            timeline.at(time).data += 7;
            sum += 7;
            time += Duration::from_millis(31_337).max(time / 5000);
        }
        assert!((MOST / 2..=MOST).contains(&timeline.slots.len()));
        assert_eq!(timeline.total().data, sum);
        for most in [1, 7, 100, 1000] {
            let stretches = timeline.stretches(most, time);
            assert!(stretches.len() <= most);
            assert_eq!(stretches.iter().map(|it| it.slot.data).sum::<u64>(), sum);
            assert!(stretches.windows(2).all(|pair| pair[0].to == pair[1].from));
        }
    }

    #[test]
    fn the_last_word_counts_for_what_adapts_and_the_most_for_what_was_in_flight() {
        let mut timeline = Timeline::new();
        for (millisecond, in_flight, window) in [(0, 5, 10), (1, 9, 20), (2, 3, 30)] {
            let slot = timeline.at(Duration::from_millis(millisecond));
            (slot.in_flight, slot.window) = (in_flight, window);
            slot.handles[0] = Some(window as usize / 10);
        }
        timeline.at(Duration::from_millis(700));
        let whole = timeline.stretches(1, Duration::from_millis(700));
        let slot = &whole[0].slot;
        assert_eq!(
            (slot.in_flight, slot.window, slot.handles[0]),
            (9, 30, Some(3))
        );
    }

    #[test]
    fn a_copy_that_took_no_time_has_an_interval() {
        let mut timeline = Timeline::new();
        timeline.at(Duration::ZERO).data = 5;
        let stretches = timeline.stretches(100, Duration::ZERO);
        assert_eq!(stretches.len(), 1);
        assert!(stretches[0].to > stretches[0].from);
        assert_eq!(Timeline::new().stretches(100, Duration::ZERO).len(), 1);
    }
}
