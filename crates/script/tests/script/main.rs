//! Real scripts, run by the shell.

mod failures;
mod lifecycle;
mod open;
mod requests;
mod support;
mod turns;
