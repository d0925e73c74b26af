//! What a handshake settles: exports, block sizes, metadata contexts, and the way replies look.

use std::fmt;

use crate::limits;
use crate::wire::{HandshakeFlags, TransmissionFlags};

/// How replies of the transmission phase are framed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReplyMode {
    /// Simple replies: the baseline.
    #[default]
    Simple,
    /// Structured reply chunks.
    Structured,
    /// Chunks and requests with 64-bit lengths (extended headers).
    Extended,
}

impl fmt::Display for ReplyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simple => "simple",
            Self::Structured => "structured",
            Self::Extended => "extended",
        })
    }
}

impl ReplyMode {
    /// Whether replies come in chunks.
    #[must_use]
    pub fn is_chunked(self) -> bool {
        self != Self::Simple
    }
}

/// How a server begins (section "Handshake").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HandshakeStyle {
    /// One greeting that says everything: no names, no options, no TLS.
    Old,
    /// Options, but no replies to them: the export is opened by name.
    New,
    /// Options with replies.
    #[default]
    FixedNew,
}

impl HandshakeStyle {
    /// The name that tools print: `oldstyle`, `newstyle` or `newstyle-fixed`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Old => "oldstyle",
            Self::New => "newstyle",
            Self::FixedNew => "newstyle-fixed",
        }
    }
}

/// Block size constraints (section of that name), all in bytes and known to be consistent.
///
/// The default is what a client assumes where the server advertised none: 1, 4096 and 32 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSizes {
    minimum: u32,
    preferred: u32,
    maximum: u32,
}

impl BlockSizes {
    /// Checks the three sizes: `minimum` a power of two up to 64 KiB, `preferred` a power of two
    /// of at least 512 and `minimum`, `maximum` a multiple of `minimum` of at least `preferred`,
    /// or 0xffffffff for no limit.
    ///
    /// # Errors
    ///
    /// [`InvalidBlockSizes`] with the three numbers.
    pub fn new(minimum: u32, preferred: u32, maximum: u32) -> Result<Self, InvalidBlockSizes> {
        let valid = minimum.is_power_of_two()
            && minimum <= 64 << 10
            && preferred.is_power_of_two()
            && preferred >= minimum.max(512)
            && maximum >= preferred
            && (maximum == u32::MAX || maximum.is_multiple_of(minimum));
        if valid {
            Ok(Self {
                minimum,
                preferred,
                maximum,
            })
        } else {
            Err(InvalidBlockSizes {
                minimum,
                preferred,
                maximum,
            })
        }
    }

    /// Offsets and lengths are multiples of this many bytes.
    #[must_use]
    pub fn minimum(&self) -> u32 {
        self.minimum
    }

    /// Requests that are multiples of this many bytes avoid read-modify-write cycles.
    #[must_use]
    pub fn preferred(&self) -> u32 {
        self.preferred
    }

    /// The most bytes that one request carries; 0xffffffff for no limit.
    #[must_use]
    pub fn maximum(&self) -> u32 {
        self.maximum
    }
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
            maximum: limits::DEFAULT_PAYLOAD,
        }
    }
}

/// Three numbers that are no block size constraints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidBlockSizes {
    /// In bytes, as given.
    pub minimum: u32,
    /// In bytes, as given.
    pub preferred: u32,
    /// In bytes, as given.
    pub maximum: u32,
}

impl fmt::Display for InvalidBlockSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "block sizes minimum {}, preferred {}, maximum {} break the rules",
            self.minimum, self.preferred, self.maximum
        )
    }
}

impl std::error::Error for InvalidBlockSizes {}

/// What a server says of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// The canonical name, where the server gave one. Hostile: escape before printing.
    pub name: Option<String>,
    /// The description, where the server gave one. Hostile: escape before printing.
    pub description: Option<String>,
    /// Bytes, at most `i64::MAX`.
    pub size: u64,
    /// What it can do; `HAS_FLAGS` is always set.
    pub flags: TransmissionFlags,
    /// The constraints, where the server advertised them.
    pub block_sizes: Option<BlockSizes>,
}

/// A metadata context such as `base:allocation`, and the number that stands for it in replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContext {
    /// The server's number; meaningless where contexts were only listed.
    pub id: u32,
    /// `namespace:leaf`. Hostile on a client: escape before printing.
    pub name: String,
}

/// The result of a handshake: all that the transmission phase needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The export as the client named it.
    pub export_name: String,
    /// What the server said of it.
    pub export: ExportInfo,
    /// How the server began.
    pub style: HandshakeStyle,
    /// How replies look.
    pub mode: ReplyMode,
    /// The contexts that block status reports (or, of a listing, those available).
    pub contexts: Vec<MetaContext>,
    /// Whether the connection is under TLS.
    pub tls: bool,
    /// The handshake flags that both sides have set.
    pub handshake_flags: HandshakeFlags,
}

/// One reply to `NBD_OPT_LIST`. Hostile on a client: escape before printing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedExport {
    /// At most 4096 bytes, without NUL.
    pub name: String,
    /// At most 4096 bytes; empty where there is none.
    pub description: String,
}

/// One extent of a block status reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, never 0 in a reply.
    pub length: u64,
    /// The status; its meaning belongs to the context.
    pub flags: u64,
}

impl Extent {
    /// Of `base:allocation`: a read may find nothing allocated (`NBD_STATE_HOLE`).
    pub const HOLE: u64 = 1 << 0;
    /// Of `base:allocation`: it reads as zeroes (`NBD_STATE_ZERO`).
    pub const ZERO: u64 = 1 << 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_follow_the_rules() {
        for (minimum, preferred, maximum) in [
            (1, 512, 512),
            (1, 4096, 32 << 20),
            (512, 512, u32::MAX),
            (65536, 65536, 65536 * 3),
        ] {
            assert!(BlockSizes::new(minimum, preferred, maximum).is_ok());
        }
        for (minimum, preferred, maximum) in [
            (0, 4096, 32 << 20),
            (3, 4096, 4098),
            (131_072, 131_072, u32::MAX),
            (1, 256, 4096),
            (1, 513, 4096),
            (4096, 512, 1 << 20),
            (1, 4096, 4095),
            (512, 512, 1000),
        ] {
            assert_eq!(
                BlockSizes::new(minimum, preferred, maximum),
                Err(InvalidBlockSizes {
                    minimum,
                    preferred,
                    maximum
                })
            );
        }
    }

    #[test]
    fn the_default_block_sizes_obey_their_own_rules() {
        let sizes = BlockSizes::default();
        assert_eq!(
            BlockSizes::new(sizes.minimum(), sizes.preferred(), sizes.maximum()),
            Ok(sizes)
        );
    }
}
