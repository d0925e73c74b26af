//! VMDK images: those that qemu's tools made, read here, and those that are made here, read by qemu's tools.

#![allow(dead_code, reason = "the helpers have more than is needed here")]

#[path = "../../src/qemu.rs"]
mod qemu;
mod support;

mod behaviour;
mod create;
mod hostile;
mod read;
mod samples;
