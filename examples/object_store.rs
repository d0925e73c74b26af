//! A source of one's own: `object_store IMAGE SOCKET` puts IMAGE into a store of objects, shows where its data is, and
//! serves it from there until a client has come and gone.
//!
//! The store is a map in memory; what talks to a real one has the same shape. The guide's chapter on writing a source
//! explains it.

#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::{
    collections::BTreeMap,
    env,
    error::Error as StdError,
    fs,
    os::unix::net::UnixListener,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use blockferry::{
    block::{
        Access, BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo,
        Extent, Operation, RangeLock, Result, SingleExport, Status, WriteFlags, ZeroFlags,
        check_allocation, push_merged, range_of, request_range,
    },
    copy::{Control, CopyOptions, Destination, Source, copy},
    endpoint::{OpenOptions, open_device},
    server::{Server, ServerOptions},
};

// ANCHOR: store
/// The size of an object in bytes; the last one of a disk may be shorter.
const OBJECT: u64 = 4 << 20;

/// Objects by their number. What is not there is all zeroes.
#[derive(Default)]
struct Store(Mutex<BTreeMap<u64, Arc<[u8]>>>);

impl Store {
    async fn get(&self, number: u64) -> Result<Option<Arc<[u8]>>> {
        Ok(self.objects().get(&number).cloned())
    }

    async fn put(&self, number: u64, object: Arc<[u8]>) -> Result<()> {
        self.objects().insert(number, object);
        Ok(())
    }

    async fn delete(&self, number: u64) -> Result<()> {
        self.objects().remove(&number);
        Ok(())
    }

    fn has(&self, number: u64) -> bool {
        self.objects().contains_key(&number)
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<[u8]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
// ANCHOR_END: store

// ANCHOR: device
/// A disk in a store of objects.
struct ObjectDisk {
    info: DeviceInfo,
    store: Store,
    /// Who changes a part of an object has a turn on all of it.
    turns: RangeLock,
}

impl ObjectDisk {
    fn new(size: u64) -> Self {
        let mut info = DeviceInfo::new("objects", size);
        info.limits.preferred = OBJECT as u32;
        info.capabilities = Capabilities::WRITE
            | Capabilities::FLUSH
            | Capabilities::TRIM
            | Capabilities::ZERO
            | Capabilities::MULTI_CONN
            | Capabilities::BORN_ZERO;
        info.contexts = vec![Context::Allocation];
        Self {
            info,
            store: Store::default(),
            turns: RangeLock::default(),
        }
    }

    /// All of the object that `piece` lies in.
    fn object_of(&self, piece: ByteRange) -> ByteRange {
        let start = piece.start() - piece.start() % OBJECT;
        ByteRange::between(start, self.info.size.min(start + OBJECT))
    }

    /// Changes a part of an object, or all of it.
    async fn change(&self, piece: ByteRange, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let (whole, number) = (self.object_of(piece), piece.start() / OBJECT);
        let _turn = self.turns.lock(whole).await;
        let mut object = vec![0; whole.len() as usize];
        // What is replaced as a whole need not be fetched.
        if piece != whole
            && let Some(old) = self.store.get(number).await?
        {
            object.copy_from_slice(&old);
        }
        let start = (piece.start() - whole.start()) as usize;
        change(&mut object[start..start + piece.len() as usize]);
        self.store.put(number, object.into()).await
    }

    /// Removes the objects that lie wholly in `range`, and zeroes the parts of others where `exact`.
    async fn clear(&self, range: ByteRange, exact: bool) -> Result<()> {
        for piece in range.pieces(OBJECT) {
            let (whole, number) = (self.object_of(piece), piece.start() / OBJECT);
            if piece == whole {
                let _turn = self.turns.lock(whole).await;
                self.store.delete(number).await?;
            } else if exact && self.store.has(number) {
                self.change(piece, |bytes| bytes.fill(0)).await?;
            }
        }
        Ok(())
    }
}

impl BlockDevice for ObjectDisk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.info.check(Operation::Read, range)?;
            for piece in range.pieces(OBJECT) {
                let to = (piece.start() - offset) as usize;
                let part = &mut buffer[to..to + piece.len() as usize];
                match self.store.get(piece.start() / OBJECT).await? {
                    Some(object) => {
                        let from = (piece.start() % OBJECT) as usize;
                        part.copy_from_slice(&object[from..from + part.len()]);
                    }
                    None => part.fill(0),
                }
            }
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.info.check(Operation::Write, range)?;
            for piece in range.pieces(OBJECT) {
                let from = (piece.start() - offset) as usize;
                let part = &data[from..from + piece.len() as usize];
                self.change(piece, |bytes| bytes.copy_from_slice(part))
                    .await?;
            }
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Zero, range)?;
            if !flags.contains(ZeroFlags::NO_HOLE) {
                return self.clear(range, true).await;
            }
            for piece in range.pieces(OBJECT) {
                self.change(piece, |bytes| bytes.fill(0)).await?;
            }
            Ok(())
        })
    }

    fn trim(&self, range: ByteRange, _: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Trim, range)?;
            self.clear(range, false).await
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            check_allocation(range, context)?;
            self.info.check(Operation::Extents, range)?;
            let mut extents = Vec::new();
            for piece in range.pieces(OBJECT) {
                let status = match self.store.has(piece.start() / OBJECT) {
                    true => Status::DATA,
                    false => Status::HOLE_ZERO,
                };
                let extent = Extent {
                    range: piece,
                    status,
                };
                push_merged(&mut extents, extent);
            }
            Ok(extents)
        })
    }
}
// ANCHOR_END: device

