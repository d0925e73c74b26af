//! What processes use, and whether those that live through all rounds grow.

use std::fs;

use serde_json::{Value, json};

/// What a process uses at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Memory of its own, in KiB: what is mapped from files does not count.
    pub(crate) memory: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
}

impl Usage {
    /// Of the process `pid`, if it lives.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let number = |name: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            memory: number("RssAnon:")?,
            threads: number("Threads:")?,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
        })
    }

    /// The most of each.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
        }
    }

    pub(crate) fn to_json(self) -> Value {
        json!({
            "memory-kib": self.memory,
            "descriptors": self.descriptors,
            "threads": self.threads,
        })
    }
}

/// What one process used after each round, when nobody wanted anything of it.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) name: &'static str,
    samples: Vec<Usage>,
}

/// How many rounds a process may take until it has all that it keeps: caches, pools of buffers.
const WARM_UP: usize = 20;

/// How much more memory may be in use in the end than after the warm-up, in KiB. An allocator does not give
/// back everything.
const ALLOWED_MEMORY: u64 = 24 << 10;

/// Descriptors and threads are given back, but not all at the moment that one looks.
const ALLOWED_COUNT: u64 = 4;

impl History {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            samples: Vec::new(),
        }
    }

    pub(crate) fn note(&mut self, usage: Usage) {
        self.samples.push(usage);
    }

    pub(crate) fn peak(&self) -> Usage {
        self.samples
            .iter()
            .copied()
            .fold(Usage::default(), Usage::max)
    }

    /// The fewest descriptors that it had between two rounds.
    pub(crate) fn calm(&self) -> u64 {
        let descriptors = self.samples.iter().map(|it| it.descriptors);
        descriptors.min().unwrap_or(u64::MAX)
    }

    /// The medians of the first and the last quarter after the warm-up.
    fn quarters(&self) -> Option<(Usage, Usage)> {
        let warm = self.samples.get(WARM_UP..)?;
        let quarter = warm.len() / 4;
        if quarter < 3 {
            return None;
        }
        let medians = |part: &[Usage]| Usage {
            memory: median(part.iter().map(|it| it.memory)),
            descriptors: median(part.iter().map(|it| it.descriptors)),
            threads: median(part.iter().map(|it| it.threads)),
        };
        Some((
            medians(&warm[..quarter]),
            medians(&warm[warm.len() - quarter..]),
        ))
    }

    /// KiB of memory a hundred rounds add, by the straight line that fits best.
    fn slope(&self) -> f64 {
        let warm = self.samples.get(WARM_UP..).unwrap_or_default();
        let count = warm.len() as f64;
        let mean_x = (count - 1.0) / 2.0;
        let mean_y = warm.iter().map(|it| it.memory as f64).sum::<f64>() / count;
        let (mut above, mut below) = (0.0, 0.0);
        for (x, usage) in warm.iter().enumerate() {
            let x = x as f64 - mean_x;
            above += x * (usage.memory as f64 - mean_y);
            below += x * x;
        }
        if below > 0.0 {
            100.0 * above / below
        } else {
            0.0
        }
    }

    /// What grew more than it may.
    pub(crate) fn growth(&self) -> Vec<String> {
        let Some((first, last)) = self.quarters() else {
            return Vec::new();
        };
        let mut grown = Vec::new();
        let mut compare = |what: &str, from: u64, to: u64, allowed: u64| {
            if to > from + allowed {
                grown.push(format!("{} grew from {from} to {to} {what}", self.name));
            }
        };
        compare("KiB of memory", first.memory, last.memory, ALLOWED_MEMORY);
        compare(
            "descriptors",
            first.descriptors,
            last.descriptors,
            ALLOWED_COUNT,
        );
        compare("threads", first.threads, last.threads, ALLOWED_COUNT);
        grown
    }

    /// One line for the summary.
    pub(crate) fn line(&self) -> String {
        let peak = self.peak();
        let mut line = format!(
            "{:<18} at most {:>7} KiB, {:>3} descriptors, {:>2} threads",
            self.name, peak.memory, peak.descriptors, peak.threads
        );
        match self.quarters() {
            Some((first, last)) => line.push_str(&format!(
                "; memory {} -> {} KiB, descriptors {} -> {}, slope {:+.0} KiB in 100 rounds",
                first.memory,
                last.memory,
                first.descriptors,
                last.descriptors,
                self.slope()
            )),
            None => line.push_str("; too few rounds to tell growth"),
        }
        line
    }

    pub(crate) fn to_json(&self) -> Value {
        let quarters = self.quarters();
        json!({
            "name": self.name,
            "peak": self.peak().to_json(),
            "first-quarter": quarters.map(|(first, _)| first.to_json()),
            "last-quarter": quarters.map(|(_, last)| last.to_json()),
            "memory-kib-per-100-rounds": quarters.map(|_| self.slope()),
            "samples": self.samples.iter().map(|it| it.memory).collect::<Vec<_>>(),
        })
    }
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(memory: impl Fn(u64) -> u64, descriptors: impl Fn(u64) -> u64) -> History {
        let mut history = History::new("server");
        for round in 0..200 {
            history.note(Usage {
                memory: memory(round),
                descriptors: descriptors(round),
                threads: 3,
            });
        }
        history
    }

    #[test]
    fn what_stays_as_it_is_has_not_grown() {
        let noisy = history(|round| 8000 + round % 7 * 500, |_| 12);
        assert_eq!(noisy.growth(), Vec::<String>::new());
        assert!(noisy.slope().abs() < 500.0);
        let warm = history(|round| round.min(15) * 90_000, |_| 12);
        assert_eq!(warm.growth(), Vec::<String>::new());
    }

    #[test]
    fn a_leak_is_told_with_its_size() {
        let memory = history(|round| 8000 + round * 300, |_| 12);
        assert_eq!(
            memory.growth(),
            ["server grew from 20600 to 61100 KiB of memory"]
        );
        assert!((memory.slope() - 30_000.0).abs() < 1.0);
        let descriptors = history(|_| 8000, |round| 12 + round / 10);
        assert!(descriptors.growth()[0].ends_with("descriptors"));
    }

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::of(std::process::id()).expect("it lives");
        assert!(usage.memory > 0 && usage.descriptors > 2 && usage.threads > 0);
    }
}
