//! Images that other programs use: QEMU's programs and this one tell each other, by the same locks.

use std::{fs::File, os::fd::AsFd};

use crate::block::{BlockDevice, ByteRange, Error, ErrorKind, Mapping, Result};

use blockferry_sys as sys;

use super::{Endpoint, EndpointKind};

/// Takes the image in `fd`, which is open for reading and writing, until it is closed. A file system without locks
/// keeps nobody away.
///
/// # Errors
/// `NotPermitted` when somebody else writes it, or will not have it written.
pub(super) fn claim(fd: impl AsFd) -> Result<()> {
    match sys::claim_image(fd) {
        Ok(false) => {
            let message = "another program uses it, a virtual machine or a server";
            Err(Error::with_message(ErrorKind::NotPermitted, message))
        }
        Ok(true) | Err(_) => Ok(()),
    }
}

/// The same for what a device lies in, where that is a file.
pub(super) fn claim_below(device: &dyn BlockDevice) -> Result<()> {
    match device.mapping(ByteRange::between(0, 1)) {
        Mapping::File { fd, .. } => claim(fd),
        _ => Ok(()),
    }
}

/// Whether an endpoint is a file that another program has open to be written, as far as that is told: what is read
/// may change meanwhile.
#[must_use]
pub fn is_written_by_others(endpoint: &Endpoint) -> bool {
    match endpoint.kind() {
        EndpointKind::File(path) if path.is_file() => {
            File::open(path).is_ok_and(|file| sys::is_image_written(file).unwrap_or(false))
        }
        EndpointKind::Joined(parts) => parts.iter().any(is_written_by_others),
        _ => false,
    }
}
