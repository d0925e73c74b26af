//! What the two ends are, found out at run time, so that anything may be an end.

use std::{
    any::Any,
    io,
    os::fd::{AsFd, BorrowedFd},
    task::{Context, Poll},
};

use tokio::{
    fs::File,
    io::Interest,
    net::{TcpStream, UnixStream, tcp, unix},
};

/// What an end is, as far as it matters for the way that bytes take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Unix,
    Pipe,
    File,
    /// Something that only its own implementation can read or write.
    Other,
}

/// An end whose descriptor the kernel can splice, and whose readiness tokio knows.
#[derive(Clone, Copy)]
pub(crate) enum Stream<'a> {
    Tcp(&'a TcpStream),
    Unix(&'a UnixStream),
    Receiver(&'a unix::pipe::Receiver),
    Sender(&'a unix::pipe::Sender),
}

impl<'a> Stream<'a> {
    /// What `reader` is, if it can be spliced from.
    pub(crate) fn of_reader<R: 'static>(reader: &'a R) -> Option<Self> {
        let reader: &dyn Any = reader;
        if let Some(half) = reader.downcast_ref::<tcp::OwnedReadHalf>() {
            return Some(Self::Tcp(half.as_ref()));
        }
        if let Some(half) = reader.downcast_ref::<unix::OwnedReadHalf>() {
            return Some(Self::Unix(half.as_ref()));
        }
        if let Some(receiver) = reader.downcast_ref() {
            return Some(Self::Receiver(receiver));
        }
        Self::of_socket(reader)
    }

    /// What `writer` is, if it can be spliced to.
    pub(crate) fn of_writer<W: 'static>(writer: &'a W) -> Option<Self> {
        let writer: &dyn Any = writer;
        if let Some(half) = writer.downcast_ref::<tcp::OwnedWriteHalf>() {
            return Some(Self::Tcp(half.as_ref()));
        }
        if let Some(half) = writer.downcast_ref::<unix::OwnedWriteHalf>() {
            return Some(Self::Unix(half.as_ref()));
        }
        if let Some(sender) = writer.downcast_ref() {
            return Some(Self::Sender(sender));
        }
        Self::of_socket(writer)
    }

    fn of_socket(end: &'a dyn Any) -> Option<Self> {
        if let Some(stream) = end.downcast_ref() {
            return Some(Self::Tcp(stream));
        }
        end.downcast_ref().map(Self::Unix)
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Tcp(_) => Kind::Tcp,
            Self::Unix(_) => Kind::Unix,
            Self::Receiver(_) | Self::Sender(_) => Kind::Pipe,
        }
    }

    pub(crate) fn poll_read_ready(self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(context),
            Self::Unix(stream) => stream.poll_read_ready(context),
            Self::Receiver(receiver) => receiver.poll_read_ready(context),
            Self::Sender(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    pub(crate) fn poll_write_ready(self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(context),
            Self::Unix(stream) => stream.poll_write_ready(context),
            Self::Sender(sender) => sender.poll_write_ready(context),
            Self::Receiver(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Does `read` if the end is thought to have something, and believes it when it says that it would block.
    pub(crate) fn try_read<T>(self, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.try_io(Interest::READABLE, read),
            Self::Unix(stream) => stream.try_io(Interest::READABLE, read),
            Self::Receiver(receiver) => receiver.try_io(read),
            Self::Sender(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Does `write` if the end is thought to have room, and believes it when it says that it would block.
    pub(crate) fn try_write<T>(self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.try_io(Interest::WRITABLE, write),
            Self::Unix(stream) => stream.try_io(Interest::WRITABLE, write),
            Self::Sender(sender) => sender.try_io(write),
            Self::Receiver(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Lets what is written leave at once. Whatever else a socket says to that, it works without.
    pub(crate) fn set_nodelay(self) {
        if let Self::Tcp(stream) = self {
            let _ = stream.set_nodelay(true);
        }
    }
}

impl<'a> Stream<'a> {
    /// Its descriptor.
    pub(crate) fn into_fd(self) -> BorrowedFd<'a> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
            Self::Receiver(receiver) => receiver.as_fd(),
            Self::Sender(sender) => sender.as_fd(),
        }
    }
}

impl AsFd for Stream<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.into_fd()
    }
}

/// What `reader` is.
pub(crate) fn kind_of_reader<R: 'static>(reader: &R) -> Kind {
    match Stream::of_reader(reader) {
        Some(stream) => stream.kind(),
        None if is_file(reader) => Kind::File,
        None => Kind::Other,
    }
}

/// What `writer` is.
pub(crate) fn kind_of_writer<W: 'static>(writer: &W) -> Kind {
    match Stream::of_writer(writer) {
        Some(stream) => stream.kind(),
        None if is_file(writer) => Kind::File,
        None => Kind::Other,
    }
}

fn is_file<T: 'static>(end: &T) -> bool {
    (end as &dyn Any).is::<File>()
}
