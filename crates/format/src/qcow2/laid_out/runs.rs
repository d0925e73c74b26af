//! Which clusters of a source have data: in bounded memory.

use blockferry_block::{BlockDevice, ByteRange, Context};

/// How many runs are kept. Beyond that, holes between them count as data, the smallest first.
const MOST_RUNS: usize = 1 << 20;
/// How much is asked about at a time, in bytes.
const ASKED_AT_ONCE: u64 = 1 << 30;

/// Clusters side by side that have data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first one's number in the disk.
    pub(super) first: u64,
    pub(super) count: u64,
    /// How many clusters of the disk before it have data.
    pub(super) before: u64,
}

/// All clusters of a disk.
pub(super) fn whole(size: u64, cluster: u32) -> Vec<Run> {
    let mut runs = Runs::new(cluster, MOST_RUNS);
    runs.add(ByteRange::between(0, size));
    runs.finish()
}

/// The clusters that are not known to be zero. What the source does not tell is data.
pub(super) async fn of_source(source: &dyn BlockDevice, cluster: u32) -> Vec<Run> {
    let info = source.info();
    if !info.knows_allocation() {
        return whole(info.size, cluster);
    }
    let mut runs = Runs::new(cluster, MOST_RUNS);
    let mut at = 0;
    while at < info.size {
        let asked = ByteRange::between(at, info.size.min(at.saturating_add(ASKED_AT_ONCE)));
        let told = source.extents(asked, &Context::Allocation).await;
        for extent in told.unwrap_or_default() {
            let range = extent.range.intersection(asked);
            if range.start() != at {
                break;
            }
            if !extent.status.is_zero() {
                runs.add(range);
            }
            at = range.end();
        }
        if at == asked.start() {
            runs.add(asked);
            at = asked.end();
        }
    }
    runs.finish()
}

struct Runs {
    cluster: u64,
    most: usize,
    /// Holes of fewer clusters are not kept.
    least_gap: u64,
    runs: Vec<Run>,
}

impl Runs {
    fn new(cluster: u32, most: usize) -> Self {
        Self {
            cluster: u64::from(cluster),
            most,
            least_gap: 1,
            runs: Vec::new(),
        }
    }

    /// Adds data behind all that was added before.
    fn add(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let first = range.start() / self.cluster;
        let count = range.end().div_ceil(self.cluster) - first;
        let run = Run {
            first,
            count,
            before: 0,
        };
        merge(&mut self.runs, run, self.least_gap);
        while self.runs.len() > self.most {
            self.least_gap *= 2;
            let runs = std::mem::take(&mut self.runs);
            for run in runs {
                merge(&mut self.runs, run, self.least_gap);
            }
        }
    }

    fn finish(mut self) -> Vec<Run> {
        let mut before = 0;
        for run in &mut self.runs {
            run.before = before;
            before += run.count;
        }
        self.runs
    }
}

fn merge(runs: &mut Vec<Run>, run: Run, least_gap: u64) {
    match runs.last_mut() {
        Some(last) if run.first < (last.first + last.count).saturating_add(least_gap) => {
            let end = (run.first + run.count).max(last.first + last.count);
            last.count = end - last.first;
        }
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_too_many_runs() {
        let mut runs = Runs::new(512, 100);
        for cluster in 0..10_000 {
            // Every third cluster has data.
            let start = cluster * 3 * 512;
            runs.add(ByteRange::between(start + 1, start + 2));
        }
        let runs = runs.finish();
        assert!(runs.len() <= 100);
        for cluster in (0..30_000).step_by(3) {
            let holds = |run: &Run| run.first <= cluster && cluster < run.first + run.count;
            assert!(runs.iter().any(holds), "{cluster}");
        }
    }

    #[test]
    fn neighbours_that_share_a_cluster_are_one_run() {
        let mut runs = Runs::new(512, 100);
        for (start, end) in [(0, 1), (511, 513), (1024, 1025), (2048, 4096)] {
            runs.add(ByteRange::between(start, end));
        }
        let run = |first, count, before| Run {
            first,
            count,
            before,
        };
        assert_eq!(runs.finish(), [run(0, 3, 0), run(4, 4, 3)]);
    }
}
