//! Images that qemu's tools made, read here: the bytes, and what is known of them.

#[path = "../../src/qemu.rs"]
mod qemu;
mod support;

mod options;
mod states;
