//! Real scripts, run by the shell.

mod requests;
mod support;
