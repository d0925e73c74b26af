//! Reading ahead: whoever reads in order finds the next bytes in memory.
//!
//! A client that reads piece by piece and waits for each pays the source's latency for each. This filter sees
//! that reads follow each other, several such streams at a time, and asks the source for what comes next, in
//! several requests side by side. What streams are and how far ahead is read is in `state`, how
//! nothing old is ever used in `stock`.
//!
//! Only what was read since the last change of its range is ever used, and each byte once: this is no cache.

mod state;
mod stock;

use std::sync::{Arc, atomic::Ordering};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, CopyFlags, DeviceInfo, Exports,
    FileRange, Mapping, Operation, Parameter, ParameterType, Payload, PipeBuffer, Result, Values,
    WriteFlags, ZeroFlags, range_of, request_range,
};
use futures_util::future::try_join_all;
use tokio::runtime::Handle;

use self::stock::{Part, Reader, Stock};
use crate::{
    DeviceFilter, DeviceLayer, Effects, Filter, FilterKind, Filtered, Layer, Opened, PerExport,
};

pub(crate) static READ_AHEAD: FilterKind = FilterKind {
    name: "readahead",
    syntax: "readahead[:size=SIZE,requests=N,request-size=SIZE]",
    help: "What is read in order is asked for ahead of the client, several requests at a time",
    parameters: &[
        Parameter::new(
            "size",
            ParameterType::Size,
            "The most that is held of an export, in bytes",
        )
        .or("32M"),
        Parameter::new(
            "requests",
            ParameterType::Number,
            "How many requests ask ahead at the same time, at most",
        )
        .or("16"),
        Parameter::new(
            "request-size",
            ParameterType::Size,
            "The longest request that asks ahead, in bytes",
        )
        .or("1M"),
    ],
    effects: Effects {
        extents: "passed through",
        mapping: "passed through where the source has its bytes in a file, or none: nothing is read \
                  ahead there; hidden elsewhere",
        flush: "passed through",
        concurrency: "as the source's; writes drop what was read ahead of their range",
    },
    build: |values| ReadAhead::from_values(values).map(|filter| Arc::new(filter) as _),
};

/// The shortest that a request which asks ahead can be told to be, in bytes.
const SHORTEST: u64 = 4096;

/// Asks the source for what will be read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadAhead {
    /// The most that is held of an export, in bytes: what waits to be read, and what was asked for. Default: 32 MiB.
    pub size: u64,
    /// How many requests ask ahead at the same time, for all clients of an export together. Default: 16.
    pub requests: usize,
    /// The longest request that asks ahead, in bytes. Default: 1 MiB, or as much as the source takes.
    pub request_size: u32,
}

impl Default for ReadAhead {
    fn default() -> Self {
        Self {
            size: 32 << 20,
            requests: 16,
            request_size: 1 << 20,
        }
    }
}

impl ReadAhead {
    fn from_values(values: &Values) -> Result<Self, String> {
        let default = Self::default();
        let request_size = values.size("request-size");
        let filter = Self {
            size: values.size("size").unwrap_or(default.size),
            requests: values.number("requests").unwrap_or(default.requests),
            request_size: match request_size.map(u32::try_from) {
                None => default.request_size,
                Some(Ok(size)) if u64::from(size) >= SHORTEST && size <= 32 << 20 => size,
                Some(_) => return Err("request-size is from 4K to 32M".to_owned()),
            },
        };
        if filter.requests == 0 {
            return Err("requests is at least 1".to_owned());
        }
        if filter.size < u64::from(filter.request_size) {
            return Err("size is no less than request-size".to_owned());
        }
        Ok(filter)
    }
}

impl Filter for ReadAhead {
    fn kind(&self) -> &'static FilterKind {
        &READ_AHEAD
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let (options, runtime) = (*self, Handle::current());
        Ok(Arc::new(PerExport::new(Ahead { options, runtime }, below)))
    }
}

struct Ahead {
    options: ReadAhead,
    runtime: Handle,
}

impl DeviceLayer for Ahead {
    type Shared = Stock;

    fn name(&self) -> &'static str {
        READ_AHEAD.name
    }

    fn share(&self, _: &str) -> Result<Stock> {
        Ok(Stock::new(self.options, self.runtime.clone()))
    }

    fn open(&self, opened: Opened<Stock>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let device = ReadingAhead::new(opened.device, opened.shared);
            Ok(Arc::new(Filtered::new(device)) as Arc<dyn BlockDevice>)
        })
    }

    fn counts(&self, stock: &Stock) -> Vec<(&'static str, u64)> {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("hits", count(&stock.counts.hits)),
            ("misses", count(&stock.counts.misses)),
            ("source_calls", count(&stock.counts.source_calls)),
            ("dropped_bytes", stock.dropped()),
        ]
    }
}

