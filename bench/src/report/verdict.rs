//! Whether what a scenario means to reach was reached.

use serde::{Deserialize, Serialize};

use super::{Entry, cpu_ratio, latency_ratio, server_cpu_ratio, speed_ratio, written_ratio};
use crate::{
    runner::{Outcomes, Sample},
    scenario::Scenario,
    statistics::Summary,
    target::{Bound, Target},
};

/// Whether a target was reached.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Verdict {
    pub(crate) of: String,
    /// The best of them is what counts: each one has to be beaten by as much.
    pub(crate) rivals: Vec<String>,
    /// The rivals that could not be compared with.
    pub(crate) unmeasured: Vec<String>,
    pub(crate) speed: Option<Want>,
    pub(crate) cpu: Option<Want>,
    #[serde(default)]
    pub(crate) server_cpu: Option<Want>,
    #[serde(default)]
    pub(crate) latency: Option<Want>,
    #[serde(default)]
    pub(crate) written: Option<Want>,
    pub(crate) reached: bool,
}

/// One ratio that is wanted.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Want {
    pub(crate) wanted: f64,
    /// The least of the medians; nothing when no rival, or not ours, was measured.
    pub(crate) got: Option<f64>,
    /// The rival with that median.
    pub(crate) against: Option<String>,
}

/// Whether a bound was kept.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Limits {
    pub(crate) of: String,
    pub(crate) peak_memory_bytes: Option<Limit>,
    pub(crate) system_calls_per_256_kib: Option<Limit>,
    #[serde(default)]
    pub(crate) server_memory_bytes: Option<Limit>,
    pub(crate) kept: bool,
}

/// One figure that is limited.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Limit {
    pub(crate) at_most: f64,
    /// Nothing when it was not measured.
    pub(crate) got: Option<f64>,
}

impl Verdict {
    pub(super) fn new(target: &Target, scenario: &Scenario, outcomes: &Outcomes) -> Self {
        let of = name_of(target.of.as_deref(), scenario);
        let ours = outcomes.samples_of(scenario, &of);
        let mut unmeasured = Vec::new();
        let mut pairs = Vec::new();
        for rival in target.rival.names() {
            match (ours, outcomes.samples_of(scenario, rival)) {
                (Some(ours), Some(theirs)) => pairs.push((rival.as_str(), ours, theirs)),
                _ => unmeasured.push(rival.clone()),
            }
        }
        let want = |wanted: Option<f64>, ratio| Some(Want::new(wanted?, &pairs, ratio));
        let speed = want(target.speed, speed_ratio);
        let cpu = want(target.cpu, cpu_ratio);
        let server_cpu = want(target.server_cpu, server_cpu_ratio);
        let latency = want(target.latency, latency_ratio);
        let written = want(target.written, written_ratio);
        let wants = [&speed, &cpu, &server_cpu, &latency, &written];
        let reached = wants.into_iter().flatten().all(Want::is_reached);
        Self {
            of,
            rivals: target.rival.names().to_vec(),
            unmeasured,
            speed,
            cpu,
            server_cpu,
            latency,
            written,
            reached,
        }
    }

    /// Whether every ratio was taken, of one rival at least.
    pub(crate) fn is_measured(&self) -> bool {
        let wants = [
            &self.speed,
            &self.cpu,
            &self.server_cpu,
            &self.latency,
            &self.written,
        ];
        let wants = wants.into_iter().flatten();
        wants.into_iter().all(|want| want.got.is_some())
    }
}

impl Want {
    fn new(
        wanted: f64,
        pairs: &[(&str, &[Sample], &[Sample])],
        ratio: fn(&[Sample], &[Sample]) -> Option<Summary>,
    ) -> Self {
        let least = pairs
            .iter()
            .filter_map(|(rival, ours, theirs)| Some((ratio(ours, theirs)?.median, *rival)))
            .min_by(|(one, _), (other, _)| one.total_cmp(other));
        Self {
            wanted,
            got: least.map(|(median, _)| median),
            against: least.map(|(_, rival)| rival.to_owned()),
        }
    }

