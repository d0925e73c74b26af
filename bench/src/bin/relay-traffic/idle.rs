//! Connections that were used once and are used no more: what the relay keeps for them shows in its memory.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use blockferry_bench::Address;
use blockferry_sys::raise_descriptor_limit;

use crate::link::Links;

/// Descriptors beside those of the connections.
const SPARE: u64 = 64;

/// Opens `connections` connections, with something sent each way through each, and holds them for a while.
pub(crate) fn run(from: &Address, to: &Address, connections: u32, hold: Duration) -> Result<()> {
    raise_descriptor_limit(2 * u64::from(connections) + SPARE)
        .context("two descriptors for each connection")?;
    let mut links = Links::new(from, to)?;
    let mut opened = Vec::new();
    for number in 1..=connections {
        let opening = || format!("connection {number} of {connections}");
        let mut link = links.open().with_context(opening)?;
        link.target.write_all(b"x").with_context(opening)?;
        link.client.read_exact(&mut [0]).with_context(opening)?;
        opened.push(link);
    }
    thread::sleep(hold);
    Ok(())
}
