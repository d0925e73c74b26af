//! Bounds on everything that a peer can make this crate hold or loop over.
//!
//! The specification bounds strings (section "Conventions") and block status replies; the other
//! bounds are this project's own, far above what any known implementation sends.

/// Bytes in an export name, a description, a context name or an error message.
pub const STRING: usize = 4096;

/// Replies to one `NBD_OPT_LIST`: exports on one server.
pub const LISTED_EXPORTS: usize = 10_000;

/// Bytes that a client keeps of all the replies of one handshake.
pub const HANDSHAKE_BYTES: usize = 64 << 20;

/// Information replies to one `NBD_OPT_INFO` or `NBD_OPT_GO`.
pub const INFO_REPLIES: usize = 64;

/// Metadata contexts that one `NBD_OPT_SET_META_CONTEXT` can select; one bit each in a `u64`.
pub const CONTEXTS: usize = 64;

/// Bytes in the names of contexts that a client selects because the server lists them: servers take no
/// options of any length.
pub const SELECTED_CONTEXTS: usize = 32 << 10;

/// Metadata contexts that one `NBD_OPT_LIST_META_CONTEXT` can name.
pub const LISTED_CONTEXTS: usize = 4096;

/// Bytes of payload that a server looks at in one option.
pub const OPTION_PAYLOAD: usize = 64 << 10;

/// Bytes of payload that a server reads and drops for one option before it refuses it.
pub const OPTION_DISCARD: usize = 1 << 20;

/// Options that a server answers in one handshake unless configured otherwise.
pub const OPTIONS: u32 = 1024;

/// Requests that one client session keeps in flight.
pub const IN_FLIGHT: usize = 4096;

/// Disjoint pieces of a read that a client tracks; in order and adjacent chunks count as one.
pub const FRAGMENTS: usize = 4096;

/// Extents in one block status chunk (section "Structured reply chunk").
pub const EXTENTS: usize = 1 << 20;

/// Bytes of a read or a write where the server advertised no maximum (section "Block size
/// constraints"): what a client may send without asking.
pub const DEFAULT_PAYLOAD: u32 = 32 << 20;

/// Bytes of a read or a write that a server accepts unless configured otherwise.
pub const SERVER_PAYLOAD: u32 = 64 << 20;

/// Bytes of an export: sizes are file offsets.
pub const EXPORT_SIZE: u64 = i64::MAX as u64;
