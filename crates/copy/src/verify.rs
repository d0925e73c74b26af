//! Whether a destination holds what was written to it.
//!
//! It is read back as a copy to nowhere reads it: through several connections, again where one is lost, and
//! not where it knows of holes. While the source was read a sum was made of each 16 MiB of it
//! ([`SpanSums`]); the same sums are made of what comes back.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Extent, NullDevice, Operation, Result,
};

use crate::{
    Control, CopyError, CopyOptions, Destination, Event, Interest, Observer, Request, RequestKind,
    Side, Source, copy::move_image, digest::SpanSums, plan::Plan,
};

/// What was written to a destination.
pub(crate) struct Written {
    /// A handle to the destination.
    pub(crate) device: Arc<dyn BlockDevice>,
    /// The size of the image in bytes.
    pub(crate) size: u64,
    /// The sums of the image, as it was read from the source.
    pub(crate) sums: SpanSums,
    /// The length of the blocks that they were made of, in bytes.
    pub(crate) sum_block: Option<u32>,
}

impl Written {
    /// Reads it back and compares.
    pub(crate) async fn verify(
        &self,
        options: &CopyOptions,
        control: &Control,
        observer: &dyn Observer,
    ) -> Result<(), CopyError> {
        self.forget_cached();
        let name = Arc::clone(&self.device.info().name);
        let image = Image::new(Arc::clone(&self.device), self.size);
        let source = Source::Device(Arc::new(image));
        let nowhere: Arc<dyn BlockDevice> = Arc::new(NullDevice::new(0));
        let nowhere = Destination::Device(nowhere);
        let options = CopyOptions {
            connections: options.connections,
            requests: options.requests,
            request_size: options.request_size,
            queue_size: options.queue_size,
            retries: options.retries,
            ..CopyOptions::default()
        };
        // All that goes wrong is the destination's fault.
        let theirs = |mut error: CopyError| {
            if error.side != Side::Cancelled {
                error.side = Side::Destination;
            }
            error
        };
        let plan = Plan::with_sums(&source, &nowhere, &options, self.sum_block).map_err(theirs)?;
        let observer = Verifying {
            observer,
            size: self.size,
            done: AtomicU64::new(0),
        };
        observer.tell();
        let read = move_image(source, nowhere, &plan, &options, control, &observer);
        let read = read.await.map_err(theirs)?;
        let sums = read.sums.unwrap_or_default();
        let Some(span) = self.sums.first_difference(&sums) else {
            return Ok(());
        };
        let span = span.intersection(ByteRange::between(0, self.size));
        let message = format!(
            "the destination differs from what was written to it in the {} bytes at offset {}",
            span.len(),
            span.start()
        );
        let error = Error::with_message(ErrorKind::Mismatch, message);
        let error = error.during(Operation::Read).at_offset(span.start());
        Err(CopyError::new(Side::Destination, error.on(&name)))
    }

    /// What lies in a file of this machine is to come from the medium, not from memory.
    fn forget_cached(&self) {
        let whole = ByteRange::between(0, self.size);
        if let Ok(Some(file)) = self.device.mapping(whole).to_file() {
            file.drop_cached();
        }
    }
}

/// Tells of what is read back.
struct Verifying<'a> {
    observer: &'a dyn Observer,
    size: u64,
    done: AtomicU64,
}

impl Verifying<'_> {
    fn tell(&self) {
        self.observer.event(Event::Verifying {
            done: self.done.load(Ordering::Relaxed),
            size: self.size,
        });
    }
}

impl Observer for Verifying<'_> {
    fn event(&self, event: Event) {
        match event {
            Event::Progress(progress) => {
                self.done.store(progress.done, Ordering::Relaxed);
                self.tell();
            }
            Event::Warning(_)
            | Event::Request(Request {
                kind: RequestKind::Read,
                ..
            }) => self.observer.event(event),
            // What is the source of reading back is the destination of the copy.
            Event::Handles {
                side: Side::Source,
                live,
            } => self.observer.event(Event::Handles {
                side: Side::Destination,
                live,
            }),
            _ => {}
        }
    }

    fn interest(&self) -> Interest {
        self.observer.interest()
    }
}

/// The part of a device that is the image, whatever lies behind it, and whatever size the device said it had
/// when it was opened.
struct Image {
    device: Arc<dyn BlockDevice>,
    info: DeviceInfo,
}

impl Image {
    fn new(device: Arc<dyn BlockDevice>, size: u64) -> Self {
        let mut info = device.info().clone();
        info.size = size;
        info.capabilities &= Capabilities::MULTI_CONN | Capabilities::REOPEN;
        Self { device, info }
    }

    /// The range that can be asked of the device instead of `range`: the image may end within a block.
    fn blocks(&self, range: ByteRange) -> ByteRange {
        let device = self.device.info();
        let end = range
            .end()
            .next_multiple_of(u64::from(device.limits.minimum));
        // One that takes any size ends where the image does.
        let size = match device.can(Capabilities::RESIZE) {
            true => self.info.size,
            false => device.size,
        };
        ByteRange::between(range.start(), end.min(size))
    }
}

impl BlockDevice for Image {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let length = buffer.len() as u64;
        let blocks = self.blocks(ByteRange::between(offset, offset.saturating_add(length)));
        if blocks.len() == length {
            return self.device.read(offset, buffer);
        }
        Box::pin(async move {
            let mut buffer = buffer;
            // At most a request and a block.
            let blocks = Buffer::zeroed(blocks.len() as usize);
            let blocks = self.device.read(offset, blocks).await?;
            let wanted = blocks.get(..buffer.len());
            let wanted = wanted.ok_or_else(|| Error::new(ErrorKind::UnexpectedEnd))?;
            buffer.copy_from_slice(wanted);
            Ok(buffer)
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        let blocks = self.blocks(range);
        Box::pin(async move {
            let mut extents = self.device.extents(blocks, context).await?;
            for extent in &mut extents {
                extent.range = extent.range.intersection(range);
            }
            if blocks != range {
                extents.retain(|extent| !extent.range.is_empty());
            }
            Ok(extents)
        })
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let device = self.device.reopen().await?;
            Ok(Arc::new(Self::new(device, self.info.size)) as Arc<dyn BlockDevice>)
        })
    }
}
