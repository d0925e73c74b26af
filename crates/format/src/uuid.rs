//! Identities of new images.

use std::{fs::File, io::Read};

use blockferry_block::{Error, Result};

/// A random identity: a UUID of version 4, in the order of its text.
///
/// # Errors
/// Where the system has no random numbers to give.
pub(crate) fn random() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let mut source = File::open("/dev/urandom").map_err(Error::from)?;
    source.read_exact(&mut bytes).map_err(Error::from)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}
