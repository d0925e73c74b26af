//! `truncate`: each image cut off, or followed by zeroes.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, CopyFlags, DeviceInfo, Error,
    ErrorKind, Exports, Extent, FileRange, Mapping, Operation, Parameter, ParameterType, Payload,
    PipeBuffer, Result, Status, Values, WriteFlags, ZeroFlags, is_zero, push_merged, range_of,
    request_range,
};

use crate::{DeviceFilter, Effects, Filter, FilterKind, Filtered, Layer, each_device};

pub(crate) static TRUNCATE: FilterKind = FilterKind {
    name: "truncate",
    syntax: "truncate[:SIZE][,round-up=UNIT][,round-down=UNIT]",
    help: "The image with another size: cut off, or followed by zeroes",
    parameters: &[
        Parameter::new("size", ParameterType::Size, "The size, in bytes; as it is").first(),
        Parameter::new(
            "round-up",
            ParameterType::Size,
            "Makes that a multiple of this power of two, in bytes, by adding zeroes",
        ),
        Parameter::new(
            "round-down",
            ParameterType::Size,
            "Makes that a multiple of this power of two, in bytes, by leaving out what is more",
        ),
    ],
    effects: Effects {
        extents: "the source's; what follows it is a hole that reads as zeroes",
        mapping: "passed through; what follows the source is known to be zeroes",
        ..Effects::NONE
    },
    build: |values| {
        let filter = Truncate::from_values(values);
        filter.check()?;
        Ok(Arc::new(filter))
    },
};

/// Gives each image another size: [`size`](Self::size) first, then up, then down.
///
/// What is cut off cannot be reached. What follows the image reads as zeroes, and only zeroes can be written there:
/// a write of anything else fails with `NoSpace` and changes nothing, not even the part of it that lies in the
/// image. An image whose smallest block would be cut does not open (`InvalidInput`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Truncate {
    /// The size in bytes, `i64::MAX` at most; `None`: that of the image.
    pub size: Option<u64>,
    /// A power of two, in bytes. The size becomes the next multiple of it.
    pub round_up: Option<u64>,
    /// A power of two, in bytes. The size becomes the last multiple of it.
    pub round_down: Option<u64>,
}

impl Truncate {
    fn from_values(values: &Values) -> Self {
        Self {
            size: values.size("size"),
            round_up: values.size("round-up"),
            round_down: values.size("round-down"),
        }
    }

    fn check(&self) -> Result<(), String> {
        for (name, unit) in [("round-up", self.round_up), ("round-down", self.round_down)] {
            if let Some(unit) = unit.filter(|unit| !unit.is_power_of_two()) {
                return Err(format!("{name}={unit} is not a power of two"));
            }
        }
        Ok(())
    }

    /// The size that an image of `source` bytes gets; `None` where none can have that.
    fn size_of(&self, source: u64) -> Option<u64> {
        let mut size = self.size.unwrap_or(source);
        if let Some(unit) = self.round_up {
            size = size.checked_next_multiple_of(unit)?;
        }
        if let Some(unit) = self.round_down {
            size -= size % unit;
        }
        i64::try_from(size).is_ok().then_some(size)
    }

    fn wrap(&self, below: Arc<dyn BlockDevice>) -> Result<Filtered<Truncated>> {
        let info = below.info();
        let source = info.size;
        let Some(size) = self.size_of(source) else {
            let message = format!("no image can have the size that {source} bytes become");
            return Err(refused(message));
        };
        let minimum = u64::from(info.limits.minimum.max(1));
        if size < source && !size.is_multiple_of(minimum) {
            return Err(refused(format!(
                "{size} bytes would end inside a block of {minimum}: put the filter 'blocksize' behind this one"
            )));
        }
        let mut info = info.clone();
        info.size = size;
        info.capabilities -= Capabilities::RESIZE;
        if size > source {
            let is_known = |context: &Context| status_of_nothing(context).is_some();
            info.contexts.retain(is_known);
            if !info.knows_allocation() {
                info.contexts.push(Context::Allocation);
            }
        }
        Ok(Filtered::new(Truncated {
            below,
            source,
            info,
        }))
    }
}

fn refused(message: String) -> Error {
    Error::with_message(ErrorKind::InvalidInput, message).during(Operation::Open)
}

impl Filter for Truncate {
    fn kind(&self) -> &'static FilterKind {
        &TRUNCATE
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        self.check().map_err(refused)?;
        let filter = *self;
        Ok(each_device(TRUNCATE.name, below, move |below| {
            Box::pin(async move { Ok(Arc::new(filter.wrap(below)?) as Arc<dyn BlockDevice>) })
        }))
    }
}

/// A device with another size than the one below.
struct Truncated {
    below: Arc<dyn BlockDevice>,
    /// The size of the one below, in bytes.
    source: u64,
    info: DeviceInfo,
}

impl Truncated {
    /// What of a request the device below has, if the request is one of this device.
    fn inner(&self, operation: Operation, range: ByteRange) -> Result<ByteRange> {
        self.info.check(operation, range)?;
        Ok(self.in_source(range))
    }

    /// What the device below says, or all data where it is not to be asked and more than it has is known here.
    async fn extents_below(&self, inner: ByteRange, context: &Context) -> Result<Vec<Extent>> {
        let is_added =
            !self.below.info().contexts.contains(context) && self.info.contexts.contains(context);
        if !is_added {
            return self.below.extents(inner, context).await;
        }
        let status = Status::DATA;
        Ok(vec![Extent {
            range: inner,
            status,
        }])
    }

