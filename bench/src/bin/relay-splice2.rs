//! `relay-splice2 FROM TO`: connections forwarded by `copy_bidirectional` of the crate tokio-splice2, in a task for each.

#![forbid(unsafe_code)]

use anyhow::Result;
use blockferry_bench::{Address, Pair, serve};
use clap::Parser;
use tokio_splice2::{AsyncReadFd, AsyncWriteFd, IsNotFile, copy_bidirectional};

/// Forwards connections as the crate tokio-splice2 does.
#[derive(Parser)]
struct Arguments {
    /// Where clients connect to.
    from: Address,
    /// Where they are connected to.
    to: Address,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { from, to } = Arguments::parse();
    serve(&from, &to, |pair| async move {
        match pair {
            Pair::TcpTcp(client, target) => forward(client, target).await,
            Pair::TcpUnix(client, target) => forward(client, target).await,
            Pair::UnixTcp(client, target) => forward(client, target).await,
            Pair::UnixUnix(client, target) => forward(client, target).await,
        }
    })
    .await
}

async fn forward<C, T>(mut client: C, mut target: T)
where
    C: AsyncReadFd + AsyncWriteFd + IsNotFile + Unpin,
    T: AsyncReadFd + AsyncWriteFd + IsNotFile + Unpin,
{
    // A connection that was cut is the two sides' business.
    let _ = copy_bidirectional(&mut client, &mut target).await;
}
