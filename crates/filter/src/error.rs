//! `error`: requests that fail on purpose.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    num::NonZeroU64,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use blockferry_block::{
    BlockDevice, BoxFuture, Error, ErrorKind, Exports, Operation, Parameter, ParameterType, Result,
    Values,
};

use crate::{
    DeviceLayer, Effects, Filter, FilterKind, Layer, Opened, PerExport,
    watched::{Request, Watch, Watched},
};

pub(crate) static ERROR: FilterKind = FilterKind {
    name: "error",
    syntax: "error[:ERRNO][,rate=PART|,every=N][,file=PATH][,on=COMMAND[+COMMAND]...][,seed=N]",
    help: "Requests fail: all, some by chance, every Nth, or those that come while a file exists; several of these \
           stand one behind the other",
    parameters: &[
        Parameter::new(
            "errno",
            ParameterType::Choice(ERRNO_NAMES),
            "What clients are told; of ENOTSUP and EOVERFLOW only where NBD allows that, and of EINVAL elsewhere",
        )
        .first()
        .or("EIO"),
        Parameter::new(
            "rate",
            ParameterType::Fraction,
            "How many of the requests fail, by chance; all without this and without 'every'",
        ),
        Parameter::new(
            "every",
            ParameterType::Number,
            "Each Nth request of a command of an export fails",
        ),
        Parameter::new(
            "file",
            ParameterType::Path,
            "Requests fail only while there is such a file",
        ),
        Parameter::new(
            "on",
            ParameterType::Words(COMMANDS),
            "The commands of which requests fail",
        )
        .or("read+write+zero+trim+flush+extents+cache"),
        Parameter::new(
            "seed",
            ParameterType::Number,
            "Chance repeats itself: which requests of a command of an export fail depends on this alone",
        ),
    ],
    effects: Effects {
        extents: "passed through, or failed",
        mapping: "passed through unless reads may fail: then bytes are read, or moved through pipes",
        flush: "passed through, or failed",
        concurrency: "as the source's; requests are counted for all connections to an export",
    },
    build: |values| InjectErrors::from_values(values).map(|filter| Arc::new(filter) as _),
};

/// The names of errors, and what they are here.
const ERRNOS: [(&str, ErrorKind); 8] = [
    ("EPERM", ErrorKind::NotPermitted),
    ("EIO", ErrorKind::Io),
    ("ENOMEM", ErrorKind::OutOfMemory),
    ("EINVAL", ErrorKind::InvalidInput),
    ("ENOSPC", ErrorKind::NoSpace),
    ("ESHUTDOWN", ErrorKind::ShuttingDown),
    ("ENOTSUP", ErrorKind::Unsupported),
    ("EOVERFLOW", ErrorKind::Overflow),
];

const ERRNO_NAMES: &[&str] = &names(&ERRNOS);

/// The names of commands, and what they are here. Opening is the last one.
const OPERATIONS: [(&str, Operation); 8] = [
    ("read", Operation::Read),
    ("write", Operation::Write),
    ("zero", Operation::Zero),
    ("trim", Operation::Trim),
    ("flush", Operation::Flush),
    ("extents", Operation::Extents),
    ("cache", Operation::Cache),
    ("open", Operation::Open),
];

const COMMANDS: &[&str] = &names(&OPERATIONS);

const fn names<T, const N: usize>(rows: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = rows[at].0;
        at += 1;
    }
    names
}

/// Lets requests fail.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct InjectErrors {
    /// Which requests of each command fail; none of a command that has no rule. Commands are
    /// [`Operation`]s from `Open` to `Cache`; others have no requests.
    pub rules: HashMap<Operation, ErrorRule>,
    /// Lets chance repeat itself; another chance each time without.
    pub seed: Option<u64>,
}

/// Which requests of a command fail, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorRule {
    /// The kind of error.
    pub kind: ErrorKind,
    /// How many fail by chance, from 0 to 1.
    pub rate: f64,
    /// Whether each so manieth fails, counted for each command and export.
    pub every: Option<NonZeroU64>,
    /// Where this is given, they fail only while there is such a file.
    pub file: Option<PathBuf>,
}

impl ErrorRule {
    /// All requests fail with this kind of error.
    #[must_use]
    pub fn all(kind: ErrorKind) -> Self {
        Self {
            kind,
            rate: 1.0,
            every: None,
            file: None,
        }
    }

    /// The kind of error that clients are told of by this name: `EPERM`, `EIO`, `ENOMEM`, `EINVAL`, `ENOSPC`,
    /// `ESHUTDOWN`, `ENOTSUP` or `EOVERFLOW`.
    #[must_use]
    pub fn kind_of(errno: &str) -> Option<ErrorKind> {
        let row = ERRNOS.iter().find(|(name, _)| *name == errno);
        row.map(|(_, kind)| *kind)
    }

