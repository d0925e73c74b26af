//! The other files that an image is made of, and who says whether they are opened.

use std::{fmt, sync::Arc};

use blockferry_block::{BlockDevice, BoxFuture, Error, ErrorKind, Operation, Result, printable};

use crate::Details;

/// What another file is to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// What shows through where the image has nothing of its own.
    Backing,
    /// The file that an image's data lies in, while the image itself has the tables only.
    Data,
    /// A file that a part of the disk lies in: an extent of a VMDK image, whose bytes are wanted as they are.
    Extent,
}

/// A file that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelatedFile {
    /// What it is to the image.
    pub role: Role,
    /// Its name as it stands in the image: any bytes. It is neither a path nor a URL before the user has said so.
    pub name: Vec<u8>,
    /// The format that the image says it has: any text; `None` where the image does not say.
    pub format: Option<String>,
}

/// Opens what images name, or refuses to.
pub trait Related: Send + Sync {
    /// The device for `file`, interpreted in its format, and for reading alone unless `writable`: only
    /// [`Role::Data`] is ever written.
    ///
    /// # Errors
    /// `NotPermitted` where it may not be followed, with a message that names it and what allows it. `Corrupt`
    /// where a chain loops or is too long. What opening failed with.
    fn open<'a>(
        &'a self,
        file: &'a RelatedFile,
        writable: bool,
    ) -> BoxFuture<'a, Result<RelatedImage>>;
}

/// What another file is, open.
#[derive(Clone)]
pub struct RelatedImage {
    /// Its disk, or its bytes.
    pub device: Arc<dyn BlockDevice>,
    /// What it says of itself; `None` where its bytes are what was asked for.
    pub details: Option<Details>,
}

/// A file whose bytes are what was asked for.
impl From<Arc<dyn BlockDevice>> for RelatedImage {
    fn from(device: Arc<dyn BlockDevice>) -> Self {
        let details = None;
        Self { device, details }
    }
}

/// Follows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRelatives;

impl Related for NoRelatives {
    fn open<'a>(&'a self, file: &'a RelatedFile, _: bool) -> BoxFuture<'a, Result<RelatedImage>> {
        let message = format!("it needs {file}, which nobody allowed to be opened");
        let error = Error::with_message(ErrorKind::NotPermitted, message);
        Box::pin(async move { Err(error.during(Operation::Open)) })
    }
}

/// For messages: `the backing file "base.qcow2"`.
impl fmt::Display for RelatedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let role = match self.role {
            Role::Backing => "the backing file",
            Role::Data => "the data file",
            Role::Extent => "the extent",
        };
        let name = printable(OsStr::from_bytes(&self.name));
        write!(f, "{role} \"{name}\"")
    }
}
