//! Streams in memory.

use std::sync::{Arc, Mutex};

use blockferry_block::{
    BoxFuture, Buffer, ByteSink, ByteSource, Error, ErrorKind, PipeBuffer, Result,
};

/// A stream of these bytes that ends, fails, or never ends.
pub(crate) struct Input {
    name: Arc<str>,
    bytes: Vec<u8>,
    position: usize,
    end: End,
    ended: bool,
}

pub(crate) enum End {
    Ends,
    Fails(ErrorKind),
    Hangs,
}

impl Input {
    pub(crate) fn new(bytes: Vec<u8>, end: End) -> Self {
        Self {
            name: Arc::from("input"),
            bytes,
            position: 0,
            end,
            ended: false,
        }
    }
}

impl ByteSource for Input {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn read(&mut self, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            assert!(!self.ended, "a terminal would have to be ended twice");
            let rest = &self.bytes[self.position..];
            let length = rest.len().min(buffer.len());
            if length < buffer.len() {
                match self.end {
                    End::Ends => {}
                    End::Fails(kind) => return Err(Error::new(kind)),
                    End::Hangs => std::future::pending().await,
                }
            }
            self.ended = length < buffer.len();
            buffer[..length].copy_from_slice(&rest[..length]);
            buffer.set_len(length);
            self.position += length;
            Ok(buffer)
        })
    }
}

/// Keeps what is written, up to `room` bytes: then its reader is gone.
#[derive(Clone)]
pub(crate) struct Output {
    name: Arc<str>,
    room: usize,
    splices: bool,
    state: Arc<Mutex<Written>>,
}

#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    flushed: bool,
    /// How many payloads came in a pipe.
    piped: usize,
}

impl Output {
    pub(crate) fn new(room: usize) -> Self {
        Self {
            name: Arc::from("output"),
            room,
            splices: false,
            state: Arc::default(),
        }
    }

    /// One that takes what is in pipes.
    pub(crate) fn splicing() -> Self {
        Self {
            splices: true,
            ..Self::new(usize::MAX)
        }
    }

    pub(crate) fn piped(&self) -> usize {
        self.state.lock().expect("not poisoned").piped
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state.lock().expect("not poisoned").bytes.clone()
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.state.lock().expect("not poisoned").flushed
    }
}

impl ByteSink for Output {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn write(&mut self, data: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut state = self.state.lock().expect("not poisoned");
            if state.bytes.len() + data.len() > self.room {
                return Err(Error::new(ErrorKind::BrokenPipe));
            }
            state.bytes.extend_from_slice(&data);
            Ok(data)
        })
    }

    fn can_splice(&self) -> bool {
        self.splices
    }

    fn write_piped(&mut self, data: PipeBuffer) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            assert!(self.splices, "splicing was not offered");
            self.state.lock().expect("not poisoned").piped += 1;
            self.write(data.into_memory()?).await.map(drop)
        })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.state.lock().expect("not poisoned").flushed = true;
            Ok(())
        })
    }
}
