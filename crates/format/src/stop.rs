//! How long work on an image is asked to end before it is done.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use blockferry_block::{Error, ErrorKind, Result};

/// Asks work to end at the next point at which the image that it changes is sound. Clones are the same; what was asked
/// for stays so. From any thread, at any time.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks for the end.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Goes on unless the end was asked for.
    ///
    /// # Errors
    /// `Cancelled` where it was.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::Cancelled)),
        }
    }
}
