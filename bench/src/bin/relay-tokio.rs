//! `relay-tokio FROM TO`: what one writes with tokio to forward connections, `copy_bidirectional` in a task for each.

#![forbid(unsafe_code)]

use anyhow::Result;
use blockferry_bench::{Address, Pair, serve};
use clap::Parser;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional, copy_bidirectional_with_sizes};

/// Forwards connections as tokio does.
#[derive(Clone, Parser)]
struct Arguments {
    /// Where clients connect to.
    from: Address,
    /// Where they are connected to.
    to: Address,
    /// The bytes of each buffer. [default: tokio's]
    #[arg(long)]
    buffer: Option<usize>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { from, to, buffer } = Arguments::parse();
    serve(&from, &to, move |pair| async move {
        match pair {
            Pair::TcpTcp(client, target) => forward(client, target, buffer).await,
            Pair::TcpUnix(client, target) => forward(client, target, buffer).await,
            Pair::UnixTcp(client, target) => forward(client, target, buffer).await,
            Pair::UnixUnix(client, target) => forward(client, target, buffer).await,
        }
    })
    .await
}

async fn forward<C, T>(mut client: C, mut target: T, buffer: Option<usize>)
where
    C: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    // A connection that was cut is the two sides' business.
    let _ = match buffer {
        Some(size) => copy_bidirectional_with_sizes(&mut client, &mut target, size, size).await,
        None => copy_bidirectional(&mut client, &mut target).await,
    };
}
