//! How often something took how long, in little memory: to a tenth of its time.

use std::time::Duration;

/// Steps between one power of two and the next.
const STEPS: u32 = 8;
/// The shortest time that is told from shorter ones is 2 to this power, in nanoseconds: a microsecond.
const LEAST: u32 = 10;
/// Up to 2^44 ns, which are five hours.
const COUNT: usize = ((44 - LEAST) * STEPS) as usize;

/// A histogram of times. An empty one takes no memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram(Option<Box<Counts>>);

#[derive(Clone, Debug)]
struct Counts {
    total: u64,
    counts: [u32; COUNT],
}

impl Histogram {
    /// Adds one.
    pub(crate) fn add(&mut self, time: Duration) {
        let counts = self.counts();
        counts.total += 1;
        let count = &mut counts.counts[index(time)];
        *count = count.saturating_add(1);
    }

    /// Adds all of another one.
    pub(crate) fn absorb(&mut self, other: &Self) {
        let Some(other) = &other.0 else { return };
        let counts = self.counts();
        counts.total += other.total;
        for (count, more) in counts.counts.iter_mut().zip(other.counts) {
            *count = count.saturating_add(more);
        }
    }

    /// How many there are.
    pub(crate) fn total(&self) -> u64 {
        self.0.as_ref().map_or(0, |counts| counts.total)
    }

    /// The time that this part of all (0 to 1) did not exceed; `None` when there are none.
    pub(crate) fn quantile(&self, part: f64) -> Option<Duration> {
        let counts = self.0.as_ref()?;
        let wanted = (counts.total as f64 * part).ceil().max(1.0) as u64;
        let mut passed = 0;
        let found = counts.counts.iter().position(|count| {
            passed += u64::from(*count);
            passed >= wanted
        });
        Some(middle(found.unwrap_or(COUNT - 1)))
    }

    fn counts(&mut self) -> &mut Counts {
        self.0.get_or_insert_with(|| {
            Box::new(Counts {
                total: 0,
                counts: [0; COUNT],
            })
        })
    }
}

/// The place of a time.
fn index(time: Duration) -> usize {
    let nanoseconds = u64::try_from(time.as_nanos())
        .unwrap_or(u64::MAX)
        .max(1 << LEAST);
    let power = nanoseconds.ilog2();
    let step = (nanoseconds >> (power - STEPS.ilog2())) as u32 % STEPS;
    (((power - LEAST) * STEPS + step) as usize).min(COUNT - 1)
}

/// The middle of the times that have a place.
fn middle(index: usize) -> Duration {
    let (power, step) = (index as u32 / STEPS + LEAST, index as u32 % STEPS);
    let width = (1_u64 << power) / u64::from(STEPS);
    Duration::from_nanos((1 << power) + u64::from(step) * width + width / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_kept_to_a_tenth() {
        let mut time = Duration::from_micros(2);
        while time < Duration::from_secs(10_000) {
            let mut histogram = Histogram::default();
            histogram.add(time);
            let found = histogram.quantile(0.5).expect("one");
            let ratio = found.as_secs_f64() / time.as_secs_f64();
            assert!((0.93..1.07).contains(&ratio), "{time:?} {found:?}");
            time = time.mul_f64(1.37);
        }
        for time in [Duration::ZERO, Duration::MAX] {
            Histogram::default().add(time);
        }
    }

    #[test]
    fn quantiles_are_those_of_all_that_were_added() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        assert_eq!(one.quantile(0.5), None);
        for _ in 0..98 {
            one.add(Duration::from_millis(1));
        }
        for _ in 0..2 {
            other.add(Duration::from_secs(1));
        }
        one.absorb(&other);
        assert_eq!(one.total(), 100);
        let near = |part, expected: f64| {
            let found = one.quantile(part).expect("some").as_secs_f64();
            assert!((found / expected - 1.0).abs() < 0.1, "{found}");
        };
        near(0.5, 1e-3);
        near(0.98, 1e-3);
        near(0.99, 1.0);
    }
}
