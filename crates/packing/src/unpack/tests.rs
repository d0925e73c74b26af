use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, ByteSource, ErrorKind, MemoryDevice, Operation,
    Result,
    testing::{Fault, FaultyDevice, Rule},
};
use liblzma::stream::{Check, MtStreamBuilder};
use proptest::prelude::*;

use super::*;

/// Bytes as disks have them: zeroes, text, and noise.
pub(super) fn image(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 40_000);
    let mut state = 1_u64;
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005);
        state = state.wrapping_add(1_442_695_040_888_963_407);
        match state >> 62 {
            0 => bytes.resize(bytes.len() + 30_000, 0),
            1 => bytes.extend_from_slice(format!("line {state}\n").repeat(99).as_bytes()),
            _ => bytes
                .extend((0..500_u64).map(|at| (state >> (at % 40)) as u8 ^ ((at * at) >> 3) as u8)),
        }
    }
    bytes.truncate(length);
    bytes
}

/// One member, as the usual program makes it.
pub(super) fn packed(packing: Packing, image: &[u8]) -> Vec<u8> {
    match packing {
        Packing::Gzip => {
            let level = flate2::Compression::fast();
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), level);
            packer.write_all(image).expect("packed");
            packer.finish().expect("packed")
        }
        Packing::Xz => {
            let mut builder = MtStreamBuilder::new();
            builder
                .threads(2)
                .block_size(50_000)
                .preset(0)
                .check(Check::Crc64);
            let stream = builder.encoder().expect("an encoder");
            let mut packer = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            packer.write_all(image).expect("packed");
            packer.finish().expect("packed")
        }
        Packing::Zstd => {
            let mut packer = ::zstd::stream::write::Encoder::new(Vec::new(), 1).expect("a packer");
            packer.include_checksum(true).expect("an option");
            packer.write_all(image).expect("packed");
            packer.finish().expect("packed")
        }
        Packing::Bzip2 => {
            let level = ::bzip2::Compression::fast();
            let mut packer = ::bzip2::write::BzEncoder::new(Vec::new(), level);
            packer.write_all(image).expect("packed");
            packer.finish().expect("packed")
        }
    }
}

pub(super) fn memory(bytes: &[u8]) -> Packed {
    Packed::Device(Arc::new(MemoryDevice::from_bytes(bytes)))
}

/// A stream that brings what it has, and says when it is gone.
struct Given {
    name: Arc<str>,
    bytes: Vec<u8>,
    /// Whether it comes again and again.
    is_endless: bool,
    gone: Arc<AtomicBool>,
    at: usize,
}

impl Given {
    fn new(bytes: &[u8]) -> Self {
        Self {
            name: "given".into(),
            bytes: bytes.to_vec(),
            is_endless: false,
            gone: Arc::default(),
            at: 0,
        }
    }
}

impl ByteSource for Given {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn read(&mut self, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let mut done = 0;
        while done < buffer.len() {
            if self.is_endless && self.at == self.bytes.len() {
                self.at = 0;
            }
            let rest = &self.bytes[self.at..];
            let count = rest.len().min(buffer.len() - done);
            if count == 0 {
                break;
            }
            buffer[done..done + count].copy_from_slice(&rest[..count]);
            done += count;
            self.at += count;
        }
        buffer.set_len(done);
        Box::pin(async { Ok(buffer) })
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
    }
}

pub(super) async fn open(
    packed: Packed,
    packing: Packing,
    options: &UnpackOptions,
) -> Result<Unpacked> {
    Unpacked::open(packed, packing, options).await
}

/// All of it, in reads of these lengths, one after the other.
pub(super) async fn read_all(mut unpacked: Unpacked, lengths: &[usize]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    for length in lengths.iter().cycle() {
        let read = unpacked.read(Buffer::zeroed(*length)).await?;
        whole.extend_from_slice(&read);
        if read.len() < *length {
            let after = unpacked.read(Buffer::zeroed(10)).await?;
            assert!(after.is_empty(), "there is nothing behind the end");
            break;
        }
    }
    Ok(whole)
}

pub(super) async fn unpack(packing: Packing, bytes: &[u8]) -> Result<Vec<u8>> {
    let unpacked = open(memory(bytes), packing, &UnpackOptions::default()).await?;
    read_all(unpacked, &[256 << 10]).await
}

