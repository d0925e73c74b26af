//! How bytes are to be moved.

use std::{sync::Arc, time::Duration};

use crate::{Counters, PipePool, Rate};

/// By which way bytes move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Through memory at first and wherever that measured faster; through a kernel pipe when much moves.
    #[default]
    Auto,
    /// Through a kernel pipe wherever the system can, from the first byte on.
    Splice,
    /// Through memory, always.
    Copy,
}

/// How a copy goes. The default moves as fast as it can and waits for ever.
///
/// ```
/// use std::{sync::Arc, time::Duration};
///
/// use blockferry_relay::{Counters, Options, PipePool, Rate, copy_bidirectional};
/// use tokio::net::TcpStream;
///
/// # async fn example(mut client: TcpStream, mut server: TcpStream) {
/// // All connections together: 16 pipes at most, and 10 MB a second to the servers.
/// let counters = Arc::new(Counters::default());
/// let mut options = Options::new();
/// options.pool = Some(PipePool::new(16));
/// options.rate = Some(Rate::new(10_000_000));
/// options.counters = Some(Arc::clone(&counters));
/// options.idle_timeout = Some(Duration::from_secs(300));
///
/// if let Err(error) = copy_bidirectional(&mut client, &mut server, &options).await {
///     println!("{error}; {} bytes were answered", error.totals.backward.total());
/// }
/// println!("{} bytes so far, of all connections", counters.totals().forward.total());
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// By which way.
    pub mode: Mode,
    /// Where pipes come from. `None` is one pool for each thread.
    pub pool: Option<PipePool>,
    /// Where is counted, beside the result.
    pub counters: Option<Arc<Counters>>,
    /// The most bytes a second from the first stream to the second, or from the reader to the writer. Those
    /// that share a rate share its bytes. `None` is no limit.
    pub rate: Option<Rate>,
    /// The same from the second stream to the first.
    pub rate_back: Option<Rate>,
    /// A connection on which nothing moved for so long, in either direction, ends with
    /// [`Cause::Idle`](crate::Cause::Idle). `None` is no limit.
    pub idle_timeout: Option<Duration>,
    /// When one direction has ended and nothing moved in the other one for so long, the connection ends with
    /// [`Cause::HalfClosed`](crate::Cause::HalfClosed). `None` is [`idle_timeout`](Self::idle_timeout).
    pub half_close_timeout: Option<Duration>,
}

impl Options {
    /// The default, as [`Default::default`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}
