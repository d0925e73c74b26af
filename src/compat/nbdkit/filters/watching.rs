//! What looks at each request.

use std::{ffi::OsStr, time::Duration};

use crate::{
    block::{ErrorKind, Operation},
    cli::failure::Failure,
    endpoint::printable,
    filter::{
        Delay, ErrorRule, ExitLast, InjectErrors, LogFormat, LogRequests, NamedFilter, Stats,
        StatsFormat,
    },
};

use super::{super::values, Filter, Given, missing, required};

pub(super) static DELAY: Filter = Filter {
    name: "delay",
    keys: &[
        "rdelay",
        "wdelay",
        "delay-read",
        "delay-write",
        "delay-zero",
        "delay-trim",
        "delay-extents",
        "delay-cache",
        "delay-fast-zero",
        "delay-open",
        "delay-close",
    ],
    help: "\
rdelay=TIME, delay-read=TIME   How long reads wait: seconds, or with a unit as 10ms
wdelay=TIME                    How long writes, zeroing and discarding wait
delay-write=TIME, delay-zero=TIME, delay-trim=TIME, delay-extents=TIME, delay-cache=TIME
                               How long requests of these kinds wait
delay-fast-zero=BOOL           Whether zeroing that is to be fast waits as well; it fails at once otherwise (true)
delay-open=TIME                How long clients wait for an export
(delay-close is not supported)",
    build: |given| {
        let mut delay = Delay::default();
        for (key, value) in given {
            match &*key {
                "delay-fast-zero" => delay.fast_zero = values::boolean(&key, &value)?,
                "delay-close" => {
                    let why = "nobody waits for a client that has gone";
                    return Err(missing(&key, why));
                }
                _ => {
                    let time = values::time(&key, &value)?;
                    for place in delayed(&mut delay, &key) {
                        *place = time;
                    }
                }
            }
        }
        Ok(vec![NamedFilter::new(delay)])
    },
};

/// What waits as long as the parameter says.
fn delayed<'d>(delay: &'d mut Delay, key: &str) -> Vec<&'d mut Duration> {
    match key {
        "rdelay" | "delay-read" => vec![&mut delay.read],
        "wdelay" => vec![&mut delay.write, &mut delay.zero, &mut delay.trim],
        "delay-write" => vec![&mut delay.write],
        "delay-zero" => vec![&mut delay.zero],
        "delay-trim" => vec![&mut delay.trim],
        "delay-extents" => vec![&mut delay.extents],
        "delay-cache" => vec![&mut delay.cache],
        _ => vec![&mut delay.open],
    }
}

macro_rules! error_keys {
    ($($command:literal)*) => {
        &["error", "error-rate", "error-file",
            $(
                concat!("error-", $command),
                concat!("error-", $command, "-rate"),
                concat!("error-", $command, "-file"),
            )*
        ]
    };
}

pub(super) static ERROR: Filter = Filter {
    name: "error",
    keys: error_keys!("pread" "pwrite" "trim" "zero" "extents" "cache"),
    help: "\
error=EPERM|EIO|ENOMEM|EINVAL|ENOSPC|ESHUTDOWN
                               What requests fail with (EIO)
error-rate=0%..100%|0..1       How many fail (0%)
error-file=FILE                They fail only while there is such a file
error-pread, error-pwrite, error-trim, error-zero, error-extents, error-cache, each also with -rate and -file
                               The same for requests of one kind",
    build: |given| inject_errors(given).map(|filter| vec![NamedFilter::new(filter)]),
};

/// The commands by what they are called behind `error-`.
const COMMANDS: &[(&str, Operation)] = &[
    ("pread", Operation::Read),
    ("pwrite", Operation::Write),
    ("trim", Operation::Trim),
    ("zero", Operation::Zero),
    ("extents", Operation::Extents),
    ("cache", Operation::Cache),
];

