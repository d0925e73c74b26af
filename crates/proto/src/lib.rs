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
//! | module | has |
//! |---|---|
//! | [`wire`] | the numbers of the protocol: magics, flags, commands, errors |
//! | [`limits`] | what bounds everything that a peer can make this crate hold |
//!
//! A driver has to deal with all that a machine tells it, so what the machines tell ([`Step`], [`ServerStep`],
//! [`ReplyEvent`], [`RequestEvent`]) are enums that a `match` has to exhaust; kinds of errors may become more.
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
//!
//! A session on a connection whose handshake is done, and a server's answer to its read:
//!
//! ```
//! use blockferry_proto::{
//!     ClientSession, Command, CommandFlags, ExportInfo, HandshakeFlags, HandshakeStyle, Negotiated,
//!     ReplyEvent, ReplyMode, ReplyWriter, Request, RequestEvent, RequestHeader, RequestLimits,
//!     ServerSession, TransmissionFlags,
//! };
//!
//! let negotiated = Negotiated {
//!     export_name: "disk".to_owned(),
//!     export: ExportInfo {
//!         name: None,
//!         description: None,
//!         size: 1 << 30,
//!         flags: TransmissionFlags::HAS_FLAGS,
//!         block_sizes: None,
//!     },
//!     style: HandshakeStyle::FixedNew,
//!     mode: ReplyMode::Simple,
//!     contexts: Vec::new(),
//!     tls: false,
//!     handshake_flags: HandshakeFlags::all(),
//! };
//! let (mut client, mut header) = (ClientSession::new(&negotiated), RequestHeader::new());
//! let read = Request {
//!     command: Command::Read,
//!     flags: CommandFlags::empty(),
//!     offset: 4096,
//!     length: 512,
//! };
//! let cookie = client.submit(read, &mut header)?;
//!
//! let mut server = ServerSession::new(&negotiated, RequestLimits::default());
//! let (_, event) = server.receive(header.as_bytes())?;
//! let RequestEvent::Request(request) = event else { unreachable!() };
//! let reply = ReplyWriter::new(negotiated.mode).data(&request, request.offset, 512, true);
//!
//! // The header is taken here; the 512 bytes behind it go straight to their buffer.
//! let (_, event) = client.receive(reply.as_bytes())?;
//! assert_eq!(event, ReplyEvent::Payload { cookie, offset: 0, length: 512 });
//! # Ok::<(), blockferry_proto::Error>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]

mod client;
mod error;
mod gather;
pub mod limits;
mod option;
mod reader;
mod server;
mod types;
mod uri;
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
    BlockSizes, ExportInfo, Extent, HandshakeStyle, InvalidBlockSizes, ListedExport, MetaContext,
    Negotiated, ReplyMode,
};
pub use uri::{NbdUri, Transport, UriError, is_nbd_uri};
pub use wire::{
    Command, CommandFlags, DEFAULT_PORT, Errno, HandshakeFlags, OptionCode, OptionError,
    OptionErrorCode, TransmissionFlags,
};
