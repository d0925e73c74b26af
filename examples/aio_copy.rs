//! Copies a whole image to standard output with many requests in flight: `aio_copy URI >OUTPUT`.
//!
//! The server may answer in any order; `buffered` hands the answers on in the order of the requests.

use std::{env, error::Error, io::stdout, os::fd::AsFd};

use blockferry::{
    block::{BlockDevice, BufferPool, ByteRange, ByteSink, FdSink},
    client::{ConnectOptions, Pool},
};
use futures_util::{StreamExt, TryStreamExt, stream};

/// The length of a request in bytes.
const REQUEST: usize = 256 << 10;

/// How many requests are in flight together, and through how many connections.
const IN_FLIGHT: usize = 8;
const CONNECTIONS: usize = 4;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let uri = env::args().nth(1).ok_or("usage: aio_copy URI >OUTPUT")?;
    let disk = Pool::connect(&uri.parse()?, &ConnectOptions::default(), CONNECTIONS).await?;
    let mut output = FdSink::new(stdout().as_fd().try_clone_to_owned()?, "standard output");

    let buffers = BufferPool::new(REQUEST, IN_FLIGHT);
    let image = ByteRange::between(0, disk.info().size);
    let mut pieces = stream::iter(image.pieces(REQUEST as u64))
        .map(|piece| disk.read(piece.start(), buffers.take(piece.len() as usize)))
        .buffered(IN_FLIGHT);
    while let Some(data) = pieces.try_next().await? {
        output.write(data).await?;
    }
    output.flush().await?;
    disk.disconnect().await;
    Ok(())
}
