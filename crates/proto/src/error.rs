//! Errors, by whose fault it is: the peer's, nobody's, the caller's, or the server's good right.
//!
//! After any error but a [`Misuse`] of [`submit`](crate::ClientSession::submit) the stream is in
//! an unknown place and the connection must be closed.

use thiserror::Error;

use crate::option::{OptionCode, OptionError};
use crate::types::{InvalidBlockSizes, ReplyMode};
use crate::wire::{Command, CommandFlags};

/// `Result` with this crate's [`enum@Error`] unless told otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a handshake or a session cannot go on.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The peer broke the protocol.
    #[error("the peer broke the NBD protocol: {0}")]
    Misbehaved(#[from] Misbehaviour),
    /// Both sides are right, but they don't fit together.
    #[error(transparent)]
    Incompatible(#[from] Incompatibility),
    /// The caller asked for what was not negotiated, or out of bounds, or out of turn.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// The server said no to an option that was needed.
    #[error("the server refused {0}")]
    Refused(OptionError),
}

impl From<InvalidBlockSizes> for Error {
    fn from(sizes: InvalidBlockSizes) -> Self {
        Misbehaviour::BlockSizes(sizes).into()
    }
}

/// What a peer did that the specification forbids, with the numbers that it sent.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misbehaviour {
    // Handshake, as a client sees it.
    /// The connection ended in the middle of the handshake.
    #[error("the connection was closed during the handshake")]
    HungUp,
    /// An option reply does not start with its magic.
    #[error("an option reply starts with {0:#018x}")]
    OptionReplyMagic(u64),
    /// A reply names another option than the one that was sent.
    #[error("a reply to {asked} claims to answer option {answered}")]
    ReplyToOtherOption {
        /// What the client sent.
        asked: OptionCode,
        /// What the reply names.
        answered: u32,
    },
    /// A reply type that does not belong to the option.
    #[error("{option} was answered with reply type {reply:#x}")]
    UnexpectedOptionReply {
        /// What the client sent.
        option: OptionCode,
        /// The type of the reply.
        reply: u32,
    },
    /// A reply is longer than its type can be.
    #[error("a reply of type {reply:#x} to {option} has {length} bytes, more than {limit}")]
    OptionReplyTooLong {
        /// What the client sent.
        option: OptionCode,
        /// The type of the reply.
        reply: u32,
        /// Bytes announced.
        length: u32,
        /// Bytes allowed.
        limit: u32,
    },
    /// The fields of a reply don't add up to its length, or a name in it is no valid string.
    #[error("a reply of type {reply:#x} to {option} is malformed")]
    OptionReplyMalformed {
        /// What the client sent.
        option: OptionCode,
        /// The type of the reply.
        reply: u32,
    },
    /// Replies to one option without end.
    #[error("{option} was answered with more than {limit} replies")]
    TooManyReplies {
        /// What the client sent.
        option: OptionCode,
        /// Replies allowed.
        limit: usize,
    },
    /// Option replies that are more than a client keeps.
    #[error("the option replies of one handshake have more than {0} bytes")]
    HandshakeTooLong(usize),
    /// The same piece of information twice.
    #[error("information of type {0} was sent twice")]
    DuplicateInfo(u16),
    /// Success without the size of the export.
    #[error("{0} succeeded without telling the size of the export")]
    MissingExportInfo(OptionCode),
    /// An export larger than a file offset.
    #[error("an export of {0} bytes is larger than 2^63 - 1")]
    ExportSize(u64),
    /// Transmission flags that lack the bit that all others depend on.
    #[error("the transmission flags {0:#06x} lack NBD_FLAG_HAS_FLAGS")]
    TransmissionFlags(u16),
    /// Block sizes against the rules.
    #[error("{0}")]
    BlockSizes(InvalidBlockSizes),
    /// A metadata context that was not asked for. Hostile: escaped here.
    #[error("metadata context {0:?} was not requested")]
    ContextNotRequested(String),
    /// A metadata context or its id twice. Hostile: escaped here.
    #[error("metadata context {name:?} with id {id} was sent twice")]
    DuplicateContext {
        /// The server's number for it.
        id: u32,
        /// Its name.
        name: String,
    },

    // Handshake, as a server sees it.
    /// An option does not start with its magic.
    #[error("an option starts with {0:#018x}")]
    OptionMagic(u64),
    /// Options without end.
    #[error("more than {0} options in one handshake")]
    TooManyOptions(u32),
    /// More payload than a server reads only to refuse it.
    #[error("{option} has {length} bytes of payload")]
    OptionTooLong {
        /// What the client sent.
        option: OptionCode,
        /// Bytes announced.
        length: u32,
    },

    // Transmission, as a client sees it.
    /// A reply starts with no magic of the negotiated mode.
    #[error("a reply starts with {magic:#010x} where {mode} replies were negotiated")]
    ReplyMagic {
        /// What was received.
        magic: u32,
        /// What was negotiated.
        mode: ReplyMode,
    },
    /// A reply to a request that is not in flight.
    #[error("a reply has cookie {0:#018x}, which no request in flight has")]
    UnknownCookie(u64),
    /// A reply under extended headers repeats another offset than its request's.
    #[error("a reply to a request at offset {expected} says offset {actual}")]
    ReplyOffset {
        /// The offset of the request.
        expected: u64,
        /// The offset in the reply.
        actual: u64,
    },
    /// A simple reply where only chunks can answer.
    #[error("a {0} was answered with a simple reply after structured replies were negotiated")]
    SimpleReply(Command),
    /// A chunk type that is unknown or not for this mode.
    #[error("a reply chunk has type {kind:#06x}")]
    ChunkType {
        /// The type of the chunk.
        kind: u16,
    },
    /// A chunk type that does not answer this command.
    #[error("a {command} was answered with a chunk of type {kind:#06x}")]
    ChunkForCommand {
        /// The type of the chunk.
        kind: u16,
        /// The command of the request.
        command: Command,
    },
    /// A chunk's length does not fit its type.
    #[error("a reply chunk of type {kind:#06x} has length {length}")]
    ChunkLength {
        /// The type of the chunk.
        kind: u16,
        /// Bytes announced.
        length: u64,
    },
    /// A chunk of type NONE that does not end its reply.
    #[error("an empty chunk does not end its reply")]
    EmptyChunkNotLast,
    /// Data, a hole or an error that is not inside the request.
    #[error("a chunk covers {length} bytes at {offset}, outside its request")]
    ChunkOutside {
        /// Bytes from the start of the export.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Two chunks for the same bytes.
    #[error("two chunks cover the same bytes near offset {offset}")]
    ChunkOverlap {
        /// Where the later chunk starts, in bytes from the start of the export.
        offset: u64,
    },
    /// The data of a read in more pieces than a client tracks.
    #[error("the reply to a read is in more than {0} separate pieces")]
    TooManyFragments(usize),
    /// A read that succeeded without all of its data.
    #[error("a read of {length} bytes succeeded with only {covered} bytes of data")]
    IncompleteRead {
        /// Bytes asked for.
        length: u64,
        /// Bytes that came.
        covered: u64,
    },
    /// Data in more than one chunk although the request forbade it.
    #[error("a read that must not be fragmented was answered in several chunks")]
    Fragmented,
    /// An error chunk that says "no error".
    #[error("an error chunk has error number 0")]
    ErrorWithoutNumber,
    /// Extents of a context that was not negotiated.
    #[error("block status of context {0}, which was not negotiated")]
    UnknownContext(u32),
    /// Extents of the same context twice in one reply.
    #[error("block status of context {0} twice in one reply")]
    DuplicateStatus(u32),
    /// A block status that succeeded without the extents of a context.
    #[error("block status succeeded without context {0}")]
    MissingStatus(u32),
    /// An extent of no bytes.
    #[error("an extent of length 0")]
    EmptyExtent,
    /// Extents that go on behind the end of the request.
    #[error("an extent starts {0} bytes into a shorter request")]
    ExtentOutside(u64),
    /// Several extents where the request wanted one.
    #[error("{0} extents where one was requested")]
    TooManyExtents(u64),

    // Transmission, as a server sees it.
    /// A request does not start with its magic.
    #[error("a request starts with {0:#010x}")]
    RequestMagic(u32),
    /// More payload than a server reads only to refuse it.
    #[error("a request has {0} bytes of payload")]
    PayloadTooLong(u64),
}

/// Why two well-behaved sides cannot work together.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incompatibility {
    /// The other side is no NBD server.
    #[error("not an NBD server: it starts with {0:#018x} instead of NBDMAGIC")]
    NotNbd(u64),
    /// An NBD server with a magic that nobody knows.
    #[error("the NBD server speaks an unknown version of the handshake ({0:#018x})")]
    UnknownStyle(u64),
    /// The oldstyle handshake, which has neither names nor options nor TLS, one of which is needed.
    #[error("the server speaks the oldstyle handshake, which has no export names, lists or TLS")]
    OldStyle,
    /// What was asked for needs fixed newstyle, and the server has only newstyle.
    #[error("the server lacks the fixed newstyle handshake")]
    NotFixedNewstyle,
    /// The server wants TLS, and the client was told not to use it.
    #[error("the server requires TLS, which a URI asks for with nbds:// or nbds+unix://")]
    TlsRequired,
    /// The client wants TLS, and the server refused it.
    #[error("TLS is required, and the server refused it")]
    TlsRefused,
}

