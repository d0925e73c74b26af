//! How to connect.

use std::{fmt, sync::Arc, time::Duration};

use blockferry_block::Context;
use blockferry_proto::{ClientConfig, Goal, NbdUri, Tls};

/// How a client connects. `Default` is right for most.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// What errors call the endpoint. Default: the URI.
    pub name: Option<Arc<str>>,
    /// Negotiate structured replies: needed for block status and sparse reads. Default: true.
    pub structured: bool,
    /// Negotiate extended (64-bit) headers, where the server has them. Default: true.
    pub extended: bool,
    /// The meta contexts to ask for. Default: `base:allocation`.
    pub contexts: Vec<Context>,
    /// Ask for all that the server lists for the export beside those: up to 64. Default: false.
    pub all_contexts: bool,
    /// How long connecting and negotiating may take together. Default: 30 seconds.
    pub connect_timeout: Duration,
    /// How long the server may neither send nor take a byte while requests are in flight. Then the connection
    /// ends, and all of them fail with `TimedOut`. Default: for ever.
    ///
    /// Silence is noticed after this time at the earliest and half as much again at the latest. The
    /// asynchronous client needs a runtime with time enabled for it.
    pub request_timeout: Option<Duration>,
    /// The same while flushes are all that is in flight: a server may well need minutes to make an image
    /// durable. Default: for ever.
    pub flush_timeout: Option<Duration>,
    /// Asked when a connection cannot be made: whether the server has gone for good, so that trying again is
    /// of no use. Default: nobody knows.
    pub gone: Option<Gone>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            name: None,
            structured: true,
            extended: true,
            contexts: vec![Context::Allocation],
            all_contexts: false,
            connect_timeout: Duration::from_secs(30),
            request_timeout: None,
            flush_timeout: None,
            gone: None,
        }
    }
}

/// Knows whether a server has gone for good.
#[derive(Clone)]
pub struct Gone(Arc<dyn Fn() -> Option<String> + Send + Sync>);

impl Gone {
    /// `why` says how the server ended, as a phrase for a message, and nothing while it may still answer. It
    /// may block for a moment.
    #[must_use]
    pub fn new(why: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(why))
    }

    /// How the server ended, if it did.
    #[must_use]
    pub fn why(&self) -> Option<String> {
        (self.0)()
    }
}

impl fmt::Debug for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gone").finish_non_exhaustive()
    }
}

impl ConnectOptions {
    pub(crate) fn endpoint_name(&self, uri: &NbdUri) -> Arc<str> {
        self.name
            .clone()
            .unwrap_or_else(|| Arc::from(uri.to_string()))
    }

    pub(crate) fn handshake(&self, uri: &NbdUri, goal: Goal) -> ClientConfig {
        let mut config = ClientConfig::default();
        config.export = uri.export.clone();
        config.goal = goal;
        config.tls = if uri.tls { Tls::Require } else { Tls::Off };
        config.contexts = self.contexts.iter().map(ToString::to_string).collect();
        config.all_contexts = self.all_contexts;
        config.structured = self.structured;
        config.extended = self.extended;
        config
    }
}
