//! What a filter is: a row of the table, its parameters, and the layer that it makes.

use std::{ffi::OsStr, fmt, os::unix::ffi::OsStrExt, sync::Arc};

use blockferry_block::{Exports, Grammar, Parameter, Result, Values, printable};

use crate::FILTERS;

/// One row of the table: a kind of filter.
#[derive(Debug)]
pub struct FilterKind {
    /// What it is called.
    pub name: &'static str,
    /// How it is written, with placeholders in capitals and what may be left out in brackets.
    pub syntax: &'static str,
    /// What it does, in a sentence without a full stop.
    pub help: &'static str,
    /// Its parameters, the first ones first.
    pub parameters: &'static [Parameter],
    /// What it does to what passes through it.
    pub effects: Effects,
    /// Reads the parameters.
    pub build: fn(&Values) -> Result<Arc<dyn Filter>, String>,
}

/// What a filter does to what passes through it, each in a sentence without a full stop.
#[derive(Clone, Copy, Debug)]
pub struct Effects {
    /// To extents (block status).
    pub extents: &'static str,
    /// To zero copy: the places in files that the source has its bytes at.
    pub mapping: &'static str,
    /// To flushes and FUA.
    pub flush: &'static str,
    /// To requests side by side and to several connections.
    pub concurrency: &'static str,
}

impl Effects {
    /// Of a filter that leaves everything as it is.
    pub const NONE: Self = Self {
        extents: "passed through",
        mapping: "passed through",
        flush: "passed through",
        concurrency: "as the source's",
    };
}

/// A filter with its parameters, in front of nothing yet.
pub trait Filter: fmt::Debug + Send + Sync {
    /// Its row of the table.
    fn kind(&self) -> &'static FilterKind;

    /// Whether nothing that is done through it changes what is below, so that a source that cannot be written
    /// will do.
    fn never_writes(&self) -> bool {
        false
    }

    /// Whether it looks into a file that is compressed, or an archive, by itself: below it that is just bytes.
    fn unwraps(&self) -> bool {
        false
    }

    /// Whether an export must not be opened just to see whether it can be: it would be counted, or fail on
    /// purpose.
    fn minds_openings(&self) -> bool {
        false
    }

    /// The filter in front of `below`. Each call makes one that shares nothing with others.
    ///
    /// Called in the runtime that lives as long as the layer is used.
    ///
    /// # Errors
    /// When the parameters make no sense together, or what the filter needs is not there.
    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>>;
}

/// A filter in front of exports. Closing it closes what is below.
pub trait Layer: Exports {
    /// What it has counted, for each export that was used; empty for a filter that counts nothing.
    fn counters(&self) -> Vec<Counters> {
        Vec::new()
    }
}

/// What a filter has counted for one export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// The name of the filter.
    pub filter: &'static str,
    /// The name of the export below, as the source has it; empty for its only one.
    pub export: String,
    /// What was counted, each in lower case with underscores: `source_calls`.
    pub counts: Vec<(&'static str, u64)>,
    /// What people should hear of, each in a sentence without a full stop.
    pub warnings: Vec<String>,
}

/// A filter as it was written: `NAME[:PARAMETERS]`.
#[derive(Clone, Debug)]
pub struct NamedFilter {
    name: Arc<str>,
    filter: Arc<dyn Filter>,
}

/// A text that is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// Nothing is called so.
    #[error("there is no filter {0:?}")]
    Unknown(String),
    /// Parameters that make no sense.
    #[error("{name}: {message}")]
    Parameters {
        /// The whole text, printable.
        name: String,
        /// Why.
        message: String,
    },
}

impl FilterKind {
    /// The row of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        FILTERS.iter().copied().find(|kind| kind.name == name)
    }

    /// How its parameters are read.
    #[must_use]
    pub fn grammar(&self) -> Grammar {
        Grammar {
            name: self.name,
            syntax: self.syntax,
            parameters: self.parameters,
            others: false,
            others_repeat: false,
        }
    }
}

impl NamedFilter {
    /// Reads `NAME[:PARAMETERS]`.
    ///
    /// # Errors
    /// [`FilterError`] says what is wrong with the text.
    pub fn parse(text: &OsStr) -> Result<Self, FilterError> {
        let bytes = text.as_bytes();
        let end = bytes.iter().position(|byte| *byte == b':');
        let name = OsStr::from_bytes(&bytes[..end.unwrap_or(bytes.len())]);
        let rest = end.map_or(&[][..], |end| &bytes[end + 1..]);
        let kind = name.to_str().and_then(FilterKind::named);
        let kind = kind.ok_or_else(|| FilterError::Unknown(printable(name)))?;
        Self::build(kind, OsStr::from_bytes(rest), printable(text))
    }

    /// Reads the parameters of a filter of that kind, also of one that is not in [`FILTERS`]: what stands behind
    /// `NAME:` in [`parse`](Self::parse).
    ///
    /// # Errors
    /// [`FilterError::Parameters`] says what is wrong with them.
    pub fn of(kind: &'static FilterKind, parameters: &OsStr) -> Result<Self, FilterError> {
        let name = match parameters.is_empty() {
            true => kind.name.to_owned(),
            false => format!("{}:{}", kind.name, printable(parameters)),
        };
        Self::build(kind, parameters, name)
    }

    fn build(
        kind: &'static FilterKind,
        parameters: &OsStr,
        name: String,
    ) -> Result<Self, FilterError> {
        let values = Values::read(&kind.grammar(), parameters);
        match values.and_then(|values| (kind.build)(&values)) {
            Ok(filter) => Ok(Self {
                name: name.into(),
                filter,
            }),
            Err(message) => Err(FilterError::Parameters { name, message }),
        }
    }

    /// A filter that was not written as text.
    #[must_use]
    pub fn new(filter: impl Filter + 'static) -> Self {
        Self {
            name: filter.kind().name.into(),
            filter: Arc::new(filter),
        }
    }

    /// The filter.
    #[must_use]
    pub fn filter(&self) -> &dyn Filter {
        &*self.filter
    }
}

impl fmt::Display for NamedFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}
