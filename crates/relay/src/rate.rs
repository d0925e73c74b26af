//! So many bytes a second.

use std::sync::Arc;

/// A limit on bytes a second. Clones share it: what one takes, the others do not get.
#[derive(Clone, Debug)]
pub struct Rate {
    inner: Arc<u64>,
}

impl Rate {
    /// At most so many bytes a second, on average. 0 is taken as 1.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            inner: Arc::new(bytes_per_second.max(1)),
        }
    }

    /// Bytes a second.
    #[must_use]
    pub fn bytes_per_second(&self) -> u64 {
        *self.inner
    }
}
