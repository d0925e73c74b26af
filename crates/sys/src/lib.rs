//! Every `unsafe` block and every Linux system call of blockferry, behind safe functions.
//!
//! It is the ground floor of the other `blockferry` crates, and public only because they are crates of their own:
//! what is here is what they need, and changes with them. Whoever looks for the kernel's interfaces as such is better
//! served by `rustix`.
//!
//! One file per subject; nothing here knows of images, NBD or devices.
//!
//! | subject | has |
//! |---|---|
//! | files | [`inspect`], [`read_at`], [`write_all_at`], [`zero_range`], [`next_data`]; sizes, syncing, locks |
//! | files to files | [`copy_range`], [`clone_range`] |
//! | block devices | [`inspect_block_device`], [`discard_blocks`], [`zero_blocks`] |
//! | names and places | [`create_nameless`], [`give_name`], [`open_beneath`], [`Place`], [`free_space`] |
//! | the page cache | [`is_cached`], [`drop_cached`], [`read_cached_at`], [`will_need`] |
//! | pipes | [`Pipe`], which bytes are spliced through |
//! | sockets | [`socket`], [`vsock`]; `AsyncSocket` in a tokio runtime (feature `tokio`) |
//! | processes | [`spawn_activated`], [`await_exit`], [`to_background`], [`become_identity`], signals, limits |
//! | memory | [`AlignedBytes`] for direct I/O |
//! | the machine | [`kernel`], [`descriptor_limits`], [`try_io_uring`]: what it is and what it lets us do |
//!
//! Errors are [`std::io::Error`]s with the number that the kernel gave. An interrupted call is repeated.
//!
//! ```
//! use blockferry_sys::{next_data, next_hole, write_all_at};
//!
//! # fn main() -> std::io::Result<()> {
//! # let place = std::env::temp_dir().join(format!("blockferry-sys-{}", std::process::id()));
//! # let file = std::fs::File::create_new(&place)?;
//! # std::fs::remove_file(&place)?;
//! // A file with a hole in front of its data.
//! write_all_at(&file, b"data", 1 << 20)?;
//! let start = next_data(&file, 0)?.expect("there is some");
//! assert!(start <= 1 << 20);
//! assert!(next_hole(&file, start)? >= Some((1 << 20) + 4));
//! # Ok(())
//! # }
//! ```

#![warn(missing_debug_implementations)]

#[cfg(not(target_os = "linux"))]
compile_error!("blockferry runs on Linux only");

mod aligned;
#[cfg(feature = "tokio")]
mod async_socket;
mod background;
mod beneath;
mod block_device;
mod descriptors;
mod file_copy;
mod fs;
mod identity;
mod image_lock;
mod machine;
mod names;
mod page_cache;
mod path;
mod pipe;
mod process;
pub mod socket;
mod space;
mod stream;
mod usage;
pub mod vsock;

pub use aligned::{AlignedBytes, PAGE_ALIGNMENT};
#[cfg(feature = "tokio")]
pub use async_socket::{AsyncSocket, SocketKind, watched};
pub use background::{Background, Ready, end_with_parent, to_background};
pub use beneath::{kind_beneath, list_directory, open_beneath};
pub use block_device::{
    BlockDeviceFacts, discard_blocks, inspect_block_device, is_block_device_claimed, zero_blocks,
};
pub use descriptors::{allow_most_descriptors, is_shortage};
pub use file_copy::{clone_range, copy_range, file_system_block, never_shares_blocks};
pub use fs::{
    FileFacts, FileKind, OpenMode, ZeroMethod, inspect, lives_in_memory, next_data, next_hole,
    open_mode, read_at, read_cached_at, set_size, sync_all, sync_data, will_need, write_all_at,
    zero_range,
};
pub use identity::{become_identity, group_number, lock_memory, user_number};
pub use image_lock::{claim_image, is_image_written};
pub use machine::{
    Kernel, descriptor_limits, kernel, try_io_uring, try_open_beneath, try_process_descriptor,
};
pub use names::{
    create_nameless, give_name, open_directory, open_or_create, rename_unless_taken,
    sync_directory, try_lock,
};
pub use page_cache::{drop_cached, is_cached};
pub use path::{Place, open_location, permissions};
pub use pipe::{FillStop, Pipe, set_pipe_capacity, user_pipe_limit};
pub use process::{
    FILE_SIZE_SIGNAL, duplicate_inherited, is_root, is_signal_ignored, kill_group, spawn_activated,
    take_activated_sockets, take_standard, terminate_group,
};
pub use space::{file_size_limit, free_space, may_compress};
pub use stream::{read_stream, write_stream};
pub use usage::{Usage, Waited, adopt_orphans, await_exit, exit_descriptor, reap};
