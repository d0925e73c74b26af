//! The devices that a new image goes into: the file of the image, and that of its data where it has one.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Capabilities, CopyFlags, Error, ErrorKind, FileRange,
    Operation, PipeBuffer, Result, WriteFlags, ZeroFlags,
};

/// How many zeroes are written at a time, in bytes.
const ZEROES: u64 = 1 << 20;

/// A device that is filled cluster by cluster. Offsets are those of clusters unless something else is said.
pub(crate) struct Below {
    device: Arc<dyn BlockDevice>,
    cluster_size: u64,
    /// It reads as zeroes wherever nothing was written.
    is_fresh: AtomicBool,
    /// It ends where the virtual disk does, and not at the end of a cluster.
    is_data_file: bool,
}

impl Below {
    /// Takes `device` for clusters of `cluster_size` bytes: for the image, or for its data alone.
    ///
    /// # Errors
    /// `ReadOnly`, and `InvalidInput` where its blocks are longer than clusters.
    pub(crate) fn new(
        device: Arc<dyn BlockDevice>,
        cluster_size: u64,
        is_data_file: bool,
    ) -> Result<Self> {
        let info = device.info();
        if !info.can(Capabilities::WRITE) {
            return Err(Error::new(ErrorKind::ReadOnly).during(Operation::Open));
        }
        let block = u64::from(info.limits.minimum);
        if block > cluster_size {
            let message = format!(
                "it takes blocks of {block} bytes, and clusters of {cluster_size} bytes are smaller"
            );
            let error = Error::with_message(ErrorKind::InvalidInput, message);
            return Err(error.during(Operation::Open));
        }
        let is_fresh = AtomicBool::new(info.can(Capabilities::BORN_ZERO));
        Ok(Self {
            device,
            cluster_size,
            is_fresh,
            is_data_file,
        })
    }

    /// Makes sure that what lies at the beginning is no image from now on.
    pub(crate) async fn destroy_header(&mut self) -> Result<()> {
        let info = self.device.info();
        if self.is_fresh() || info.size == 0 {
            *self.is_fresh.get_mut() |= info.can(Capabilities::RESIZE);
            return Ok(());
        }
        if info.can(Capabilities::RESIZE) {
            self.device.resize(0).await?;
            *self.is_fresh.get_mut() = true;
            return Ok(());
        }
        let first = self.cluster_size.min(info.size);
        self.write_zeroes(ByteRange::between(0, first)).await?;
        self.flush().await
    }

    /// The device itself.
    pub(crate) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Whether it can do that.
    pub(crate) fn can(&self, capabilities: Capabilities) -> bool {
        self.device.info().can(capabilities)
    }

    /// Whether it reads as zeroes wherever nothing was written.
    pub(crate) fn is_fresh(&self) -> bool {
        self.is_fresh.load(Ordering::Acquire)
    }

    /// Something may be where nothing was written.
    pub(crate) fn no_longer_fresh(&self) {
        self.is_fresh.store(false, Ordering::Release);
    }

    /// What its offsets and lengths are multiples of.
    pub(crate) fn block(&self) -> u64 {
        u64::from(self.device.info().limits.minimum.max(1))
    }

    fn longest(&self) -> u64 {
        let maximum = u64::from(self.device.info().limits.maximum);
        (maximum - maximum % self.block()).max(self.block())
    }

    /// Fails where it has no room for `end` bytes and cannot grow.
    pub(crate) fn check_room(&self, end: u64) -> Result<()> {
        let info = self.device.info();
        if info.can(Capabilities::RESIZE) || end <= info.size {
            return Ok(());
        }
        let message = format!(
            "the image does not fit: it takes {end} bytes and there are {}",
            info.size
        );
        Err(Error::with_message(ErrorKind::NoSpace, message))
    }

    /// Writes data that begins with a cluster. The rest of the last cluster reads as zeroes then.
    pub(crate) async fn write(&self, offset: u64, data: Buffer) -> Result<Buffer> {
        let length = data.len() as u64;
        let unit = self.padding_at(offset + length);
        if length.is_multiple_of(unit) {
            return self.write_blocks(offset, data).await;
        }
        let whole = length - length % unit;
        let mut last = Buffer::zeroed(unit as usize);
        last[..(length - whole) as usize].copy_from_slice(&data[whole as usize..]);
        let mut data = data;
        if whole > 0 {
            data.set_len(whole as usize);
            data = self.write_blocks(offset, data).await?;
            data.set_len(length as usize);
        }
        self.write_blocks(offset + whole, last).await?;
        Ok(data)
    }

