//! What a scenario means to reach: against rivals, and in figures of its own.

use anyhow::{Result, ensure};
use serde::Deserialize;

use crate::size::Size;

/// What we mean to reach against a rival, or against the best of several, in medians of the ratios.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    /// Which contender reaches it: ours, unless another one is named.
    pub(crate) of: Option<String>,
    pub(crate) rival: Rivals,
    /// How many times as fast as the rival: its seconds by ours, or our rate by its rate.
    pub(crate) speed: Option<f64>,
    /// How many times less processor time than the rival: its seconds by ours.
    pub(crate) cpu: Option<f64>,
    /// How many times less processor time in the servers than beside the rival.
    pub(crate) server_cpu: Option<f64>,
    /// How many times shorter than the rival's the latency is that the command prints behind its rate.
    pub(crate) latency: Option<f64>,
    /// How many times as large what the rival writes is at least: its bytes by ours.
    pub(crate) written: Option<f64>,
}

/// The names of one rival or of several.
#[derive(Debug, Deserialize)]
#[serde(from = "OneOrMore")]
pub(crate) struct Rivals(Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl From<OneOrMore> for Rivals {
    fn from(names: OneOrMore) -> Self {
        match names {
            OneOrMore::One(name) => Self(vec![name]),
            OneOrMore::More(names) => Self(names),
        }
    }
}

impl Rivals {
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }
}

/// What we mean to reach whatever others do.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bound {
    /// Which contender keeps it: ours, unless another one is named.
    pub(crate) of: Option<String>,
    /// The most memory that any run may take at its peak.
    pub(crate) peak_memory: Option<Size>,
    /// The most system calls for each 256 KiB of the scenario's size, counted in a run of its own.
    pub(crate) system_calls: Option<f64>,
    /// The most memory that all servers of any run may take at their peaks together.
    pub(crate) server_memory: Option<Size>,
}

impl Target {
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(!self.rival.0.is_empty(), "a target names no rival");
        ensure!(
            [
                self.speed,
                self.cpu,
                self.server_cpu,
                self.latency,
                self.written
            ]
            .iter()
            .any(Option::is_some),
            "a target wants neither `speed` nor `cpu` nor `server_cpu` nor `latency` nor `written`"
        );
        Ok(())
    }
}

impl Bound {
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            self.peak_memory.is_some()
                || self.system_calls.is_some()
                || self.server_memory.is_some(),
            "a bound limits neither `peak_memory` nor `system_calls` nor `server_memory`"
        );
        Ok(())
    }
}
