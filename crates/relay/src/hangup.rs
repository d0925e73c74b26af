//! Whether a peer that has ended its own direction is still there to listen.
//!
//! Whoever has read to the end of a socket learns nothing more from reading it, and writes nothing while the other
//! side is silent. The socket's hang-up is the only sign. It is waited for through a descriptor of its own: what tokio
//! thinks of that one is nobody's business, so that clearing it cannot hide room to write from the connection.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    task::{Context, Poll, ready},
};

use blockferry_sys::socket::is_hung_up;
use tokio::{net::UnixStream, runtime::Handle};

use crate::stream::Stream;

/// Waits for a socket's peer to go. Whatever kind of socket it is: only its readiness is waited for.
#[derive(Debug)]
pub(crate) struct Hangup(UnixStream);

impl Hangup {
    /// `None` where there are no descriptors left: then a timeout must do.
    pub(crate) fn watch(socket: BorrowedFd<'_>) -> Option<Self> {
        // Whoever polls from another executor has no runtime to register with.
        Handle::try_current().ok()?;
        let twin = socket.try_clone_to_owned().ok()?;
        UnixStream::from_std(twin.into()).map(Self).ok()
    }

    /// Ends when the peer is gone: it broke the connection off, or closed both of its directions.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = Stream::Unix(&self.0);
        loop {
            // A hang-up counts as room to write.
            ready!(stream.poll_write_ready(context))?;
            let looked = stream.try_write(|| match is_hung_up(stream.as_fd())? {
                true => Ok(()),
                false => Err(io::ErrorKind::WouldBlock.into()),
            });
            match looked {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                looked => return Poll::Ready(looked),
            }
        }
    }
}
