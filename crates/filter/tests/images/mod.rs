//! Disks with partition tables, and archives, made byte by byte: right ones, and such as nobody should make.

#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

pub mod archive;
pub mod disk;
