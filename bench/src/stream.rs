//! Blocking streams of both kinds, for programs whose cost must not be what is measured.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::Address;

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP, with `TCP_NODELAY`.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

/// Something that listens.
#[derive(Debug)]
pub enum Listener {
    /// At a port.
    Tcp(TcpListener),
    /// At a path.
    Unix(UnixListener),
}

impl Stream {
    /// Connects to `address`.
    ///
    /// # Errors
    /// What connecting failed with.
    pub fn connect(address: &Address) -> Result<Self> {
        let stream = match address {
            Address::Tcp(at) => TcpStream::connect(at).and_then(Self::from_tcp),
            Address::Unix(path) => UnixStream::connect(path).map(Self::Unix),
        };
        stream.with_context(|| format!("cannot connect to {address}"))
    }

    fn from_tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    /// Says to the other side that nothing more will come.
    ///
    /// # Errors
    /// As `shutdown(2)`.
    pub fn finish(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// How long a read may wait; `None`: for ever.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(patience),
            Self::Unix(stream) => stream.set_read_timeout(patience),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Listener {
    /// Listens at `address`. A socket that was left at a path is replaced.
    ///
    /// # Errors
    /// What listening failed with.
    pub fn bind(address: &Address) -> Result<Self> {
        let listener = match address {
            Address::Tcp(at) => TcpListener::bind(at).map(Self::Tcp),
            Address::Unix(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => UnixListener::bind(path).map(Self::Unix),
            },
        };
        listener.with_context(|| format!("cannot listen at {address}"))
    }

    /// The next connection.
    ///
    /// # Errors
    /// What accepting failed with.
    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => Stream::from_tcp(listener.accept()?.0),
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept()?.0)),
        }
    }
}
