//! The numbers of the protocol: magics, flags, commands, chunk types and errors (section
//! "Values"). Option codes are in the same section and are re-exported here.

use std::fmt;

use bitflags::bitflags;

pub use crate::option::{OptionCode, OptionError, OptionErrorCode};

/// The port that IANA assigned to NBD.
pub const DEFAULT_PORT: u16 = 10809;

/// `NBDMAGIC`: the first eight bytes of every server.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: the second eight bytes of a newstyle server, and the start of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The second eight bytes of an oldstyle server.
pub(crate) const OLD_STYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// The start of every reply to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// The start of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// The start of a request under extended headers.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// The start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The start of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// The start of a reply chunk under extended headers.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of a compact request header.
pub(crate) const REQUEST_LEN: usize = 28;
/// Bytes of an extended request header.
pub(crate) const EXTENDED_REQUEST_LEN: usize = 32;
/// Bytes of a simple reply header.
pub(crate) const SIMPLE_REPLY_LEN: usize = 16;
/// Bytes of a structured chunk header.
pub(crate) const STRUCTURED_REPLY_LEN: usize = 20;
/// Bytes of an extended chunk header.
pub(crate) const EXTENDED_REPLY_LEN: usize = 32;

/// Bytes of an oldstyle greeting after its two magics: size, flags, and 124 bytes of zeroes.
pub(crate) const OLD_STYLE_REST_LEN: usize = 136;

/// Bytes of an option header: magic, option, length.
pub(crate) const OPTION_LEN: usize = 16;
/// Bytes of an option reply header: magic, option, reply type, length.
pub(crate) const OPTION_REPLY_LEN: usize = 20;

/// The chunk is the last one of its reply (`NBD_REPLY_FLAG_DONE`).
pub(crate) const CHUNK_DONE: u16 = 0x0001;
/// A chunk without content (`NBD_REPLY_TYPE_NONE`).
pub const CHUNK_NONE: u16 = 0x0000;
/// Data at an offset (`NBD_REPLY_TYPE_OFFSET_DATA`).
pub const CHUNK_OFFSET_DATA: u16 = 0x0001;
/// Zeroes at an offset (`NBD_REPLY_TYPE_OFFSET_HOLE`).
pub const CHUNK_OFFSET_HOLE: u16 = 0x0002;
/// Extents with 32-bit lengths (`NBD_REPLY_TYPE_BLOCK_STATUS`).
pub const CHUNK_BLOCK_STATUS: u16 = 0x0005;
/// Extents with 64-bit lengths (`NBD_REPLY_TYPE_BLOCK_STATUS_EXT`).
pub const CHUNK_BLOCK_STATUS_EXT: u16 = 0x0006;
/// The bit that every error chunk has.
pub(crate) const CHUNK_ERROR_BIT: u16 = 0x8000;
/// An error (`NBD_REPLY_TYPE_ERROR`).
pub const CHUNK_ERROR: u16 = 0x8001;
/// An error at an offset (`NBD_REPLY_TYPE_ERROR_OFFSET`).
pub const CHUNK_ERROR_OFFSET: u16 = 0x8002;

/// Option reply: the option succeeded (`NBD_REP_ACK`).
pub(crate) const REP_ACK: u32 = 1;
/// Option reply: an export (`NBD_REP_SERVER`).
pub(crate) const REP_SERVER: u32 = 2;
/// Option reply: a piece of information about an export (`NBD_REP_INFO`).
pub(crate) const REP_INFO: u32 = 3;
/// Option reply: a metadata context (`NBD_REP_META_CONTEXT`).
pub(crate) const REP_META_CONTEXT: u32 = 4;
/// The bit that every error reply has (`NBD_REP_FLAG_ERROR`).
pub(crate) const REP_ERROR_BIT: u32 = 0x8000_0000;

/// Size and transmission flags of an export (`NBD_INFO_EXPORT`).
pub(crate) const INFO_EXPORT: u16 = 0;
/// The canonical name of an export (`NBD_INFO_NAME`).
pub(crate) const INFO_NAME: u16 = 1;
/// The description of an export (`NBD_INFO_DESCRIPTION`).
pub(crate) const INFO_DESCRIPTION: u16 = 2;
/// The block size constraints of an export (`NBD_INFO_BLOCK_SIZE`).
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

bitflags! {
    /// What both sides say at the start (section "Handshake flags").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct HandshakeFlags: u16 {
        /// Options can be refused and others tried.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The 124 zeroes after a reply to `NBD_OPT_EXPORT_NAME` are left out.
        const NO_ZEROES = 1 << 1;
    }
}

bitflags! {
    /// What an export can do (section "Transmission flags"). Unknown bits are kept.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct TransmissionFlags: u16 {
        /// Must be set for the other bits to mean anything.
        const HAS_FLAGS = 1 << 0;
        /// Writes are refused.
        const READ_ONLY = 1 << 1;
        /// Understands [`Command::Flush`].
        const SEND_FLUSH = 1 << 2;
        /// Understands [`CommandFlags::FUA`].
        const SEND_FUA = 1 << 3;
        /// Behaves like a rotational disk.
        const ROTATIONAL = 1 << 4;
        /// Understands [`Command::Trim`].
        const SEND_TRIM = 1 << 5;
        /// Understands [`Command::WriteZeroes`].
        const SEND_WRITE_ZEROES = 1 << 6;
        /// Understands [`CommandFlags::DF`].
        const SEND_DF = 1 << 7;
        /// A flush on one connection covers the writes of all.
        const CAN_MULTI_CONN = 1 << 8;
        /// Understands resizing, an experiment that this crate does not speak.
        const SEND_RESIZE = 1 << 9;
        /// Understands [`Command::Cache`].
        const SEND_CACHE = 1 << 10;
        /// Understands [`CommandFlags::FAST_ZERO`].
        const SEND_FAST_ZERO = 1 << 11;
        /// Understands a [`Command::BlockStatus`] whose payload selects contexts.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;

        const _ = !0;
    }
}