    fn in_source(&self, range: ByteRange) -> ByteRange {
        range.intersection(ByteRange::between(0, self.source))
    }

    /// What of `range` follows the device below.
    fn behind_source(&self, range: ByteRange) -> ByteRange {
        range.intersection(ByteRange::between(self.source, self.info.size))
    }
}

/// An error of a part of a request, told of all of it.
fn told(range: ByteRange) -> impl FnOnce(Error) -> Error {
    move |error| error.moved_to(range.start(), range.len())
}

/// The buffer with zeroes behind its end, `length` bytes in all.
fn followed_by_zeroes(mut buffer: Buffer, length: usize) -> Buffer {
    let head = buffer.len();
    if buffer.capacity() < length {
        let mut larger = Buffer::zeroed(length);
        larger[..head].copy_from_slice(&buffer);
        return larger;
    }
    buffer.set_len(length);
    buffer[head..].fill(0);
    buffer
}

/// What is known of zeroes that lie nowhere; `None` for a context of which that is not known.
fn status_of_nothing(context: &Context) -> Option<Status> {
    match context {
        Context::Allocation => Some(Status::HOLE_ZERO),
        // Allocated nowhere in the chain; never changed.
        Context::AllocationDepth | Context::DirtyBitmap(_) => Some(Status(0)),
        _ => None,
    }
}

impl DeviceFilter for Truncated {
    const PASSES: Capabilities = Capabilities::all();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            let inner = self.inner(Operation::Read, range)?;
            let length = buffer.len();
            buffer.set_len(inner.len() as usize);
            if !inner.is_empty() {
                let read = self.below.read(offset, buffer).await;
                buffer = read.map_err(told(range))?;
            }
            Ok(followed_by_zeroes(buffer, length))
        })
    }

    fn write(
        &self,
        offset: u64,
        mut data: Buffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            let inner = self.inner(Operation::Write, range)?;
            let (length, head) = (data.len(), inner.len() as usize);
            if !is_zero(&data[head..]) {
                let message = "only zeroes can be written past the end of the source";
                let error = Error::with_message(ErrorKind::NoSpace, message);
                return Err(told(range)(error.during(Operation::Write)));
            }
            data.set_len(head);
            if !inner.is_empty() {
                let written = self.below.write(offset, data, flags).await;
                data = written.map_err(told(range))?;
            }
            Ok(followed_by_zeroes(data, length))
        })
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        Box::pin(async move {
            let range = range_of(Operation::Read, offset, length as u64)?;
            if self.inner(Operation::Read, range)? == range {
                return self.below.read_piped(offset, length, pipe).await;
            }
            drop(pipe);
            let buffer = self.read(offset, Buffer::zeroed(length)).await?;
            Ok(Payload::Memory(buffer))
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
            if self.inner(Operation::Write, range)? == range {
                return self.below.write_piped(offset, data, flags).await;
            }
            let failed = |error: Error| told(range)(error.during(Operation::Write));
            let data = data.into_memory().map_err(failed)?;
            self.write(offset, data, flags).await.map(drop)
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
            if self.inner(Operation::Copy, range)? == range {
                return self.below.copy_from(offset, source, flags).await;
            }
            // Somebody has to see whether they are zeroes.
            let error = Error::new(ErrorKind::Unsupported).during(Operation::Copy);
            Err(told(range)(error))
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let inner = self.inner(Operation::Zero, range)?;
            if inner.is_empty() {
                return Ok(());
            }
            self.below.zero(inner, flags).await.map_err(told(range))
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let inner = self.inner(Operation::Trim, range)?;
            if inner.is_empty() {
                return Ok(());
            }
            self.below.trim(inner, flags).await.map_err(told(range))
        })
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let inner = self.inner(Operation::Cache, range)?;
            if inner.is_empty() {
                return Ok(());
            }
            self.below.cache(inner).await.map_err(told(range))
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            let inner = self.inner(Operation::Extents, range)?;
            let behind = self.behind_source(range);
            let mut list = Vec::new();
            if !inner.is_empty() {
                list = self
                    .extents_below(inner, context)
                    .await
                    .map_err(told(range))?;
                if list.last().map(|last| last.range.end()) != Some(inner.end()) {
                    // It says no more for now; what follows is to be asked for again.
                    return Ok(list);
                }
            }
            match status_of_nothing(context) {
                Some(status) => {
                    let range = behind;
                    push_merged(&mut list, Extent { range, status });
                }
                None if list.is_empty() && !range.is_empty() => {
                    let error = Error::new(ErrorKind::Unsupported).during(Operation::Extents);
                    return Err(told(range)(error));
                }
                None => {}
            }
            Ok(list)
        })
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        let inner = self.in_source(range.intersection(ByteRange::between(0, self.info.size)));
        if range.start() < self.source {
            return self.below.mapping(inner);
        }
        Mapping::Zero {
            length: self.behind_source(range).len(),
        }
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        let error = Error::new(ErrorKind::Unsupported).during(Operation::Resize);
        Box::pin(async move { Err(error.at(0, size)) })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        // What lies where the source ended is not to change under those who use this device.
        (below.info().size == self.source).then(|| Self {
            below,
            source: self.source,
            info: self.info.clone(),
        })
    }
}
