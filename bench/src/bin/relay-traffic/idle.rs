//! Connections that were used once and are used no more: what the relay keeps for them shows in its memory.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use blockferry_bench::Address;
use blockferry_sys::allow_most_descriptors;

use crate::link::Links;

/// Opens `connections` connections, with something sent each way through each, and holds them for a while.
pub(crate) fn run(from: &Address, to: &Address, connections: u32, hold: Duration) -> Result<()> {
    let most = allow_most_descriptors().unwrap_or(u64::MAX);
    ensure!(
        2 * u64::from(connections) < most,
        "{connections} connections take two descriptors each, and there may be {most}"
    );
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
