//! What a caller can choose.

/// How an image is copied. Every combination is valid: what does not fit the two endpoints is
/// adapted to them.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// How many pieces may be in flight at a time; 0 counts as 1. Default 8: 2 MiB that stay in
    /// the cache, and enough to keep a local server busy.
    pub requests: usize,
    /// The longest read and write in bytes. It is lowered to what both sides and `queue_size` allow,
    /// and raised to their block size. Default 256 KiB.
    pub request_size: u32,
    /// How many bytes may be in memory at a time, on their way from source to destination; one
    /// request is always allowed. Default 16 MiB.
    pub queue_size: u64,
    /// Runs of at least this many zero bytes in what was read become holes; `None` looks for none.
    /// It is raised to the block size and lowered to the request size. Default 4096.
    pub sparse: Option<u32>,
    /// Leave no holes: zeroes are allocated, and nothing is looked for in what was read. Default false.
    pub allocated: bool,
    /// The caller knows that the destination reads as zeroes: zeroes are not written. If it was not
    /// so, the copy is wrong. Default false.
    pub destination_is_zero: bool,
    /// Flush the destination before the copy counts as done. Default true.
    pub flush: bool,
    /// Ask the source for its extents, so that holes need not be read. Default true.
    pub extents: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            requests: 8,
            request_size: 256 << 10,
            queue_size: 16 << 20,
            sparse: Some(4096),
            allocated: false,
            destination_is_zero: false,
            flush: true,
            extents: true,
        }
    }
}
