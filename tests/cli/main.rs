//! The real binary against real peers and against peers that misbehave.

#![allow(clippy::print_stdout, reason = "a skipped test says why")]

mod support;

mod bad_destinations;
mod bad_servers;
mod children;
mod copy;
mod examples;
mod info;
mod interrupts;
mod serve;
mod streams;
mod usage;
