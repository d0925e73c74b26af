//! The filters by their names: what each is called with, what is said of it, and the filters that it is here.

use std::ffi::OsString;

use crate::{
    cli::{failure::Failure, options::ExportNames},
    filter::NamedFilter,
};

use super::{module_name, parameters::Parameters};

mod abilities;
mod flow;
mod names;
mod packed;
mod parts;
mod stores;
mod watching;

/// A filter.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) name: &'static str,
    /// The parameters that it takes from those of the plugin.
    keys: &'static [&'static str],
    /// What `--help` says of them.
    pub(super) help: &'static str,
    /// What the parameters, in the order in which they are given, ask for.
    build: fn(Given) -> Result<Vec<NamedFilter>, Failure>,
}

/// Parameters that a filter takes, in the order in which they are given.
type Given = Vec<(String, OsString)>;

const FILTERS: &[&Filter] = &[
    &flow::BLOCK_SIZE,
    &flow::BLOCK_SIZE_POLICY,
    &stores::CACHE,
    &stores::CACHE_EXTENTS,
    &stores::COW,
    &watching::DELAY,
    &watching::ERROR,
    &watching::EXIT_LAST,
    &names::EXPORT_NAME,
    &stores::EXTENT_LIST,
    &abilities::FUA,
    &packed::GZIP,
    &flow::LIMIT,
    &watching::LOG,
    &abilities::MULTI_CONN,
    &abilities::NO_CACHE,
    &abilities::NO_EXTENTS,
    &abilities::NO_FILTER,
    &flow::NO_PARALLEL,
    &abilities::NO_ZERO,
    &parts::OFFSET,
    &parts::PARTITION,
    &flow::RATE,
    &stores::READ_AHEAD,
    &abilities::READ_ONLY,
    &flow::RETRY,
    &abilities::ROTATIONAL,
    &watching::STATS,
    &parts::SWAB,
    &packed::TAR,
    &parts::TRUNCATE,
    &packed::XZ,
];

impl Filter {
    /// Whether it takes the parameter of that name.
    pub(super) fn takes(&self, key: &str) -> bool {
        self.keys.contains(&key)
    }

    /// The filter of that name, or of the file that would hold it.
    pub(super) fn named(given: &str) -> Result<&'static Self, Failure> {
        let name = module_name(given, "filter");
        let filter = FILTERS.iter().find(|filter| filter.name == name);
        filter.copied().ok_or_else(|| {
            let known: Vec<_> = FILTERS.iter().map(|filter| filter.name).collect();
            Failure::usage(format!(
                "cannot open filter '{name}': there is no such filter here, only {}",
                known.join(", ")
            ))
        })
    }
}

/// What filters become.
#[derive(Debug, Default)]
pub(super) struct Built {
    /// The first one nearest the client.
    pub(super) filters: Vec<NamedFilter>,
    /// What is said of the names of exports.
    pub(super) names: Option<ExportNames>,
}

/// Builds the filters that are named, the first one nearest the client. Each takes its parameters before those
/// behind it and before the plugin.
pub(super) fn build(filters: &[&Filter], parameters: &mut Parameters) -> Result<Built, Failure> {
    let mut built = Built::default();
    for filter in filters {
        let given = parameters.take_keys(filter.keys);
        if filter.name == names::EXPORT_NAME.name {
            built.names = Some(names::read(given)?);
            continue;
        }
        built.filters.extend((filter.build)(given)?);
    }
    Ok(built)
}

/// The parameter that nothing works without.
fn required(value: Option<OsString>, filter: &str, key: &str) -> Result<OsString, Failure> {
    value.ok_or_else(|| Failure::usage(format!("{filter}: the parameter {key}= is missing")))
}

/// A parameter of theirs that is not there.
fn missing(key: &str, why: &str) -> Failure {
    Failure::usage(format!("{key}: {why}"))
}

/// The value of the only parameter that a filter has, the last one where there are several.
fn last(given: Given) -> Option<OsString> {
    given.into_iter().next_back().map(|(_, value)| value)
}
