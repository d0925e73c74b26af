//! Clients that use an export and want nothing of it: `idle-clients SOCKET COUNT` connects COUNT times, says what
//! a client says until it may send requests, and leaves again. What the server holds for them shows in its memory.

#![forbid(unsafe_code)]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

/// Connects several times and keeps silent.
#[derive(Parser)]
struct Arguments {
    /// Where the server listens.
    socket: PathBuf,
    /// How many connections.
    count: usize,
}

/// `NBD_OPT_EXPORT_NAME` of the default export: the shortest way into transmission, which every server knows.
const EXPORT_NAME: &[u8] = b"IHAVEOPT\0\0\0\x01\0\0\0\0";

/// `NBD_CMD_READ` of 4 KiB at offset 0 (section "Request message").
const READ: &[u8] = b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\x10\0";

/// `NBD_CMD_DISC`.
const DISCONNECT: &[u8] = b"\x25\x60\x95\x13\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn main() -> Result<()> {
    let Arguments { socket, count } = Arguments::parse();
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = UnixStream::connect(&socket).context("cannot connect")?;
        let mut greeting = [0; 18];
        client.read_exact(&mut greeting)?;
        ensure!(greeting.starts_with(b"NBDMAGICIHAVEOPT"), "no NBD server");
        // Fixed newstyle, without the 124 zeroes.
        client.write_all(&[0, 0, 0, 3])?;
        client.write_all(EXPORT_NAME)?;
        client.read_exact(&mut [0; 10])?;
        // One request: what a server takes for it, it may keep.
        client.write_all(READ)?;
        client.read_exact(&mut [0; 16 + 4096])?;
        clients.push(client);
    }
    thread::sleep(Duration::from_millis(500));
    for client in &mut clients {
        client.write_all(DISCONNECT)?;
    }
    Ok(())
}
