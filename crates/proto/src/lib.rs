//! The NBD protocol on paper.
//!
//! This crate turns bytes into messages and back, and says what may come next, for both sides of
//! a connection. It does no I/O, has no clock, logs nothing and holds no `unsafe`: a driver reads
//! and writes the sockets, hands the bytes over, and does what it is told.
//!
//! | side   | handshake (option haggling)       | transmission                                 |
//! |--------|-----------------------------------|----------------------------------------------|
//! | client | [`ClientHandshake`]: [`Step`]     | [`ClientSession`]: [`ReplyEvent`]            |
//! | server | [`ServerHandshake`]: [`ServerStep`] | [`ServerSession`]: [`RequestEvent`], [`ReplyWriter`] |
//!
//! The handshake machines name the exact number of bytes that they want next, so that nothing is
//! read too far: what is buffered when TLS starts is nothing at all. The session machines take
//! whatever has arrived and never see the payload of a read or a write, which goes between the
//! socket and its final buffer without a copy here.
//!
//! Everything a peer sends is bounded (see [`limits`]) and checked; what breaks the rules is an
//! [`Error`] that says whether the peer [misbehaved](Misbehaviour), is merely
//! [incompatible](Incompatibility), [refused](OptionError), or whether the caller asked for
//! something that [was not negotiated](Misuse).
//!
//! The section names in the documentation are those of `doc/proto.md` of the NBD project.
//!
//! # Example
//!
//! ```
//! use blockferry_proto::{ClientConfig, ClientHandshake, Step};
//!
//! let mut config = ClientConfig::default();
//! config.export = "disk".to_owned();
//! let mut handshake = ClientHandshake::new(config)?;
//! // The server speaks first: eight bytes of magic.
//! assert_eq!(handshake.step(), Step::Receive(8));
//! handshake.receive(b"NBDMAGIC")?;
//! assert_eq!(handshake.step(), Step::Receive(8));
//! # Ok::<(), blockferry_proto::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod client;
pub mod error;
mod gather;
pub mod limits;
mod option;
mod reader;
pub mod server;
pub mod types;
pub mod uri;
pub mod wire;

pub use client::{
    ClientConfig, ClientHandshake, ClientSession, Cookie, Goal, InfoReport, ListReport, Listed,
    Outcome, ReplyEvent, Request, RequestHeader, ServerError, Step, Tls,
};
pub use error::{Error, Incompatibility, Misbehaviour, Misuse, Result};
pub use server::{
    ContextSelection, OpenPurpose, OptionRefusal, RefusedRequest, ReplyHeader, ReplyTo,
    ReplyWriter, RequestEvent, RequestLimits, ServedExport, ServerConfig, ServerHandshake,
    ServerRequest, ServerSession, ServerStep, TlsPolicy,
};
pub use types::{
    BlockSizes, ExportInfo, Extent, HandshakeStyle, ListedExport, MetaContext, Negotiated,
    ReplyMode,
};
pub use uri::{NbdUri, Transport, UriError, is_nbd_uri};
pub use wire::{
    Command, CommandFlags, DEFAULT_PORT, Errno, HandshakeFlags, OptionCode, OptionError,
    OptionErrorCode, TransmissionFlags,
};
