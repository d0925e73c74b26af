//! A source that fails is opened again, and what failed is repeated.
//!
//! # What is repeated
//!
//! Requests that failed because something broke: input/output errors, lost connections, time limits, a server that
//! shuts down or is not there. Not those that break a rule (out of bounds, invalid, read-only, unsupported, not
//! permitted), nor those that find no space: they would fail again. The same goes for opening, at the beginning and
//! later, where an export that is not there is only waited for when it was there before.
//!
//! A write is repeated, too: it was not acknowledged, and the same bytes go to the same place. It may be carried
//! out twice, so no other that overlaps it may be in flight meanwhile, which NBD asks of clients anyway.
//!
//! # What may be lost
//!
//! What was acknowledged and not flushed may be lost with the handle that wrote it; nobody has the data any more.
//! The next flush through each handle of the export then fails with `Io`, once, and all that are under way do. A source that still answers is flushed
//! before it is left, so that nothing is lost with it. A flush that fails itself is not repeated while something
//! is at stake: a second one could succeed without the data of the first. A write that was durable when it was
//! acknowledged (FUA) is never lost.
//!
//! # Who waits
//!
//! Requests of one client that fail together wait for one of them, which opens the source again. Its old handle is
//! dropped first; a source that clients share is only opened anew when all of them have let it go. What comes
//! back must be what it was (size, block sizes, abilities); what is not is opened again, and with the last attempt
//! requests fail with `Incompatible`.

mod device;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use blockferry_block::{
    BlockDevice, BoxFuture, ClientFacts, Error, ErrorKind, ExportEntry, Exports, OpenExport,
    Parameter, ParameterType, Result, Values, Wish,
};

use self::device::{Export, Reopening};
use crate::{DeviceLayer, Effects, Filter, FilterKind, Layer, Opened, PerExport};

pub(crate) static RETRY: FilterKind = FilterKind {
    name: "retry",
    syntax: "retry[:retries=N,delay=TIME,exponential=on|off,max-delay=TIME,readonly=on|off]",
    help: "A source that fails is opened again, and what failed is repeated",
    parameters: &[
        Parameter::new(
            "retries",
            ParameterType::Number,
            "How often a request is repeated, or opening is tried again",
        )
        .or("5"),
        Parameter::new(
            "delay",
            ParameterType::Duration,
            "How long to wait before the first repetition",
        )
        .or("2s"),
        Parameter::new(
            "exponential",
            ParameterType::Switch,
            "Whether to wait twice as long each time",
        )
        .or("on"),
        Parameter::new(
            "max-delay",
            ParameterType::Duration,
            "How long to wait at most",
        )
        .or("60s"),
        Parameter::new(
            "readonly",
            ParameterType::Switch,
            "Whether the source is only opened for reading when it is opened again",
        )
        .or("off"),
    ],
    effects: Effects {
        extents: "passed through, and asked for again",
        mapping: "hidden: a read that fails has to be repeated",
        flush: "passed through; fails once when what was acknowledged before may have been lost",
        concurrency: "as the source's; requests of a client that fail together wait for one that opens again",
    },
    build: |values| Ok(Arc::new(Retry::from_values(values))),
};

/// Opens a source that fails again, and repeats what failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// How often a request is repeated, and how often opening is tried again. Attempts to open the source for a
    /// request count, too. Default: 5.
    pub retries: u32,
    /// How long to wait before the first repetition. Default: 2 seconds.
    pub delay: Duration,
    /// Whether to wait twice as long each time. Default: yes.
    pub exponential: bool,
    /// How long to wait at most. Default: 60 seconds.
    pub max_delay: Duration,
    /// Whether the source is only opened for reading when it is opened again; writes fail with `ReadOnly` from then
    /// on. Default: no.
    pub read_only: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            retries: 5,
            delay: Duration::from_secs(2),
            exponential: true,
            max_delay: Duration::from_secs(60),
            read_only: false,
        }
    }
}

impl Retry {
    fn from_values(values: &Values) -> Self {
        let default = Self::default();
        let retries = values.number::<u64>("retries");
        Self {
            retries: retries.map_or(default.retries, |it| u32::try_from(it).unwrap_or(u32::MAX)),
            delay: values.duration("delay").unwrap_or(default.delay),
            exponential: values.switch("exponential").unwrap_or(default.exponential),
            max_delay: values.duration("max-delay").unwrap_or(default.max_delay),
            read_only: values.switch("readonly").unwrap_or(default.read_only),
        }
    }
}

impl Filter for Retry {
    fn kind(&self) -> &'static FilterKind {
        &RETRY
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let layer = Retrying {
            options: *self,
            below: Arc::clone(&below),
        };
        let options = *self;
        let patient = Arc::new(Patient { options, below });
        Ok(Arc::new(PerExport::new(layer, patient)))
    }
}

/// The attempts that are left to somebody, and how long to wait before each.
struct Tries {
    left: u32,
    pause: Duration,
    options: Retry,
}

impl Tries {
    fn new(options: Retry) -> Self {
        Self {
            left: options.retries,
            pause: options.delay,
            options,
        }
    }

    /// Takes one of them, and says how long to wait before it.
    fn next(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let pause = self.pause.min(self.options.max_delay);
        if self.options.exponential {
            self.pause = pause.saturating_mul(2);
        }
        Some(pause)
    }
}

/// Whether what failed so may succeed on another handle.
fn is_worth_repeating(error: &Error) -> bool {
    error.is_transient()
        || matches!(
            error.kind(),
            ErrorKind::Io
                | ErrorKind::NotFound
                | ErrorKind::Refused
                | ErrorKind::OutOfMemory
                | ErrorKind::Protocol
                | ErrorKind::BrokenPipe
        )
}

/// Exports that are waited for.
struct Patient {
    options: Retry,
    below: Arc<dyn Exports>,
}

impl Exports for Patient {
    fn connecting(&self, client: ClientFacts) -> BoxFuture<'_, Result<()>> {
        self.below.connecting(client)
    }

    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        self.below.list(client)
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            let mut tries = Tries::new(self.options);
            loop {
                let error = match self.below.open(name, client).await {
                    Ok(open) => return Ok(open),
                    Err(error) => error,
                };
                // A client may ask for anything.
                let is_final = error.kind() == ErrorKind::NotFound || !is_worth_repeating(&error);
                let Some(pause) = tries.next().filter(|_| !is_final) else {
                    return Err(error);
                };
                tokio::time::sleep(pause).await;
            }
        })
    }

    fn wish(&self) -> Option<Wish> {
        self.below.wish()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.below.close()
    }
}

struct Retrying {
    options: Retry,
    below: Arc<dyn Exports>,
}

impl DeviceLayer for Retrying {
    type Shared = Export;

    fn name(&self) -> &'static str {
        RETRY.name
    }

    fn share(&self, _: &str) -> Result<Export> {
        Ok(Export::default())
    }

    fn open(&self, opened: Opened<Export>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let device = Reopening::new(self.options, Arc::clone(&self.below), opened);
            Ok(Arc::new(device) as Arc<dyn BlockDevice>)
        })
    }

    fn counts(&self, export: &Export) -> Vec<(&'static str, u64)> {
        vec![
            ("repeated", export.repeated.load(Ordering::Relaxed)),
            ("reopened", export.reopened.load(Ordering::Relaxed)),
            ("gave_up", export.gave_up.load(Ordering::Relaxed)),
        ]
    }
}

#[cfg(test)]
mod tests;
