//! The real binary against real peers and against peers that misbehave.

#![allow(clippy::print_stdout, reason = "a skipped test says why")]

mod support;

mod bad_clients;
mod bad_destinations;
mod bad_servers;
mod checkpoint;
mod checksum;
mod children;
mod compare;
mod connections;
mod copy;
mod destination_files;
mod dropin_nbdcopy;
mod dropin_nbdcopy_blkhash;
mod dropin_nbdcopy_failures;
mod dropin_nbdcopy_voice;
mod dropin_nbddump;
mod dropin_nbdinfo;
mod dropin_nbdkit;
mod dropin_nbdkit_filters;
mod dropin_nbdkit_plugins;
mod dropin_qemu_nbd;
mod examples;
mod failing_requests;
mod filters;
mod filters_extents;
mod filters_flow;
mod filters_packed;
mod filters_parts;
mod filters_watching;
mod in_order;
mod info;
mod interrupts;
mod lost_connections;
mod preflight;
mod progress;
mod rate;
mod restarts;
mod serve;
mod serve_life;
mod serve_proxy;
mod serve_script;
mod serve_tls;
mod sources;
mod streams;
mod timeouts;
mod tls;
mod tls_clients;
mod usage;
mod verify;
