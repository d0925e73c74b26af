//! How images are opened, whatever their format.

use blockferry_block::{Error, ErrorKind, HumanSize, Result};

/// How an image is opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Whether it is to be written, which only qcow2 images can be. Without it nothing in the file is ever changed,
    /// not even a dirty bit.
    pub writable: bool,
    /// The internal snapshot to read instead of the present state, by its ID or its name: the ID is looked for
    /// first, unless `snapshot.id=` or `snapshot.name=` in front says which it is. It cannot be written. Only qcow2
    /// images have any.
    pub snapshot: Option<String>,
    /// Whether the backing file that the image names is left alone: what is not in the image reads as zeroes. Only
    /// qcow2 images know this.
    pub without_backing: bool,
    /// The largest virtual size that is opened, in bytes; `None`: any that an image can have.
    pub max_size: Option<u64>,
    /// How much memory tables may take, in bytes: 0 stands for 16 MiB, in which those of 128 GiB fit in the usual
    /// clusters of 64 KiB.
    pub table_memory: usize,
}

impl OpenOptions {
    /// Refuses a virtual size above the bound.
    pub(crate) fn check_size(&self, size: u64) -> Result<()> {
        let Some(most) = self.max_size.filter(|most| size > *most) else {
            return Ok(());
        };
        let (size, most) = (HumanSize(size), HumanSize(most));
        let message = format!("its virtual size of {size} is above the bound of {most}");
        Err(Error::with_message(ErrorKind::InvalidInput, message))
    }

    /// Refuses to write `what`, an image in a format that is only read.
    pub(crate) fn check_reading(&self, what: &str) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        let message = format!("{what} is not written in place: copy it to a new one");
        Err(Error::with_message(ErrorKind::ReadOnly, message))
    }
}