#[tokio::test]
async fn all_that_was_packed_comes_out_in_reads_of_any_length() {
    for packing in Packing::ALL {
        for length in [0, 1, 1000, 256 << 10, 2_000_003] {
            let image = image(length);
            let bytes = packed(packing, &image);
            for lengths in [
                &[256 << 10][..],
                &[1 << 20],
                &[4 << 20],
                &[7777, 100_000],
                &[256 << 10, 512 << 10, 1, 3 << 20],
            ] {
                let options = UnpackOptions::default();
                for from in [memory(&bytes), Packed::Stream(Box::new(Given::new(&bytes)))] {
                    let unpacked = open(from, packing, &options).await.expect("open");
                    assert!(image.starts_with(unpacked.begins_with()));
                    let whole = read_all(unpacked, lengths).await.expect("unpacked");
                    assert!(whole == image, "{packing}, {length} in {lengths:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn members_follow_each_other_and_zeroes_the_last() {
    let image = image(700_000);
    for packing in Packing::ALL {
        let mut bytes = Vec::new();
        for part in [&image[..10], &[], &image[10..500_000], &image[500_000..]] {
            bytes.extend(packed(packing, part));
        }
        assert!(unpack(packing, &bytes).await.expect("unpacked") == image);
        bytes.extend_from_slice(&[0; 1_000_000]);
        assert!(unpack(packing, &bytes).await.expect("unpacked") == image);
    }
    let two = [&image[..300], &image[300..]].map(|part| packed(Packing::Xz, part));
    let padded = [&two[0], &[0; 8][..], &two[1]].concat();
    assert!(unpack(Packing::Xz, &padded).await.expect("unpacked") == image);
    let skipped = b"\x53\x2a\x4d\x18\x05\0\0\0abcde";
    let two = [&image[..300], &image[300..]].map(|part| packed(Packing::Zstd, part));
    let frames = [&skipped[..], &two[0], skipped, &two[1], skipped].concat();
    assert!(unpack(Packing::Zstd, &frames).await.expect("unpacked") == image);
}

#[tokio::test]
async fn a_device_is_read_within_its_limits_and_its_failures_are_told() {
    let image = image(1_000_000);
    let bytes = packed(Packing::Gzip, &image);
    // More than one request.
    let members = 600_000 / bytes.len() + 1;
    let (image, bytes) = (image.repeat(members), bytes.repeat(members));
    for (minimum, maximum) in [
        (1, 100_000),
        (512, 4096),
        (4096, 32 << 20),
        (1 << 20, 1 << 20),
    ] {
        let device = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&bytes)));
        let device = Arc::new(device.with_info(|info| {
            info.limits.minimum = minimum;
            info.limits.maximum = maximum;
        }));
        let from = Packed::Device(Arc::clone(&device) as Arc<dyn BlockDevice>);
        let options = UnpackOptions::default();
        let unpacked = open(from, Packing::Gzip, &options).await.expect("open");
        let whole = read_all(unpacked, &[300_000]).await.expect("unpacked");
        assert!(whole == image, "{minimum}, {maximum}");

        let last = ByteRange::between(bytes.len() as u64 - 1, bytes.len() as u64);
        let rule = Rule::on(Operation::Read).within(last);
        device.add(rule.fault(Fault::Error(ErrorKind::ConnectionLost)));
        let from = Packed::Device(device);
        let failed = match open(from, Packing::Gzip, &options).await {
            Ok(unpacked) => read_all(unpacked, &[300_000]).await.map(drop),
            Err(error) => Err(error),
        };
        assert_eq!(
            failed.expect_err("a fault").kind(),
            ErrorKind::ConnectionLost
        );
    }
}

#[tokio::test]
async fn unpacking_ends_when_nobody_reads_however_much_is_still_to_come() {
    for packing in Packing::ALL {
        let mut endless = Given::new(&packed(packing, &vec![0; 1 << 20]));
        endless.is_endless = true;
        let gone = Arc::clone(&endless.gone);
        let options = UnpackOptions::default();
        let from = Packed::Stream(Box::new(endless));
        let mut unpacked = open(from, packing, &options).await.expect("open");
        let read = unpacked.read(Buffer::zeroed(100)).await.expect("read");
        assert_eq!(read[..], [0; 100]);
        assert!(!gone.load(Ordering::SeqCst));
        drop(unpacked);
        while !gone.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_damaged_or_cut_off_is_never_taken_for_whole(
        place in any::<prop::sample::Index>(),
        flip in 1_u8..,
        is_cut in any::<bool>(),
    ) {
        let image = image(150_001);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for packing in Packing::ALL {
            let mut bytes = packed(packing, &image);
            let at = place.index(bytes.len());
            if is_cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= flip;
            }
            match runtime.block_on(unpack(packing, &bytes)) {
                // A time, a name of the system, an unused bit.
                Ok(whole) => prop_assert!(!is_cut && whole == image, "{packing} at {at}"),
                Err(error) => {
                    let kind = error.kind();
                    let expected = [ErrorKind::Corrupt, ErrorKind::InvalidInput, ErrorKind::Unsupported];
                    prop_assert!(expected.contains(&kind), "{packing} at {at}: {error}");
                }
            }
        }
    }
}