/// What the caller did wrong. Nothing was sent and nothing has changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misuse {
    /// An export or context name that is longer than 4096 bytes or has a NUL in it.
    #[error("a name must not be longer than 4096 bytes and must not contain NUL")]
    Name,
    /// More contexts than can be selected.
    #[error("more than {0} metadata contexts")]
    TooManyContexts(usize),
    /// Bytes were handed over when none, or another number, were asked for.
    #[error("{given} bytes were given to a handshake that wanted {wanted}")]
    WrongLength {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes given.
        given: usize,
    },
    /// A command that cannot be submitted.
    #[error("{0} is not a request")]
    NotARequest(Command),
    /// The server did not offer the command, or no context is there to report.
    #[error("the export does not support {0}")]
    NotOffered(Command),
    /// A flag that the server did not offer or that means nothing on the command.
    #[error("{command} cannot have the flags {flags:?}")]
    Flags {
        /// The command of the request.
        command: Command,
        /// The flags that it cannot have.
        flags: CommandFlags,
    },
    /// A write to a read-only export.
    #[error("the export is read-only")]
    ReadOnly,
    /// A request of no bytes.
    #[error("a {0} of 0 bytes")]
    Empty(Command),
    /// A request past the end of the export.
    #[error("{length} bytes at {offset} are past the end of an export of {size} bytes")]
    OutOfBounds {
        /// Bytes from the start of the export.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Bytes.
        size: u64,
    },
    /// A request that is no multiple of the minimum block size.
    #[error("{length} bytes at {offset} are not aligned to blocks of {minimum} bytes")]
    Unaligned {
        /// Bytes from the start of the export.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Bytes.
        minimum: u32,
    },
    /// A request longer than the server takes.
    #[error("a {command} of {length} bytes is longer than {limit}")]
    TooLong {
        /// The command of the request.
        command: Command,
        /// Bytes.
        length: u64,
        /// Bytes.
        limit: u64,
    },
    /// A flush with a range.
    #[error("a flush has neither an offset nor a length")]
    FlushWithRange,
    /// More requests in flight than the table has room for.
    #[error("more than {0} requests in flight")]
    TooManyInFlight(usize),
}
