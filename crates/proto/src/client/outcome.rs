//! What a client's handshake comes to.

use crate::option::OptionError;
use crate::types::{HandshakeStyle, ListedExport, Negotiated, ReplyMode};

/// What a handshake was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Transmission has begun.
    Transmit(Negotiated),
    /// The session has ended.
    Info(InfoReport),
    /// The session has ended.
    List(ListReport),
}

/// What a server says about one export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoReport {
    /// What a client would get; the contexts are all those that are available.
    pub negotiated: Negotiated,
}

/// What a server says about its exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListReport {
    /// The exports, in the server's order.
    pub exports: Vec<Listed>,
    /// How the server began.
    pub style: HandshakeStyle,
    /// How replies would look.
    pub mode: ReplyMode,
    /// Whether the connection was under TLS.
    pub tls: bool,
}

/// One export of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What the list says of it.
    pub export: ListedExport,
    /// What the server says when asked; as in [`InfoReport`].
    pub info: Result<Negotiated, OptionError>,
}
