//! A qcow2 file that is computed in advance and read from front to back: for pipes and streams.
//!
//! Where everything lies follows from which clusters of the source have data. Tables are made when they are read;
//! data is read from the source, and mapped there, so that it goes on without a copy where the source's would.

mod layout;
mod runs;

use std::{fmt, sync::Arc};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, DeviceInfo, Error, ErrorKind, Mapping,
    Operation, Payload, PipeBuffer, Result, range_of, read_exact_at, request_range,
};

use self::layout::{Layout, Piece};
use super::{CreateOptions, Preallocation};

/// The bytes of the qcow2 file that holds what another device does. It is read only.
///
/// The extents of the source are asked for once, when it is made: what the source called zero then is not in the
/// file. Metadata comes first, then data in the order of the disk, so the file can be streamed.
pub struct LaidOut {
    info: DeviceInfo,
    source: Arc<dyn BlockDevice>,
    layout: Arc<Layout>,
}

impl LaidOut {
    /// Computes the file that holds `source`. The size in `options` is not looked at: it is that of the source.
    ///
    /// # Errors
    /// `InvalidInput` for options that make no sense, and for what is not known before all of the image is:
    /// compressed clusters, data in another file, what differs from a backing file.
    pub async fn new(source: Arc<dyn BlockDevice>, options: &CreateOptions) -> Result<Self> {
        let checked = check(source.as_ref(), options);
        checked.map_err(|error| error.during(Operation::Open))?;
        let clusters = match options.preallocation {
            Preallocation::Off => runs::of_source(source.as_ref(), options.cluster_size).await,
            _ => runs::whole(source.info().size, options.cluster_size),
        };
        let layout = Layout::new(options, source.info().size, clusters);
        let layout = layout.map_err(|error| error.during(Operation::Open))?;
        Ok(Self::of(source, Arc::new(layout)))
    }

    fn of(source: Arc<dyn BlockDevice>, layout: Arc<Layout>) -> Self {
        let from = source.info();
        let mut info = DeviceInfo::new(Arc::clone(&from.name), layout.size());
        info.limits = from.limits;
        info.rotational = from.rotational;
        info.capabilities = from.capabilities
            & (Capabilities::SPLICE_READ | Capabilities::REOPEN | Capabilities::MULTI_CONN);
        Self {
            info,
            source,
            layout,
        }
    }

    async fn read_range(&self, range: ByteRange, buffer: Buffer) -> Result<Buffer> {
        if let Some(guest) = self.only_source(range) {
            return self.source.read(guest.start(), buffer).await;
        }
        let mut buffer = buffer;
        for piece in self.layout.pieces(range) {
            let (place, inside) = match &piece {
                Piece::Table { place, .. } => (*place, *place),
                Piece::Data { place, guest } => {
                    let disk = ByteRange::between(0, self.source.info().size);
                    (*place, guest.intersection(disk))
                }
            };
            let at = (place.start() - range.start()) as usize;
            let bytes = &mut buffer[at..at + place.len() as usize];
            match piece {
                Piece::Table { number, .. } => self.layout.fill(number, place, bytes),
                Piece::Data { .. } => {
                    // What lies behind the end of the disk in its last cluster is zero.
                    let (data, padding) = bytes.split_at_mut(inside.len() as usize);
                    padding.fill(0);
                    if !inside.is_empty() {
                        let read = read_exact_at(self.source.as_ref(), inside).await?;
                        data.copy_from_slice(&read);
                    }
                }
            }
        }
        Ok(buffer)
    }

    /// The range of the source that `range` is, if it is one.
    fn only_source(&self, range: ByteRange) -> Option<ByteRange> {
        let (guest, length) = self.layout.guest_at(range)?;
        let is_all = length == range.len() && guest.end() <= self.source.info().size;
        (is_all && !range.is_empty()).then_some(guest)
    }

    fn failed(error: Error, range: ByteRange) -> Error {
        error
            .during(Operation::Read)
            .moved_to(range.start(), range.len())
    }
}

/// Refuses what cannot be laid out.
fn check(source: &dyn BlockDevice, options: &CreateOptions) -> Result<()> {
    options.check()?;
    let refusals = [
        (options.compress, "compressed clusters"),
        (options.data_file.is_some(), "a data file"),
        (options.backing.is_some(), "a backing file"),
    ];
    if let Some((_, what)) = refusals.iter().find(|(is_wanted, _)| *is_wanted) {
        let message =
            format!("an image with {what} cannot be computed in advance: write it to a file first");
        return Err(Error::with_message(ErrorKind::InvalidInput, message));
    }
    let block = source.info().limits.minimum;
    if block > options.cluster_size {
        let message = format!(
            "the source has blocks of {block} bytes, and clusters of {} bytes are smaller",
            options.cluster_size
        );
        return Err(Error::with_message(ErrorKind::InvalidInput, message));
    }
    Ok(())
}

impl BlockDevice for LaidOut {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.info.check(Operation::Read, range)?;
            let read = self.read_range(range, buffer).await;
            read.map_err(|error| Self::failed(error, range))
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
            self.info.check(Operation::Read, range)?;
            let read = match self.only_source(range) {
                Some(guest) => self.source.read_piped(guest.start(), length, pipe).await,
                None => {
                    drop(pipe);
                    let read = self.read_range(range, Buffer::zeroed(length)).await;
                    read.map(Payload::Memory)
                }
            };
            read.map_err(|error| Self::failed(error, range))
        })
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        let range = range.intersection(ByteRange::between(0, self.info.size));
        let Some((guest, _)) = self.layout.guest_at(range) else {
            return Mapping::Opaque;
        };
        let disk = ByteRange::between(0, self.source.info().size);
        match guest.intersection(disk) {
            // What lies behind the end of the disk lies nowhere.
            nothing if nothing.is_empty() => Mapping::Opaque,
            guest => self.source.mapping(guest),
        }
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let source = self.source.reopen().await?;
            let again = Self::of(source, Arc::clone(&self.layout));
            Ok(Arc::new(again) as Arc<dyn BlockDevice>)
        })
    }
}

impl fmt::Debug for LaidOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaidOut({}, {} bytes)", self.info.name, self.info.size)
    }
}
