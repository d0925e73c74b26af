//! What a server is willing to do, and what its driver says of exports.

use crate::limits;
use crate::option::OptionErrorCode;
use crate::types::BlockSizes;
use crate::wire::{HandshakeFlags, TransmissionFlags};

/// Whether a server does TLS (section "TLS versions").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// Never (`NOTLS`).
    #[default]
    Off,
    /// If the client asks for it (`SELECTIVETLS`, for every export alike).
    Offer,
    /// Nothing is said about any export before TLS has started (`FORCEDTLS`).
    Require,
}

/// What a server is willing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Whether to do TLS.
    pub tls: TlsPolicy,
    /// Whether to grant structured replies.
    pub structured: bool,
    /// Whether to grant extended headers.
    pub extended: bool,
    /// Whether to know of metadata contexts, and with them of block status.
    pub meta_contexts: bool,
    /// What is offered at the start. Without `FIXED_NEWSTYLE` clients are told to ask for an export by
    /// `NBD_OPT_EXPORT_NAME` and for nothing else.
    pub flags: HandshakeFlags,
    /// Options that one client may send; one more is misbehaviour.
    pub max_options: u32,
}

impl Default for ServerConfig {
    /// Everything but TLS, and 1024 options.
    fn default() -> Self {
        Self {
            tls: TlsPolicy::Off,
            structured: true,
            extended: true,
            meta_contexts: true,
            flags: HandshakeFlags::all(),
            max_options: limits::OPTIONS,
        }
    }
}

/// What a client wants with an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenPurpose {
    /// To hear about it. Should be cheap and change nothing.
    Info,
    /// To begin transmission.
    Go,
    /// To begin transmission, by the old option: a refusal closes the connection.
    ExportName,
    /// To hear about its metadata contexts or to select some.
    MetaContexts,
}

/// An export, as a driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedExport {
    /// Its name, where that is not the one that was asked for.
    pub canonical_name: Option<String>,
    /// For people; cut off after 4096 bytes.
    pub description: Option<String>,
    /// Bytes, at most `i64::MAX`.
    pub size: u64,
    /// What it can do. `HAS_FLAGS` is added; what was not negotiated is taken away.
    pub flags: TransmissionFlags,
    /// The constraints. A client may ignore them.
    pub block_sizes: Option<BlockSizes>,
    /// The metadata contexts that it has, such as `base:allocation`.
    pub contexts: Vec<String>,
}

/// A driver's refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionRefusal {
    /// Why.
    pub code: OptionErrorCode,
    /// For people; cut off after 4096 bytes.
    pub message: String,
}

impl OptionRefusal {
    /// A refusal with a message.
    #[must_use]
    pub fn new(code: OptionErrorCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }
}
