//! VHDX images: those that are built here, and qemu's.

#![forbid(unsafe_code)]

mod hostile;
mod images;
mod lies;
#[allow(dead_code, reason = "other formats take more of it")]
#[path = "../../src/qemu.rs"]
mod qemu;
mod support;

mod oracle;
mod parents;
mod places;
mod replay;