    fn is_reached(&self) -> bool {
        self.got.is_some_and(|got| got >= self.wanted)
    }
}

impl Limits {
    pub(super) fn new(bound: &Bound, scenario: &Scenario, contenders: &[Entry]) -> Self {
        let of = name_of(bound.of.as_deref(), scenario);
        let entry = contenders.iter().find(|entry| entry.name == of);
        let figures = entry.and_then(Entry::figures);
        #[allow(
            clippy::cast_precision_loss,
            reason = "nobody has 2^53 bytes of memory"
        )]
        let peak_memory_bytes = bound.peak_memory.as_ref().map(|size| Limit {
            at_most: size.bytes as f64,
            got: figures.map(|figures| figures.peak_memory_bytes as f64),
        });
        let system_calls_per_256_kib = bound.system_calls.map(|at_most| Limit {
            at_most,
            got: figures.and_then(|figures| figures.system_calls_per_256_kib),
        });
        #[allow(
            clippy::cast_precision_loss,
            reason = "nobody has 2^53 bytes of memory"
        )]
        let server_memory_bytes = bound.server_memory.as_ref().map(|size| Limit {
            at_most: size.bytes as f64,
            got: figures.map(|figures| figures.server_memory_bytes as f64),
        });
        let limits = [
            &peak_memory_bytes,
            &system_calls_per_256_kib,
            &server_memory_bytes,
        ];
        let kept = limits.into_iter().flatten().all(Limit::is_kept);
        Self {
            of,
            peak_memory_bytes,
            system_calls_per_256_kib,
            server_memory_bytes,
            kept,
        }
    }

    /// Whether every figure is there.
    pub(crate) fn is_measured(&self) -> bool {
        let limits = [
            &self.peak_memory_bytes,
            &self.system_calls_per_256_kib,
            &self.server_memory_bytes,
        ];
        limits
            .into_iter()
            .flatten()
            .all(|limit| limit.got.is_some())
    }
}

impl Limit {
    fn is_kept(&self) -> bool {
        self.got.is_some_and(|got| got <= self.at_most)
    }
}

/// Which contender it is about.
fn name_of(of: Option<&str>, scenario: &Scenario) -> String {
    of.unwrap_or(&scenario.ours().name).to_owned()
}

#[cfg(test)]
mod tests {
    use crate::report::tests::example;

    #[test]
    fn a_target_needs_both_the_speed_and_the_processor_time() {
        let verdict = &example().targets[0];
        assert_eq!(verdict.speed.as_ref().unwrap().got, Some(2.5));
        assert_eq!(verdict.cpu.as_ref().unwrap().got, Some(1.0));
        assert!(verdict.is_measured() && !verdict.reached);
    }

    #[test]
    fn a_target_against_a_missing_rival_is_not_reached() {
        let verdict = &example().targets[1];
        assert_eq!(verdict.unmeasured, ["others"]);
        assert!(!verdict.is_measured() && !verdict.reached);
    }

    #[test]
    fn of_several_rivals_those_that_are_there_decide() {
        let verdict = &example().targets[2];
        let against = verdict.speed.as_ref().unwrap().against.as_deref();
        assert_eq!(against, Some("they"));
        assert_eq!(verdict.unmeasured, ["others"]);
        assert!(verdict.is_measured() && verdict.reached);
    }

    #[test]
    fn a_bound_needs_every_figure_and_one_that_was_not_taken_is_not_kept() {
        let bounds = example().bounds;
        let calls = bounds[0].system_calls_per_256_kib.as_ref().unwrap();
        assert_eq!(calls.got, Some(2.5));
        assert!(bounds[0].is_measured() && !bounds[0].kept);
        assert!(!bounds[1].is_measured() && !bounds[1].kept);
    }
}