    /// What the last of what is written is a multiple of, when it ends at `end`.
    fn padding_at(&self, end: u64) -> u64 {
        match self.is_data_file {
            true if end == self.device.info().size => 1,
            true => self.block(),
            false if self.is_fresh() => self.block(),
            false => self.cluster_size,
        }
    }

    /// The clusters that begin in `range`, which begins with one: as much of them as there is.
    pub(crate) fn whole(&self, range: ByteRange) -> ByteRange {
        let unit = match self.is_data_file {
            true => self.padding_at(range.end()),
            false => self.cluster_size,
        };
        ByteRange::between(range.start(), range.end().next_multiple_of(unit))
    }

    /// Whether `range` can be written without anything behind it.
    pub(crate) fn takes_as_it_is(&self, range: ByteRange) -> bool {
        range.end().is_multiple_of(self.padding_at(range.end()))
    }

    /// Zeroes the last cluster that `range` touches, which it does not fill.
    pub(crate) async fn clear_last(&self, range: ByteRange) -> Result<()> {
        let start = range.end() - range.end() % self.cluster_size;
        let last = ByteRange::between(start, range.end());
        self.write_zeroes(self.whole(last)).await
    }

    /// Writes whole blocks, in as many requests as it takes.
    pub(crate) async fn write_blocks(&self, offset: u64, data: Buffer) -> Result<Buffer> {
        let longest = self.longest();
        let none = WriteFlags::empty();
        if data.len() as u64 <= longest {
            return self.device.write(offset, data, none).await;
        }
        let range = ByteRange::between(offset, offset + data.len() as u64);
        for piece in range.pieces(longest) {
            let at = (piece.start() - offset) as usize;
            let part = Buffer::from(&data[at..at + piece.len() as usize]);
            self.device.write(piece.start(), part, none).await?;
        }
        Ok(data)
    }

    /// Fills `buffer` from any offset on.
    pub(crate) async fn read(&self, offset: u64, buffer: Buffer) -> Result<Buffer> {
        let (block, longest) = (self.block(), self.longest());
        let length = buffer.len() as u64;
        let is_aligned = offset.is_multiple_of(block) && length.is_multiple_of(block);
        if is_aligned && length <= longest {
            return self.device.read(offset, buffer).await;
        }
        let mut buffer = buffer;
        let range = ByteRange::between(offset, offset + length);
        let end = range.end().next_multiple_of(block);
        for piece in ByteRange::between(offset - offset % block, end).pieces(longest) {
            let read = Buffer::zeroed(piece.len() as usize);
            let read = self.device.read(piece.start(), read).await?;
            let wanted = piece.intersection(range);
            let from = (wanted.start() - piece.start()) as usize;
            let to = (wanted.start() - offset) as usize;
            let count = wanted.len() as usize;
            buffer[to..to + count].copy_from_slice(&read[from..from + count]);
        }
        Ok(buffer)
    }

    /// Makes `range`, whole blocks, read as zeroes: by a request where there is such a thing, otherwise by writing.
    pub(crate) async fn zero(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if self.can(Capabilities::ZERO) {
            match self.device.zero(range, flags).await {
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                done => return done,
            }
        }
        self.write_zeroes(range).await
    }

    /// Writes zeroes to `range`, whole blocks.
    pub(crate) async fn write_zeroes(&self, range: ByteRange) -> Result<()> {
        let longest = self.longest().min(ZEROES.max(self.block()));
        let mut zeroes = Buffer::zeroed(longest.min(range.len()) as usize);
        for piece in range.pieces(longest) {
            if piece.len() as usize > zeroes.capacity() {
                zeroes = Buffer::zeroed(piece.len() as usize);
            }
            zeroes.set_len(piece.len() as usize);
            let none = WriteFlags::empty();
            zeroes = self.device.write(piece.start(), zeroes, none).await?;
        }
        Ok(())
    }

    pub(crate) async fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> Result<()> {
        self.device.copy_from(offset, source, flags).await
    }

    pub(crate) async fn write_piped(&self, offset: u64, data: PipeBuffer) -> Result<()> {
        let none = WriteFlags::empty();
        self.device.write_piped(offset, data, none).await
    }

    pub(crate) async fn flush(&self) -> Result<()> {
        self.device.flush().await
    }

    /// Makes it `size` bytes long where it can change its size, and checks that there is room where it cannot.
    pub(crate) async fn set_size(&self, size: u64) -> Result<()> {
        if self.can(Capabilities::RESIZE) {
            return self.device.resize(size).await;
        }
        self.check_room(size)
    }
}