fn inject_errors(given: Given) -> Result<InjectErrors, Failure> {
    let none = ErrorRule {
        rate: 0.0,
        ..ErrorRule::all(ErrorKind::Io)
    };
    let mut filter = InjectErrors::default();
    for (_, operation) in COMMANDS {
        filter.rules.insert(*operation, none.clone());
    }
    for (key, value) in given {
        let words: Vec<_> = key.split('-').collect();
        let (command, what) = match words[1..] {
            [] => (None, ""),
            ["rate"] => (None, "rate"),
            ["file"] => (None, "file"),
            [command] => (Some(command), ""),
            [command, what, ..] => (Some(command), what),
        };
        for (name, operation) in COMMANDS {
            let Some(rule) = filter.rules.get_mut(operation) else {
                continue;
            };
            if command.is_some_and(|command| command != *name) {
                continue;
            }
            match what {
                "rate" => rule.rate = rate(&key, &value)?,
                "file" => rule.file = Some(values::path(&key, &value)?),
                _ => rule.kind = kind(&key, &value)?,
            }
        }
    }
    Ok(filter)
}

fn kind(key: &str, value: &OsStr) -> Result<ErrorKind, Failure> {
    value.to_str().and_then(ErrorRule::kind_of).ok_or_else(|| {
        let value = printable(value);
        Failure::usage(format!("{key}={value}: there is no such error"))
    })
}

/// A part of all, from 0 to 1 or in percent.
fn rate(key: &str, value: &OsStr) -> Result<f64, Failure> {
    let parse = |text: &str| match text.strip_suffix('%') {
        Some(percent) => Some(percent.parse::<f64>().ok()? / 100.0),
        None => text.parse().ok(),
    };
    let rate = value.to_str().and_then(parse);
    rate.filter(|rate| (0.0..=1.0).contains(rate))
        .ok_or_else(|| {
            let value = printable(value);
            Failure::usage(format!(
                "{key}={value} is not from 0 to 1, or from 0% to 100%"
            ))
        })
}

pub(super) static EXIT_LAST: Filter = Filter {
    name: "exitlast",
    keys: &[],
    help: "",
    build: |_| Ok(vec![NamedFilter::new(ExitLast::default())]),
};

pub(super) static LOG: Filter = Filter {
    name: "log",
    keys: &["logfile", "logappend", "logscript"],
    help: "\
logfile=FILE                   Where to; nothing is logged without it
logappend=BOOL                 Whether what the file has is kept (false)
(logscript is not supported)",
    build: |given| {
        let (mut file, mut append) = (None, false);
        for (key, value) in given {
            match &*key {
                "logfile" => file = Some(values::path(&key, &value)?),
                "logappend" => append = values::boolean(&key, &value)?,
                _ => return Err(missing(&key, "nothing is run for each request")),
            }
        }
        let log = file.map(|file| {
            let mut log = LogRequests::to(file);
            log.append = append;
            log.format = LogFormat::Nbdkit;
            NamedFilter::new(log)
        });
        Ok(log.into_iter().collect())
    },
};

pub(super) static STATS: Filter = Filter {
    name: "stats",
    keys: &["statsfile", "statsappend", "statsthreshold"],
    help: "\
statsfile=FILE                 (required) Where to
statsappend=BOOL               Whether what the file has is kept (false)
statsthreshold=PERCENT         Sizes and alignments of fewer requests are summed up (5)",
    build: |given| {
        let (mut file, mut append, mut format) = (None, false, StatsFormat::NBDKIT);
        for (key, value) in given {
            match &*key {
                "statsfile" => file = Some(value),
                "statsappend" => append = values::boolean(&key, &value)?,
                _ => {
                    let threshold = values::unsigned(&key, &value)?;
                    format = StatsFormat::Nbdkit { threshold };
                }
            }
        }
        let file = required(file, "stats", "statsfile")?;
        let mut stats = Stats::to(values::path("statsfile", &file)?);
        stats.append = append;
        stats.format = format;
        Ok(vec![NamedFilter::new(stats)])
    },
};
