//! Option codes and the errors that answer them (sections "Option types" and "Option reply
//! types").

use std::fmt;

use crate::wire::REP_ERROR_BIT;

/// What a client can ask for during the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OptionCode {
    /// `NBD_OPT_EXPORT_NAME`: begin transmission; failure closes the connection.
    ExportName,
    /// `NBD_OPT_ABORT`: end the session.
    Abort,
    /// `NBD_OPT_LIST`: name the exports.
    List,
    /// `NBD_OPT_STARTTLS`: begin TLS.
    StartTls,
    /// `NBD_OPT_INFO`: describe an export.
    Info,
    /// `NBD_OPT_GO`: describe an export and begin transmission.
    Go,
    /// `NBD_OPT_STRUCTURED_REPLY`: replies in chunks.
    StructuredReply,
    /// `NBD_OPT_LIST_META_CONTEXT`: name the metadata contexts of an export.
    ListMetaContext,
    /// `NBD_OPT_SET_META_CONTEXT`: select metadata contexts for an export.
    SetMetaContext,
    /// `NBD_OPT_EXTENDED_HEADERS`: 64-bit lengths.
    ExtendedHeaders,
    /// One that this crate does not know.
    Other(u32),
}

impl OptionCode {
    /// The option with this number.
    #[must_use]
    pub fn from_wire(code: u32) -> Self {
        match code {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            11 => Self::ExtendedHeaders,
            other => Self::Other(other),
        }
    }

    /// The number on the wire.
    #[must_use]
    pub fn to_wire(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::Abort => 2,
            Self::List => 3,
            Self::StartTls => 5,
            Self::Info => 6,
            Self::Go => 7,
            Self::StructuredReply => 8,
            Self::ListMetaContext => 9,
            Self::SetMetaContext => 10,
            Self::ExtendedHeaders => 11,
            Self::Other(code) => code,
        }
    }
}

impl fmt::Display for OptionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExportName => "NBD_OPT_EXPORT_NAME",
            Self::Abort => "NBD_OPT_ABORT",
            Self::List => "NBD_OPT_LIST",
            Self::StartTls => "NBD_OPT_STARTTLS",
            Self::Info => "NBD_OPT_INFO",
            Self::Go => "NBD_OPT_GO",
            Self::StructuredReply => "NBD_OPT_STRUCTURED_REPLY",
            Self::ListMetaContext => "NBD_OPT_LIST_META_CONTEXT",
            Self::SetMetaContext => "NBD_OPT_SET_META_CONTEXT",
            Self::ExtendedHeaders => "NBD_OPT_EXTENDED_HEADERS",
            Self::Other(code) => return write!(f, "option {code}"),
        })
    }
}

/// Why a server refused an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OptionErrorCode {
    /// The server does not know the option.
    Unsupported,
    /// The server knows it and will not do it.
    Policy,
    /// The option or its payload is malformed or out of order.
    Invalid,
    /// Not on this platform.
    Platform,
    /// Only after TLS has started.
    TlsRequired,
    /// No such export.
    Unknown,
    /// The server is shutting down.
    Shutdown,
    /// Only for clients that ask for block sizes.
    BlockSizeRequired,
    /// The request is too large to process.
    TooBig,
    /// Only after extended headers have been negotiated.
    ExtendedHeadersRequired,
    /// A code that this crate does not know, without the error bit.
    Other(u32),
}

impl OptionErrorCode {
    /// The error with this reply type, whose error bit is taken for granted.
    #[must_use]
    pub fn from_wire(reply: u32) -> Self {
        match reply & !REP_ERROR_BIT {
            1 => Self::Unsupported,
            2 => Self::Policy,
            3 => Self::Invalid,
            4 => Self::Platform,
            5 => Self::TlsRequired,
            6 => Self::Unknown,
            7 => Self::Shutdown,
            8 => Self::BlockSizeRequired,
            9 => Self::TooBig,
            10 => Self::ExtendedHeadersRequired,
            other => Self::Other(other),
        }
    }

    /// The reply type on the wire, with the error bit.
    #[must_use]
    pub fn to_wire(self) -> u32 {
        REP_ERROR_BIT
            | match self {
                Self::Unsupported => 1,
                Self::Policy => 2,
                Self::Invalid => 3,
                Self::Platform => 4,
                Self::TlsRequired => 5,
                Self::Unknown => 6,
                Self::Shutdown => 7,
                Self::BlockSizeRequired => 8,
                Self::TooBig => 9,
                Self::ExtendedHeadersRequired => 10,
                Self::Other(code) => code,
            }
    }
}

impl fmt::Display for OptionErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsupported => "not supported",
            Self::Policy => "forbidden by policy",
            Self::Invalid => "invalid request",
            Self::Platform => "not supported on the server's platform",
            Self::TlsRequired => "TLS is required",
            Self::Unknown => "no such export",
            Self::Shutdown => "the server is shutting down",
            Self::BlockSizeRequired => "the export needs its block sizes to be respected",
            Self::TooBig => "the request is too large",
            Self::ExtendedHeadersRequired => "extended headers are required",
            Self::Other(code) => return write!(f, "error {code}"),
        })
    }
}

/// A server's refusal of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    /// What was asked.
    pub option: OptionCode,
    /// Why it was refused.
    pub code: OptionErrorCode,
    /// The server's own words, at most 4096 bytes of what it sent, bad UTF-8 replaced; empty
    /// where it had none. Hostile: escape it before printing. `Display` does so.
    pub message: String,
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.option, self.code)?;
        if !self.message.is_empty() {
            write!(f, " (the server says: {:?})", self.message)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire() {
        for code in 0..20 {
            assert_eq!(OptionCode::from_wire(code).to_wire(), code);
            let reply = REP_ERROR_BIT | code;
            assert_eq!(OptionErrorCode::from_wire(reply).to_wire(), reply);
        }
    }

    #[test]
    fn a_message_of_the_server_is_escaped() {
        let error = OptionError {
            option: OptionCode::Go,
            code: OptionErrorCode::Unknown,
            message: "\x1b[31mred".to_owned(),
        };
        assert_eq!(
            error.to_string(),
            r#"NBD_OPT_GO: no such export (the server says: "\u{1b}[31mred")"#
        );
    }
}
