//! Raw flags become typed options, in one place. What contradicts itself is refused here, so that
//! nothing below has to look again.

mod contents;
mod copy;
mod formats;
mod look;
mod making;
mod relay;
mod serve;
mod sides;

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use crate::{
    endpoint::{Notices, OpenOptions},
    filter::NamedFilter,
};

use super::{
    args::{Common, FilterArgs, ProgressStyle, TimeoutArgs},
    failure::Failure,
    fraction::FractionTo,
    output::{is_the_program, program, tell},
    percent::PercentTo,
    progress::Listener,
};

pub(crate) use contents::{ChecksumJob, CompareJob, DigestJob, DigestTo};
pub(crate) use copy::{Bitmaps, CopyJob};
pub(crate) use formats::Trust;
pub(crate) use look::{CheckJob, InfoJob, ListingJob, MapJob, MeasureJob, SnapshotJob};
pub(crate) use making::{
    CreateJob, DdJob, DdOperands, NewFormat, ResizeJob, WrongBlocks, new_size,
};
pub(crate) use relay::{Address, RelayJob, TcpAddress, TlsListenJob, TlsTargetJob};
pub(crate) use serve::{
    Described, ExportNames, Identity, Listed, Opening, Place, ServeJob, ServedSource, Stay, TlsJob,
    TlsMode,
};
pub(crate) use sides::check_sides;

/// How a copy shows its progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// Not at all.
    Nothing,
    /// A bar that is drawn over itself.
    Bar,
    /// A line now and then.
    Lines,
    /// A JSON object a line.
    Json,
    /// Hundredths, as nbdcopy shows them.
    Percent(PercentTo),
    /// Hundredths of a percent, as qemu-img shows them.
    Fraction(FractionTo),
    /// Whoever does the job through the library is told.
    To(Listener),
}

/// What a copy says when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReportStyle {
    /// Nothing.
    Nothing,
    /// A sentence on standard error.
    Sentence,
    /// JSON on standard output.
    Json,
}

/// How long servers are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// Connecting and negotiating together.
    pub(crate) connect: Duration,
    /// While a request is in flight and nothing moves.
    pub(crate) request: Option<Duration>,
    /// The same for a flush alone.
    pub(crate) flush: Option<Duration>,
}

impl Timeouts {
    /// For those who have nobody to answer to: requests take as long as they take.
    pub(crate) const PATIENT: Self = Self {
        connect: Duration::from_secs(30),
        request: None,
        flush: None,
    };

    pub(crate) fn resolve(args: TimeoutArgs) -> Self {
        let patient = Self::PATIENT;
        match args.timeout {
            Some(0) => patient,
            Some(seconds) => {
                let limit = Duration::from_secs(seconds.into());
                Self {
                    connect: patient.connect.min(limit),
                    request: Some(limit),
                    flush: Some(limit),
                }
            }
            None => Self {
                request: Some(Duration::from_secs(300)),
                ..patient
            },
        }
    }
}

/// Which of the three standard streams are terminals; a value, so that rules about them can be tested.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminals {
    pub(crate) input: bool,
    pub(crate) output: bool,
    pub(crate) error: bool,
}

impl Terminals {
    pub(crate) fn of_this_process() -> Self {
        Self {
            input: io::stdin().is_terminal(),
            output: io::stdout().is_terminal(),
            error: io::stderr().is_terminal(),
        }
    }
}

impl Show {
    fn resolve(asked: Option<ProgressStyle>, common: Common, terminals: Terminals) -> Self {
        match (asked, terminals.error) {
            (Some(ProgressStyle::Json), _) => Self::Json,
            _ if common.quiet => Self::Nothing,
            (Some(ProgressStyle::Lines), _) => Self::Lines,
            (_, true) => Self::Bar,
            (Some(ProgressStyle::Auto | ProgressStyle::Bar), false) => Self::Lines,
            (None, false) => Self::Nothing,
        }
    }
}

/// The filters that were asked for.
pub(crate) fn filters(args: &FilterArgs) -> Result<Vec<NamedFilter>, Failure> {
    let filters = args.filter.iter().map(|text| NamedFilter::parse(text));
    Ok(filters.collect::<Result<_, _>>()?)
}

/// How this program opens endpoints: `[ serve ... ]` is itself. In another program it is not, and nothing is told.
pub(crate) fn open_options(timeouts: Timeouts) -> OpenOptions {
    OpenOptions {
        own_program: is_the_program()
            .then(std::env::current_exe)
            .and_then(Result::ok),
        connect_timeout: timeouts.connect,
        request_timeout: timeouts.request,
        flush_timeout: timeouts.flush,
        notices: is_the_program()
            .then(|| Notices::new(|notice| tell(&format!("{}: {notice}", program())))),
        ..OpenOptions::default()
    }
}
