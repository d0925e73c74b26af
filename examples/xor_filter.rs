//! A filter of one's own: `xor_filter KEY IMAGE SOCKET` serves IMAGE through it, until the last client has gone.
//!
//! Each byte is XORed with KEY on its way, both ways. The guide's chapter on writing a filter explains it.

#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::{
    env,
    error::Error as StdError,
    ffi::OsStr,
    fs,
    os::unix::net::UnixListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use blockferry::{
    block::{
        Access, BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo,
        Error, ErrorKind, Exports, Extent, Operation, Parameter, ParameterType, Result,
        SingleExport, Status, WriteFlags, ZeroFlags,
    },
    endpoint::{OpenOptions, open_device},
    filter::{
        Chain, DeviceFilter, DeviceLayer, Effects, ExitLast, Filter, FilterKind, Filtered, Layer,
        NamedFilter, Opened, PerExport,
    },
    server::{Server, ServerOptions},
};

// ANCHOR: device
/// A device whose bytes are those of the one below, each XORed with the key.
struct XorDevice {
    below: Arc<dyn BlockDevice>,
    key: u8,
    /// How many bytes were changed, through all handles of the export.
    changed: Arc<AtomicU64>,
}

impl XorDevice {
    fn change(&self, bytes: &mut [u8]) {
        for byte in &mut *bytes {
            *byte ^= self.key;
        }
        let length = bytes.len() as u64;
        self.changed.fetch_add(length, Ordering::Relaxed);
    }
}

impl DeviceFilter for XorDevice {
    // Nothing may go around `read` and `write`: no pipe, no mapping. Another connection may be opened.
    const PASSES: Capabilities = Capabilities::REOPEN;

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        let mut info = self.below.info().clone();
        // Zeroes below are no zeroes here, and zeroes here are none below.
        info.capabilities -= Capabilities::ZERO | Capabilities::FAST_ZERO | Capabilities::BORN_ZERO;
        info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let mut buffer = self.below.read(offset, buffer).await?;
            self.change(&mut buffer);
            Ok(buffer)
        })
    }

    fn write(
        &self,
        offset: u64,
        mut data: Buffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.change(&mut data);
            let mut written = self.below.write(offset, data, flags).await?;
            // Who lent it gets it back as it was.
            written.iter_mut().for_each(|byte| *byte ^= self.key);
            Ok(written)
        })
    }

    fn zero(&self, range: ByteRange, _: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        let error = Error::new(ErrorKind::Unsupported)
            .during(Operation::Zero)
            .at(range.start(), range.len());
        Box::pin(async move { Err(error) })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            let mut extents = self.below.extents(range, context).await?;
            if *context == Context::Allocation {
                for extent in &mut extents {
                    // A hole is still a hole, but it does not read as zeroes.
                    extent.status = Status(extent.status.0 & Status::HOLE.0);
                }
            }
            Ok(extents)
        })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        Some(Self {
            below,
            key: self.key,
            changed: Arc::clone(&self.changed),
        })
    }
}
// ANCHOR_END: device

// ANCHOR: layer
/// The filter with its parameter, and what puts it around each device that is opened.
#[derive(Clone, Copy, Debug)]
struct Xor {
    key: u8,
}

impl DeviceLayer for Xor {
    type Shared = AtomicU64;

    fn name(&self) -> &'static str {
        XOR.name
    }

    fn share(&self, _export: &str) -> Result<AtomicU64> {
        Ok(AtomicU64::new(0))
    }

    fn open(&self, opened: Opened<AtomicU64>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        let device = XorDevice {
            below: opened.device,
            key: self.key,
            changed: opened.shared,
        };
        Box::pin(async move { Ok(Arc::new(Filtered::new(device)) as Arc<dyn BlockDevice>) })
    }

    fn counts(&self, changed: &AtomicU64) -> Vec<(&'static str, u64)> {
        vec![("bytes_changed", changed.load(Ordering::Relaxed))]
    }
}
// ANCHOR_END: layer

// ANCHOR: row
/// What the filter is called, what it takes, and what it does to what passes through it.
static XOR: FilterKind = FilterKind {
    name: "xor",
    syntax: "xor:KEY",
    help: "Each byte is XORed with a key",
    parameters: &[
        Parameter::new("key", ParameterType::Number, "The key, from 0 to 255")
            .first()
            .required(),
    ],
    effects: Effects {
        extents: "the source's, but nothing is known to be zero",
        mapping: "none: bytes change on their way",
        ..Effects::NONE
    },
    build: |values| {
        let key = values.number("key").ok_or("the key is from 0 to 255")?;
        Ok(Arc::new(Xor { key }))
    },
};

impl Filter for Xor {
    fn kind(&self) -> &'static FilterKind {
        &XOR
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(PerExport::new(*self, below)))
    }
}
// ANCHOR_END: row

// ANCHOR: main
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn StdError>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [key, image, socket] = &arguments[..] else {
        return Err("usage: xor_filter KEY IMAGE SOCKET".into());
    };
    let opened = open_device(&image.parse()?, Access::ReadWrite, &OpenOptions::default()).await?;

    // The first one is nearest to the client.
    let filters = [
        NamedFilter::new(ExitLast::default()),
        NamedFilter::of(&XOR, OsStr::new(key))?,
    ];
    let chain = Chain::new(&filters, Arc::new(SingleExport::new(opened.device)))?;
    let server = Server::new(chain.exports(), ServerOptions::default());
    let listener = UnixListener::bind(socket)?;
    println!("serving {image} through {}", filters[1]);
    server.serve(vec![listener.into()]).await?;

    fs::remove_file(socket)?;
    for counters in chain.counters() {
        println!("{}: {:?}", counters.filter, counters.counts);
    }
    opened.connection.close().await?;
    Ok(())
}
// ANCHOR_END: main

#[cfg(test)]
mod tests {
    use blockferry::block::{MemoryDevice, testing::check_device};

    use super::*;

    fn xor(key: u8, below: Arc<dyn BlockDevice>) -> Filtered<XorDevice> {
        Filtered::new(XorDevice {
            below,
            key,
            changed: Arc::default(),
        })
    }

    // ANCHOR: test
    /// Whatever is done to it, it answers as a row of bytes would.
    #[tokio::test]
    async fn it_is_a_disk() {
        for seed in 0..20 {
            let device = xor(0x5a, Arc::new(MemoryDevice::new(300_000)));
            check_device(&device, seed, 200).await;
        }
    }
    // ANCHOR_END: test

    #[tokio::test]
    async fn bytes_below_are_others_and_holes_are_no_zeroes() {
        let memory = Arc::new(MemoryDevice::new(1 << 20));
        let device = xor(0xff, memory.clone());
        let data = Buffer::from(&[1_u8, 2, 3][..]);
        let written = device.write(0, data, WriteFlags::empty()).await;
        written.expect("it is written");
        assert_eq!(memory.contents()[..3], [0xfe, 0xfd, 0xfc]);
        let whole = ByteRange::between(0, 1 << 20);
        let extents = device.extents(whole, &Context::Allocation).await;
        let extents = extents.expect("an answer");
        assert!(extents.iter().all(|extent| !extent.status.is_zero()));
    }
}
