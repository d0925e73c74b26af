//! Several handles to one disk, each of which may fail by itself.

use std::{
    collections::BTreeSet,
    future,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Extent, Operation, Payload, PipeBuffer, Result, WriteFlags, ZeroFlags,
};

use crate::disk::Disk;

/// Says whether an operation of a handle fails.
pub(crate) type Fault = dyn Fn(usize, Operation, ByteRange) -> Option<ErrorKind> + Send + Sync;

/// How much of a piped payload gets through before a fault, in bytes.
const BEFORE_FAULT: usize = 32 << 10;

/// One of the handles to a disk.
pub(crate) struct Handle {
    id: usize,
    pub(crate) disk: Arc<Disk>,
    pub(crate) info: DeviceInfo,
    pub(crate) board: Arc<Board>,
}

/// What all handles to one disk have in common.
pub(crate) struct Board {
    pub(crate) opened: AtomicUsize,
    /// What the opening of another handle is answered with.
    opening: Opening,
    fault: Box<Fault>,
    log: Mutex<Vec<Call>>,
    /// Whether piped reads come in memory all the same.
    spills: bool,
}

/// A call of one of the handles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) handle: usize,
    pub(crate) operation: Operation,
    pub(crate) range: ByteRange,
    /// Whether the payload was to go through a pipe.
    pub(crate) piped: bool,
    /// What it failed with.
    pub(crate) fault: Option<ErrorKind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    Granted,
    Refused,
    Silent,
}

impl Handle {
    pub(crate) fn new(disk: Disk, opening: Opening, fault: Box<Fault>) -> Arc<Self> {
        Arc::new(Self::single(disk, opening, fault))
    }

    pub(crate) fn sound(disk: Disk) -> Arc<Self> {
        Self::new(disk, Opening::Granted, Box::new(|_, _, _| None))
    }

    /// One that reads into pipes and writes from them.
    pub(crate) fn piping(disk: Disk, fault: Box<Fault>) -> Arc<Self> {
        let disk = disk.with(Capabilities::SPLICE_READ | Capabilities::SPLICE_WRITE);
        Self::new(disk, Opening::Granted, fault)
    }

    /// One that says it reads into pipes, and always brings memory.
    pub(crate) fn spilling(disk: Disk) -> Arc<Self> {
        let disk = disk.with(Capabilities::SPLICE_READ);
        let mut handle = Self::single(disk, Opening::Granted, Box::new(|_, _, _| None));
        let board = Arc::get_mut(&mut handle.board).expect("not shared yet");
        board.spills = true;
        Arc::new(handle)
    }

    fn single(disk: Disk, opening: Opening, fault: Box<Fault>) -> Self {
        let mut info = disk.info().clone();
        info.capabilities |= Capabilities::MULTI_CONN;
        Self {
            id: 0,
            info,
            disk: disk.into_arc(),
            board: Arc::new(Board {
                opened: AtomicUsize::new(1),
                opening,
                fault,
                log: Mutex::default(),
                spills: false,
            }),
        }
    }

    fn begin(&self, operation: Operation, range: ByteRange, piped: bool) -> Result<()> {
        let fault = (self.board.fault)(self.id, operation, range);
        self.log().push(Call {
            handle: self.id,
            operation,
            range,
            piped,
            fault,
        });
        match fault {
            Some(kind) => Err(Error::new(kind).during(operation)),
            None => Ok(()),
        }
    }

    fn log(&self) -> MutexGuard<'_, Vec<Call>> {
        self.board.log.lock().expect("not poisoned")
    }

    /// All calls of all handles, in their order.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.log().clone()
    }

    /// The calls of `operation`.
    pub(crate) fn calls_of(&self, operation: Operation) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.operation == operation);
        calls
    }

    /// The handles that did `operation`.
    pub(crate) fn users(&self, operation: Operation) -> BTreeSet<usize> {
        let calls = self.calls_of(operation);
        calls.iter().map(|call| call.handle).collect()
    }

    pub(crate) fn ranges(&self, operation: Operation) -> Vec<(usize, ByteRange)> {
        let calls = self.calls_of(operation);
        calls.iter().map(|call| (call.handle, call.range)).collect()
    }
}

fn at(offset: u64, length: usize) -> ByteRange {
    ByteRange::between(offset, offset + length as u64)
}

impl BlockDevice for Handle {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let buffer = self.disk.read(offset, buffer).await?;
            self.begin(Operation::Read, at(offset, buffer.len()), false)?;
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.begin(Operation::Write, at(offset, data.len()), false)?;
            self.disk.write(offset, data, flags).await
        })
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        mut pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        Box::pin(async move {
            let buffer = self.disk.read(offset, Buffer::zeroed(length)).await?;
            let first = BEFORE_FAULT.min(length);
            assert!(pipe.is_empty(), "what is in it belongs to another payload");
            assert_eq!(pipe.put(&buffer[..first])?, first);
            self.begin(Operation::Read, at(offset, length), true)?;
            if self.board.spills {
                return Ok(Payload::Memory(buffer));
            }
            assert_eq!(pipe.put(&buffer[first..])?, length - first);
            Ok(Payload::Piped(pipe))
        })
    }

    fn write_piped(
        &self,
        offset: u64,
        mut data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let begun = self.begin(Operation::Write, at(offset, data.len()), true);
            if let Err(error) = begun {
                let least = BEFORE_FAULT.max(self.info.limits.minimum as usize);
                let mut first = Buffer::zeroed(least.min(data.len()));
                data.take(&mut first)?;
                self.disk.write(offset, first, flags).await?;
                return Err(error);
            }
            let data = data.into_memory()?;
            self.disk.write(offset, data, flags).await.map(drop)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.begin(Operation::Zero, range, false)?;
            self.disk.zero(range, flags).await
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.begin(Operation::Flush, ByteRange::default(), false)?;
            self.disk.flush().await
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            self.begin(Operation::Extents, range, false)?;
            self.disk.extents(range, context).await
        })
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.begin(Operation::Resize, ByteRange::between(0, size), false)?;
            self.disk.resize(size).await
        })
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let id = self.board.opened.fetch_add(1, Relaxed);
            match self.board.opening {
                Opening::Refused => return Err(Error::new(ErrorKind::Refused)),
                Opening::Silent => future::pending().await,
                Opening::Granted => {}
            }
            let other = Self {
                id,
                disk: Arc::clone(&self.disk),
                info: self.info.clone(),
                board: Arc::clone(&self.board),
            };
            Ok(Arc::new(other) as Arc<dyn BlockDevice>)
        })
    }
}

/// A fault that makes every call of `handle` fail from its `after`th `operation` on.
pub(crate) fn death(handle: usize, operation: Operation, after: usize) -> Box<Fault> {
    let count = AtomicUsize::new(0);
    Box::new(move |id, op, _| {
        if id != handle {
            return None;
        }
        let dead = match op == operation {
            true => count.fetch_add(1, Relaxed) >= after,
            false => count.load(Relaxed) > after,
        };
        dead.then_some(ErrorKind::ConnectionLost)
    })
}
