use std::sync::Arc;

use blockferry_block::{
    Buffer, ByteSource, MemoryDevice, Operation,
    testing::{Fault, FaultyDevice, Rule},
};

use super::*;
use crate::{Packed, UnpackOptions, Unpacked};

fn options(packing: Packing, level: Option<u32>, threads: usize) -> PackOptions {
    PackOptions {
        packing,
        level,
        threads,
    }
}

/// Noise, zeroes and text, in runs that end anywhere.
fn image(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut state = 7_u64;
    for (number, part) in bytes.chunks_mut(300_007).enumerate() {
        match number % 4 {
            0 => part.fill_with(|| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            }),
            1 => part
                .iter_mut()
                .zip(b"some words, ".iter().cycle())
                .for_each(|(to, from)| *to = *from),
            _ => {}
        }
    }
    bytes
}

/// Packs `image` in writes of `length` bytes into a device that had something in it.
async fn packed(image: &[u8], options: &PackOptions, length: usize) -> Vec<u8> {
    let device = Arc::new(MemoryDevice::from_bytes([7; 100_000]).growable());
    let (mut sink, unfinished) = pack(PackTarget::Device(device.clone()), options).expect("begun");
    for part in image.chunks(length) {
        sink.write(Buffer::from(part)).await.expect("written");
    }
    sink.flush().await.expect("flushed");
    unfinished.finish().await.expect("finished");
    device.contents()
}

async fn unpacked(bytes: &[u8], packing: Packing) -> Vec<u8> {
    let device = Arc::new(MemoryDevice::from_bytes(bytes));
    let options = UnpackOptions::default();
    let unpacked = Unpacked::open(Packed::Device(device), packing, &options).await;
    let mut unpacked = unpacked.expect("open");
    let mut whole = Vec::new();
    loop {
        let read = unpacked.read(Buffer::zeroed(1 << 20)).await.expect("read");
        whole.extend_from_slice(&read);
        if read.len() < 1 << 20 {
            return whole;
        }
    }
}

#[tokio::test]
async fn what_is_packed_is_unpacked_again_whatever_the_writes_are() {
    for packing in [Packing::Gzip, Packing::Zstd] {
        for length in [0, 1, 65_280, 1_044_479, 1_044_480, 2 << 20, 9_000_001] {
            let image = image(length);
            let mut files = Vec::new();
            for (threads, write) in [(1, 256 << 10), (3, 1 << 20), (0, 77_777)] {
                let options = options(packing, None, threads);
                files.push(packed(&image, &options, write).await);
            }
            assert!(
                unpacked(&files[0], packing).await == image,
                "{packing}, {length}"
            );
            // Neither the threads nor the writes show.
            assert!(
                files[0] == files[1] && files[0] == files[2],
                "{packing}, {length}"
            );
        }
    }
}

#[tokio::test]
async fn every_level_makes_the_same_disk() {
    let image = image(2_500_000);
    for (packing, levels) in [(Packing::Gzip, 1..=9), (Packing::Zstd, 1..=22)] {
        let mut sizes = Vec::new();
        for level in levels.clone().step_by(4) {
            let bytes = packed(&image, &options(packing, Some(level), 2), 1 << 20).await;
            assert!(
                unpacked(&bytes, packing).await == image,
                "{packing}, {level}"
            );
            sizes.push(bytes.len());
        }
        assert!(sizes[0] > sizes[sizes.len() - 1], "{packing}: {sizes:?}");
        for level in [0, levels.end() + 1] {
            let device = Arc::new(MemoryDevice::new(0).growable());
            let refused = pack(
                PackTarget::Device(device),
                &options(packing, Some(level), 1),
            );
            let refused = refused.map(drop).expect_err("no such level");
            assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        }
    }
    for packing in [Packing::Xz, Packing::Bzip2] {
        let device = Arc::new(MemoryDevice::new(0).growable());
        let refused = pack(PackTarget::Device(device), &PackOptions::new(packing));
        assert!(refused.is_err());
    }
}

#[tokio::test]
async fn zeroes_cost_next_to_nothing() {
    let zeroes = vec![0; 64 << 20];
    let gzip = packed(&zeroes, &options(Packing::Gzip, None, 2), 1 << 20).await;
    assert!(gzip.len() < zeroes.len() / 500, "{}", gzip.len());
    let zstd = packed(&zeroes, &options(Packing::Zstd, None, 2), 1 << 20).await;
    assert!(zstd.len() < zeroes.len() / 10_000, "{}", zstd.len());
    assert!(unpacked(&zstd, Packing::Zstd).await == zeroes);
}

#[tokio::test]
async fn what_cannot_be_written_fails_the_write_or_the_end() {
    let image = image(9_000_001);
    for packing in [Packing::Gzip, Packing::Zstd] {
        for (operation, after) in [
            (Operation::Write, 0),
            (Operation::Write, 2),
            (Operation::Resize, 0),
            (Operation::Flush, 0),
        ] {
            let device = FaultyDevice::new(Arc::new(MemoryDevice::new(0).growable()));
            device.add(
                Rule::on(operation)
                    .after(after)
                    .fault(Fault::Error(ErrorKind::NoSpace)),
            );
            let target = PackTarget::Device(Arc::new(device));
            let (mut sink, unfinished) = pack(target, &options(packing, None, 2)).expect("begun");
            let mut failed = None;
            for part in image.chunks(1 << 20) {
                if let Err(error) = sink.write(Buffer::from(part)).await {
                    failed = Some(error);
                    break;
                }
            }
            let ended = unfinished.finish().await.expect_err("not whole");
            let first = failed.unwrap_or(ended);
            assert_eq!(
                first.kind(),
                ErrorKind::NoSpace,
                "{packing}, {operation:?}: {first}"
            );
        }
    }
}