/// A device whose reads are looked for in the stock first.
struct ReadingAhead {
    reader: Reader,
    /// Whether anything is gained by it: what lies in a file is as near as memory.
    active: bool,
}

impl ReadingAhead {
    fn new(below: Arc<dyn BlockDevice>, stock: Arc<Stock>) -> Self {
        let whole = ByteRange::between(0, below.info().size);
        Self {
            active: matches!(below.mapping(whole), Mapping::Opaque),
            reader: Reader::new(below, stock),
        }
    }

    async fn read_parts(
        &self,
        range: ByteRange,
        mut buffer: Buffer,
        parts: Vec<(ByteRange, Part)>,
    ) -> Result<Buffer> {
        let (places, parts): (Vec<_>, Vec<_>) = parts
            .into_iter()
            .map(|(part, from)| (part, self.part(part, from)))
            .unzip();
        for (part, bytes) in places.into_iter().zip(try_join_all(parts).await?) {
            let start = (part.start() - range.start()) as usize;
            buffer[start..start + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(buffer)
    }

    /// The bytes of `range`, which lies in one part.
    async fn part(&self, range: ByteRange, from: Part) -> Result<Found> {
        if let Part::Stock(place) = from
            && let Some(bytes) = place.wait().await
        {
            return Ok(Found {
                start: place.index_of(range),
                length: range.len() as usize,
                bytes,
            });
        }
        self.reader.count_source_call();
        let buffer = Buffer::zeroed(range.len() as usize);
        let bytes = self.below().read(range.start(), buffer).await?;
        Ok(Found {
            start: 0,
            length: bytes.len(),
            bytes: Arc::new(bytes),
        })
    }
}

/// A part of a buffer.
struct Found {
    bytes: Arc<Buffer>,
    start: usize,
    length: usize,
}

impl std::ops::Deref for Found {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl DeviceFilter for ReadingAhead {
    const PASSES: Capabilities = Capabilities::all();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        self.reader.device()
    }

    fn info(&self) -> DeviceInfo {
        let mut info = self.below().info().clone();
        if self.active {
            info.capabilities -= Capabilities::SPLICE_READ;
        }
        info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        if !self.active || buffer.is_empty() {
            return self.below().read(offset, buffer);
        }
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            let mut parts = self.reader.look_up(range);
            if let [(_, only)] = &mut parts[..] {
                if let Part::Stock(place) = only
                    && let Some(bytes) = place.wait().await
                {
                    let start = place.index_of(range);
                    buffer.copy_from_slice(&bytes[start..start + range.len() as usize]);
                    return Ok(buffer);
                }
                self.reader.count_source_call();
                return self.below().read(offset, buffer).await;
            }
            let read = self.read_parts(range, buffer, parts).await;
            read.map_err(|error| error.moved_to(range.start(), range.len()))
        })
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        if !self.active {
            return self.below().read_piped(offset, length, pipe);
        }
        drop(pipe);
        Box::pin(async move {
            let buffer = self.read(offset, Buffer::zeroed(length)).await?;
            Ok(Payload::Memory(buffer))
        })
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        match self.active {
            true => Mapping::Opaque,
            false => self.below().mapping(range),
        }
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            let change = self.reader.begin_change(range);
            change.end(self.below().write(offset, data, flags).await)
        })
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = range_of(Operation::Write, offset, data.len() as u64)?;
            let change = self.reader.begin_change(range);
            change.end(self.below().write_piped(offset, data, flags).await)
        })
    }

    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = range_of(Operation::Copy, offset, source.range().len())?;
            let change = self.reader.begin_change(range);
            let copied = self.below().copy_from(offset, source, flags).await;
            change.end(copied)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let change = self.reader.begin_change(range);
            change.end(self.below().zero(range, flags).await)
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let change = self.reader.begin_change(range);
            change.end(self.below().trim(range, flags).await)
        })
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let change = self.reader.begin_change(ByteRange::between(0, u64::MAX));
            let resized = self.below().resize(size).await;
            if resized.is_ok() {
                self.reader.set_size(size);
            }
            change.end(resized)
        })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        Some(Self::new(below, self.reader.stock()))
    }
}

#[cfg(test)]
mod tests;
