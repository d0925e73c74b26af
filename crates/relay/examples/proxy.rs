//! A TCP proxy: `cargo run --example proxy -- 127.0.0.1:8080 192.0.2.1:80`.
//!
//! Each connection says on standard error how it ended and how many bytes went which way; every ten seconds all of
//! them together do.

use std::{env, io, sync::Arc, time::Duration};

use blockferry_relay::{Counters, Options, PipePool, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main]
#[expect(clippy::print_stderr, reason = "it is what an example shows")]
async fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let (Some(listen), Some(target)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("which LISTEN and which TARGET address?"));
    };

    let counters = Arc::new(Counters::default());
    let mut options = Options::new();
    options.pool = Some(PipePool::new(128));
    options.counters = Some(Arc::clone(&counters));
    options.idle_timeout = Some(Duration::from_secs(600));

    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            eprintln!("in all: {:?}", counters.totals());
        }
    });

    let listener = TcpListener::bind(listen).await?;
    loop {
        let (mut client, peer) = listener.accept().await?;
        let (target, options) = (target.clone(), options.clone());
        tokio::spawn(async move {
            let mut server = match TcpStream::connect(&target).await {
                Ok(server) => server,
                Err(error) => return eprintln!("{peer}: cannot reach {target}: {error}"),
            };
            match copy_bidirectional(&mut client, &mut server, &options).await {
                Ok(totals) => eprintln!("{peer}: {totals:?}"),
                Err(error) => eprintln!("{peer}: {error}: {:?}", error.totals),
            }
        });
    }
}