bitflags! {
    /// How a command is meant (section "Command flags"). Unknown bits are kept.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct CommandFlags: u16 {
        /// Durable before it is acknowledged.
        const FUA = 1 << 0;
        /// Zeroes must be allocated.
        const NO_HOLE = 1 << 1;
        /// The data of a read must come in one chunk.
        const DF = 1 << 2;
        /// One extent is enough.
        const REQ_ONE = 1 << 3;
        /// Fail with `ENOTSUP` instead of writing zeroes slowly.
        const FAST_ZERO = 1 << 4;
        /// The length is that of a payload (extended headers only).
        const PAYLOAD_LEN = 1 << 5;

        const _ = !0;
    }
}

/// A request's type (section "Request types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Command {
    /// `NBD_CMD_READ`.
    Read = 0,
    /// `NBD_CMD_WRITE`.
    Write = 1,
    /// `NBD_CMD_DISC`: the client is about to go; not answered.
    Disconnect = 2,
    /// `NBD_CMD_FLUSH`.
    Flush = 3,
    /// `NBD_CMD_TRIM`.
    Trim = 4,
    /// `NBD_CMD_CACHE`.
    Cache = 5,
    /// `NBD_CMD_WRITE_ZEROES`.
    WriteZeroes = 6,
    /// `NBD_CMD_BLOCK_STATUS`.
    BlockStatus = 7,
}

impl Command {
    /// The command with this number, if there is one that this crate speaks.
    #[must_use]
    pub fn from_wire(code: u16) -> Option<Self> {
        Some(match code {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => return None,
        })
    }

    /// The number on the wire.
    #[must_use]
    pub fn to_wire(self) -> u16 {
        self as u16
    }

    /// The name without its prefix, in lower case: `write_zeroes`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Cache => "cache",
            Self::WriteZeroes => "write_zeroes",
            Self::BlockStatus => "block_status",
        }
    }

    /// Whether it changes the export, so that a read-only one refuses it.
    #[must_use]
    pub fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }

    /// The transmission flag without which it must not be sent.
    #[must_use]
    pub fn requires(self) -> TransmissionFlags {
        match self {
            Self::Flush => TransmissionFlags::SEND_FLUSH,
            Self::Trim => TransmissionFlags::SEND_TRIM,
            Self::Cache => TransmissionFlags::SEND_CACHE,
            Self::WriteZeroes => TransmissionFlags::SEND_WRITE_ZEROES,
            _ => TransmissionFlags::empty(),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl CommandFlags {
    /// Those of the known flags that make sense on `command`, negotiated or not. `FUA` does on
    /// every command; `PAYLOAD_LEN` is a matter of framing and is not counted here.
    pub(crate) fn meaningful_on(command: Command) -> Self {
        Self::FUA
            | match command {
                Command::Read => Self::DF,
                Command::WriteZeroes => Self::NO_HOLE | Self::FAST_ZERO,
                Command::BlockStatus => Self::REQ_ONE,
                _ => Self::empty(),
            }
    }

    /// The flags that an export with these transmission flags did not offer.
    pub(crate) fn not_offered_by(offered: TransmissionFlags) -> Self {
        let mut missing = Self::empty();
        missing.set(Self::FUA, !offered.contains(TransmissionFlags::SEND_FUA));
        missing.set(Self::DF, !offered.contains(TransmissionFlags::SEND_DF));
        missing.set(
            Self::FAST_ZERO,
            !offered.contains(TransmissionFlags::SEND_FAST_ZERO),
        );
        missing
    }
}

/// An error number of a reply (section "Error values"): what Linux calls them, on every system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub u32);

impl Errno {
    /// Operation not permitted: a write to a read-only export.
    pub const EPERM: Self = Self(1);
    /// Input/output error.
    pub const EIO: Self = Self(5);
    /// Out of memory.
    pub const ENOMEM: Self = Self(12);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// No space left, or a write past the end.
    pub const ENOSPC: Self = Self(28);
    /// Value too large.
    pub const EOVERFLOW: Self = Self(75);
    /// Not supported.
    pub const ENOTSUP: Self = Self(95);
    /// The server is shutting down.
    pub const ESHUTDOWN: Self = Self(108);

    /// The symbolic name, where the specification has one for the number.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::EPERM => "EPERM",
            Self::EIO => "EIO",
            Self::ENOMEM => "ENOMEM",
            Self::EINVAL => "EINVAL",
            Self::ENOSPC => "ENOSPC",
            Self::EOVERFLOW => "EOVERFLOW",
            Self::ENOTSUP => "ENOTSUP",
            Self::ESHUTDOWN => "ESHUTDOWN",
            _ => return None,
        })
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_wire() {
        for code in 0..8 {
            assert_eq!(Command::from_wire(code).map(Command::to_wire), Some(code));
        }
        assert_eq!(Command::from_wire(8), None);
    }

    #[test]
    fn errors_print_their_name_or_number() {
        assert_eq!(Errno::ENOSPC.to_string(), "ENOSPC");
        assert_eq!(Errno(77).to_string(), "errno 77");
    }

    #[test]
    fn the_magics_are_the_ascii_that_the_specification_names() {
        assert_eq!(&NBD_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }
}
