//! What a client wants of a handshake.

#[cfg(doc)]
use crate::types::Negotiated;

/// Whether to use TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Never ask for it.
    #[default]
    Off,
    /// Ask for it, and go on in the clear if the server refuses. No protection against anyone
    /// who can change what goes over the network.
    Prefer,
    /// Ask for it, and trust nothing before it has started.
    Require,
}

/// What the handshake is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Goal {
    /// To begin transmission.
    #[default]
    Transmit,
    /// To learn about one export.
    Info,
    /// To learn about all exports.
    List,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientConfig {
    /// The export's name, at most 4096 bytes; empty for the server's default. Not used by
    /// [`Goal::List`].
    pub export: String,
    /// What the handshake is for.
    pub goal: Goal,
    /// Whether to use TLS.
    pub tls: Tls,
    /// The metadata contexts to select, at most 64, each at most 4096 bytes. Those that the server
    /// does not have are missing from [`Negotiated::contexts`].
    pub contexts: Vec<String>,
    /// Whether to select, beside those, all that the server lists for the export, up to 64 in all and
    /// 32 KiB of names.
    pub all_contexts: bool,
    /// Whether to ask for structured replies.
    pub structured: bool,
    /// Whether to ask for extended headers.
    pub extended: bool,
}

impl Default for ClientConfig {
    /// The default export over an unprotected connection, with everything that helps.
    fn default() -> Self {
        Self {
            export: String::new(),
            goal: Goal::Transmit,
            tls: Tls::Off,
            contexts: vec!["base:allocation".to_owned()],
            all_contexts: false,
            structured: true,
            extended: true,
        }
    }
}
