//! New images, written in every way there is, and read by qemu-img.

#![allow(clippy::print_stdout, reason = "a test that is skipped says why")]

mod behind;
mod compressed;
mod damage;
mod laid_out;
mod plain;
mod support;
