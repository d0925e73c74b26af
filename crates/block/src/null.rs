//! The device that holds nothing: it reads as zeroes and swallows what is written.

use crate::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Extent, Mapping,
    Operation, PipeBuffer, Result, Status, WriteFlags, ZeroFlags,
    device::{check_allocation, range_of, request_range},
};

/// A device of zeroes that forgets every write: the fastest source and the fastest destination, for
/// measurements and dry runs. As a destination it takes any offset, whatever its size.
#[derive(Debug)]
pub struct NullDevice {
    info: DeviceInfo,
}

impl NullDevice {
    /// A device of `size` zero bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let mut info = DeviceInfo::new("null:", size);
        info.capabilities = Capabilities::WRITE
            | Capabilities::FLUSH
            | Capabilities::FUA
            | Capabilities::TRIM
            | Capabilities::ZERO
            | Capabilities::FAST_ZERO
            | Capabilities::MULTI_CONN
            | Capabilities::RESIZE
            | Capabilities::BORN_ZERO
            | Capabilities::SPLICE_WRITE
            | Capabilities::DISCARDS;
        info.contexts = vec![Context::Allocation];
        Self { info }
    }
}

impl BlockDevice for NullDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        buffer.fill(0);
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.info.check(Operation::Read, range)?;
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.info.check(Operation::Write, range)?;
            Ok(data)
        })
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        _: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = range_of(Operation::Write, offset, data.len() as u64)?;
            self.info.check(Operation::Write, range)?;
            data.discard();
            Ok(())
        })
    }

    fn zero(&self, range: ByteRange, _: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.info.check(Operation::Zero, range) })
    }

    fn trim(&self, range: ByteRange, _: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.info.check(Operation::Trim, range) })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            check_allocation(range, context)?;
            self.info.check(Operation::Extents, range)?;
            let whole = Extent {
                range,
                status: Status::HOLE_ZERO,
            };
            Ok(if range.is_empty() {
                Vec::new()
            } else {
                vec![whole]
            })
        })
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        let length = range
            .intersection(ByteRange::between(0, self.info.size))
            .len();
        Mapping::Zero { length }
    }

    fn resize(&self, _: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, PipePool};

    #[tokio::test]
    async fn it_reads_as_zeroes_to_its_end_and_no_further() {
        let device = NullDevice::new(100);
        let buffer = device
            .read(90, Buffer::from(&[7; 10][..]))
            .await
            .expect("in bounds");
        assert_eq!(*buffer, [0; 10]);
        let error = device
            .read(91, Buffer::zeroed(10))
            .await
            .expect_err("out of bounds");
        assert_eq!(error.kind(), ErrorKind::OutOfBounds);
        let error = device
            .read(u64::MAX, Buffer::zeroed(10))
            .await
            .expect_err("no offset");
        assert_eq!(error.kind(), ErrorKind::OutOfBounds);
    }

    #[tokio::test]
    async fn a_destination_of_size_zero_takes_everything() {
        let device = NullDevice::new(0);
        let end = ByteRange::new(1 << 60, 1 << 40).expect("valid");
        device.resize(1 << 61).await.expect("resized");
        device
            .write(1 << 60, Buffer::zeroed(512), WriteFlags::FUA)
            .await
            .expect("swallowed");
        device.zero(end, ZeroFlags::FAST).await.expect("zeroed");
        device
            .trim(end, WriteFlags::empty())
            .await
            .expect("trimmed");
        device.flush().await.expect("flushed");
    }

    #[tokio::test]
    async fn what_comes_in_a_pipe_is_swallowed_too() {
        let (device, pool) = (NullDevice::new(0), PipePool::new(1 << 16, 1));
        for offset in [0, 1 << 60] {
            let mut data = pool.take().expect("the pipe comes back");
            data.put(&[7; 10_000]).expect("room");
            let written = device.write_piped(offset, data, WriteFlags::empty());
            written.await.expect("swallowed");
        }
        let mut data = pool.take().expect("the pipe comes back");
        data.put(&[7; 10]).expect("room");
        let written = device.write_piped(u64::MAX, data, WriteFlags::empty());
        let error = written.await.expect_err("no offset");
        assert_eq!(error.kind(), ErrorKind::OutOfBounds);
    }

    #[tokio::test]
    async fn all_of_it_is_one_hole() {
        let device = NullDevice::new(1 << 40);
        let range = ByteRange::between(5, 1 << 40);
        let extents = device
            .extents(range, &Context::Allocation)
            .await
            .expect("an answer");
        assert_eq!(
            extents,
            [Extent {
                range,
                status: Status::HOLE_ZERO
            }]
        );
        let error = device
            .extents(range, &Context::AllocationDepth)
            .await
            .expect_err("an unknown context");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