    /// Whether the request of that number (from 1) fails.
    fn strikes(&self, number: u64, chance: f64) -> bool {
        let is_due = self.every.is_some_and(|every| number % every == 0);
        let strikes = is_due || chance < self.rate;
        // A file that cannot be looked for is not seen.
        strikes && self.file.as_ref().is_none_or(|file| file.exists())
    }
}

impl InjectErrors {
    fn from_values(values: &Values) -> Result<Self, String> {
        let errno = values.word("errno").unwrap_or_default();
        let every = match values.number::<u64>("every") {
            Some(0) => return Err("every is from 1 on".to_owned()),
            every => every.and_then(NonZeroU64::new),
        };
        let rule = ErrorRule {
            kind: ErrorRule::kind_of(&errno).unwrap_or(ErrorKind::Io),
            rate: match values.fraction("rate") {
                Some(rate) => rate,
                None if every.is_some() => 0.0,
                None => 1.0,
            },
            every,
            // A server in the background is elsewhere.
            file: values
                .path("file")
                .map(|path| std::path::absolute(&path).unwrap_or(path)),
        };
        let operations = OPERATIONS.iter();
        let operations = operations.filter(|(name, _)| values.has_word("on", name));
        Ok(Self {
            rules: operations.map(|(_, it)| (*it, rule.clone())).collect(),
            seed: values.number("seed"),
        })
    }
}

impl Filter for InjectErrors {
    fn kind(&self) -> &'static FilterKind {
        &ERROR
    }

    fn minds_openings(&self) -> bool {
        self.rules.contains_key(&Operation::Open)
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let layer = Injecting {
            rules: self.rules.clone(),
            seed: self
                .seed
                .unwrap_or_else(|| RandomState::new().hash_one("error")),
        };
        Ok(Arc::new(PerExport::new(layer, below)))
    }
}

struct Injecting {
    rules: HashMap<Operation, ErrorRule>,
    seed: u64,
}

/// What the handles of an export have in common.
struct Shared {
    rules: Vec<(Operation, ErrorRule, AtomicU64)>,
    seed: u64,
}

impl DeviceLayer for Injecting {
    type Shared = Shared;

    fn name(&self) -> &'static str {
        ERROR.name
    }

    fn share(&self, _: &str) -> Result<Shared> {
        let rules = self.rules.iter();
        Ok(Shared {
            rules: rules
                .map(|(operation, rule)| (*operation, rule.clone(), AtomicU64::new(0)))
                .collect(),
            seed: self.seed,
        })
    }

    fn open(&self, opened: Opened<Shared>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            opened.shared.strike(Operation::Open)?;
            let watch = Injector(opened.shared);
            Ok(Arc::new(Watched::new(opened.device, watch)) as Arc<dyn BlockDevice>)
        })
    }
}

impl Shared {
    /// Lets a request of `operation` fail if it is its turn.
    fn strike(&self, operation: Operation) -> Result<()> {
        let mut rules = self.rules.iter();
        let Some((_, rule, count)) = rules.find(|(known, ..)| *known == operation) else {
            return Ok(());
        };
        let number = count.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if !rule.strikes(number, chance(self.seed, operation, number)) {
            return Ok(());
        }
        Err(Error::with_message(
            rule.kind,
            "the filter 'error' was told to fail",
        ))
    }
}

/// A number from 0 to below 1 that looks random and is always the same for the same arguments (SplitMix64).
fn chance(seed: u64, operation: Operation, number: u64) -> f64 {
    let place = OPERATIONS.iter().position(|(_, it)| *it == operation);
    let seed = seed ^ (place.unwrap_or(0) as u64).rotate_right(8);
    let state = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let state = state ^ (state >> 31);
    (state >> 11) as f64 / (1_u64 << 53) as f64
}

/// The errors of one handle.
struct Injector(Arc<Shared>);

impl Watch for Injector {
    type Ticket = ();

    fn watches(&self, operation: Operation) -> bool {
        self.0.rules.iter().any(|(known, rule, _)| {
            *known == operation && (rule.rate > 0.0 || rule.every.is_some())
        })
    }

    async fn begin(&self, request: &Request<'_>) -> Result<()> {
        self.0.strike(request.operation)
    }

    async fn of_another(&self, _: &Arc<dyn BlockDevice>) -> Result<Self> {
        self.0.strike(Operation::Open)?;
        Ok(Self(Arc::clone(&self.0)))
    }
}
