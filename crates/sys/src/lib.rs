//! Every `unsafe` block and every Linux system call of the project, behind safe functions.
//!
//! One file per subject. Nothing here knows of images, NBD or devices.

#[cfg(not(target_os = "linux"))]
compile_error!("blockferry runs on Linux only");

mod aligned;
mod path;
mod process;
pub mod socket;
mod usage;

pub use aligned::{AlignedBytes, PAGE_ALIGNMENT};
pub use path::open_location;
pub use process::{
    is_signal_ignored, kill_group, spawn_activated, take_activated_sockets, terminate_group,
};
pub use usage::{Usage, Waited, await_exit, reap};