// ANCHOR: main
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn StdError>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [image, socket] = &arguments[..] else {
        return Err("usage: object_store IMAGE SOCKET".into());
    };
    let image = open_device(&image.parse()?, Access::ReadOnly, &OpenOptions::default()).await?;
    let size = image.device.info().size;
    let disk = Arc::new(ObjectDisk::new(size));

    // Copied,
    let mut options = CopyOptions::default();
    options.request_size = Some(OBJECT as u32);
    let source = Source::Device(image.device);
    let destination = Destination::Device(disk.clone());
    copy(source, destination, &options, &Control::new(), &()).await?;
    image.connection.close().await?;
    println!("{size} bytes in {} objects", disk.store.objects().len());

    // mapped,
    let whole = range_of(Operation::Extents, 0, size)?;
    for extent in disk.extents(whole, &Context::Allocation).await? {
        let (start, length) = (extent.range.start(), extent.range.len());
        let is_hole = extent.status.is_hole();
        println!(
            "{start:>10} {length:>10} {}",
            if is_hole { "hole" } else { "data" }
        );
    }

    // and served.
    let mut options = ServerOptions::default();
    options.once = true;
    let server = Server::new(Arc::new(SingleExport::new(disk)), options);
    let listener = UnixListener::bind(socket)?;
    println!("serving it at {socket}");
    server.serve(vec![listener.into()]).await?;
    fs::remove_file(socket)?;
    Ok(())
}
// ANCHOR_END: main

#[cfg(test)]
mod tests {
    use blockferry::block::testing::check_device;

    use super::*;

    /// Whatever is done to it, it answers as a row of bytes would.
    #[tokio::test]
    async fn it_is_a_disk() {
        for seed in 0..10 {
            check_device(&ObjectDisk::new(OBJECT * 2 + 4096), seed, 100).await;
        }
    }

    #[tokio::test]
    async fn what_is_zeroed_as_a_whole_is_gone() {
        let disk = ObjectDisk::new(OBJECT * 3);
        let data = Buffer::from(&[7; 100][..]);
        let written = disk.write(OBJECT - 50, data, WriteFlags::empty()).await;
        written.expect("it is written");
        assert_eq!(disk.store.objects().len(), 2);
        let first = ByteRange::between(0, OBJECT + 1);
        let zeroed = disk.zero(first, ZeroFlags::empty()).await;
        zeroed.expect("it is zeroed");
        assert!(!disk.store.has(0) && disk.store.has(1));
    }
}
