//! Digests of images, and sums that show where two images differ.
//!
//! ```text
//!  options   which hash, over blocks of what size
//!  value     a digest as people read and write it
//!  blocks    what is computed of the bytes of one piece, in one pass
//!  threads   where that is computed
//!  collect   all of it for one copy
//!  image     blocks and holes in any order -> the digest of the image
//!  spans     blocks in any order -> one sum for each 16 MiB
//! ```
//!
//! The digest of an image is `H(H(block 0) || H(block 1) || ... || size)`, with the size in bytes as eight
//! bytes, the lowest first, and the last block hashed at its own length. So blocks can be hashed side by
//! side, and those that are zero need not be hashed at all. `nbdcopy --blkhash` computes the same.

mod blocks;
mod collect;
mod image;
mod options;
mod spans;
mod threads;
mod value;

#[cfg(test)]
mod tests;

pub(crate) use blocks::BlockDigests;
use blocks::Work;
pub(crate) use collect::Collector;
use image::ImageDigest;
pub use options::{Algorithm, DigestOptions, OptionsError};
pub(crate) use spans::SpanSums;
use threads::HashThreads;
pub use value::{Digest, DigestError, ExpectedDigest};
